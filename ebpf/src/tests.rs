//! Packet pairs and properties of the whole core, on a laptop.

use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;

use crate::{
    abi::{Address, LOCALS, Real, Reason, Reverse, SECOND, ServiceKey, TCP, UDP},
    balance::{Hop, Verdict, balance},
    frames::Build,
    host::{Frame, Memory},
};

const CLIENT_LINK: u32 = 2;
const REAL_LINK: u32 = 3;

/// Two reals behind a VIP of either family, TCP and UDP, one local address each; everything on one link.
fn world() -> Memory {
    let memory = Memory::new();
    let ip = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
    {
        let state = &mut *memory.0.borrow_mut();
        state.now = 1000 * SECOND;
        state.settings.locals_v4 = 1;
        state.settings.locals_v6 = 1;
        state.locals.insert(0, ip("10.77.101.1"));
        state.locals.insert(LOCALS, ip("fd77:0:101::1"));
        for service in 0..4_u32 {
            for (number, (v4, v6)) in [("10.77.1.1", "fd77:0:1::1"), ("10.77.1.2", "fd77:0:1::2")].iter().enumerate() {
                let address = ip(if service < 2 { v4 } else { v6 });
                let real = Real { address, service, epoch: 1, port: 8080, weight: 1, state: Real::ACTIVE };
                state.reals.insert(service * 2 + number as u32, real);
                let hop = Hop {
                    ifindex: CLIENT_LINK,
                    source_mac: [2, 0, 0, 0, 0, 1],
                    destination_mac: [2, 0, 0, 0, 1, number as u8],
                };
                state.hops.insert(address, hop);
            }
        }
    }
    for (service, (vip, protocol)) in
        (0..).zip([("10.77.100.1", TCP), ("10.77.100.1", UDP), ("fd77:0:100::1", TCP), ("fd77:0:100::1", UDP)])
    {
        let key = ServiceKey { vip: ip(vip), port: 80, protocol, pad: 0 };
        memory.serve(key, service, &[service * 2, service * 2 + 1], 256);
    }
    memory
}

fn build(text: &str) -> Build {
    text.parse().unwrap()
}

/// What becomes of a frame; the frame is unchanged unless it is sent on, and whole if it is.
fn run(memory: &Memory, input: &[u8]) -> (Verdict, Vec<u8>) {
    let mut frame = Frame::new(input, CLIENT_LINK);
    let verdict = balance(&mut frame, memory);
    let output = frame.bytes();
    if !matches!(verdict, Verdict::Transmit | Verdict::Redirect(_)) {
        assert_eq!(output, input, "{verdict:?} changed the frame");
    }
    (verdict, output)
}

fn send(memory: &Memory, text: &str) -> Build {
    let (verdict, output) = run(memory, &build(text).bytes());
    assert_eq!(verdict, Verdict::Transmit, "{text}");
    Build::read(&output).unwrap_or_else(|| panic!("{text}: a checksum or a length is wrong afterwards"))
}

fn verdict(memory: &Memory, text: &str) -> Verdict {
    run(memory, &build(text).bytes()).0
}

/// The real's answer to what reached it.
fn answer(request: &Build, flags: u8) -> Build {
    Build {
        source: request.destination,
        destination: request.source,
        flags,
        source_mac: request.destination_mac,
        destination_mac: request.source_mac,
        ..request.clone()
    }
}

fn set_state(memory: &Memory, address: IpAddr, state: u32) {
    for real in memory.0.borrow_mut().reals.values_mut() {
        if IpAddr::from(real.address) == address {
            real.state = state;
        }
    }
}

#[test]
fn a_request_goes_out_and_its_answer_comes_back() {
    for (request, client) in [
        ("tcp 10.77.0.10:4000 > 10.77.100.1:80 S", "10.77.0.10:4000"),
        ("udp 10.77.0.10:4000 > 10.77.100.1:80 +33", "10.77.0.10:4000"),
        ("tcp [fd77::10]:4000 > [fd77:0:100::1]:80 S +1", "[fd77::10]:4000"),
        ("udp [fd77::10]:4000 > [fd77:0:100::1]:80 +1200", "[fd77::10]:4000"),
    ] {
        let memory = world();
        let sent = build(request);
        let got = send(&memory, request);
        assert!(["10.77.101.1", "fd77:0:101::1"].contains(&got.source.ip().to_string().as_str()), "{got}");
        assert!(got.source.port() >= 1024);
        assert_eq!((got.destination.port(), got.ttl, &got.payload), (8080, 63, &sent.payload));

        let (verdict, back) = run(&memory, &answer(&got, 0x12).bytes());
        assert_eq!(verdict, Verdict::Transmit);
        let back = Build::read(&back).unwrap();
        assert_eq!(back.source, sent.destination);
        assert_eq!(back.destination, client.parse::<SocketAddr>().unwrap());
        assert_eq!((back.source_mac, back.destination_mac), (sent.destination_mac, sent.source_mac));
        assert_eq!(back.ttl, 62);
    }
}

