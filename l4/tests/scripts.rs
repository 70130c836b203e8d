//! The packet core's scripts on the loaded program: same maps, same frames, same answers.

#![allow(clippy::unwrap_used, reason = "a test says so by panicking")]

mod lab;

use lab::kernel::Kernel;
use tidegate_ebpf::{
    Verdict,
    abi::map,
    host::{Memory, State},
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
