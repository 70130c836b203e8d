//! Probes in a small network: real servers that answer, refuse, hang and come back.

#![allow(clippy::unwrap_used, reason = "a test says so by panicking")]

mod lab;

use std::{
    io::{BufRead, BufReader, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use imbl::{OrdMap, OrdSet};
use lab::{Lab, Namespace};
use tidegate_l4::{
    Config, Forward, Frontend, Input, Probe, ProbeKind, Protocol, Real, RealState, Report, Service, health::Health,
    report::Verdict,
};
use tokio::sync::watch;
use tokio_rustls::rustls::{
    self,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(10);
const LOCALS: [&str; 2] = ["10.77.101.1", "fd77:0:101::1"];
const A: [&str; 2] = ["10.77.1.1", "fd77:0:1::1"];
const B: [&str; 2] = ["10.77.1.2", "fd77:0:1::2"];
const VIPS: [&str; 2] = ["10.77.100.1", "fd77:0:100::1"];

/// Health in the appliance, and beside it the plane, whose program sees all packets first.
struct Appliance {
    health: Arc<Health>,
    stop: CancellationToken,
    done: mpsc::Receiver<()>,
}

impl Appliance {
    fn start(lab: &Lab, services: &OrdMap<Frontend, Arc<Service>>) -> Self {
        let locals: Vec<IpAddr> = LOCALS.iter().map(|local| local.parse().unwrap()).collect();
        let config = Config {
            pin_dir: lab.pin_dir.clone(),
            local_addresses: locals.clone(),
            interfaces: vec!["eth0".into()],
            ..Config::default()
        };
        // The plane itself does not probe: this Health does.
        let unprobed = |(frontend, service): (&Frontend, &Arc<Service>)| {
            (*frontend, Arc::new(Service { probe: None, ..Service::clone(service) }))
        };
        let input = Input {
            generation: 1,
            services: services.iter().map(unprobed).collect(),
            announce: services.keys().map(|frontend| frontend.vip).collect::<OrdSet<_>>(),
        };
        let stop = CancellationToken::new();
        let (started, health) = mpsc::channel();
        let (ended, done) = mpsc::channel();
        let token = stop.clone();
        // A thread of the namespace: whatever it opens or starts is in there.
        lab.appliance.run(move || {
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let (_input, inputs) = watch::channel(Arc::new(input));
                    let (report, mut reports) = watch::channel(Arc::new(Report::default()));
                    let plane = tokio::spawn(tidegate_l4::run(config, inputs, report, token));
                    reports.wait_for(|report| report.generation == 1).await.unwrap();
                    let health = Arc::new(Health::start(&locals, &["eth0".into()]));
                    started.send(Arc::clone(&health)).unwrap();
                    plane.await.unwrap().unwrap();
                });
                let _ = ended.send(());
            });
        });
        let health = health.recv_timeout(PATIENCE).expect("the plane started");
        health.input(services);
        Self { health, stop, done }
    }

    /// Waits until a real stands so.
    fn until(&self, frontend: Frontend, service: &Service, real: &str, verdict: Verdict, why: &str) {
        let real: SocketAddr = real.parse().unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let report = self.health.report();
            let health = report.of(&frontend, service, (real.ip(), real.port()));
            if health.verdict == verdict && health.why.as_deref().unwrap_or_default().contains(why) {
                return;
            }
            assert!(Instant::now() < deadline, "{real} is {health:?}, not {verdict:?} because of {why:?}: {report:?}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn states(&self, frontend: Frontend) -> Vec<RealState> {
        self.health.effective()[&frontend].reals.iter().map(|real| real.state).collect()
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        self.stop.cancel();
        let _ = self.done.recv_timeout(PATIENCE);
    }
}

fn frontend(vip: &str, protocol: Protocol) -> Frontend {
    Frontend { vip: vip.parse().unwrap(), port: 80, protocol }
}

fn service(kind: ProbeKind, forward: Forward, reals: &[&str]) -> Service {
    let real = |text: &&str| {
        let address: SocketAddr = text.parse().unwrap();
        Real { address: address.ip(), port: address.port(), weight: 1, state: RealState::Active }
    };
    Service {
        reals: reals.iter().map(real).collect(),
        probe: Some(Probe { kind, interval_ms: 50, timeout_ms: 250, rise: 2, fall: 3 }),
        forward,
        ..Service::default()
    }
}

