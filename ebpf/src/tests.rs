//! The scripts, and properties of the whole core, on a laptop.

mod client;
mod crowd;
mod race;
mod wire;

use proptest::prelude::*;

use crate::{
    abi::SECOND,
    balance::{Verdict, balance, whole},
    host::Frame,
    layers, scripts,
};

#[test]
fn every_script_holds() {
    for script in scripts::all() {
        scripts::play(&script, &scripts::world(1000 * SECOND), |_, _| {});
    }
}

#[test]
fn what_is_written_is_read() {
    for script in scripts::all() {
        for line in &script.lines {
            if let scripts::Line::Frame { input, at, .. } = line
                && !input.contains(['{', '!'])
                && !input.contains("pad=")
            {
                assert_eq!(layers::read(&layers::write(input)), *input, "{at}");
            }
        }
    }
}

/// The services of [`scripts::world`].
fn vips() -> impl Strategy<Value = (bool, u8, bool)> {
    (any::<bool>(), 1..=7_u8, any::<bool>())
}

fn run(memory: &crate::host::Memory, input: &[u8]) -> (Verdict, Vec<u8>) {
    let mut frame = Frame::new(input, scripts::LINK);
    let verdict = balance(&mut frame, memory);
    let output = frame.bytes();
    if verdict == Verdict::Pass {
        assert_eq!(output, input, "passed, but changed: {}", layers::read(input));
    }
    (verdict, output)
}

proptest! {
    /// It is a short cut and nothing else: flows that begin, go on and end are sent as by the whole way.
    #[test]
    fn the_quick_way_ends_where_the_whole_way_does(
        packets in prop::collection::vec((vips(), 1..=3_u16, 0..5_usize), 1..40)
    ) {
        let (one, other) = (scripts::world(1000 * SECOND), scripts::world(1000 * SECOND));
        for ((v4, vip, tcp), client, flags) in packets {
            let (network, port) = if v4 {
                (format!("ip4 10.77.0.10 > 10.77.100.{vip}"), 4000 + client)
            } else {
                (format!("ip6 fd77::10 > fd77:0:100::{vip}"), 4000 + client)
            };
            let transport = if tcp {
                format!("tcp {port} > 80 {}", ["S", "A", "PA", "FA", "R"][flags])
            } else {
                format!("udp {port} > 80")
            };
            let input = layers::write(&format!("eth c>b / {network} / {transport} +9"));
            let mut frame = Frame::new(&input, scripts::LINK);
            let whole = (whole(&mut frame, &other), frame.bytes());
            prop_assert_eq!(run(&one, &input), whole, "{}", layers::read(&input));
        }
    }

    /// Reading recomputes every checksum and length from the whole packet.
    #[test]
    fn fullnat_out_and_back_is_the_identity(v4 in any::<bool>(), tcp in any::<bool>(), host in 1..=250_u8,
                                            port in 1..=u16::MAX, ttl in 3..=255_u8, length in 0..900_usize,
                                            numbers in any::<[u32; 2]>()) {
        let memory = scripts::world(1000 * SECOND);
        let (client, vip) = if v4 {
            (format!("ip4 10.77.9.{host}"), "10.77.100.1")
        } else {
            (format!("ip6 fd77::{host}"), "fd77:0:100::1")
        };
        let rest = if tcp { format!("S seq={} ack={}", numbers[0], numbers[1]) } else { String::new() };
        let name = if tcp { "tcp" } else { "udp" };
        let sent = format!("eth c>b / {client} > {vip} ttl={ttl} / {name} {port} > 80 {rest} +{length}");
        let (verdict, out) = run(&memory, &layers::write(&sent));
        prop_assert_eq!(verdict, Verdict::Transmit);
        let out = layers::read(&out);
        prop_assert!(!out.contains("BAD"), "{}", out);
        let words: Vec<&str> = out.split_whitespace().collect();
        let at = |word: &str| words.iter().position(|w| *w == word).expect("there");
        let (real, local) = (words[at("/") + 4], words[at("/") + 2]);
        let ports = at(name);
        let reply = format!(
            "eth {}>b / {} {real} > {local} / {name} {} > {} {} +{length}",
            words[1].trim_start_matches("b>"), &client[..3], words[ports + 3], words[ports + 1], if tcp { "SA" } else { "" },
        );
        let (verdict, back) = run(&memory, &layers::write(&reply));
        prop_assert_eq!(verdict, Verdict::Transmit);
        let expect = format!(
            "eth b>c / {} {vip} > {} ttl=63 / {name} 80 > {port}{}{}",
            &client[..3], &client[4..], if tcp { " SA" } else { "" },
            if length == 0 { String::new() } else { format!(" +{length}") },
        );
        prop_assert_eq!(layers::read(&back), expect);
    }

    #[test]
    fn hostile_bytes_do_no_harm((v4, vip, tcp) in vips(), harm in prop::collection::vec((0_usize..90, any::<u8>()), 0..8),
                                cut in 0_usize..400) {
        let memory = scripts::world(1000 * SECOND);
        let ip = if v4 { format!("ip4 10.77.0.10 > 10.77.100.{vip}") } else { format!("ip6 fd77::10 > fd77:0:100::{vip}") };
        let name = if tcp { "tcp" } else { "udp" };
        let mut bytes = layers::write(&format!("eth c>b / {ip} / {name} 4000 > 80 {} +200", if tcp { "S" } else { "" }));
        for (at, byte) in harm {
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
        }
        bytes.truncate(cut);
        // That it returns, and leaves alone what passes, is checked in `run`; here that it never grows out of bounds.
        let (verdict, out) = run(&memory, &bytes);
        prop_assert!(out.len() <= bytes.len() + 52, "{verdict:?}");
    }

    #[test]
    fn noise_passes(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
        prop_assert_eq!(run(&scripts::world(SECOND), &bytes).0, Verdict::Pass);
    }

    #[test]
    fn two_flows_never_share_a_port(ports in prop::collection::btree_set(1..=u16::MAX, 2..200)) {
        let memory = scripts::world(1000 * SECOND);
        let mut seen = std::collections::BTreeSet::new();
        for port in &ports {
            let (verdict, out) = run(&memory, &layers::write(&format!(
                "eth c>b / ip4 10.77.0.10 > 10.77.100.1 / tcp {port} > 80 S"
            )));
            prop_assert_eq!(verdict, Verdict::Transmit);
            prop_assert!(seen.insert([out[34], out[35]]));
        }
    }
}
