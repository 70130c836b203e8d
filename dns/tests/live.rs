//! The plane on loopback, asked over real sockets and by `dig`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by its line")]

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::Command,
    sync::Arc,
    time::Duration,
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RecordType},
};
use tidegate_dns::{Config, Input, Node, Refused, Report, Srv};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::watch,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(20);

struct Plane {
    inputs: watch::Sender<Arc<Input>>,
    reports: watch::Receiver<Arc<Report>>,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
    address: SocketAddr,
}

impl Plane {
    async fn start(listen: &str) -> Self {
        let (inputs, input) = watch::channel(Arc::default());
        let (report, mut reports) = watch::channel(Arc::default());
        let stop = CancellationToken::new();
        let config = Config { listen: vec![listen.parse().unwrap()], udp_payload: 1232 };
        let task = tokio::spawn(tidegate_dns::run(config, input, report, stop.clone()));
        let listens = reports.wait_for(|r: &Arc<Report>| !r.listening.is_empty());
        let address = tokio::time::timeout(DEADLINE, listens).await.expect("a report").expect("a plane").listening[0];
        Self { inputs, reports, stop, task, address }
    }

    async fn give(&mut self, input: Input) {
        let generation = input.generation;
        self.inputs.send_replace(Arc::new(input));
        self.report(|r| r.generation == generation).await;
    }

    async fn report(&mut self, is_it: impl Fn(&Report) -> bool) -> Arc<Report> {
        let wait = self.reports.wait_for(|r| is_it(r));
        tokio::time::timeout(DEADLINE, wait).await.expect("the report in time").expect("a running plane").clone()
    }

    async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(DEADLINE, self.task).await.expect("an end in time").unwrap().unwrap();
    }
}

/// `small` has one address that tells the generation, `large` has 200, `_small._tcp` one service.
fn input(generation: u64) -> Input {
    let small = Node { addresses: vec![tells(generation), "fd77::1".parse().unwrap()], services: vec![], ttl: 5 };
    let large = Node { addresses: (0..200).map(|n| [10, 77, 2, n].into()).collect(), services: vec![], ttl: 5 };
    let service = Srv { priority: 0, weight: 1, port: 31000, target: "small.mesos".into() };
    let services = Node { addresses: vec![], services: vec![service], ttl: 5 };
    let names = [("small.mesos", small), ("large.mesos", large), ("_small._tcp.mesos", services)];
    let names = names.into_iter().map(|(name, node)| (tidegate_dns::Name::from(name), Arc::new(node))).collect();
    Input { generation, origin: "mesos".into(), names }
}

fn tells(generation: u64) -> IpAddr {
    Ipv4Addr::from_bits(0x0A00_0000 + u32::try_from(generation).unwrap()).into()
}

fn query(id: u16, name: &str, kind: RecordType, payload: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

async fn ask_udp(server: SocketAddr, query: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind((server.ip(), 0)).await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(query).await.unwrap();
    let mut answer = vec![0; 65_536];
    let len = tokio::time::timeout(DEADLINE, socket.recv(&mut answer)).await.expect("an answer").unwrap();
    answer.truncate(len);
    answer
}

/// Sends all queries at once, then reads as many answers.
async fn ask_tcp(server: SocketAddr, queries: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let (mut read, mut write) = TcpStream::connect(server).await.unwrap().into_split();
    let framed: Vec<u8> =
        queries.iter().flat_map(|q| [&u16::try_from(q.len()).unwrap().to_be_bytes(), q.as_slice()].concat()).collect();
    let writer = tokio::spawn(async move {
        write.write_all(&framed).await.unwrap();
        write
    });
    let mut answers = Vec::new();
    for _ in queries {
        let one = async {
            let mut answer = vec![0; usize::from(read.read_u16().await.unwrap())];
            read.read_exact(&mut answer).await.unwrap();
            answer
        };
        answers.push(tokio::time::timeout(DEADLINE, one).await.expect("an answer"));
    }
    writer.await.unwrap();
    answers
}

fn addresses(message: &Message) -> Vec<IpAddr> {
    message.answers.iter().filter_map(|record| record.data.ip_addr()).collect()
}

#[tokio::test]
async fn answers_over_udp_and_tcp_agree() {
    for listen in ["127.0.0.1:0", "[::1]:0"] {
        let mut plane = Plane::start(listen).await;
        plane.give(input(7)).await;
        for (name, kind, code) in [
            ("small.mesos.", RecordType::A, ResponseCode::NoError),
            ("small.mesos.", RecordType::TXT, ResponseCode::NoError),
            ("_small._tcp.mesos.", RecordType::SRV, ResponseCode::NoError),
            ("nobody.mesos.", RecordType::A, ResponseCode::NXDomain),
            ("example.com.", RecordType::A, ResponseCode::Refused),
        ] {
            let asked = query(1, name, kind, Some(1232));
            let udp = Message::from_vec(&ask_udp(plane.address, &asked).await).unwrap();
            let tcp = Message::from_vec(&ask_tcp(plane.address, &[asked]).await[0]).unwrap();
            assert_eq!(udp.metadata.response_code, code, "{name} {kind}");
            assert_eq!(udp, tcp, "{name} {kind}");
        }
        let counters = plane.report(|r| r.counters.queries == 10).await.counters;
        assert_eq!((counters.answered, counters.no_data, counters.no_such_name, counters.refused), (4, 2, 2, 2));
        plane.stop().await;
    }
}

#[tokio::test]
async fn a_large_answer_is_truncated_cleanly_and_comes_whole_over_tcp() {
    let mut plane = Plane::start("127.0.0.1:0").await;
    plane.give(input(1)).await;
    for payload in [None, Some(512), Some(4096)] {
        let asked = query(2, "large.mesos.", RecordType::A, payload);
        let bytes = ask_udp(plane.address, &asked).await;
        let udp = Message::from_vec(&bytes).unwrap();
        assert!(udp.metadata.truncation && bytes.len() <= 1232, "{payload:?}: {} bytes", bytes.len());
        assert_eq!(udp.to_vec().unwrap(), bytes, "{payload:?}: bytes behind the message");
        assert_eq!(udp.edns.is_some(), payload.is_some());
        let tcp = Message::from_vec(&ask_tcp(plane.address, &[asked]).await[0]).unwrap();
        assert_eq!((tcp.metadata.truncation, tcp.answers.len()), (false, 200));
    }
    plane.report(|r| r.counters.truncated == 3).await;
    plane.stop().await;
}

#[tokio::test]
async fn five_hundred_queries_in_one_go_get_five_hundred_answers_over_tcp() {
    let mut plane = Plane::start("127.0.0.1:0").await;
    plane.give(input(1)).await;
    let queries: Vec<_> = (0..500).map(|id| query(id, "large.mesos.", RecordType::A, None)).collect();
    let answers = ask_tcp(plane.address, &queries).await;
    let mut ids: Vec<u16> = answers.iter().map(|bytes| Message::from_vec(bytes).unwrap().metadata.id).collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..500).collect::<Vec<_>>());
    plane.stop().await;
}