fn http(tls: bool) -> ProbeKind {
    ProbeKind::Http { tls, host: Some("shop.example".into()), path: "/health?deep=1".into(), status: (200, 299) }
}

/// What a server does with the next connection; may be changed while it runs.
#[derive(Clone, Debug)]
enum Manner {
    Answer(&'static str),
    Hang,
}

/// A server in a namespace, whose manner can be changed; the requests that it hears, and from where.
fn serve(namespace: &Namespace, at: &str, manner: &Arc<Mutex<Manner>>) -> mpsc::Receiver<(SocketAddr, String)> {
    let at: SocketAddr = at.parse().unwrap();
    let manner = Arc::clone(manner);
    let (heard, requests) = mpsc::channel();
    namespace.run(move || {
        let listener = TcpListener::bind(at).unwrap();
        thread::spawn(move || {
            let mut hung = Vec::new();
            // A bare TCP probe may be gone before it is accepted.
            while let Ok((stream, from)) = listener.accept() {
                let answer = match &*manner.lock().unwrap() {
                    Manner::Answer(answer) => *answer,
                    Manner::Hang => {
                        hung.push(stream);
                        continue;
                    }
                };
                let heard = heard.clone();
                thread::spawn(move || {
                    let mut request = String::new();
                    let mut reader = BufReader::new(&stream);
                    while reader.read_line(&mut request).is_ok_and(|length| length > 2) {}
                    let _ = (&stream).write_all(answer.as_bytes());
                    let _ = heard.send((from, request));
                });
            }
        });
    });
    requests
}

fn ours(from: SocketAddr) -> bool {
    LOCALS.contains(&from.ip().to_string().as_str()) && (512..1024).contains(&from.port())
}

#[test]
fn a_real_that_refuses_drains_and_is_back_when_it_accepts() {
    if lab::skip() {
        return;
    }
    let lab = Lab::new();
    let manner = Arc::new(Mutex::new(Manner::Answer("")));
    let mut services = OrdMap::new();
    let mut heard = Vec::new();
    for family in 0..2 {
        let [a, b] = [A, B].map(|real| SocketAddr::new(real[family].parse().unwrap(), 8080).to_string());
        heard.push(serve(&lab.reals[0], &a, &manner));
        let service = service(ProbeKind::Tcp, Forward::FullNat, &[&a, &b]);
        services.insert(frontend(VIPS[family], Protocol::Tcp), Arc::new(service));
    }
    let appliance = Appliance::start(&lab, &services);
    for (frontend, service) in &services {
        let a = SocketAddr::new(service.reals[0].address, 8080).to_string();
        appliance.until(*frontend, service, &a, Verdict::Up, "");
        let b = SocketAddr::new(service.reals[1].address, 8080).to_string();
        appliance.until(*frontend, service, &b, Verdict::Down, "probes in a row failed: connection refused");
        assert_eq!(appliance.states(*frontend), [RealState::Active, RealState::Draining]);
        heard.push(serve(&lab.reals[1], &b, &manner));
        appliance.until(*frontend, service, &b, Verdict::Up, "");
        // Shared with the Input again.
        assert!(Arc::ptr_eq(&appliance.health.effective()[frontend], service));
    }
    for heard in heard {
        let (from, _) = heard.recv_timeout(PATIENCE).unwrap();
        assert!(ours(from), "{from}");
    }
    let probes = appliance.health.report().probes;
    assert!(probes.failed >= 6 && probes.sent > probes.failed && probes.unable == 0, "{probes:?}");
    assert!(probes.last_took.is_some() && probes.last_error.is_some());
}

#[test]
fn an_http_status_decides_and_a_server_that_hangs_is_down() {
    if lab::skip() {
        return;
    }
    let lab = Lab::new();
    let manner = Arc::new(Mutex::new(Manner::Answer("HTTP/1.1 204 No Content\r\n\r\n")));
    let steady = Arc::new(Mutex::new(Manner::Answer("HTTP/1.1 200 OK\r\n\r\n")));
    let (a, b) = ("10.77.1.1:8080", "10.77.1.2:8080");
    let heard = serve(&lab.reals[0], a, &manner);
    let _steady = serve(&lab.reals[1], b, &steady);
    let frontend = frontend(VIPS[0], Protocol::Tcp);
    let service = Arc::new(service(http(false), Forward::FullNat, &[a, b]));
    let appliance = Appliance::start(&lab, &OrdMap::unit(frontend, Arc::clone(&service)));
    appliance.until(frontend, &service, a, Verdict::Up, "");
    appliance.until(frontend, &service, b, Verdict::Up, "");
    let (from, request) = heard.recv_timeout(PATIENCE).unwrap();
    assert!(ours(from), "{from}");
    assert!(request.starts_with("GET /health?deep=1 HTTP/1.1\r\nHost: shop.example\r\n"), "{request}");
    for (next, why) in [
        (Manner::Answer("HTTP/1.1 503 Service Unavailable\r\n\r\n"), "status 503"),
        (Manner::Hang, "connected, but no status in 250 ms"),
        (Manner::Answer("SSH-2.0-OpenSSH_9.2\r\n"), "not HTTP/1.1"),
        (Manner::Answer(""), "closed without an answer"),
    ] {
        *manner.lock().unwrap() = next;
        appliance.until(frontend, &service, a, Verdict::Down, why);
        assert_eq!(appliance.states(frontend), [RealState::Draining, RealState::Active]);
        *manner.lock().unwrap() = Manner::Answer("HTTP/1.0 200 OK\r\n\r\n");
        appliance.until(frontend, &service, a, Verdict::Up, "");
        assert_eq!(appliance.states(frontend), [RealState::Active; 2]);
    }
}

#[test]
fn https_is_probed_whatever_the_certificate_says() {
    if lab::skip() {
        return;
    }
    let lab = Lab::new();
    let plain = Arc::new(Mutex::new(Manner::Answer("HTTP/1.1 200 OK\r\n\r\n")));
    let (a, b) = ("10.77.1.1:8443", "10.77.1.2:8443");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(include_bytes!("lab/nobody.pem")).unwrap()],
            PrivateKeyDer::from_pem_slice(include_bytes!("lab/nobody.pem")).unwrap(),
        )
        .unwrap();
    let config = Arc::new(config);
    lab.reals[0].run(move || {
        let listener = TcpListener::bind(a).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
                let mut stream = stream.unwrap();
                let mut tls = rustls::Stream::new(&mut connection, &mut stream);
                let mut line = String::new();
                let _ = BufReader::new(&mut tls).read_line(&mut line);
                let _ = tls.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            }
        });
    });
    // One that speaks without TLS.
    let _plain = serve(&lab.reals[1], b, &plain);
    let frontend = frontend(VIPS[0], Protocol::Tcp);
    let service = Arc::new(service(http(true), Forward::FullNat, &[a, b]));
    let appliance = Appliance::start(&lab, &OrdMap::unit(frontend, Arc::clone(&service)));
    appliance.until(frontend, &service, a, Verdict::Up, "");
    appliance.until(frontend, &service, b, Verdict::Down, "");
}

