//! The plane in a small network: real packets, a process that is killed, a real that drains.

#![allow(clippy::unwrap_used, reason = "a test says so by panicking")]

mod lab;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use aya::maps::{Array, Map, MapData};
use imbl::{OrdMap, OrdSet};
use lab::{Lab, Namespace};
use tidegate_ebpf::abi::{Settings, map};
use tidegate_l4::{
    Config, Frontend, Input, Protocol, Real, RealState, Report, Service,
    see::{
        explain::{Explainer, Outcome, Question, Reasoning},
        flows,
    },
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const V4: &str = "10.77.100.1:80";
const V6: &str = "[fd77:0:100::1]:80";
const PATIENCE: Duration = Duration::from_secs(10);

/// Not a test: the plane in a process of its own. Inputs come as lines, reports leave as lines.
#[test]
fn plane_process() {
    let Ok(pin_dir) = std::env::var("L4_TEST_PIN_DIR") else { return };
    let config = Config {
        pin_dir: pin_dir.into(),
        local_addresses: vec!["10.77.101.1".parse().unwrap(), "fd77:0:101::1".parse().unwrap()],
        interfaces: vec![std::env::var("L4_TEST_INTERFACE").unwrap_or_else(|_| "eth0".into())],
        ..Config::default()
    };
    let (input, inputs) = watch::channel(Arc::new(Input::default()));
    thread::spawn(move || {
        for line in std::io::stdin().lines() {
            input.send_replace(Arc::new(parse(&line.unwrap())));
        }
        std::process::exit(0);
    });
    let (report, mut reports) = watch::channel(Arc::new(Report::default()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.spawn(async move {
        while reports.changed().await.is_ok() {
            let report = reports.borrow_and_update().clone();
            let mut live: BTreeMap<IpAddr, u64> = BTreeMap::new();
            let tcp = report.services.iter().filter(|(frontend, _)| frontend.protocol == Protocol::Tcp);
            for real in tcp.flat_map(|(_, service)| &service.reals) {
                live.extend(real.live.map(|count| (real.address, count)));
            }
            let flows: u64 = report.services.values().map(|service| service.flows).sum();
            let tcp = report.drains.iter().filter(|drained| drained.frontend.protocol == Protocol::Tcp);
            let drains: Vec<String> = tcp.map(|drained| format!("{} cut {}", drained.real, drained.cut)).collect();
            println!(
                "\nREPORT generation={} refused={} flows={flows} live={live:?} drains={drains:?} drops={:?} problems={:?}",
                report.generation,
                report.refused.is_some(),
                report.drops.iter().filter(|(_, count)| *count > 0).collect::<Vec<_>>(),
                report.problems,
            );
        }
    });
    if let Err(error) = runtime.block_on(tidegate_l4::run(config, inputs, report, CancellationToken::new())) {
        println!("\nREPORT failed: {error:#}");
    }
}

/// `GENERATION tcp@VIP:PORT=REAL:PORT/a,REAL:PORT/d ...`
fn parse(line: &str) -> Input {
    let mut words = line.split_whitespace();
    let mut input = Input { generation: words.next().unwrap().parse().unwrap(), ..Input::default() };
    let mut announce = OrdSet::new();
    let mut services = OrdMap::new();
    for word in words {
        let (front, reals) = word.split_once('=').unwrap();
        let (protocol, front) = front.split_once('@').unwrap();
        let front: SocketAddr = front.parse().unwrap();
        let protocol = if protocol == "tcp" { Protocol::Tcp } else { Protocol::Udp };
        let real = |text: &str| {
            let (address, state) = text.split_once('/').unwrap();
            let address: SocketAddr = address.parse().unwrap();
            let state = if state == "a" { RealState::Active } else { RealState::Draining };
            Real { address: address.ip(), port: address.port(), weight: 1, state }
        };
        let reals = reals.split(',').filter(|text| !text.is_empty()).map(real).collect();
        announce.insert(front.ip());
        services.insert(
            Frontend { vip: front.ip(), port: front.port(), protocol },
            Arc::new(Service { reals, ..Service::default() }),
        );
    }
    input.announce = announce;
    input.services = services;
    input
}

/// All four front ends on the given reals (`a` active, `d` draining, anything else absent), in the order a, b.
fn services(states: [char; 2]) -> String {
    let line = |family: [&str; 2]| {
        let reals = family.iter().zip(states).filter(|(_, state)| "ad".contains(*state));
        reals.map(|(address, state)| format!("{address}:8080/{state}")).collect::<Vec<_>>().join(",")
    };
    let (v4, v6) = (line(["10.77.1.1", "10.77.1.2"]), line(["[fd77:0:1::1]", "[fd77:0:1::2]"]));
    format!("tcp@{V4}={v4} udp@{V4}={v4} tcp@{V6}={v6} udp@{V6}={v6}")
}

struct Plane {
    child: Child,
    stdin: ChildStdin,
    reports: mpsc::Receiver<String>,
}

impl Plane {
    fn start(lab: &Lab) -> Self {
        Self::start_on(lab, "eth0")
    }

    fn start_on(lab: &Lab, interface: &'static str) -> Self {
        let pin_dir = lab.pin_dir.clone();
        let mut child = lab.appliance.run(move || {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "plane_process", "--nocapture"])
                .env("L4_TEST_PIN_DIR", pin_dir)
                .env("L4_TEST_INTERFACE", interface)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        });
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, reports) = mpsc::channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if let Some(report) = line.strip_prefix("REPORT ") {
                    let _ = sender.send(report.to_owned());
                }
            }
        });
        Self { child, stdin, reports }
    }

    fn give(&mut self, generation: u64, services: &str) {
        writeln!(self.stdin, "{generation} {services}").unwrap();
        self.until(&format!("generation={generation} "));
    }

    /// Waits for a report that holds this text.
    fn until(&self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut last = String::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            last = match self.reports.recv_timeout(left) {
                Ok(report) if report.contains(text) => return report,
                Ok(report) => report,
                Err(error) => panic!("no report says {text:?} ({error}), the last one: {last}"),
            };
        }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Servers that say who they are and then echo, on TCP and UDP, IPv4 and IPv6.