#[test]
fn what_is_not_plainly_ours_passes_untouched() {
    let memory = world();
    for text in [
        "tcp 10.77.0.10:4000 > 10.77.100.1:81 S",
        "tcp 10.77.0.10:4000 > 10.77.100.2:80 S",
        "tcp 10.77.1.1:8080 > 10.77.101.1:2000 SA",
        // Of a flow that nobody knows.
        "tcp 10.77.0.10:4000 > 10.77.100.1:80 R",
        "tcp 10.77.0.10:4000 > 10.77.100.1:80 SA",
    ] {
        assert_eq!(verdict(&memory, text), Verdict::Pass, "{text}");
    }
    let plain = build("tcp 10.77.0.10:4000 > 10.77.100.1:80 S +8").bytes();
    let plain6 = build("tcp [fd77::10]:4000 > [fd77:0:100::1]:80 S +8").bytes();
    let changed = |frame: &[u8], at: usize, byte: u8| {
        let mut frame = frame.to_vec();
        frame[at] = byte;
        frame
    };
    for (why, frame) in [
        ("options", changed(&plain, 14, 0x46)),
        ("a first fragment", changed(&plain, 20, 0x20)),
        ("a later fragment", changed(&plain, 21, 1)),
        ("ICMP", changed(&plain, 23, 1)),
        ("a VLAN", changed(&plain, 12, 0x81)),
        ("a length beyond the frame", changed(&plain, 17, 200)),
        ("a length within the headers", changed(&plain, 17, 30)),
        ("a data offset within the header", changed(&plain, 46, 0x40)),
        ("a data offset beyond the segment", changed(&plain, 46, 0xf0)),
        ("multicast", changed(&plain, 0, 1)),
        ("hop-by-hop options", changed(&plain6, 20, 0)),
        ("a version that is not 6", changed(&plain6, 14, 0x40)),
        ("half a header", plain[..40].to_vec()),
        ("nothing", Vec::new()),
    ] {
        assert_eq!(run(&memory, &frame).0, Verdict::Pass, "{why}");
    }
    assert!(memory.0.borrow().flows.is_empty());
}

#[test]
fn drops_say_why() {
    let check = |memory: &Memory, text: &str, reason: Reason| {
        assert_eq!(verdict(memory, text), Verdict::Drop(reason), "{text}");
        assert_eq!(memory.0.borrow().drops.get(&reason), Some(&1), "{text}");
    };
    let syn = "tcp 10.77.0.10:4000 > 10.77.100.1:80 S";
    check(&world(), "tcp 10.77.0.10:4000 > 10.77.100.1:80 S ttl=1", Reason::Ttl);
    check(&world(), "tcp 10.77.0.10:4000 > 10.77.100.1:80 SF", Reason::TcpFlags);
    check(&world(), "tcp 10.77.0.10:4000 > 10.77.100.1:80 ttl=9", Reason::TcpFlags);
    let memory = world();
    memory.0.borrow_mut().settings.locals_v4 = 0;
    check(&memory, syn, Reason::NoLocalAddress);
    let memory = world();
    memory.0.borrow_mut().hops.clear();
    check(&memory, syn, Reason::NoNeighbour);
}

#[test]
fn goes_out_by_the_link_that_leads_to_the_real_and_back_by_the_clients() {
    let memory = world();
    memory.0.borrow_mut().hops.values_mut().for_each(|hop| hop.ifindex = REAL_LINK);
    let (verdict, out) = run(&memory, &build("tcp 10.77.0.10:4000 > 10.77.100.1:80 S").bytes());
    assert_eq!(verdict, Verdict::Redirect(REAL_LINK));
    let mut back = Frame::new(&answer(&Build::read(&out).unwrap(), 0x12).bytes(), REAL_LINK);
    assert_eq!(balance(&mut back, &memory), Verdict::Redirect(CLIENT_LINK));
}