#[test]
fn a_datagram_must_be_answered_with_what_is_expected() {
    if lab::skip() {
        return;
    }
    let lab = Lab::new();
    let answer = Arc::new(Mutex::new(&b"pong 1"[..]));
    let (a, b) = ("10.77.1.1:53", "10.77.1.2:53");
    echo(&lab.reals[0], a, &answer);
    let frontend = frontend(VIPS[0], Protocol::Udp);
    let kind = ProbeKind::Udp { send: b"ping".to_vec(), expect: b"pong".to_vec() };
    let service = Arc::new(service(kind, Forward::FullNat, &[a, b]));
    let appliance = Appliance::start(&lab, &OrdMap::unit(frontend, Arc::clone(&service)));
    appliance.until(frontend, &service, b, Verdict::Down, "connection refused");
    appliance.until(frontend, &service, a, Verdict::Up, "");
    echo(&lab.reals[1], b, &Arc::new(Mutex::new(b"pong 2")));
    appliance.until(frontend, &service, b, Verdict::Up, "");
    *answer.lock().unwrap() = b"sorry";
    appliance.until(frontend, &service, a, Verdict::Down, "something else");
}

/// A UDP server with one answer to everything.
fn echo(namespace: &Namespace, at: &str, answer: &Arc<Mutex<&'static [u8]>>) {
    let at: SocketAddr = at.parse().unwrap();
    let answer = Arc::clone(answer);
    namespace.run(move || {
        let socket = UdpSocket::bind(at).unwrap();
        thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let answer = *answer.lock().unwrap();
                socket.send_to(answer, from).unwrap();
            }
        });
    });
}

