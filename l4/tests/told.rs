//! Applications that are told who their client is: in a cgroup of their own, without knowing of it.

#![allow(clippy::unwrap_used, reason = "a test says so by panicking")]

mod lab;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use aya::programs::{
    links::{FdLink, PinnedLink},
    loaded_programs,
};
use lab::{
    Lab, Namespace,
    plane::{LOCALS, Plane, input},
    segments::handshake,
};
use tidegate_l4::{
    ClientAddress, Service,
    real::{Join, join, leave, show},
};

const PATIENCE: Duration = Duration::from_secs(10);
const VIPS: [&str; 2] = ["10.77.100.1", "fd77:0:100::1"];
/// Where from and where to, what the SYN and the last segment of the handshake say, and who is seen.
type Case = (&'static str, &'static str, &'static [u8], &'static [u8], &'static str);
/// What a balancer's connections come from; a stranger's.
const SOURCES: [&str; 4] = ["10.77.101.1", "10.77.201.1", "fd77:0:101::1", "fd77:0:201::1"];

/// Not a test: a server in a process and a cgroup of its own. It says whom it takes for its clients.
#[test]
fn server_process() {
    let Ok(cgroup) = std::env::var("REAL_TEST_CGROUP") else { return };
    fs::write(PathBuf::from(cgroup).join("cgroup.procs"), "0").unwrap();
    // Some listen at once, others when they are told to.
    for ports in [["[::]:81", "0.0.0.0:82"], ["[::]:8080", "0.0.0.0:84"]] {
        for at in ports {
            let listener = TcpListener::bind(at).unwrap();
            thread::spawn(move || {
                // Kept open, so that nothing but the handshake is said.
                let mut open = Vec::new();
                while let Ok((stream, from)) = listener.accept() {
                    assert_eq!(stream.peer_addr().unwrap(), from);
                    println!("\nSERVER {from}");
                    open.push(stream);
                }
            });
        }
        println!("\nSERVER listens");
        std::io::stdin().read_line(&mut String::new()).unwrap();
    }
}

/// A cgroup, and a server in it.
struct Server {
    cgroup: PathBuf,
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Server {
    /// Where it can be. Says why not, and fails instead when `LAB_REQUIRE=1`.
    fn start(namespace: &Namespace) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let all = mounts.lines().map(|line| line.split(' ')).find(|line| line.clone().nth(2) == Some("cgroup2"));
        let name = format!("tidegate-test-{}-{count}", std::process::id());
        let cgroup = all.and_then(|mut line| line.nth(1)).map(|all| PathBuf::from(all).join(name));
        let Some(cgroup) = cgroup.filter(|cgroup| fs::create_dir(cgroup).is_ok()) else {
            assert!(std::env::var("LAB_REQUIRE").as_deref() != Ok("1"), "LAB_REQUIRE=1, but: no cgroups of version 2");
            println!("SKIP no cgroups of version 2");
            return None;
        };
        let told = cgroup.clone();
        let mut child = namespace.run(move || {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "server_process", "--nocapture"])
                .env("REAL_TEST_CGROUP", told)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        });
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if let Some(line) = line.strip_prefix("SERVER ") {
                    let _ = sender.send(line.to_owned());
                }
            }
        });
        let server = Self { cgroup, child, lines };
        assert_eq!(server.line(), "listens");
        Some(server)
    }

    /// Has it listen at ports 8080 and 84, too.
    fn listen_more(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        assert_eq!(self.line(), "listens");
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("the server says something")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir(&self.cgroup);
    }
}

/// Gone when the test fails, too.
struct Pins(PathBuf);

impl Pins {
    fn join(real: &Namespace, server: &Server) -> Self {
        let pins = Self(lab::pin_dir());
        Self::join_at(real, server, &pins.0);
        pins
    }

