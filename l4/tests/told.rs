//! Applications that are told who their client is: in a cgroup of their own, without knowing of it.

#![allow(clippy::unwrap_used, reason = "a test says so by panicking")]

mod lab;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use aya::programs::{
    links::{FdLink, PinnedLink},
    loaded_programs,
};
use lab::{Lab, Namespace, segments::handshake};
use tidegate_l4::real::{Join, join, leave, show};

const PATIENCE: Duration = Duration::from_secs(10);
const VIPS: [&str; 2] = ["10.77.100.1", "fd77:0:100::1"];
/// What a balancer's connections come from; a stranger's.
const SOURCES: [&str; 4] = ["10.77.101.1", "10.77.201.1", "fd77:0:101::1", "fd77:0:201::1"];

/// Not a test: a server in a process and a cgroup of its own. It says whom it takes for its clients.
#[test]
fn server_process() {
    let Ok(cgroup) = std::env::var("REAL_TEST_CGROUP") else { return };
    fs::write(PathBuf::from(cgroup).join("cgroup.procs"), "0").unwrap();
    // Some listen at once, others when they are told to.
    for ports in [["[::]:81", "0.0.0.0:82"], ["[::]:83", "0.0.0.0:84"]] {
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
    fn start(namespace: &Namespace) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let all = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
        let cgroup = PathBuf::from(all.split(' ').nth(1)?).join(format!("tidegate-test-{}", std::process::id()));
        fs::create_dir(&cgroup).ok()?;
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

    /// Has it listen at ports 83 and 84, too.
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
    let Some(mut server) = Server::start(real) else {
        assert!(std::env::var("LAB_REQUIRE").as_deref() != Ok("1"), "LAB_REQUIRE=1, but: no cgroups of version 2");
        println!("SKIP no cgroups of version 2");
        return;
    };
    for (namespace, others, at) in [(real, &SOURCES[..], mac(&lab.client)), (&lab.client, &VIPS[..], mac(real))] {
        for other in others {
            namespace.ip(&format!("neigh replace {other} lladdr {at} dev eth0 nud permanent"));
        }
    }
    let wish = Join {
        vips: VIPS.iter().map(|vip| vip.parse().unwrap()).collect(),
        interface: Some("eth0".into()),
        from: vec!["10.77.101.0/24".parse().unwrap(), "fd77:0:101::/64".parse().unwrap()],
        toa: Some(server.cgroup.clone()),
        folder: lab::pin_dir(),
        ..Join::default()
    };
    let folder = wish.folder.clone();
    let _pins = Pins(folder.clone());
    real.run(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // Twice: the new programs know what the old ones were told.
        assert!(runtime.block_on(join(&wish)).unwrap().toa);
        assert!(runtime.block_on(join(&wish)).unwrap().toa);
    });
    verified(&folder);
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
    // Where from and where to, what the SYN and the last segment of the handshake say, and who is seen.
    let cases: [(&str, &str, &'static [u8], &'static [u8], &str); 17] = [
        ("10.77.101.1", "10.77.100.1:81", &[], V4, "[::ffff:192.0.2.7]:4000"),
        ("10.77.101.1", "10.77.100.1:82", &[], V4, "192.0.2.7:4000"),
        ("10.77.101.1", "10.77.100.1:82", V4, LATER, "192.0.2.7:4000"),
        ("fd77:0:101::1", "[fd77:0:100::1]:81", V6, V6, "[2001:db8::7]:4000"),
        // The SYN alone: of use to a server that began to listen afterwards.
        ("10.77.101.1", "10.77.100.1:83", V4, &[], "[::ffff:192.0.2.7]:4000"),
        ("10.77.101.1", "10.77.100.1:84", LATER, &[], "192.0.2.7:4000"),
        ("fd77:0:101::1", "[fd77:0:100::1]:83", V6, &[], "[2001:db8::7]:4000"),
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
        ("fd77:0:201::1", "[fd77:0:100::1]:83", V6, V6, "[fd77:0:201::1]:PORT"),
    ];
    for (from, to, syn, ack, expected) in cases {
        assert_eq!(seen(from, to, syn, ack), expected, "{from} to {to} with {syn:?} and {ack:?}");
    }
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