/// A real that has the VIP, and does not say so to its neighbours: neither when it is asked nor when it asks.
fn own(namespace: &Namespace) {
    namespace.run(|| {
        std::fs::write("/proc/sys/net/ipv4/conf/all/arp_ignore", "1").unwrap();
        std::fs::write("/proc/sys/net/ipv4/conf/all/arp_announce", "2").unwrap();
    });
    namespace.ip(&format!("addr add {}/32 dev lo\naddr add {}/128 dev lo nodad", VIPS[0], VIPS[1]));
}

/// The reals' names have a port that nobody serves: what is probed is the VIP's.
fn named(family: usize) -> [String; 2] {
    [A, B].map(|real| SocketAddr::new(real[family].parse().unwrap(), 31_000).to_string())
}

#[test]
fn a_direct_real_is_probed_at_the_vip() {
    if lab::skip() {
        return;
    }
    let lab = Lab::new();
    lab.reals.iter().for_each(own);
    let manner = Arc::new(Mutex::new(Manner::Answer("HTTP/1.1 200 OK\r\n\r\n")));
    let pong = Arc::new(Mutex::new(&b"pong"[..]));
    let mut services = OrdMap::new();
    let mut heard = Vec::new();
    for (family, vip) in VIPS.into_iter().enumerate() {
        let at = SocketAddr::new(vip.parse().unwrap(), 80).to_string();
        heard.push(serve(&lab.reals[0], &at, &manner));
        echo(&lab.reals[0], &at, &pong);
        let [a, b] = named(family);
        let kinds = [
            (Protocol::Tcp, http(false)),
            (Protocol::Udp, ProbeKind::Udp { send: b"ping".to_vec(), expect: b"pong".to_vec() }),
        ];
        for (protocol, kind) in kinds {
            services.insert(frontend(vip, protocol), Arc::new(service(kind, Forward::Direct, &[&a, &b])));
        }
    }
    let appliance = Appliance::start(&lab, &services);
    for (frontend, service) in &services {
        let [a, b] = named(usize::from(frontend.vip.is_ipv6()));
        appliance.until(*frontend, service, &a, Verdict::Up, "");
        // The other has the VIP, and nobody who serves it.
        let why = if frontend.protocol == Protocol::Tcp { "connection refused" } else { "no answer in 250 ms" };
        appliance.until(*frontend, service, &b, Verdict::Down, why);
    }
    for heard in heard {
        let (from, request) = heard.recv_timeout(PATIENCE).unwrap();
        assert!(ours(from) && request.starts_with("GET /health?deep=1 "), "{from} {request}");
    }
    *manner.lock().unwrap() = Manner::Answer("HTTP/1.1 500 Oh\r\n\r\n");
    let (frontend, service) = services.iter().next().unwrap();
    appliance.until(*frontend, service, &named(0)[0], Verdict::Down, "status 500");
}

#[test]
fn a_tunnelled_real_is_probed_through_its_tunnel() {
    if lab::skip() {
        return;
    }
    for (forward, gue) in [(Forward::IpIp, None), (Forward::Gue { port: 6080 }, Some(6080))] {
        let lab = Lab::new();
        own(&lab.reals[0]);
        // The unwrapper takes packets as they leave, and nobody behind it would complete a checksum.
        lab.appliance.command("ethtool", "-K eth0 tx off");
        let manner = Arc::new(Mutex::new(Manner::Answer("HTTP/1.1 200 OK\r\n\r\n")));
        let mut services = OrdMap::new();
        let mut outers = Vec::new();
        for (family, vip) in VIPS.into_iter().enumerate() {
            let at = SocketAddr::new(vip.parse().unwrap(), 80).to_string();
            let _ = serve(&lab.reals[0], &at, &manner);
            outers.push(lab::unwrap::unwrap(&lab.reals[0], family == 0, gue));
            let [a, b] = named(family);
            services.insert(frontend(vip, Protocol::Tcp), Arc::new(service(http(false), forward, &[&a, &b])));
        }
        let appliance = Appliance::start(&lab, &services);
        for (family, (frontend, service)) in services.iter().enumerate() {
            let [a, b] = named(family);
            appliance.until(*frontend, service, &a, Verdict::Up, "");
            // The other has no end of the tunnel.
            appliance.until(*frontend, service, &b, Verdict::Down, "no answer in 250 ms");
            let (source, destination, ports) = outers[family].recv_timeout(PATIENCE).unwrap();
            assert_eq!([source.to_string(), destination.to_string()], [LOCALS[family], A[family]]);
            assert_eq!(ports.map(|(_, to)| to), gue);
            assert!(ports.is_none_or(|(from, _)| from >= 0xc000), "{ports:?}");
        }
    }
}