fn serve(namespace: &Namespace, name: u8) {
    namespace.run(move || {
        let listener = TcpListener::bind("[::]:8080").unwrap();
        let socket = UdpSocket::bind("[::]:8080").unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                thread::spawn(move || -> std::io::Result<()> {
                    stream.write_all(&[name])?;
                    let mut back = stream.try_clone()?;
                    std::io::copy(&mut stream, &mut back)?;
                    back.shutdown(Shutdown::Write)
                });
            }
        });
        thread::spawn(move || {
            let mut buffer = [0; 2048];
            loop {
                let (length, from) = socket.recv_from(&mut buffer[1..]).unwrap();
                buffer[0] = name;
                socket.send_to(&buffer[..=length], from).unwrap();
            }
        });
    });
}

struct Connection {
    stream: TcpStream,
    real: u8,
}

impl Connection {
    fn open(client: &Namespace, to: &str) -> std::io::Result<Self> {
        let to: SocketAddr = to.parse().unwrap();
        client.run(move || {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut real = [0];
            stream.read_exact(&mut real)?;
            Ok(Self { stream, real: real[0] })
        })
    }

    /// There and back, all at once, byte for byte.
    fn echo(&mut self, length: usize) {
        let sent: Vec<u8> = (0..length).map(|i| (i * 7 + i / 251) as u8).collect();
        let mut writer = self.stream.try_clone().unwrap();
        let copy = sent.clone();
        let writing = thread::spawn(move || writer.write_all(&copy).unwrap());
        let mut got = vec![0; length];
        self.stream.read_exact(&mut got).unwrap();
        writing.join().unwrap();
        assert!(got == sent, "the echo differs");
    }

    /// Closes, and waits until the real has closed too.
    fn close(mut self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty());
    }
}

/// One connection to each real.
fn both(client: &Namespace, to: &str) -> [Connection; 2] {
    let mut found: BTreeMap<u8, Connection> = BTreeMap::new();
    for _ in 0..64 {
        let connection = Connection::open(client, to).unwrap();
        found.entry(connection.real).or_insert(connection);
        if found.len() == 2 {
            break;
        }
    }
    let found: Vec<Connection> = found.into_values().collect();
    found.try_into().unwrap_or_else(|_| panic!("64 connections all went to one real"))
}

