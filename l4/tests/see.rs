//! Looking at layer 4 through its pins, with no process that serves: what is said is what the program then does.

#![allow(clippy::unwrap_used, reason = "a test says so by panicking")]

mod lab;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use lab::kernel::Kernel;
use tidegate_ebpf::{
    abi::{
        ACCESS_DATA, Access, AccessKey, AccessKeyData, Address, Flow, MOVING, Move, Reason, Service, ServiceKey, TCP,
        Watch, map,
    },
    host::{Memory, State},
    layers, scripts,
};
use tidegate_l4::{
    Frontend, Protocol,
    see::{
        self,
        capture::{self, Capture, Packet, Verdict, What},
        explain::{Explainer, Explanation, Outcome, Question, Reasoning},
        flows,
        log::{self, Log},
        pcap,
    },
};

/// The world of the packet core's scripts on pinned maps.
struct Pinned {
    kernel: Kernel,
    memory: Memory,
    known: State,
    folder: PathBuf,
}

impl Pinned {
    fn new() -> Self {
        let folder = lab::pin_dir();
        std::fs::create_dir(&folder).unwrap();
        let mut kernel = Kernel::load(Some(&folder));
        let mut pinned = Self { memory: scripts::world(kernel.now()), kernel, known: State::default(), folder };
        pinned.write();
        pinned
    }

    fn write(&mut self) {
        self.kernel.write(&self.memory.0.borrow(), &mut self.known);
    }

    fn send(&mut self, frame: &str) -> (u32, String) {
        let (action, output) = self.kernel.run("balance", &layers::write(frame));
        (action, layers::read(&output))
    }

    fn explainer(&self) -> Explainer {
        Explainer::open(&self.folder, Some("lo")).unwrap()
    }

    /// `None`: whoever looks has stopped wanting something.
    fn watch(&mut self) -> Option<Watch> {
        let watch: Watch = self.kernel.array(map::WATCH).get(&0, 0).unwrap();
        (watch.capture != 0 || watch.log_every != 0).then_some(watch)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        tidegate_l4::xdp::remove(&self.folder).unwrap();
    }
}

fn question(client: &str, vip: &str, opens: bool) -> Question {
    let vip: SocketAddr = vip.parse().unwrap();
    let frontend = Frontend { vip: vip.ip(), port: vip.port(), protocol: Protocol::Tcp };
    Question { client: client.parse().unwrap(), frontend, opens }
}

fn real(explanation: &Explanation) -> IpAddr {
    explanation.real.as_ref().expect("a real").address.ip()
}

#[test]
fn an_explanation_names_the_real_that_the_packet_then_goes_to() {
    if lab::skip() {
        return;
    }
    let mut pinned = Pinned::new();
    let mut explainer = pinned.explainer();
    for port in 4000..4032 {
        let explain = |explainer: &mut Explainer, vip: &str, opens| {
            explainer.ask(&question(&format!("10.77.0.10:{port}"), vip, opens)).unwrap()
        };

        let said = explain(&mut explainer, "10.77.100.1:80", true);
        assert_eq!((said.why, said.flow.as_ref().unwrap().state), (Reasoning::NewFlow, "new"), "{said}");
        let local = said.flow.as_ref().unwrap().local.unwrap();
        let (_, sent) = pinned.send(&format!("eth c>b / ip4 10.77.0.10 > 10.77.100.1 / tcp {port} > 80 S"));
        let expect = format!("ip4 {} > {} ttl=63 / tcp {} > 8080 S", local.ip(), real(&said), local.port());
        assert!(sent.contains(&expect), "{said}\n{sent}");
        // The flow is there now.
        let again = explain(&mut explainer, "10.77.100.1:80", false);
        assert_eq!((again.why, real(&again)), (Reasoning::Flow, real(&said)), "{again}");
        assert_eq!(again.flow.unwrap().local, Some(local));

        let said = explain(&mut explainer, "10.77.100.2:80", true);
        assert_eq!((said.service.as_ref().unwrap().mode, said.why), ("direct", Reasoning::Slot));
        let (_, sent) = pinned.send(&format!("eth c>b / ip4 10.77.0.10 > 10.77.100.2 / tcp {port} > 80 S"));
        let machine = if real(&said) == "10.77.1.1".parse::<IpAddr>().unwrap() { "eth b>r1" } else { "eth b>r2" };
        assert!(sent.starts_with(machine), "{said}\n{sent}");

        let said = explain(&mut explainer, "10.77.100.3:80", true);
        let (_, sent) = pinned.send(&format!("eth c>b / ip4 10.77.0.10 > 10.77.100.3 / tcp {port} > 80 S"));
        assert!(sent.contains(&format!("ip4 10.77.101.1 > {} ", real(&said))), "{said}\n{sent}");
        assert!(said.sent.as_ref().unwrap().contains(&format!("IP 10.77.101.1 > {} ", real(&said))), "{said}");
    }
}

