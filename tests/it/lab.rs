//! The lab itself: what stories lean on must be seen to hold.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    time::{Duration, Instant},
};

use tidegate_tests::lab::{self, Fabric, Mapping, Mounts, Ns, Protocol, Task, addresses};

/// Polls until the answer is yes.
fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !check() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn echo_once(listener: &TcpListener) {
    let (mut stream, _) = listener.accept().unwrap();
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes).unwrap();
    stream.write_all(&bytes).unwrap();
}

fn says_back(at: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect_timeout(&at, Duration::from_secs(2)) else { return false };
    stream.write_all(b"ping").unwrap();
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes).is_ok() && bytes == *b"ping"
}

#[test]
fn machines_reach_each_other_over_both_families() {
    if !lab::require() {
        return;
    }
    let fabric = Fabric::new().unwrap();
    let client = fabric.host("client", addresses::CLIENT).unwrap();
    let server = fabric.appliance("appliance", addresses::APPLIANCE).unwrap();
    for address in server.addresses() {
        let at = SocketAddr::new(address, 8080);
        let listener = server.ns.run(|| TcpListener::bind(at).unwrap());
        std::thread::scope(|scope| {
            scope.spawn(|| echo_once(&listener));
            assert!(client.ns.run(|| says_back(at)), "{at}");
        });
    }
}

#[test]
fn labs_with_the_same_addresses_live_side_by_side() {
    if !lab::require() {
        return;
    }
    let labs: Vec<_> = (0..4)
        .map(|n: u8| {
            let fabric = Fabric::new().unwrap();
            let client = fabric.host("client", addresses::CLIENT).unwrap();
            let server = fabric.host("server", addresses::HOST_A).unwrap();
            let at = SocketAddr::new(server.v4.into(), 9000);
            let listener = server.ns.run(|| TcpListener::bind(at).unwrap());
            let task = std::thread::spawn(move || listener.accept().unwrap().0.write_all(&[n]).unwrap());
            (n, fabric, client, server, at, task)
        })
        .collect();
    for (n, _fabric, client, _server, at, task) in labs {
        let mut byte = [0];
        client.ns.run(|| TcpStream::connect(at).unwrap().read_exact(&mut byte).unwrap());
        assert_eq!(byte, [n], "the answer of another lab");
        task.join().unwrap();
    }
}

#[test]
fn async_tasks_of_a_namespace_open_their_sockets_in_it() {
    if !lab::require() {
        return;
    }
    let ns = Ns::new().unwrap();
    let inside = ns.block_on(async { tokio::net::TcpListener::bind("127.0.0.1:1").await });
    assert!(inside.is_ok(), "port 1 of a new namespace is free: {inside:?}");
    let lookup = ns.block_on(async { tokio::net::lookup_host("localhost:1").await.map(Iterator::count) });
    assert!(lookup.unwrap() > 0, "blocking threads work too");
}

#[test]
fn a_task_runs_on_the_host_behind_it_and_beside_it() {
    if !lab::require() {
        return;
    }
    let fabric = Fabric::new().unwrap();
    let client = fabric.host("client", addresses::CLIENT).unwrap();
    let agent = fabric.agent("host-a", addresses::HOST_A).unwrap();
    let host: IpAddr = agent.host.v4.into();
    // The sleeping process stands for the task; the test itself serves in the task's namespace.
    let task = Task { program: "sleep".into(), args: vec!["60".to_owned()], ..Task::default() };
    let udp = Mapping { host: 31001, container: 53, protocol: Protocol::Udp };
    let tcp = Mapping { host: 31000, container: 8080, protocol: Protocol::Tcp };
    let cases = [
        ("host", agent.spawn_host(&task).unwrap(), 31002, SocketAddr::new(host, 31002)),
        ("bridge", agent.spawn_bridged(&task, &[tcp, udp]).unwrap(), 8080, SocketAddr::new(host, 31000)),
        {
            let running = agent.spawn_container(&task).unwrap();
            let at = SocketAddr::new(running.addresses[1], 8080);
            ("container", running, 8080, at)
        },
    ];
    for (mode, running, port, at) in &cases {
        let listener = running.ns.run(|| TcpListener::bind(("::", *port)).unwrap());
        std::thread::scope(|scope| {
            scope.spawn(|| echo_once(&listener));
            eventually(mode, || client.ns.run(|| says_back(*at)));
        });
    }
    let (_, bridged, ..) = &cases[1];
    let socket = bridged.ns.run(|| UdpSocket::bind("0.0.0.0:53").unwrap());
    let asker = client.ns.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    asker.send_to(b"x", (host, 31001)).unwrap();
    let (_, from) = socket.recv_from(&mut [0; 9]).unwrap();
    socket.send_to(b"y", from).unwrap();
    assert_eq!(
        asker.recv_from(&mut [0; 9]).unwrap().1,
        SocketAddr::new(host, 31001),
        "the answer comes from the agent"
    );
}

