//! Conversations as data: frames in, verdicts and frames out. `packets/*.txt` hold them; the packet core and the loaded
//! program both must say what stands there.
//!
//! ```text
//! ## what is shown
//! > a frame that comes (see `layers`)
//! = pass | drop REASON | tx FRAME | redirect FRAME
//! ! something changes (see `Change`)
//! ```
//! In what goes out `*` is any word, and `{name}` is any word the first time and the same one afterwards, also in the
//! frames that come.

use std::collections::BTreeMap;

use crate::{
    abi::{
        ACCESS_DATA, Access, AccessKey, AccessKeyData, Address, FIRST_PORT, Flow, Hop, Limits, MOVING, Mac, Move,
        PORTS, Real, Reason, Service, ServiceKey, TCP, UDP,
    },
    balance::{Verdict, balance},
    host::{Frame, Memory},
    layers,
};

/// The interface that everything comes by, and the one that leads to `g`.
pub const LINK: u32 = 1;
pub const OTHER_LINK: u32 = 9;

const FILES: [(&str, &str); 6] = [
    ("fullnat", include_str!("../packets/fullnat.txt")),
    ("direct", include_str!("../packets/direct.txt")),
    ("moving", include_str!("../packets/moving.txt")),
    ("edges", include_str!("../packets/edges.txt")),
    ("guard", include_str!("../packets/guard.txt")),
    ("client", include_str!("../packets/client.txt")),
];

/// A conversation.
#[derive(Clone, Debug)]
pub struct Script {
    pub about: String,
    pub lines: Vec<Line>,
}

#[derive(Clone, Debug)]
pub enum Line {
    Frame { input: String, expect: String, at: String },
    Change(String),
}

/// All of them.
#[must_use]
pub fn all() -> Vec<Script> {
    let mut scripts: Vec<Script> = Vec::new();
    for (file, text) in FILES {
        let mut input = None;
        for (number, line) in (1..).zip(text.lines()) {
            let at = format!("{file}:{number}");
            let (kind, rest) = line.split_at_checked(2).unwrap_or((line, ""));
            let lines = scripts.last_mut().map(|script| &mut script.lines);
            match (kind, lines) {
                ("##", _) => scripts.push(Script { about: format!("{at}:{rest}"), lines: Vec::new() }),
                ("> ", _) => input = Some(rest.to_owned()),
                ("= ", Some(lines)) => {
                    let input = input.take().unwrap_or_else(|| panic!("{at}: an answer to nothing"));
                    lines.push(Line::Frame { input, expect: rest.to_owned(), at });
                }
                ("! ", Some(lines)) => lines.push(Line::Change(rest.to_owned())),
                ("" | "# ", _) => {}
                _ => panic!("{at}: {line:?} is no line of a script"),
            }
        }
    }
    scripts
}

/// Runs a script on the packet core. `other` is told every change and frame with what became of it, so that it can do
/// the same elsewhere.
pub fn play(script: &Script, memory: &Memory, mut other: impl FnMut(&Memory, Event<'_>)) {
    let mut names = BTreeMap::new();
    other(memory, Event::Changed);
    for line in &script.lines {
        match line {
            Line::Change(change) => {
                apply(memory, change);
                other(memory, Event::Changed);
            }
            Line::Frame { input, expect, at } => {
                let input = layers::write(&layers::fill(input, &names));
                let mut frame = Frame::new(&input, LINK);
                let verdict = balance(&mut frame, memory);
                let output = frame.bytes();
                let said = match verdict {
                    Verdict::Pass if output == input => "pass".to_owned(),
                    Verdict::Pass => "pass, but changed".to_owned(),
                    Verdict::Drop(reason) => format!("drop {}", Reason::NAMES[reason as usize]),
                    Verdict::Transmit => format!("tx {}", layers::read(&output)),
                    Verdict::Redirect(_) => format!("redirect {}", layers::read(&output)),
                };
                assert!(
                    layers::fits(expect, &said, &mut names),
                    "{} ({at})\n  came      {}\n  expected  {expect}\n  but       {said}\n  with      {names:?}",
                    script.about,
                    layers::read(&input),
                );
                other(memory, Event::Frame { at, input: &input, verdict, output: &output });
            }
        }
    }
}

/// What [`play`] tells.
#[derive(Debug)]
pub enum Event<'a> {
    /// The maps are not what packets made of them.
    Changed,
    Frame {
        at: &'a str,
        input: &'a [u8],
        verdict: Verdict,
        output: &'a [u8],
    },
}