#[test]
fn an_explanation_follows_a_slot_that_moves() {
    if lab::skip() {
        return;
    }
    let mut pinned = Pinned::new();
    let key = ServiceKey { vip: "10.77.100.2".parse::<IpAddr>().unwrap().into(), port: 80, protocol: TCP, pad: 0 };
    {
        let state = &mut *pinned.memory.0.borrow_mut();
        let service = state.services[&key];
        let moving = Move { current: service.id * 2 + 1, previous: service.id * 2, phase: Move::LEARNING, pad: 0 };
        state.moves.insert(9, moving);
        state.rings.get_mut(&service.block).unwrap().0.fill(MOVING | 9);
    }
    pinned.write();
    let mut explainer = pinned.explainer();
    let (old, new): (IpAddr, IpAddr) = ("10.77.1.1".parse().unwrap(), "10.77.1.2".parse().unwrap());

    let said = explainer.ask(&question("10.77.0.10:4000", "10.77.100.2:80", true)).unwrap();
    assert_eq!((said.why, real(&said)), (Reasoning::MovingNew, new), "{said}");
    let moving = said.slot.as_ref().unwrap().moving.as_ref().unwrap();
    assert_eq!((moving.previous.as_ref().unwrap().address.ip(), moving.phase), (old, "learning"));
    let said = explainer.ask(&question("10.77.0.10:4000", "10.77.100.2:80", false)).unwrap();
    assert_eq!((said.why, real(&said)), (Reasoning::MovingPrevious, old), "{said}");
    // Explaining recorded nothing: the program decides as it said.
    assert!(pinned.send("eth c>b / ip4 10.77.0.10 > 10.77.100.2 / tcp 4000 > 80 S").1.starts_with("eth b>r2"));
    let said = explainer.ask(&question("10.77.0.10:4000", "10.77.100.2:80", false)).unwrap();
    assert_eq!((said.why, real(&said)), (Reasoning::Recorded, new), "{said}");

    let listing = flows::list(&pinned.folder, &flows::Filter::default(), 10).unwrap();
    let recorded: Vec<_> = listing.recorded.iter().map(|found| (found.real.address.ip(), found.flows)).collect();
    assert_eq!(recorded, [(new, 1)]);
}