#[test]
fn a_mapped_port_is_free_again_when_its_task_is_gone() {
    if !lab::require() {
        return;
    }
    let agent = Fabric::new().unwrap().agent("host-a", addresses::HOST_A).unwrap();
    let task = Task { program: "sleep".into(), args: vec!["60".to_owned()], ..Task::default() };
    let mapping = Mapping { host: 31000, container: 8080, protocol: Protocol::Tcp };
    let first = agent.spawn_bridged(&task, &[mapping]).unwrap();
    assert!(agent.spawn_bridged(&task, &[mapping]).is_err(), "two tasks cannot have one port");
    drop(first);
    agent.spawn_bridged(&task, &[mapping]).unwrap();
}

#[test]
fn a_panic_leaves_no_process_and_no_namespace_behind() {
    if !lab::require() {
        return;
    }
    let mut left = None;
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let fabric = Fabric::new().unwrap();
        let agent = fabric.agent("host-a", addresses::HOST_A).unwrap();
        let mut sleep = Command::new("sleep");
        sleep.arg("60");
        let process = agent.ns().start(sleep).unwrap();
        let inode = agent.ns().run(|| std::fs::read_link("/proc/thread-self/ns/net").unwrap());
        left = Some((process.pid(), inode));
        // Forgotten, so that only the end of the namespace's thread can end the process.
        std::mem::forget(process);
        panic!("as a failing test does");
    }));
    assert!(result.is_err());
    let (pid, inode) = left.unwrap();
    eventually("the process is gone", || !std::path::Path::new(&format!("/proc/{pid}")).exists());
    eventually("no thread or handle is in the namespace", || {
        let ours = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let threads = ours.map(|task| std::fs::read_link(task.path().join("ns/net")));
        let handles = std::fs::read_dir("/proc/self/fd").unwrap().flatten().map(|fd| std::fs::read_link(fd.path()));
        threads.chain(handles).flatten().all(|link| link != inode)
    });
}

#[test]
fn what_is_pinned_and_stored_by_an_appliance_is_seen_by_nobody_else() {
    if !lab::require() {
        return;
    }
    let (ns, ours, others) = (Ns::new().unwrap(), Mounts::new().unwrap(), Mounts::new().unwrap());
    let run = |mounts: &Mounts, script: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        mounts.enter(&mut command);
        ns.start(command).unwrap().wait(Duration::from_secs(10)).unwrap().success()
    };
    assert!(run(&ours, "mkdir /sys/fs/bpf/tidegate-lab-test /var/lib/tidegate-lab-test"));
    assert!(run(&ours, "test -d /sys/fs/bpf/tidegate-lab-test && test -d /var/lib/tidegate-lab-test"), "it stays");
    assert!(run(&others, "! test -e /sys/fs/bpf/tidegate-lab-test && ! test -e /var/lib/tidegate-lab-test"));
    for path in ["/sys/fs/bpf/tidegate-lab-test", "/var/lib/tidegate-lab-test"] {
        assert!(!std::path::Path::new(path).exists(), "{path}");
    }
}