fn udp(client: &Namespace, to: &str, length: usize) -> u8 {
    let to: SocketAddr = to.parse().unwrap();
    client.run(move || {
        let any: IpAddr = if to.is_ipv4() { "0.0.0.0".parse().unwrap() } else { "::".parse().unwrap() };
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect(to).unwrap();
        let sent = vec![0x5a; length];
        let mut got = [0; 2048];
        socket.send(&sent).unwrap();
        let received = socket.recv(&mut got).unwrap();
        assert_eq!(&got[1..received], &sent[..]);
        got[0]
    })
}

fn lab() -> Lab {
    let lab = Lab::new();
    serve(&lab.reals[0], b'a');
    serve(&lab.reals[1], b'b');
    lab
}

#[test]
fn balances_tcp_and_udp_over_both_families() {
    if lab::skip() {
        return;
    }
    let lab = lab();
    let mut plane = Plane::start(&lab);
    plane.give(1, &services(['a', 'a']));
    for vip in [V4, V6] {
        for mut connection in both(&lab.client, vip) {
            connection.echo(10);
            connection.echo(1_000_000);
            connection.close();
        }
        let mut seen: Vec<u8> = (0..64).map(|i| udp(&lab.client, vip, 1 + i * 20)).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, b"ab");
    }
    plane.kill();
}

#[test]
fn connections_outlive_a_kill_and_a_restart() {
    if lab::skip() {
        return;
    }
    let lab = lab();
    let mut plane = Plane::start(&lab);
    plane.give(1, &services(['a', 'a']));
    let mut old: Vec<Connection> = [V4, V6].iter().flat_map(|vip| both(&lab.client, vip)).collect();
    old.iter_mut().for_each(|connection| connection.echo(100_000));
    plane.kill();
    // Nobody is there, and everything goes on.
    old.iter_mut().for_each(|connection| connection.echo(100_000));
    Connection::open(&lab.client, V4).unwrap().echo(100_000);
    assert!(b"ab".contains(&udp(&lab.client, V6, 100)));
    knows_its_flow(&lab, &old[0]);

    let mut plane = Plane::start(&lab);
    plane.until("generation=0 ");
    knows_its_flow(&lab, &old[0]);
    old.iter_mut().for_each(|connection| connection.echo(100_000));
    plane.give(1, &services(['a', 'a']));
    old.iter_mut().for_each(|connection| connection.echo(100_000));
    Connection::open(&lab.client, V6).unwrap().echo(100_000);
    // The counters are older than the process.
    let report = plane.until("flows=");
    assert!(!report.contains("flows=0 "), "{report}");
    plane.kill();
}

/// The program that is attached, asked about the next packet of a connection.
fn knows_its_flow(lab: &Lab, connection: &Connection) {
    let (client, vip): (SocketAddr, SocketAddr) = (connection.stream.local_addr().unwrap(), V4.parse().unwrap());
    let question = Question {
        client,
        frontend: Frontend { vip: vip.ip(), port: vip.port(), protocol: Protocol::Tcp },
        opens: false,
    };
    let folder = lab.pin_dir.clone();
    let said = lab.appliance.run(move || Explainer::open(&folder, None).unwrap().ask(&question).unwrap());
    assert_eq!((said.interface.as_str(), said.why), ("eth0", Reasoning::Flow), "{said}");
    assert_eq!(said.outcome, Outcome::Forwarded { interface: "eth0".to_owned() }, "{said}");
    let filter = flows::Filter { client: Some(client.ip()), ..flows::Filter::default() };
    let listing = flows::list(&lab.pin_dir, &filter, usize::MAX).unwrap();
    let line = listing.shown.iter().find(|line| line.client == client).expect("the flow is listed");
    assert_eq!((Some(line.real), line.state), (said.real.map(|real| real.address), "open"));
}

#[test]
fn maps_of_another_layout_are_refused_with_a_reason_and_serve_on() {
    if lab::skip() {
        return;
    }
    let lab = lab();
    let mut plane = Plane::start(&lab);
    plane.give(1, &services(['a', 'a']));
    let [mut old, _] = both(&lab.client, V4);
    plane.kill();
    let settings = lab.pin_dir.join(map::SETTINGS);
    let layout = |to: u32| {
        let mut map: Array<_, Settings> = Map::Array(MapData::from_pin(&settings).unwrap()).try_into().unwrap();
        let before = map.get(&0, 0).unwrap();
        map.set(0, Settings { layout: to, ..before }, 0).unwrap();
        before.layout
    };
    let before = layout(99);
    let plane = Plane::start(&lab);
    let report = plane.until("failed: ");
    assert!(report.contains("layout 99") && report.contains("tidegate l4 remove"), "{report}");
    plane.kill();
    old.echo(100_000);
    Connection::open(&lab.client, V6).unwrap().echo(100_000);

    layout(before);
    let mut plane = Plane::start(&lab);
    plane.give(1, &services(['a', 'a']));
    old.echo(100_000);
    plane.kill();
}