#[test]
fn what_is_not_forwarded_is_explained_and_so_are_many_ports() {
    if lab::skip() {
        return;
    }
    let mut pinned = Pinned::new();
    let key = ServiceKey { vip: "10.77.100.7".parse::<IpAddr>().unwrap().into(), port: 80, protocol: TCP, pad: 0 };
    let service = pinned.memory.0.borrow().services[&key];
    pinned.memory.set_service(key, Service { checks: Service::ACCESS, ..service });
    let client = Address::from("10.77.0.66".parse::<IpAddr>().unwrap());
    let data = AccessKeyData { service: service.id.to_be(), client };
    pinned.memory.0.borrow_mut().access.insert(AccessKey { prefix: ACCESS_DATA, data }, Access::Deny as u32);
    pinned.write();
    let mut explainer = pinned.explainer();
    let mut outcome = |client: &str, vip: &str| explainer.ask(&question(client, vip, true)).unwrap().outcome;
    let denied = outcome("10.77.0.66:4000", "10.77.100.7:80");
    assert!(matches!(denied, Outcome::Dropped { reason: "denied", .. }), "{denied}");
    let (action, _) = pinned.send("eth c>b / ip4 10.77.0.66 > 10.77.100.7 / tcp 4000 > 80 S");
    assert_eq!(action, 1, "and it is dropped");
    let passed = outcome("10.77.0.10:4000", "10.77.100.1:81").to_string();
    assert!(passed.contains("tcp 10.77.100.1:81 is no service") && passed.contains("tcp 10.77.100.1:80"), "{passed}");
    let passed = outcome("10.77.0.10:4000", "10.77.100.99:80").to_string();
    assert!(passed.contains("10.77.100.99 is no VIP"), "{passed}");
    let mixed = explainer.ask(&question("[fd77::10]:4000", "10.77.100.1:80", true)).unwrap_err().to_string();
    assert!(mixed.contains("two address families"), "{mixed}");

    let shares = explainer.shares(&question("10.77.0.10:0", "10.77.100.1:80", true)).unwrap();
    let ports: Vec<u32> = shares.reals.iter().map(|share| share.ports).collect();
    assert_eq!((ports.len(), ports.iter().sum::<u32>()), (2, shares.asked), "{shares}");
    assert!(ports.iter().all(|ports| *ports > shares.asked / 4), "the ring has equal parts: {shares}");
}

/// What is captured while some frames are sent.
async fn captured(pinned: &mut Pinned, filter: capture::Filter, frames: &[&str]) -> Vec<Packet> {
    let mut capture = Capture::start(&pinned.folder, &filter).unwrap();
    for frame in frames {
        pinned.send(frame);
    }
    let mut packets = Vec::new();
    packets.extend(std::iter::from_fn(|| capture.take()));
    packets.extend(capture.stop());
    assert_eq!(pinned.watch(), None, "the capture goes on");
    packets
}

#[tokio::test]
async fn a_capture_holds_the_packets_that_came_and_were_sent() {
    if lab::skip() {
        return;
    }
    let mut pinned = Pinned::new();
    let frames = [
        "eth c>b / ip4 10.77.0.10 > 10.77.100.3 / tcp 4000 > 80 S",
        "eth c>b / ip4 10.77.0.10 > 10.77.100.1 / tcp 4001 > 80 S +9",
        "eth c>b / ip4 10.77.0.10 > 10.77.100.1 / tcp 4002 > 81 S",
        "eth c>b / ip4 10.77.0.10 > 10.77.100.1 / tcp 4003 > 80 SF",
    ];
    let packets = captured(&mut pinned, capture::Filter::default(), &frames).await;
    let what: Vec<What> = packets.iter().map(|packet| packet.what).collect();
    let came = What::Came;
    let dropped = Verdict::Dropped(Reason::TcpFlags);
    assert_eq!(
        what,
        [came(Verdict::Sent), What::Sent, came(Verdict::Sent), What::Sent, came(Verdict::Passed), came(dropped)]
    );
    let arrived: Vec<String> =
        packets.iter().filter(|packet| packet.what != What::Sent).map(|packet| layers::read(&packet.bytes)).collect();
    assert_eq!(arrived, frames);
    let (_, again) = pinned.send(frames[0]);
    assert_eq!(layers::read(&packets[1].bytes), again);
    assert_eq!(packets[1].length as usize, packets[0].length as usize + 20);

    let mut file = Vec::new();
    let mut writer = pcap::Writer::new(&mut file, 0).unwrap();
    packets.iter().for_each(|packet| writer.packet(packet).unwrap());
    for packet in &packets {
        assert!(file.windows(packet.bytes.len()).any(|window| window == packet.bytes), "{packet:?}");
    }
    let text = String::from_utf8_lossy(&file);
    assert!(text.contains("DROPPED (tcp-flags)") && text.contains("passed to the host"));
}