#[test]
fn a_tunnel_between_families_is_not_probed_and_its_real_stays_in() {
    if lab::skip() {
        return;
    }
    let lab = Lab::new();
    let frontend = frontend(VIPS[0], Protocol::Tcp);
    let mut service = service(ProbeKind::Tcp, Forward::IpIp, &["[fd77:0:1::1]:80", "[fd77:0:1::2]:80"]);
    service.probe.as_mut().unwrap().fall = 1;
    let appliance = Appliance::start(&lab, &OrdMap::new());
    appliance.health.input(&OrdMap::unit(frontend, Arc::new(service)));
    let deadline = Instant::now() + PATIENCE;
    while appliance.health.report().probes.unable < 3 {
        assert!(Instant::now() < deadline, "{:?}", appliance.health.report());
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(appliance.states(frontend), [RealState::Active; 2]);
    let report = appliance.health.report();
    assert!(report.problems.iter().any(|problem| problem.contains("do not cross address families")), "{report:?}");
}

#[test]
fn the_plane_sends_new_connections_to_reals_that_answer_their_probes_alone() {
    if lab::skip() {
        return;
    }
    let lab = Lab::new();
    let (a, b) = ("10.77.1.1:8080", "10.77.1.2:8080");
    let manner = Arc::new(Mutex::new(Manner::Answer("HTTP/1.1 503 Oh\r\n\r\n")));
    let steady = Arc::new(Mutex::new(Manner::Answer("HTTP/1.1 200 OK\r\n\r\n")));
    let _a = serve(&lab.reals[0], a, &manner);
    let _b = serve(&lab.reals[1], b, &steady);
    let frontend = frontend(VIPS[0], Protocol::Tcp);
    let services = OrdMap::unit(frontend, Arc::new(service(http(false), Forward::FullNat, &[a, b])));
    let (reports, stop, done) = plane(&lab, services);
    let until = |verdict: Verdict| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let report = reports.borrow().clone();
            let real = report.services.get(&frontend).and_then(|service| service.reals.first());
            if real.is_some_and(|real| real.health.verdict == verdict) {
                return report;
            }
            assert!(Instant::now() < deadline, "{report:?}");
            thread::sleep(Duration::from_millis(10));
        }
    };
    let get = || {
        lab.client.run(|| {
            let mut stream = TcpStream::connect_timeout(&"10.77.100.1:80".parse().unwrap(), PATIENCE).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).unwrap();
            line
        })
    };
    let report = until(Verdict::Down);
    assert!(report.probes.sent > 0 && report.fail_open.is_empty(), "{report:?}");
    let answers: Vec<String> = (0..32).map(|_| get()).collect();
    assert!(answers.iter().all(|line| line.contains("200")), "{answers:?}");
    *manner.lock().unwrap() = Manner::Answer("HTTP/1.1 201 Fine\r\n\r\n");
    until(Verdict::Up);
    let deadline = Instant::now() + PATIENCE;
    while !get().contains("201") {
        assert!(Instant::now() < deadline, "the real that is back gets nothing");
    }
    stop.cancel();
    done.recv_timeout(PATIENCE).unwrap();
}

/// The plane as it is, in the appliance.
fn plane(
    lab: &Lab,
    services: OrdMap<Frontend, Arc<Service>>,
) -> (watch::Receiver<Arc<Report>>, CancellationToken, mpsc::Receiver<()>) {
    let config = Config {
        pin_dir: lab.pin_dir.clone(),
        local_addresses: LOCALS.iter().map(|local| local.parse().unwrap()).collect(),
        interfaces: vec!["eth0".into()],
        ..Config::default()
    };
    let announce = services.keys().map(|frontend| frontend.vip).collect::<OrdSet<_>>();
    let input = Input { generation: 1, services, announce };
    let (report, reports) = watch::channel(Arc::new(Report::default()));
    let stop = CancellationToken::new();
    let token = stop.clone();
    let (ended, done) = mpsc::channel();
    lab.appliance.run(move || {
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let (_input, inputs) = watch::channel(Arc::new(input));
            runtime.block_on(tidegate_l4::run(config, inputs, report, token)).unwrap();
            let _ = ended.send(());
        });
    });
    (reports, stop, done)
}