#[test]
fn a_draining_real_keeps_its_connections_and_gets_no_new_ones() {
    if lab::skip() {
        return;
    }
    let lab = lab();
    let mut plane = Plane::start(&lab);
    plane.give(1, &services(['a', 'a']));
    let [mut on_a, on_b] = both(&lab.client, V4);
    let [mut stays, also_b] = both(&lab.client, V6);
    assert_eq!((on_a.real, stays.real), (b'a', b'a'));
    on_b.close();
    also_b.close();

    plane.give(2, &services(['d', 'a']));
    for vip in [V4, V6] {
        for _ in 0..32 {
            let connection = Connection::open(&lab.client, vip).unwrap();
            assert_eq!(connection.real, b'b');
            assert_eq!(udp(&lab.client, vip, 10), b'b');
        }
    }
    on_a.echo(200_000);
    plane.until("live={10.77.1.1: 1, ");
    on_a.close();
    plane.until("live={10.77.1.1: 0, ");
    plane.until("fd77:0:1::1: 1, ");

    // Gone from the Input, and still its connection goes on.
    plane.give(3, &services(['-', 'a']));
    plane.until("10.77.1.1:8080 cut 0");
    plane.until("[fd77:0:1::1]:8080 cut 1");
    stays.echo(200_000);
    stays.close();
    plane.kill();
}

#[test]
fn a_service_without_active_reals_refuses_at_once_and_comes_back() {
    if lab::skip() {
        return;
    }
    let lab = lab();
    let mut plane = Plane::start(&lab);
    plane.give(1, &services(['-', '-']));
    for vip in [V4, V6] {
        let refused = Connection::open(&lab.client, vip).err().map(|error| error.kind());
        assert_eq!(refused, Some(ErrorKind::ConnectionRefused));
    }
    plane.give(2, &services(['-', 'a']));
    for vip in [V4, V6] {
        assert_eq!(Connection::open(&lab.client, vip).unwrap().real, b'b');
    }
    plane.kill();
}

#[test]
fn a_bad_input_changes_nothing_and_removal_leaves_nothing() {
    if lab::skip() {
        return;
    }
    let lab = lab();
    let mut plane = Plane::start(&lab);
    plane.give(5, &services(['a', '-']));
    let mut open = Connection::open(&lab.client, V4).unwrap();
    writeln!(plane.stdin, "4 {}", services(['-', 'a'])).unwrap();
    plane.until("generation=5 refused=true");
    writeln!(plane.stdin, "6 tcp@{V4}=[fd77:0:1::1]:8080/a").unwrap();
    plane.until("generation=5 refused=true");
    open.echo(1000);
    assert_eq!(Connection::open(&lab.client, V4).unwrap().real, b'a');
    plane.give(7, &services(['a', 'a']));
    plane.kill();

    let config = Config { pin_dir: lab.pin_dir.clone(), ..Config::default() };
    let left = lab.appliance.run(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(tidegate_l4::remove(&config)).unwrap();
        let output = Command::new("ip").args(["-o", "addr"]).output().unwrap();
        (String::from_utf8(output.stdout).unwrap(), config.pin_dir.exists())
    });
    assert!(left.0.contains("10.77.0.1/16") && !left.0.contains("10.77.10"), "{}", left.0);
    assert!(!left.0.contains("fd77:0:1"), "{}", left.0);
    assert!(!left.1, "the pins are still there");
}

#[test]
fn a_missing_interface_is_named_with_those_that_exist() {
    if lab::skip() {
        return;
    }
    let lab = Lab::new();
    let plane = Plane::start_on(&lab, "eth7");
    let report = plane.until("failed: ");
    assert!(report.contains("eth7") && report.contains("lo, eth0"), "{report}");
    plane.kill();
}