#[tokio::test]
async fn a_capture_of_one_client_holds_its_answers_too_and_nobody_elses() {
    if lab::skip() {
        return;
    }
    let mut pinned = Pinned::new();
    let (_, sent) = pinned.send("eth c>b / ip4 10.77.0.10 > 10.77.100.1 / tcp 4001 > 80 S");
    let words: Vec<&str> = sent.split_whitespace().collect();
    let (local, to, port) = (words[4], words[6], words[words.iter().position(|word| *word == "tcp").unwrap() + 1]);
    let answer = format!("eth r1>b / ip4 {to} > {local} / tcp 8080 > {port} SA");
    let frames = [
        "eth c>b / ip4 10.77.0.11 > 10.77.100.1 / tcp 4001 > 80 S",
        "eth c>b vlan=5 / ip4 10.77.0.10 > 10.77.100.2 opt=1 / tcp 4001 > 80 S",
        &answer,
    ];
    let client = capture::Filter { address: Some("10.77.0.10".parse().unwrap()), port: None };
    let packets = captured(&mut pinned, client, &frames).await;
    let lines: Vec<String> = packets.iter().map(|packet| layers::read(&packet.bytes)).collect();
    assert_eq!(packets.iter().filter(|packet| packet.what != What::Sent).count(), 1, "{lines:?}");
    assert_eq!(lines[0], frames[1]);
    assert!(lines.last().unwrap().contains("ip4 10.77.100.1 > 10.77.0.10 ttl=63 / tcp 80 > 4001 SA"), "{lines:?}");
    assert_eq!(lines.len(), 3, "{lines:?}");

    let port = capture::Filter { address: client.address, port: Some(4002) };
    assert_eq!(captured(&mut pinned, port, &frames).await, []);
    let port = capture::Filter { address: None, port: Some(4001) };
    assert!(captured(&mut pinned, port, &frames[..2]).await.len() >= 3);
}

#[tokio::test]
async fn one_capture_at_a_time_and_none_that_nobody_reads() {
    if lab::skip() {
        return;
    }
    let mut pinned = Pinned::new();
    let filter = capture::Filter::default();
    let capture = Capture::start(&pinned.folder, &filter).unwrap();
    let second = Capture::start(&pinned.folder, &filter).unwrap_err().to_string();
    assert!(second.contains("another `tidegate l4 capture`"), "{second}");
    assert!(pinned.watch().is_some(), "the first one goes on");
    // As when it was killed: nobody reads, nobody switches off.
    std::mem::forget(capture);
    for _ in 0..3000 {
        pinned.send("eth c>b / ip4 10.77.0.10 > 10.77.100.2 / tcp 4000 > 80 A");
    }
    assert_eq!(pinned.watch().unwrap().left, 0, "the program goes on copying");
}

