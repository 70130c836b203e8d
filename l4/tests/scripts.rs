//! The packet core's scripts on the loaded program: same maps, same frames, same answers.

#![allow(clippy::unwrap_used, reason = "a test says so by panicking")]

mod lab;

use lab::kernel::Kernel;
use tidegate_ebpf::{
    Verdict,
    abi::{Flow, Service, ServiceKey, TCP, map},
    balance,
    host::{Frame, Memory, State},
    layers,
    scripts::{self, Event},
};

#[test]
fn every_script_holds_in_the_kernel() {
    if lab::skip() {
        return;
    }
    let mut kernel = Kernel::load(None);
    for script in scripts::all() {
        let memory = scripts::world(kernel.now());
        let mut known = State::default();
        kernel.clear();
        scripts::play(&script, &memory, |memory, event| match event {
            Event::Changed => kernel.write(&memory.0.borrow(), &mut known),
            Event::Frame { at, input, verdict, output } => {
                let (action, out) = kernel.run("balance", input);
                let expect = action_of(verdict);
                assert_eq!(action, expect, "{} ({at}): {verdict:?}\n  came {}", script.about, layers::read(input));
                if expect >= 2 {
                    let (ours, theirs) = (layers::read(output), layers::read(&out));
                    assert_eq!(out, output, "{} ({at}): here {ours}, in the kernel {theirs}", script.about);
                }
                // What the packet changed is what the next change starts from.
                known = memory.0.borrow().clone();
                kernel.places = (known.flows.keys().copied().collect(), known.records.keys().copied().collect());
            }
        });
    }
}

/// XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT.
fn action_of(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Drop(_) => 1,
        Verdict::Pass => 2,
        Verdict::Transmit => 3,
        Verdict::Redirect(_) => 4,
    }
}

#[test]
fn explaining_says_the_same_and_changes_nothing() {
    if lab::skip() {
        return;
    }
    let mut kernel = Kernel::load(None);
    let memory: Memory = scripts::world(kernel.now());
    kernel.write(&memory.0.borrow(), &mut State::default());
    for frame in [
        "eth c>b / ip4 10.77.0.10 > 10.77.100.1 / tcp 4000 > 80 S",
        "eth c>b / ip4 10.77.0.10 > 10.77.100.3 / tcp 4000 > 80 S",
        "eth c>b / ip6 fd77::10 > fd77:0:100::2 / udp 4000 > 80 +9",
    ] {
        let input = layers::write(frame);
        let explained = kernel.run("explain", &input);
        let again = kernel.run("explain", &input);
        assert_eq!(explained.0, 3, "{frame}");
        assert_eq!(layers::read(&explained.1), layers::read(&again.1));
        let flows = kernel.array::<tidegate_ebpf::abi::Flow>(map::FLOWS);
        assert!(flows.iter().all(|flow| flow.unwrap().protocol == 0), "{frame}: a flow was made");
        let counts = kernel.array::<tidegate_ebpf::abi::Counters>(map::SERVICE_COUNTERS);
        assert!(counts.iter().all(|count| count.unwrap().packets == 0), "{frame}: it was counted");
    }
}

/// What the scripts say, as frames: good ones, of every kind.
fn frames() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for script in scripts::all() {
        scripts::play(&script, &scripts::world(1), |_, event| {
            if let Event::Frame { input, .. } = event {
                frames.push(input.to_vec());
            }
        });
    }
    frames
}

/// The way back of a frame that was sent on: what it says of sender and receiver is swapped, which keeps all sums right.
fn answer(frame: &[u8]) -> Vec<u8> {
    let mut back = frame.to_vec();
    let mut swap = |at: usize, length: usize| {
        if back.len() >= at + 2 * length {
            let (first, second) = back[at..at + 2 * length].split_at_mut(length);
            first.swap_with_slice(second);
        }
    };
    swap(0, 6);
    match frame.get(12..14) {
        Some([8, 0]) => [(26, 4), (34, 2)].into_iter().for_each(|(at, length)| swap(at, length)),
        Some([0x86, 0xdd]) => [(22, 16), (54, 2)].into_iter().for_each(|(at, length)| swap(at, length)),
        _ => {}
    }
    back
}

/// Some damage, mostly in the headers.
fn damage(frame: &mut Vec<u8>, dice: &mut fastrand::Rng) {
    const EDGES: [u8; 8] = [0, 1, 2, 0x10, 0x40, 0x7f, 0x80, 0xff];
    for _ in 0..1 << dice.u32(0..4) {
        let at = dice.usize(..frame.len().min(96));
        match dice.u8(0..8) {
            0 | 1 => frame[at] ^= 1 << dice.u8(0..8),
            2 | 3 => frame[at] = EDGES[dice.usize(..EDGES.len())],
            4 => frame[at] = dice.u8(..),
            5 => frame.truncate(at.max(14)),
            6 => frame.resize(frame.len() + dice.usize(..64), dice.u8(..)),
            _ => frame[at..].reverse(),
        }
    }
}

#[test]
fn damaged_frames_are_treated_alike_here_and_in_the_kernel() {
    if lab::skip() {
        return;
    }
    const FRAMES: u32 = 30_000;
    let seed = std::env::var("SEED").map_or(0x71de_6a7e, |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let mut dice = fastrand::Rng::with_seed(seed);
    let mut kernel = Kernel::load(None);
    let memory = scripts::world(kernel.now());
    for (vip, client) in [("10.77.100.7", Service::PROXY), ("fd77:0:100::7", Service::TOA)] {
        let vip = vip.parse::<std::net::IpAddr>().unwrap().into();
        let key = ServiceKey { vip, port: 80, protocol: TCP, pad: 0 };
        let service = memory.0.borrow().services[&key];
        memory.set_service(key, Service { client, ..service });
    }
    kernel.write(&memory.0.borrow(), &mut State::default());
    let good = frames();
    let (mut sent, mut last) = (0, good[0].clone());
    for number in 0..FRAMES {
        let mut frame = if dice.u8(0..4) == 0 { answer(&last) } else { good[dice.usize(..good.len())].clone() };
        if dice.u8(0..4) > 0 {
            damage(&mut frame, &mut dice);
        }
        if number % 256 == 0 {
            memory.0.borrow_mut().now = kernel.now();
        }
        let mut here = Frame::new(&frame, scripts::LINK);
        let verdict = balance(&mut here, &memory);
        let (action, there) = kernel.run("balance", &frame);
        let about = || format!("SEED={seed}, frame {number}: {frame:02x?}\n  {}", layers::read(&frame));
        assert_eq!(action, action_of(verdict), "{verdict:?}\n  {}", about());
        if !matches!(verdict, Verdict::Drop(_)) {
            assert_eq!(there, here.bytes(), "here {}\n  {}", layers::read(&here.bytes()), about());
        }
        if action >= 3 {
            sent += 1;
            last = there;
        }
    }
    assert!(sent > FRAMES / 10, "only {sent} frames were sent on: the rest says little");
    // What they left behind is the same too, but for a tick that one clock saw and the other not yet.
    let flows = memory.0.borrow().flows.clone();
    let array = kernel.array::<Flow>(map::FLOWS);
    for (place, here) in flows {
        let there = array.get(&place, 0).unwrap();
        assert_eq!(Flow { seen: here.seen, ..there }, here, "SEED={seed}, place {place}");
    }
}