#[test]
fn a_flow_stays_with_its_real_and_port_until_it_ends() {
    let memory = world();
    let first = send(&memory, "tcp 10.77.0.10:4000 > 10.77.100.1:80 S");
    set_state(&memory, first.destination.ip(), Real::DRAINING);
    let next = send(&memory, "tcp 10.77.0.10:4000 > 10.77.100.1:80 A +9");
    assert_eq!((next.source, next.destination), (first.source, first.destination));
    // Even when the real's entry went and came back as somebody else's.
    for real in memory.0.borrow_mut().reals.values_mut() {
        real.epoch += 1;
    }
    let next = send(&memory, "tcp 10.77.0.10:4000 > 10.77.100.1:80 AF");
    assert_eq!((next.source, next.destination), (first.source, first.destination));
    // But a new connection from the same port goes to a real that takes any.
    let again = send(&memory, "tcp 10.77.0.10:4000 > 10.77.100.1:80 S");
    assert_ne!(again.destination, first.destination);
    assert_eq!(memory.0.borrow().reverses.len(), 1, "the old flow's reverse entry is gone");
    let counters = memory.0.borrow().service_counters[&0];
    assert_eq!((counters.packets, counters.flows), (4, 2));
}

#[test]
fn a_repeated_syn_does_not_move_a_flow() {
    let memory = world();
    let syn = "tcp 10.77.0.10:4000 > 10.77.100.1:80 S";
    assert_eq!(send(&memory, syn), send(&memory, syn));
    assert_eq!(memory.0.borrow().service_counters[&0].flows, 1);
}

#[test]
fn a_flow_that_lost_one_half_or_both_mends_itself() {
    type Break = fn(&Memory);
    let breaks: [Break; 3] = [
        |memory| memory.0.borrow_mut().reverses.clear(),
        |memory| memory.0.borrow_mut().flows.clear(),
        |memory| {
            memory.0.borrow_mut().flows.clear();
            memory.0.borrow_mut().reverses.clear();
        },
    ];
    for (case, harm) in breaks.iter().enumerate() {
        let memory = world();
        let before = send(&memory, "tcp 10.77.0.10:4000 > 10.77.100.1:80 S");
        harm(&memory);
        let after = send(&memory, "tcp 10.77.0.10:4000 > 10.77.100.1:80 A");
        assert_eq!((after.source, after.destination), (before.source, before.destination), "case {case}");
        let state = memory.0.borrow();
        assert_eq!((state.flows.len(), state.reverses.len()), (1, 1), "case {case}");
    }
}

#[test]
fn a_port_that_another_flow_took_is_not_shared() {
    let memory = world();
    let mine = send(&memory, "tcp 10.77.0.10:4000 > 10.77.100.1:80 S");
    // The reverse entry was evicted and its port given to somebody else.
    for reverse in memory.0.borrow_mut().reverses.values_mut() {
        reverse.client_port = 9999;
    }
    let next = send(&memory, "tcp 10.77.0.10:4000 > 10.77.100.1:80 A");
    assert_eq!(next.destination, mine.destination);
    assert_ne!(next.source, mine.source);
    let again = send(&memory, "tcp 10.77.0.10:4000 > 10.77.100.1:80 A");
    assert_eq!(again.source, next.source);
}

#[test]
fn an_exhausted_port_range_takes_back_what_is_over() {
    let memory = world();
    let syn = "tcp 10.77.0.10:4000 > 10.77.100.1:80 S";
    let key = |got: &Build| answer(got, 0);
    let first = key(&send(&memory, syn));
    // Every other port belongs to a busy flow, of which none is over at first.
    let template = *memory.0.borrow().reverses.values().next().unwrap();
    memory.0.borrow_mut().flows.clear();
    let tuple = *memory.0.borrow().reverses.keys().next().unwrap();
    for port in 1024..=65_535 {
        let tuple = crate::abi::Tuple { destination_port: port, ..tuple };
        memory.0.borrow_mut().reverses.insert(tuple, Reverse { client_port: 9, ..template });
    }
    assert_eq!(verdict(&memory, syn), Verdict::Drop(Reason::NoPort));
    let over = Reverse { client_port: 9, client_end: Reverse::FIN, real_end: Reverse::FIN, ..template };
    memory.0.borrow_mut().reverses.insert(tuple, over);
    assert_eq!(key(&send(&memory, syn)).destination, first.destination);
}

#[test]
fn an_idle_udp_flow_leaves_a_real_that_drains() {
    let memory = world();
    let packet = "udp 10.77.0.10:4000 > 10.77.100.1:80 +5";
    let first = send(&memory, packet);
    set_state(&memory, first.destination.ip(), Real::DRAINING);
    memory.0.borrow_mut().now += 29 * SECOND;
    assert_eq!(send(&memory, packet).destination, first.destination);
    memory.0.borrow_mut().now += 31 * SECOND;
    assert_ne!(send(&memory, packet).destination, first.destination);
}