#[tokio::test]
async fn the_log_tells_new_flows_and_drops_with_their_reason() {
    if lab::skip() {
        return;
    }
    let mut pinned = Pinned::new();
    pinned.send("eth c>b / ip4 10.77.0.10 > 10.77.100.1 / tcp 3999 > 80 SF");
    // The coarse clock must have moved on for that to be from before.
    let before = pinned.kernel.now();
    while pinned.kernel.now() == before {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Asking for the time ended the belief in the next hops.
    pinned.write();
    let mut log = Log::follow(&pinned.folder, 1).unwrap();
    pinned.send("eth c>b / ip4 10.77.0.10 > 10.77.100.1 / tcp 4000 > 80 S");
    pinned.send("eth c>b / ip4 10.77.0.10 > 10.77.100.1 / tcp 4000 > 80 A");
    for _ in 0..100 {
        pinned.send("eth c>b / ip4 10.77.0.10 > 10.77.100.1 / tcp 4001 > 80 SF");
    }
    tokio::time::timeout(Duration::from_secs(5), log.ready()).await.unwrap().unwrap();
    let told: Vec<log::Told> = std::iter::from_fn(|| log.take()).collect();
    let flows: Vec<&log::Told> = told.iter().filter(|told| matches!(told.what, log::What::Flow { .. })).collect();
    let [flow] = flows[..] else { panic!("{told:?}") };
    assert_eq!((flow.client.port(), flow.vip.to_string()), (4000, "10.77.100.1:80".to_owned()));
    let listing = flows::list(&pinned.folder, &flows::Filter::default(), 10).unwrap();
    assert_eq!(flow.what, log::What::Flow { real: Some(listing.shown[0].real) });
    let drops = told.len() - 1;
    assert!((1..100).contains(&drops), "{drops} drops told of 100");
    let last = &told.last().unwrap();
    assert!(matches!(last.what, log::What::Drop { reason: "tcp-flags", .. }), "{last:?}");
    assert_eq!(last.client.port(), 4001);
    drop(log);
    assert_eq!(pinned.watch(), None, "the log goes on");

    // One of 64: the flows are told evenly, not by the slot that they are on.
    let mut log = Log::follow(&pinned.folder, 50).unwrap();
    for port in 10_000..12_000 {
        pinned.send(&format!("eth c>b / ip4 10.77.0.10 > 10.77.100.2 / tcp {port} > 80 S"));
    }
    let told: Vec<log::Told> = std::iter::from_fn(|| log.take()).collect();
    assert!((10..60).contains(&told.len()), "{} flows told of 2000", told.len());
    let reals: std::collections::BTreeSet<String> = told.iter().map(|told| format!("{:?}", told.what)).collect();
    assert_eq!(reals.len(), 2, "{reals:?}");
}

#[test]
fn flows_are_listed_as_they_are() {
    if lab::skip() {
        return;
    }
    let mut pinned = Pinned::new();
    for port in 4000..4010 {
        pinned.send(&format!("eth c>b / ip4 10.77.0.10 > 10.77.100.1 / tcp {port} > 80 S"));
    }
    pinned.send("eth c>b / ip6 fd77::10 > fd77:0:100::1 / udp 4000 > 80 +9");
    let list = |filter: flows::Filter, limit| flows::list(&pinned.folder, &filter, limit).unwrap();
    let all = list(flows::Filter::default(), 100);
    assert_eq!((all.alive, all.fitting, all.shown.len()), (11, 11, 11));
    let some = list(flows::Filter { client: Some("10.77.0.10".parse().unwrap()), ..flows::Filter::default() }, 3);
    assert_eq!((some.alive, some.fitting, some.shown.len()), (11, 10, 3));
    let line = &some.shown[0];
    assert_eq!((line.protocol, line.state, line.real_state, line.idle_s), ("tcp", "opening", "active", 0));
    assert_eq!((line.vip.to_string(), line.local.ip().to_string()), ("10.77.100.1:80".into(), "10.77.101.1".into()));
    let real = Some(line.real.ip());
    let of_real = list(flows::Filter { real, port: Some(80), ..flows::Filter::default() }, 100);
    assert!((1..10).contains(&of_real.fitting) && of_real.shown.iter().all(|line| Some(line.real.ip()) == real));
    let flow: Flow = pinned.kernel.array(map::FLOWS).get(&u32::from(line.local.port()), 0).unwrap();
    assert_eq!((flow.client_port, flows::state(&flow)), (line.client.port(), "opening"));
}

#[test]
fn where_nothing_is_pinned_it_says_so() {
    let missing = see::View::open(&lab::pin_dir()).unwrap_err().to_string();
    assert!(missing.contains("layer 4 was not started on this machine") || missing.contains("needs root"), "{missing}");
}