pub(crate) fn ip(text: &str) -> Address {
    Address::from(text.parse::<std::net::IpAddr>().unwrap_or_else(|error| panic!("{text}: {error}")))
}

fn mac(tail: [u8; 2]) -> Mac {
    Mac::from([2, 0, 0, 0, tail[0], tail[1]])
}

/// Every way to forward, each on a VIP of its own, in both families; two reals each. Service `n` has the reals `2n` and
/// `2n + 1`, which answer at port 8080 and lie behind `r1` and `r2`.
#[must_use]
pub fn world(now: u64) -> Memory {
    let memory = Memory::new();
    memory.0.borrow_mut().now = now;
    memory.add_local(0, ip("10.77.101.1"));
    memory.add_local(1, ip("fd77:0:101::1"));
    memory.set(|settings| {
        settings.hops_until = u64::MAX;
        settings.tunnel_v4 = ip("10.77.101.1");
        settings.tunnel_v6 = ip("fd77:0:101::1");
    });
    const V4: [&str; 2] = ["10.77.1.1", "10.77.1.2"];
    const V6: [&str; 2] = ["fd77:0:1::1", "fd77:0:1::2"];
    let modes = [
        (1, Service::FULLNAT, false),
        (2, Service::DIRECT, false),
        (3, Service::IPIP, false),
        (4, Service::IPIP, true),
        (5, Service::GUE, false),
        (6, Service::GUE, true),
        // With lists and limits, which `guard` changes.
        (7, Service::FULLNAT, false),
    ];
    let mut id = 0;
    for (last, mode, crosses) in modes {
        for v4 in [true, false] {
            for protocol in [TCP, UDP] {
                let vip = if v4 { format!("10.77.100.{last}") } else { format!("fd77:0:100::{last}") };
                let key = ServiceKey { vip: ip(&vip), port: 80, protocol, pad: 0 };
                for (number, address) in (if v4 != crosses { V4 } else { V6 }).iter().enumerate() {
                    let hop = Hop {
                        ifindex: LINK,
                        source_mac: mac([0, 1]),
                        destination_mac: mac([1, number as u8 + 1]),
                        vlan: 0,
                        mtu: 1500,
                    };
                    let real = Real {
                        address: ip(address),
                        service: id,
                        port: 8080,
                        weight: 1,
                        state: Real::ACTIVE,
                        hop,
                        pad: [0; 4],
                    };
                    memory.set_real(id * 2 + number as u32, real);
                }
                let service = Service { id, mode, tunnel_port: 6080, ..Service::default() };
                memory.serve(key, service, &[id * 2, id * 2 + 1], 64);
                id += 1;
            }
        }
    }
    memory
}

/// `VIP PROTOCOL`'s key and service.
fn service(memory: &Memory, words: &[&str]) -> (ServiceKey, Service) {
    let protocol = if words[1] == "tcp" { TCP } else { UDP };
    let key = ServiceKey { vip: ip(words[0]), port: 80, protocol, pad: 0 };
    (key, memory.0.borrow().services[&key])
}