    fn join_at(real: &Namespace, server: &Server, folder: &Path) {
        let wish = Join {
            vips: VIPS.iter().map(|vip| vip.parse().unwrap()).collect(),
            interface: Some("eth0".into()),
            from: vec!["10.77.101.0/24".parse().unwrap(), "fd77:0:101::/64".parse().unwrap()],
            toa: Some(server.cgroup.clone()),
            folder: folder.to_owned(),
            ..Join::default()
        };
        real.run(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            assert!(runtime.block_on(join(&wish)).unwrap().toa);
        });
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What the kernel thinks of the program that reads options: it may use every helper, and was read in a moment.
fn verified(folder: &Path) {
    let link: FdLink = PinnedLink::from_pin(folder.join("learn")).unwrap().into();
    let id = link.info().unwrap().program_id();
    let program = loaded_programs().map(Result::unwrap).find(|program| program.id() == id).unwrap();
    assert_eq!(program.gpl_compatible(), Some(true));
    // Two walks over the options, each of which would be half a million instructions if it were made option by option.
    let read = program.verified_instruction_count().unwrap_or_default();
    assert!(read < 200_000, "{read} instructions were verified");
}

fn mac(namespace: &Namespace) -> String {
    namespace.run(|| {
        let output = Command::new("ip").args(["-br", "link", "show", "dev", "eth0"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().split_whitespace().nth(2).unwrap().to_owned()
    })
}

#[test]
fn an_application_takes_the_told_client_for_its_own() {
    if lab::skip() {
        return;
    }
    let lab = Lab::new();
    let real = &lab.reals[0];
    let Some(mut server) = Server::start(real) else { return };
    for (namespace, others, at) in [(real, &SOURCES[..], mac(&lab.client)), (&lab.client, &VIPS[..], mac(real))] {
        for other in others {
            namespace.ip(&format!("neigh replace {other} lladdr {at} dev eth0 nud permanent"));
        }
    }
    let Pins(folder) = &Pins::join(real, &server);
    // Once more: the new programs know what the old ones were told.
    Pins::join_at(real, &server, folder);
    verified(folder);
    server.listen_more();
    let mut port = 5000;
    let mut seen = |from: &str, to: &str, syn: &'static [u8], ack: &'static [u8]| {
        port += 1;
        handshake(&lab.client, SocketAddr::new(from.parse().unwrap(), port), to.parse().unwrap(), syn, ack);
        server.line().replace(&format!(":{port}"), ":PORT")
    };
    const V4: &[u8] = &[254, 8, 0x0f, 0xa0, 192, 0, 2, 7];
    const LATER: &[u8] = &[1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 254, 8, 0x0f, 0xa0, 192, 0, 2, 7];
    const OTHER: &[u8] = &[254, 8, 0x0f, 0xa1, 192, 0, 2, 8];
    const V6: &[u8] = &[254, 20, 0x0f, 0xa0, 0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
    let cases: [Case; 17] = [
        ("10.77.101.1", "10.77.100.1:81", &[], V4, "[::ffff:192.0.2.7]:4000"),
        ("10.77.101.1", "10.77.100.1:82", &[], V4, "192.0.2.7:4000"),
        ("10.77.101.1", "10.77.100.1:82", V4, LATER, "192.0.2.7:4000"),
        ("fd77:0:101::1", "[fd77:0:100::1]:81", V6, V6, "[2001:db8::7]:4000"),
        // The SYN alone: of use to a server that began to listen afterwards.
        ("10.77.101.1", "10.77.100.1:8080", V4, &[], "[::ffff:192.0.2.7]:4000"),
        ("10.77.101.1", "10.77.100.1:84", LATER, &[], "192.0.2.7:4000"),
        ("fd77:0:101::1", "[fd77:0:100::1]:8080", V6, &[], "[2001:db8::7]:4000"),
        ("10.77.101.1", "10.77.100.1:82", V4, &[], "10.77.101.1:PORT"),
        // A balancer writes last what it knows best.
        ("10.77.101.1", "10.77.100.1:84", OTHER, V4, "192.0.2.7:4000"),
        // Nobody is told: as they come.
        ("10.77.101.1", "10.77.100.1:84", &[], &[], "10.77.101.1:PORT"),
        ("10.77.101.1", "10.77.100.1:84", &[254, 8, 0x0f, 0xa0], &[254, 8, 0x0f, 0xa0], "10.77.101.1:PORT"),
        // An IPv4 application cannot be told of a client of IPv6.
        ("10.77.101.1", "10.77.100.1:84", V6, V6, "10.77.101.1:PORT"),
        // Strangers are not believed, wherever they write it.
        ("10.77.201.1", "10.77.100.1:82", &[], V4, "10.77.201.1:PORT"),
        ("10.77.201.1", "10.77.100.1:84", V4, &[], "10.77.201.1:PORT"),
        ("10.77.201.1", "10.77.100.1:84", V4, V4, "10.77.201.1:PORT"),
        ("fd77:0:201::1", "[fd77:0:100::1]:81", &[], V6, "[fd77:0:201::1]:PORT"),
        ("fd77:0:201::1", "[fd77:0:100::1]:8080", V6, V6, "[fd77:0:201::1]:PORT"),
    ];
    for (from, to, syn, ack, expected) in cases {
        assert_eq!(seen(from, to, syn, ack), expected, "{from} to {to} with {syn:?} and {ack:?}");
    }
    let folder = folder.clone();
    let counts = real.run(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let standing = runtime.block_on(show(&folder)).unwrap().unwrap();
        assert!(runtime.block_on(leave(&folder)).unwrap());
        standing.counts
    });
    let count = |wanted: &str| counts.iter().find(|(name, _)| *name == wanted).unwrap().1;
    assert_eq!((count("connections with a told client"), count("connections without")), (9, 3));
    // The VIP went with it, the host's own address is still served; and nobody is believed any more.
    lab.client.ip(&format!("neigh replace 10.77.1.1 lladdr {} dev eth0 nud permanent", mac(real)));
    assert_eq!(seen("10.77.101.1", "10.77.1.1:84", V4, V4), "10.77.101.1:PORT");
}

#[test]
fn behind_the_appliance_a_server_that_was_not_changed_sees_the_clients_own_address() {
    if lab::skip() {
        return;
    }
    let lab = Lab::new();
    let Some(mut server) = Server::start(&lab.reals[0]) else { return };
    let _pins = Pins::join(&lab.reals[0], &server);
    server.listen_more();
    let plane = Plane::start(&lab, &["eth0"]);
    let services: &[(&str, &[&str])] = &[(VIPS[0], &["10.77.1.1"]), (VIPS[1], &["fd77:0:1::1"])];
    plane.give(input(1, services, &Service { client_address: ClientAddress::Toa, ..Service::default() }));
    let seen = || {
        let seen: SocketAddr = server.line().parse().unwrap();
        SocketAddr::new(seen.ip().to_canonical(), seen.port())
    };
    // An option that the client itself wrote, which names somebody else; and with no room for another.
    const V4: &[u8] = &[254, 8, 0x0f, 0xa0, 192, 0, 2, 7];
    const V6: &[u8] = &[254, 20, 0x0f, 0xa0, 0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
    const LONG_V4: &[u8] = &long::<40>(V4);
    const LONG_V6: &[u8] = &long::<40>(V6);
    let lies = [(V4, LONG_V4, "10.77.201.1"), (V6, LONG_V6, "fd77:0:201::1")];
    for (vip, (lie, long, liar)) in VIPS.into_iter().zip(lies) {
        let to = SocketAddr::new(vip.parse().unwrap(), 80);
        for _ in 0..3 {
            let client = lab.client.run(move || TcpStream::connect_timeout(&to, PATIENCE).unwrap());
            assert_eq!(seen(), client.local_addr().unwrap());
        }
        // What the SYN told holds. Where nothing did, the connection is the balancer's.
        let local = LOCALS[usize::from(to.is_ipv6())];
        let cases: [(&[u8], &[u8], &str); 6] = [
            (lie, lie, liar),
            (lie, &[], liar),
            (&[], lie, liar),
            (long, lie, liar),
            (lie, long, liar),
            (long, long, local),
        ];
        for (port, (syn, ack, expected)) in (6000..).zip(cases) {
            let from = SocketAddr::new(liar.parse().unwrap(), port);
            handshake(&lab.client, from, to, syn, ack);
            let seen = seen();
            assert_eq!(seen.ip(), expected.parse::<IpAddr>().unwrap(), "{syn:?} {ack:?}");
            assert!(expected != liar || seen == from, "{seen}: {syn:?} {ack:?}");
        }
    }
}

/// The option behind so many others that it ends where the longest header does.
const fn long<const N: usize>(option: &[u8]) -> [u8; N] {
    let mut all = [1; N];
    let mut at = 0;
    while at < option.len() {
        all[N - option.len() + at] = option[at];
        at += 1;
    }
    all
}