#[test]
fn a_service_without_active_reals_is_the_kernels() {
    let memory = world();
    let open = send(&memory, "tcp 10.77.0.10:4000 > 10.77.100.1:80 S");
    let key = ServiceKey { vip: Address::from(IpAddr::from([10, 77, 100, 1])), port: 80, protocol: TCP, pad: 0 };
    memory.serve(key, 0, &[], 0);
    set_state(&memory, open.destination.ip(), Real::DRAINING);
    assert_eq!(verdict(&memory, "tcp 10.77.0.10:4001 > 10.77.100.1:80 S"), Verdict::Pass);
    assert_eq!(send(&memory, "tcp 10.77.0.10:4000 > 10.77.100.1:80 A").destination, open.destination);
}

#[test]
fn a_ring_never_leads_to_a_real_of_another_service_or_one_that_went() {
    let memory = world();
    for real in memory.0.borrow_mut().reals.values_mut() {
        real.service += 100;
    }
    assert_eq!(verdict(&memory, "tcp 10.77.0.10:4001 > 10.77.100.1:80 S"), Verdict::Pass);
}

#[test]
fn udp_without_a_checksum_stays_without() {
    let memory = world();
    let mut frame = build("udp 10.77.0.10:4000 > 10.77.100.1:80 +5").bytes();
    frame[40..42].fill(0);
    let (verdict, out) = run(&memory, &frame);
    assert_eq!((verdict, &out[40..42]), (Verdict::Transmit, &[0, 0][..]));
}

fn packets() -> impl Strategy<Value = Build> {
    let client = (any::<[u8; 4]>(), any::<[u8; 16]>(), 1..=u16::MAX);
    let shape = (any::<bool>(), any::<bool>(), 2u8.., prop::collection::vec(any::<u8>(), 0..200));
    (client, shape).prop_map(|((v4, v6, port), (four, tcp, ttl, payload))| {
        let mut packet = build(if four {
            "tcp 10.77.0.10:4000 > 10.77.100.1:80 S"
        } else {
            "tcp [fd77::10]:4000 > [fd77:0:100::1]:80 S"
        });
        let address = if four { IpAddr::from(v4) } else { IpAddr::from(v6) };
        packet.source = SocketAddr::new(address, port);
        packet.ttl = ttl;
        packet.payload = payload;
        if !tcp {
            packet.protocol = UDP;
            packet.flags = 0;
        }
        packet
    })
}

proptest! {
    /// `Build::read` recomputes every checksum from the whole packet.
    #[test]
    fn translation_out_and_back_is_the_identity(packet in packets()) {
        let memory = world();
        let (verdict, out) = run(&memory, &packet.bytes());
        prop_assert_eq!(verdict, Verdict::Transmit);
        let out = Build::read(&out).expect("checksums of the request hold");
        let reply = Build { ttl: 64, ..answer(&out, if packet.protocol == TCP { 0x10 } else { 0 }) };
        let (verdict, back) = run(&memory, &reply.bytes());
        prop_assert_eq!(verdict, Verdict::Transmit);
        let back = Build::read(&back).expect("checksums of the answer hold");
        prop_assert_eq!((back.source, back.destination), (packet.destination, packet.source));
        prop_assert_eq!((&back.payload, back.ttl), (&packet.payload, 63));
    }

    #[test]
    fn hostile_bytes_do_no_harm(packet in packets(), harm in prop::collection::vec((0usize..80, any::<u8>()), 0..6), length in 0usize..300) {
        let memory = world();
        let mut bytes = packet.bytes();
        for (at, byte) in harm {
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
        }
        bytes.truncate(length);
        // That it returns, and leaves what it does not send alone, is checked in `run`.
        let (verdict, out) = run(&memory, &bytes);
        prop_assert_eq!(out.len(), bytes.len());
        prop_assert!(!matches!(verdict, Verdict::Redirect(_)));
    }

    #[test]
    fn noise_passes(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
        prop_assert_eq!(run(&world(), &bytes).0, Verdict::Pass);
    }

    #[test]
    fn two_flows_never_share_a_reverse_entry(ports in prop::collection::btree_set(1..=u16::MAX, 2..200)) {
        let memory = world();
        for port in &ports {
            send(&memory, &format!("tcp 10.77.0.10:{port} > 10.77.100.1:80 S"));
        }
        prop_assert_eq!(memory.0.borrow().reverses.len(), ports.len());
    }
}
