//! A real that joined, behind the plane itself: every tunnel, both ways, and nothing left when it leaves.

#![allow(clippy::unwrap_used, reason = "a test says so by panicking")]

mod lab;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::Command,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use aya::{
    EbpfLoader,
    programs::{SchedClassifier, TcAttachType, Xdp, XdpMode},
};
use imbl::{OrdMap, OrdSet};
use lab::{Lab, Namespace};
use tidegate_l4::{
    Config, Forward, Frontend, Input, Protocol, Real, RealState, Report, Service,
    real::{Join, Standing, Tunnel, join, leave, show},
    xdp,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(10);
const LOCALS: [&str; 2] = ["10.77.101.1", "fd77:0:101::1"];
const REAL: [&str; 2] = ["10.77.1.1", "fd77:0:1::1"];
const VIPS: [&str; 2] = ["10.77.100.1", "fd77:0:100::1"];
const GUE: Forward = Forward::Gue { port: 6080 };
/// Each way at a port of its own, and whether the real is reached by the other family.
const WAYS: [(u16, Forward, bool); 5] = [
    (81, Forward::Direct, false),
    (82, Forward::IpIp, false),
    (83, Forward::IpIp, true),
    (84, GUE, false),
    (85, GUE, true),
];

/// The plane in the appliance, until it is dropped.
struct Plane {
    stop: CancellationToken,
    done: mpsc::Receiver<()>,
}

impl Plane {
    fn start(lab: &Lab, vips: &[&str]) -> Self {
        let mut services = OrdMap::new();
        for vip in vips {
            let vip: IpAddr = vip.parse().unwrap();
            for (port, forward, other) in WAYS {
                let real = REAL[usize::from(vip.is_ipv6() != other)].parse().unwrap();
                let real = Real { address: real, port, weight: 1, state: RealState::Active };
                let frontend = Frontend { vip, port, protocol: Protocol::Tcp };
                let service = Service { reals: [real].into_iter().collect(), forward, ..Service::default() };
                services.insert(frontend, Arc::new(service));
            }
        }
        let announce = services.keys().map(|frontend| frontend.vip).collect::<OrdSet<_>>();
        let input = Input { generation: 1, services, announce };
        let config = Config {
            pin_dir: lab.pin_dir.clone(),
            local_addresses: LOCALS.iter().map(|local| local.parse().unwrap()).collect(),
            interfaces: vec!["eth0".into()],
            ..Config::default()
        };
        let stop = CancellationToken::new();
        let token = stop.clone();
        let (started, ready) = mpsc::channel();
        let (ended, done) = mpsc::channel();
        lab.appliance.run(move || {
            thread::spawn(move || {
                runtime().block_on(async {
                    let (_input, inputs) = watch::channel(Arc::new(input));
                    let (report, mut reports) = watch::channel(Arc::new(Report::default()));
                    let plane = tokio::spawn(tidegate_l4::run(config, inputs, report, token));
                    reports.wait_for(|report| report.generation == 1).await.unwrap();
                    started.send(()).unwrap();
                    plane.await.unwrap().unwrap();
                });
                let _ = ended.send(());
            });
        });
        ready.recv_timeout(PATIENCE).expect("the plane started");
        Self { stop, done }
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.stop.cancel();
        let _ = self.done.recv_timeout(PATIENCE);
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A real of its own folder, which is gone when the test is.
struct Host<'a> {
    namespace: &'a Namespace,
    folder: PathBuf,
}

impl<'a> Host<'a> {
    fn new(namespace: &'a Namespace) -> Self {
        Self { namespace, folder: lab::pin_dir() }
    }

    fn wish(&self) -> Join {
        Join {
            vips: VIPS.iter().map(|vip| vip.parse().unwrap()).collect(),
            interface: Some("eth0".into()),
            folder: self.folder.clone(),
            ..Join::default()
        }
    }

    fn join(&self, wish: Join) -> Standing {
        self.namespace.run(move || runtime().block_on(join(&wish))).unwrap()
    }

    fn leave(&self) -> bool {
        let folder = self.folder.clone();
        self.namespace.run(move || runtime().block_on(leave(&folder))).unwrap()
    }

    fn show(&self) -> Option<Standing> {
        let folder = self.folder.clone();
        self.namespace.run(move || runtime().block_on(show(&folder))).unwrap()
    }

    fn count(&self, name: &str) -> u64 {
        let counts: BTreeMap<_, _> = self.show().unwrap().counts.into_iter().collect();
        counts[name]
    }

    fn serve_all(&self) {
        for vip in VIPS {
            for (port, ..) in WAYS {
                serve(self.namespace, SocketAddr::new(vip.parse().unwrap(), port));
            }
        }
    }
}

impl Drop for Host<'_> {
    fn drop(&mut self) {
        let folder = self.folder.clone();
        let _ = self.namespace.run(move || runtime().block_on(leave(&folder)));
    }
}

/// Sends all back that it hears.
fn serve(namespace: &Namespace, at: SocketAddr) {
    namespace.run(move || {
        let listener = TcpListener::bind(at).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                thread::spawn(move || -> std::io::Result<()> {
                    let mut back = stream.try_clone()?;
                    std::io::copy(&mut stream, &mut back)?;
                    back.shutdown(Shutdown::Write)
                });
            }
        });
    });
}