#[tokio::test]
async fn before_the_first_input_the_server_fails_and_denies_nothing() {
    let mut plane = Plane::start("127.0.0.1:0").await;
    let asked = query(3, "small.mesos.", RecordType::A, None);
    let code = |bytes: &[u8]| Message::from_vec(bytes).unwrap().metadata.response_code;
    assert_eq!(code(&ask_udp(plane.address, &asked).await), ResponseCode::ServFail);
    plane.give(input(1)).await;
    assert_eq!(code(&ask_udp(plane.address, &asked).await), ResponseCode::NoError);
    plane.stop().await;
}

#[tokio::test]
async fn a_bad_input_is_reported_and_the_old_one_stays() {
    let mut plane = Plane::start("127.0.0.1:0").await;
    plane.give(input(5)).await;
    plane.inputs.send_replace(Arc::new(Input { names: input(6).names, ..Input::default() }));
    let report = plane.report(|r| r.refused.is_some()).await;
    assert_eq!(report.refused, Some((0, Refused::Older { got: 0, applied: 5 })));
    plane.inputs.send_replace(Arc::new(Input { origin: "test".into(), ..input(6) }));
    let report = plane.report(|r| matches!(r.refused, Some((6, _)))).await;
    assert!(matches!(report.refused, Some((6, Refused::OutsideZone { .. }))), "{report:?}");
    assert_eq!(report.generation, 5);
    let asked = query(4, "small.mesos.", RecordType::A, None);
    let message = Message::from_vec(&ask_udp(plane.address, &asked).await).unwrap();
    assert_eq!(addresses(&message), [tells(5)]);
    plane.give(input(7)).await;
    assert_eq!(plane.report(|r| r.generation == 7).await.refused, None);
    plane.stop().await;
}