/// The changes that a script may make.
fn apply(memory: &Memory, change: &str) {
    let words: Vec<&str> = change.split_whitespace().collect();
    let number = |at: usize| words[at].parse::<u64>().unwrap_or_else(|error| panic!("{change}: {error}"));
    match words[0] {
        // Time passes: everything that is remembered gets older, since the kernel's clock cannot be set.
        "seconds" => {
            let ticks = (number(1) * crate::abi::SECOND / Flow::TICK) as u32;
            let state = &mut *memory.0.borrow_mut();
            state.flows.values_mut().for_each(|flow| flow.seen = flow.seen.wrapping_sub(ticks));
        }
        // client VIP toa|proxy: how its address is told, over TCP.
        "client" => {
            let (key, mut service) = service(memory, &[words[1], "tcp"]);
            service.client = if words[2] == "toa" { Service::TOA } else { Service::PROXY };
            memory.set_service(key, service);
        }
        // state ADDRESS STATE: of every real with the address.
        "state" => {
            let state = match words[2] {
                "active" => Real::ACTIVE,
                "draining" => Real::DRAINING,
                "left" => Real::LEFT,
                _ => Real::GONE,
            };
            memory.change_reals(|real| real.state = if real.address == ip(words[1]) { state } else { real.state });
        }
        // ring VIP PROTOCOL REAL: all slots are the first (0) or second (1) real's.
        "ring" | "move" | "empty" => {
            let (key, service) = service(memory, &words[1..]);
            let real = |at: usize| service.id * 2 + number(at) as u32;
            let word = match words[0] {
                "ring" => real(3),
                // move VIP PROTOCOL FROM TO PHASE
                "move" => {
                    let phase = if words[5] == "learning" { Move::LEARNING } else { Move::KEEPING };
                    let moving = Move { current: real(4), previous: real(3), phase, pad: 0 };
                    memory.0.borrow_mut().moves.insert(service.id, moving);
                    MOVING | service.id
                }
                _ => {
                    memory.serve(key, service, &[], 0);
                    return;
                }
            };
            let state = &mut *memory.0.borrow_mut();
            state.rings.get_mut(&service.block).expect("the service has a ring").0.fill(word);
        }
        "hop" => match words[1] {
            "none" => memory.change_reals(|real| real.hop.ifindex = 0),
            "mtu" => memory.change_reals(|real| real.hop.mtu = number(2) as u16),
            "vlan" => memory.change_reals(|real| real.hop.vlan = number(2) as u16),
            _ => memory.change_reals(|real| real.hop.ifindex = OTHER_LINK),
        },
        "locals" => memory.set(|settings| (settings.locals_v4, settings.locals_v6) = (0, 0)),
        // busy KEEP: every place of the flow table is a live flow's, but for so many.
        "busy" => {
            let state = &mut *memory.0.borrow_mut();
            let busy = Flow {
                client_port: 9,
                protocol: TCP,
                answered: Flow::HEARD,
                seen: Flow::tick(state.now),
                service: 999,
                ..Flow::default()
            };
            let places = (FIRST_PORT..PORTS).chain(PORTS + FIRST_PORT..2 * PORTS).skip(number(1) as usize);
            for place in places {
                state.flows.entry(place).or_insert(busy);
            }
        }
        "forget" => memory.0.borrow_mut().flows.clear(),
        // handshakes SECONDS ANSWERED: what fills the table are handshakes so old, which the real answered (1) or not.
        "handshakes" => {
            let state = &mut *memory.0.borrow_mut();
            let ticks = (number(1) * crate::abi::SECOND / Flow::TICK) as u32;
            for flow in state.flows.values_mut().filter(|flow| flow.service == 999) {
                (flow.answered, flow.seen) = (number(2) as u8, flow.seen.wrapping_sub(ticks));
            }
        }
        // allow|deny VIP PROTOCOL PREFIX/LENGTH
        "allow" | "deny" => {
            let (key, mut service) = service(memory, &words[1..]);
            let (network, length) = words[3].split_once('/').expect("PREFIX/LENGTH");
            let network = ip(network);
            let length: u32 = length.parse().expect("a length");
            let length = if network.is_v4() { length + 96 } else { length };
            service.checks |= Service::ACCESS;
            let access = if words[0] == "allow" {
                service.checks |= Service::CLOSED;
                Access::Allow
            } else {
                Access::Deny
            };
            let data = AccessKeyData { service: service.id.to_be(), client: network };
            memory.set_service(key, service);
            let state = &mut *memory.0.borrow_mut();
            state.access.insert(AccessKey { prefix: ACCESS_DATA - 128 + length, data }, access as u32);
        }
        // limit source|service VIP PROTOCOL BURST: then one an hour.
        "limit" => {
            let (key, mut service) = service(memory, &words[2..]);
            let gap = 3600 * crate::abi::SECOND;
            let before = memory.0.borrow().limits.get(&service.id).copied().copied().unwrap_or_default();
            let limits = match words[1] {
                "source" => {
                    service.checks |= Service::SOURCE_RATE;
                    Limits {
                        source_gap: gap,
                        source_ahead: gap * number(4),
                        mask_v4: 0xffff_ff00_u32.to_be(),
                        mask_v6: [u32::MAX, u32::MAX, 0, 0],
                        ..before
                    }
                }
                _ => {
                    service.checks |= Service::SERVICE_RATE;
                    Limits { service_gap: gap, service_ahead: gap * number(4), ..before }
                }
            };
            memory.set_limits(service.id, limits);
            memory.set_service(key, service);
        }
        other => panic!("{other}: no such change"),
    }
}