fn connect(client: &Namespace, vip: &str, port: u16, patience: Duration) -> std::io::Result<TcpStream> {
    let to = SocketAddr::new(vip.parse().unwrap(), port);
    client.run(move || TcpStream::connect_timeout(&to, patience))
}

/// 100 kB there and back; the largest segment that was sent.
fn echo(client: &Namespace, vip: &str, port: u16) -> u32 {
    let mut stream = connect(client, vip, port, PATIENCE).unwrap_or_else(|error| panic!("{vip} {port}: {error}"));
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mss = nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::TcpMaxSeg).unwrap();
    let sent: Vec<u8> = (0..100_000).map(|i: usize| (i * 7 + i / 251) as u8).collect();
    let (mut writer, copy) = (stream.try_clone().unwrap(), sent.clone());
    let writing = thread::spawn(move || {
        writer.write_all(&copy).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut got = Vec::new();
    let read = stream.read_to_end(&mut got);
    assert!(read.is_ok() && got == sent, "{vip} {port}: {read:?}, {} bytes", got.len());
    writing.join().unwrap();
    mss
}

/// A byte there and back.
fn go_on(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut got = [9];
    stream.write_all(&[7]).unwrap();
    stream.read_exact(&mut got).unwrap();
    assert_eq!(got, [7]);
}

/// What `join` may change, as the kernel shows it.
fn traces(namespace: &Namespace) -> Vec<String> {
    namespace.run(|| {
        let ip = |arguments: &str| {
            let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let sysctl = |name: &str| {
            let path = format!("/proc/sys/net/ipv4/conf/{name}");
            format!("{name} {}", std::fs::read_to_string(path).unwrap().trim())
        };
        let names = ["arp_ignore", "arp_announce", "rp_filter"];
        let mut found: Vec<String> =
            names.iter().flat_map(|name| ["all", "eth0"].map(|at| sysctl(&format!("{at}/{name}")))).collect();
        found.push(ip("-o addr show dev lo"));
        found.push(format!("xdp {}", ip("link show dev eth0").contains("xdp")));
        for (side, name) in [(TcAttachType::Egress, "out"), (TcAttachType::Ingress, "in")] {
            let (_, programs) = SchedClassifier::query_tcx("eth0", side).unwrap();
            found.push(format!("{} tcx programs {name}", programs.len()));
        }
        found
    })
}

#[test]
fn every_way_leads_to_a_real_that_joined() {
    if lab::skip() {
        return;
    }
    let lab = Lab::new();
    let host = Host::new(&lab.reals[0]);
    let standing = host.join(host.wish());
    assert_eq!(standing.interface.as_deref(), Some("eth0"));
    assert_eq!((standing.mode.as_deref(), standing.mss), (Some("native"), (1412, 1392)));
    assert!(standing.vips.len() == 2 && standing.vips.values().all(|there| *there), "{standing:?}");
    host.serve_all();
    let _plane = Plane::start(&lab, &VIPS);
    for vip in VIPS {
        for (port, ..) in WAYS {
            echo(&lab.client, vip, port);
        }
    }
    for (count, name) in host.show().unwrap().counts.iter().map(|(name, count)| (count, name)).take(8) {
        assert!(*count > 50, "{name}: {count}");
    }
    // Only the appliance says that it has the VIP.
    let [client, appliance] = [&lab.client, &lab.appliance].map(|namespace| {
        namespace.run(|| {
            let output = |line: &str| Command::new("ip").args(line.split(' ')).output().unwrap().stdout;
            let text = String::from_utf8(output("neigh show 10.77.100.1")).unwrap();
            (text, String::from_utf8(output("-br link show dev eth0")).unwrap())
        })
    });
    let mac = appliance.1.split_whitespace().nth(2).unwrap();
    assert!(client.0.contains(mac), "{} is not {mac}", client.0);
}

#[test]
fn joining_again_is_the_same_and_connections_go_on() {
    if lab::skip() {
        return;
    }
    let lab = Lab::new();
    let host = Host::new(&lab.reals[0]);
    lab.reals[0].run(|| std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1").unwrap());
    let before = traces(&lab.reals[0]);
    host.join(host.wish());
    let once = traces(&lab.reals[0]);
    assert!(once.iter().any(|line| line == "eth0/arp_ignore 1"), "{once:?}");
    assert!(once.iter().any(|line| line == "eth0/rp_filter 2"), "{once:?}");
    assert!(once.iter().any(|line| line == "1 tcx programs out"), "{once:?}");
    host.serve_all();
    let _plane = Plane::start(&lab, &VIPS);
    let mut streams: Vec<TcpStream> =
        WAYS.iter().map(|(port, ..)| connect(&lab.client, VIPS[0], *port, PATIENCE).unwrap()).collect();
    for _ in 0..3 {
        streams.iter_mut().for_each(go_on);
        host.join(host.wish());
        assert_eq!(traces(&lab.reals[0]), once);
    }
    drop(streams);
    // Fewer VIPs, no tunnel: the rest is given up.
    let vips = BTreeSet::from([VIPS[0].parse().unwrap()]);
    let standing = host.join(Join { vips, tunnel: Tunnel::None, ..host.wish() });
    assert_eq!((standing.vips.len(), standing.mode), (1, None));
    echo(&lab.client, VIPS[0], 81);
    assert!(connect(&lab.client, VIPS[0], 82, Duration::from_millis(300)).is_err());

    assert!(host.leave());
    assert_eq!(traces(&lab.reals[0]), before);
    assert!(!host.folder.exists());
    assert_eq!(host.show(), None);
    assert!(!host.leave());
}

#[test]
fn an_interface_without_xdp_of_its_own_is_as_good() {
    if lab::skip() {
        return;
    }
    let lab = Lab::new();
    // A bridge has no native XDP; and what it gets from the card may be joined packets.
    lab.reals[0].ip("link add br0 type bridge forward_delay 0 mcast_snooping 0
         link set eth0 master br0
         link set br0 up
         addr flush dev eth0
         addr add 10.77.1.1/16 dev br0
         addr add fd77:0:1::1/32 dev br0 nodad");
    let host = Host::new(&lab.reals[0]);
    let wish = Join { interface: Some("br0".into()), ..host.wish() };
    assert_eq!(host.join(wish.clone()).mode.as_deref(), Some("generic"));
    host.serve_all();
    let _plane = Plane::start(&lab, &VIPS);
    let all = || {
        for (vip, (port, ..)) in VIPS.into_iter().flat_map(|vip| WAYS.map(|way| (vip, way))) {
            echo(&lab.client, vip, port);
        }
    };
    all();
    // Somebody who thinks that all addresses are his.
    lab.reals[0].ip(&VIPS.map(|vip| format!("addr del {vip} dev lo")).join("\n"));
    assert!(host.show().unwrap().vips.values().all(|there| !there));
    assert!(host.join(wish).vips.values().all(|there| *there));
    all();
}

/// Somebody else's XDP program, which lets everything pass, until it is dropped.
fn other_program(namespace: &Namespace, mode: XdpMode) -> aya::Ebpf {
    namespace.run(move || {
        let mut loader = EbpfLoader::new();
        for name in ["flows", "records", "rings", "reals", "real_counts"] {
            loader.map_max_entries(name, 16);
        }
        let mut ebpf = loader.load(xdp::object().unwrap()).unwrap();
        let pass: &mut Xdp = ebpf.program_mut("pass").unwrap().try_into().unwrap();
        pass.load().unwrap();
        pass.attach("eth0", mode).unwrap();
        ebpf
    })
}

#[test]
fn behind_the_xdp_program_of_somebody_else_tunnels_are_taken_apart_all_the_same() {
    if lab::skip() {
        return;
    }
    let lab = Lab::new();
    let real = &lab.reals[0];
    let host = Host::new(real);
    let before = traces(real);
    let mut plane = None;
    let all = || {
        for (vip, (port, ..)) in VIPS.into_iter().flat_map(|vip| WAYS.map(|way| (vip, way))) {
            echo(&lab.client, vip, port);
        }
    };
    for mode in [XdpMode::Driver, XdpMode::Skb] {
        let other = other_program(real, mode);
        assert_eq!(host.join(host.wish()).mode.as_deref(), Some("tcx"));
        if plane.is_none() {
            host.serve_all();
            plane = Some(Plane::start(&lab, &VIPS));
        }
        all();
        for (count, name) in host.show().unwrap().counts.iter().map(|(name, count)| (count, name)).take(8) {
            assert!(*count > 50, "{name}: {count}");
        }
        let mut streams: Vec<TcpStream> =
            WAYS.iter().map(|(port, ..)| connect(&lab.client, VIPS[0], *port, PATIENCE).unwrap()).collect();
        // Joined again, and once more when the place is free: connections go on, and one program of ours is there.
        assert_eq!(host.join(host.wish()).mode.as_deref(), Some("tcx"));
        assert!(traces(real).contains(&"1 tcx programs in".to_owned()), "{:?}", traces(real));
        streams.iter_mut().for_each(go_on);
        drop(other);
        assert_eq!(host.join(host.wish()).mode.as_deref(), Some("native"));
        assert!(traces(real).contains(&"0 tcx programs in".to_owned()), "{:?}", traces(real));
        streams.iter_mut().for_each(go_on);
        all();
        assert!(host.leave());
        assert_eq!(traces(real), before);
    }
}

#[test]
fn a_tunnel_to_a_vip_that_was_not_joined_stays_closed() {
    if lab::skip() {
        return;
    }
    let lab = Lab::new();
    let host = Host::new(&lab.reals[0]);
    let other = "10.77.100.2";
    // The host has it all the same, and a server.
    lab.reals[0].ip("addr add 10.77.100.2/32 dev lo");
    serve(&lab.reals[0], SocketAddr::new(other.parse().unwrap(), 82));
    host.join(host.wish());
    host.serve_all();
    let _plane = Plane::start(&lab, &[VIPS[0], VIPS[1], other]);
    assert!(connect(&lab.client, other, 82, Duration::from_millis(300)).is_err());
    assert!(host.count("left alone: not for a joined VIP") > 0);
    echo(&lab.client, VIPS[0], 82);
}

#[test]
fn a_tunnel_from_somebody_else_than_the_balancer_stays_closed() {
    if lab::skip() {
        return;
    }
    let lab = Lab::new();
    let host = Host::new(&lab.reals[0]);
    let from = |text: &str| Join { from: vec![text.parse().unwrap()], ..host.wish() };
    host.join(from("10.77.200.0/24"));
    host.serve_all();
    let _plane = Plane::start(&lab, &VIPS);
    for port in [82, 84] {
        assert!(connect(&lab.client, VIPS[0], port, Duration::from_millis(300)).is_err());
    }
    assert!(host.count("left alone: not from a balancer") > 0);
    host.join(from("10.77.101.0/24"));
    echo(&lab.client, VIPS[0], 82);
    echo(&lab.client, VIPS[0], 84);
}

#[test]
fn clients_are_told_to_send_what_fits_into_the_tunnel() {
    if lab::skip() {
        return;
    }
    let lab = Lab::new();
    let host = Host::new(&lab.reals[0]);
    // With timestamps, which take 12 bytes of each segment.
    const STAMP: u32 = 12;
    let cases = [
        (Tunnel::None, None, [1460, 1440]),
        (Tunnel::IpIp, None, [1420, 1400]),
        (Tunnel::Gue(6080), None, [1412, 1392]),
        (Tunnel::Any(6080), Some(1200), [1200, 1200]),
        (Tunnel::Any(6080), Some(9000), [1460, 1440]),
    ];
    host.join(host.wish());
    host.serve_all();
    let _plane = Plane::start(&lab, &VIPS);
    // The client's link sums what was left to be summed, and the client looks at it; then the real sums itself.
    lab.switch.command("ethtool", "-K p-client tx off");
    for offload in ["on", "off"] {
        lab.reals[0].run(move || {
            let arguments = ["-K", "eth0", "tx", offload];
            assert!(Command::new("ethtool").args(arguments).output().unwrap().status.success());
        });
        for (tunnel, mss, expected) in cases {
            host.join(Join { tunnel, mss, ..host.wish() });
            let got = VIPS.map(|vip| echo(&lab.client, vip, 81) + STAMP);
            assert_eq!(got, expected, "{tunnel:?} {mss:?} {offload}");
        }
    }
    assert!(host.count("SYNs with a lower MSS") > 0);
}