#[tokio::test]
async fn the_last_input_is_answered_when_nobody_gives_inputs_any_more() {
    let mut plane = Plane::start("127.0.0.1:0").await;
    plane.give(input(9)).await;
    let Plane { inputs, mut reports, stop, task, address } = plane;
    drop(inputs);
    let before = reports.borrow_and_update().counters.queries;
    let asked = query(5, "small.mesos.", RecordType::A, None);
    assert_eq!(addresses(&Message::from_vec(&ask_udp(address, &asked).await).unwrap()), [tells(9)]);
    let counted = reports.wait_for(|r| r.counters.queries == before + 1);
    tokio::time::timeout(DEADLINE, counted).await.expect("reports go on").unwrap();
    stop.cancel();
    task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_query_is_lost_and_none_answered_from_the_past_while_the_zone_changes() {
    let mut plane = Plane::start("127.0.0.1:0").await;
    plane.give(input(1)).await;
    let (server, done) = (plane.address, CancellationToken::new());
    let client = tokio::spawn({
        let (done, reports) = (done.clone(), plane.reports.clone());
        async move {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            socket.connect(server).await.unwrap();
            let mut answer = [0; 512];
            let mut asked = 0u32;
            while !done.is_cancelled() {
                let id = asked as u16;
                let applied = reports.borrow().generation;
                socket.send(&query(id, "small.mesos.", RecordType::A, None)).await.unwrap();
                let len = tokio::time::timeout(DEADLINE, socket.recv(&mut answer)).await.expect("an answer").unwrap();
                let message = Message::from_vec(&answer[..len]).unwrap();
                assert_eq!((message.metadata.id, message.answers.len()), (id, 1));
                let address = addresses(&message)[0];
                assert!(address >= tells(applied), "{address} after generation {applied} was reported");
                asked += 1;
            }
            asked
        }
    });
    for generation in 2..=300 {
        plane.give(input(generation)).await;
    }
    done.cancel();
    assert!(client.await.unwrap() > 0);
    plane.stop().await;
}

#[tokio::test]
async fn a_port_in_use_is_a_start_error_that_says_what_to_do() {
    let taken = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let elsewhere: SocketAddr = "192.0.2.1:0".parse().unwrap();
    for (listen, advice) in [
        (vec![taken.local_addr().unwrap()], "another process has the port"),
        (vec![elsewhere], "the address is not on this machine"),
        (vec![], "no address to answer DNS on"),
    ] {
        let (_inputs, input) = watch::channel(Arc::default());
        let (reports, _report) = watch::channel(Arc::default());
        let config = Config { listen, udp_payload: 1232 };
        let problem = tidegate_dns::run(config, input, reports, CancellationToken::new()).await.unwrap_err();
        assert!(problem.to_string().contains(advice), "{problem:#}");
    }
}

#[tokio::test]
async fn a_wildcard_answers_on_each_address_by_itself() {
    let mut plane = Plane::start("0.0.0.0:0").await;
    plane.give(input(1)).await;
    let listening = plane.report(|r| !r.listening.is_empty()).await.listening.clone();
    assert!(listening.iter().all(|address| !address.ip().is_unspecified()), "{listening:?}");
    let local = listening.iter().find(|address| address.ip().is_loopback()).expect("lo has an address");
    let asked = query(6, "small.mesos.", RecordType::A, None);
    assert_eq!(addresses(&Message::from_vec(&ask_udp(*local, &asked).await).unwrap()), [tells(1)]);
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dig_reads_every_answer_without_a_warning() {
    if Command::new("dig").arg("-v").output().is_err() {
        assert!(std::env::var_os("LAB_REQUIRE").is_none(), "dig is missing: apt-get install bind9-dnsutils");
        eprintln!("skipped: dig is missing (apt-get install bind9-dnsutils)");
        return;
    }
    let mut plane = Plane::start("127.0.0.1:0").await;
    plane.give(input(3)).await;
    for (arguments, expected) in [
        (vec!["small.mesos", "A", "+short"], vec!["10.0.0.3"]),
        (
            vec!["SMALL.mesos", "AAAA"],
            vec!["status: NOERROR", "flags: qr aa rd;", "SMALL.mesos.\t\t5\tIN\tAAAA\tfd77::1"],
        ),
        (vec!["_small._tcp.mesos", "SRV"], vec!["0 1 31000 small.mesos.", "ADDITIONAL: 3", "10.0.0.3"]),
        (vec!["nobody.mesos"], vec!["status: NXDOMAIN", "SOA\tns.mesos. hostmaster.mesos. 3"]),
        (vec!["large.mesos", "+ignore", "+bufsize=512"], vec!["flags: qr aa tc rd;", "EDNS: version: 0"]),
        (vec!["large.mesos", "+ignore", "+noedns"], vec!["flags: qr aa tc rd;", "ANSWER: 0"]),
        (vec!["large.mesos"], vec!["ANSWER: 200", "(TCP)"]),
        (vec!["mesos", "SOA", "+tcp"], vec!["status: NOERROR", "ns.mesos. hostmaster.mesos. 3 60 10 86400 5"]),
        (vec!["small.mesos", "+edns=1", "+noednsnegotiation"], vec!["status: BADVERS"]),
        (vec!["version.bind", "CH", "TXT"], vec!["status: REFUSED"]),
        (vec!["small.mesos", "+opcode=notify"], vec!["status: NOTIMP"]),
    ] {
        let server = ["@127.0.0.1".into(), "-p".into(), plane.address.port().to_string(), "+tries=1".into()];
        let output = Command::new("dig").args(server).args(&arguments).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        for part in expected {
            assert!(text.contains(part), "dig {}: no {part:?} in\n{text}", arguments.join(" "));
        }
        for complaint in ["Warning", "malformed", "extra bytes", "WARNING: Messages"] {
            assert!(!text.contains(complaint), "dig {}:\n{text}", arguments.join(" "));
        }
    }
    plane.stop().await;
}
