//! SYN cookies: under a flood the balancer answers SYNs itself, and opens a flow only for clients that prove that they
//! have their address.
//!
//! ```text
//! client                       balancer                     real
//!   │ SYN ─────────────────► challenge                        │     nothing is remembered
//!   │ ◄───────────── SYN-ACK, its number is the cookie        │
//!   │ ACK ─────────────────► accept: a flow, waiting          │
//!   │                          knock ── SYN ────────────────► │
//!   │                          welcome ◄──────────── SYN-ACK  │
//!   │                             └──── ACK ────────────────► │
//!   │ data ◄──────────── from now on numbers are shifted ───► │
//! ```
//! What the client sends while the flow waits is dropped, and repeated by the client; its first segment knocks again.

use crate::{
    abi::{Flow, Hop, Reason, Service, ServiceKey, TCP, Why},
    balance::{Packet, Step, Tables, log, noted_in_place},
    client::Known,
    flows::{self, Ask},
    guard,
    nat::Rewrite,
    options::{self, Edit},
    parse::Seen,
    proxy::{self, Ends},
    segment::{Segment, compose},
    select,
    stretch::{self, Tell},
    wire::{ACK, Ipv4, Ipv6, RST, SYN, Tcp},
};

/// What a client without the option takes (RFC 9293, section 3.7.1), by family.
const LEAST_V4: u16 = 536;
const LEAST_V6: u16 = 1220;
/// The MSS that a cookie's answer announces: Ethernet's, with room for a tunnel's header on the way.
const MOST_V4: u16 = 1440;
const MOST_V6: u16 = 1420;
/// What the kernel's cookies can tell apart of a client's MSS (`msstab` of its syncookies.c), without the least.
const TOLD_V4: [u16; 3] = [1460, 1440, 1300];
const TOLD_V6: [u16; 3] = [1440, 1420, LEAST_V6];
/// The window of the answer to a SYN, which cannot be scaled.
const WINDOW: u16 = u16::MAX;
/// The client's window for the time until its next segment tells it: what every client has.
const CAREFUL: u16 = 5840;

/// Answers a SYN.
#[inline(always)]
pub(crate) fn challenge<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Step {
    let step = tables.scratch(|seen| {
        let step = answer(packet, tables, seen).unwrap_or(Step::drop(Reason::Cookie));
        noted_in_place(tables, seen, step)
    });
    step.unwrap_or(Step::PASS)
}

#[inline(always)]
fn answer<P: Packet, T: Tables>(packet: &mut P, tables: &T, seen: &Seen) -> Option<Step> {
    let service = service(tables, seen)?;
    let plain = if seen.v4 { size_of::<Ipv4>() } else { size_of::<Ipv6>() };
    if seen.l4.wrapping_sub(seen.l3) as usize != plain || !stretch::elastic(packet, seen) {
        return None;
    }
    let theirs = (options::change(packet, tables, Edit { l4: seen.l4, less: 0, blot: 0 }) >> 32) as u16;
    let (least, most) = if seen.v4 { (LEAST_V4, MOST_V4) } else { (LEAST_V6, MOST_V6) };
    let theirs = if theirs == 0 { least } else { theirs };
    let sequence = u32::from_be(packet.at::<Tcp>(seen.l4 as usize)?.sequence);
    // What the real would send in larger pieces than ours would come to nothing.
    let told = if seen.v4 { TOLD_V4[0] } else { TOLD_V6[0] };
    let cookie = tables.make_cookie(seen, sequence, if theirs > told { told } else { theirs });
    if cookie < 0 {
        return None;
    }
    tables.count_service(service.id, packet.length() as u64, false, true);
    tables.trace(|trace| trace.why = Why::Echo as u32);
    let less = if service.client == Service::PROXY { proxy::length(seen.v4) } else { 0 };
    let segment = Segment {
        to: None,
        sequence: cookie as u32,
        acknowledgement: sequence.wrapping_add(1),
        flags: SYN | ACK,
        window: WINDOW,
        mss: most - less,
        tell: Tell::NOTHING,
    };
    // Nothing is told to a client.
    let tuple = &seen.tuple;
    let ends = Ends { client: &tuple.source, vip: &tuple.destination, client_port: 0, vip_port: 0 };
    Some(if compose(packet, seen, None, &segment, &ends) != 0 { Step::TRANSMIT } else { Step::drop(Reason::NoRoom) })
}

#[inline(always)]
fn service<T: Tables>(tables: &T, seen: &Seen) -> Option<Service> {
    let tuple = &seen.tuple;
    tables.service(&ServiceKey { vip: tuple.destination, port: tuple.destination_port, protocol: TCP, pad: 0 })
}

/// An acknowledgement of no flow that is known.
#[inline(always)]
pub(crate) fn accept<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Step {
    let step = tables.scratch(|seen| {
        let step = admit(packet, tables, seen).unwrap_or(Step::PASS);
        noted_in_place(tables, seen, step)
    });
    step.unwrap_or(Step::PASS)
}

#[inline(always)]
fn admit<P: Packet, T: Tables>(packet: &mut P, tables: &T, seen: &mut Seen) -> Option<Step> {
    let service = service(tables, seen)?;
    let ask = flows::ask(packet, tables, tables.settings()?, seen, &service)?;
    let tcp = *packet.at::<Tcp>(seen.l4 as usize)?;
    let (start, cookie) = (u32::from_be(tcp.sequence), u32::from_be(tcp.acknowledgement).wrapping_sub(1));
    let flags = seen.flags;
    let proven = tables.check_cookie(seen, start, cookie.wrapping_add(1));
    let work;
    if proven {
        // For the choice of a real, and for what is counted, it is the SYN that was answered.
        seen.flags = SYN;
        work = flows::work(&service, seen) | Flow::WAITING | Flow::SPLICED;
    } else {
        if guard::attacked(tables, service.id) {
            return Some(Step::drop(Reason::Cookie));
        }
        work = flows::work(&service, seen);
    }
    let real = select::real(tables, seen, &service, ask.hash);
    if real == select::NOBODY {
        seen.flags = flags;
        return None;
    }
    tables.trace(|trace| (trace.why, trace.flow, trace.real) = (Why::NewFlow as u32, flows::NONE, real));
    let index = flows::open(packet, tables, seen, &Ask { real, work, ..ask });
    seen.flags = flags;
    if index == flows::NONE {
        return Some(Step::drop(Reason::NoPort));
    }
    if proven && !T::DRY {
        tables.flow(index, |flow| (flow.start, flow.ahead) = (start, cookie));
    }
    let bytes = packet.length() as u64;
    tables.count_service(service.id, bytes, true, false);
    tables.count_real(real, bytes, true, proven);
    log(tables, seen, service.id, real, ask.hash);
    Some(Step::out(index))
}

/// The client's first segment of a flow that waits for its real: becomes a SYN to it.
#[inline(always)]
pub(crate) fn knock<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    seen: &Seen,
    known: &Known,
    to: &Rewrite,
    hop: &Hop,
) -> Step {
    let Some(tcp) = packet.at::<Tcp>(seen.l4 as usize) else { return Step::drop(Reason::Malformed) };
    let tcp = *tcp;
    let (start, cookie) = (u32::from_be(tcp.sequence), u32::from_be(tcp.acknowledgement).wrapping_sub(1));
    if start != known.start || cookie != known.ahead || tcp.flags & ACK == 0 {
        return Step::drop(Reason::NotReady);
    }
    let segment = Segment {
        to: Some(to),
        sequence: start.wrapping_sub(1),
        acknowledgement: 0,
        flags: SYN,
        window: u16::from_be(tcp.window),
        mss: their_mss(tables, seen, start.wrapping_sub(1), cookie),
        tell: if known.work & Flow::TOA != 0 { Tell::TOA } else { Tell::NOTHING },
    };
    let ends = Ends {
        client: &seen.tuple.source,
        vip: &seen.tuple.destination,
        client_port: seen.tuple.source_port,
        vip_port: seen.tuple.destination_port,
    };
    let ifindex = packet.ifindex();
    match compose(packet, seen, Some(hop), &segment, &ends) {
        0 => Step::drop(Reason::NoRoom),
        _ => Step::leave(ifindex, hop),
    }
}

/// What the cookie says of the client's MSS: the one for which it would be made again. (Once a minute cookies change:
/// those that are on their way then are taken for the least.)
#[inline(always)]
fn their_mss<T: Tables>(tables: &T, seen: &Seen, sequence: u32, cookie: u32) -> u16 {
    let told = if seen.v4 { TOLD_V4 } else { TOLD_V6 };
    for mss in told {
        let made = tables.make_cookie(seen, sequence, mss);
        if made >= 0 && made as u32 == cookie {
            return mss;
        }
    }
    if seen.v4 { LEAST_V4 } else { LEAST_V6 }
}

/// The real's answer to our SYN: becomes the handshake's last segment, which it may have missed. The client knows
/// nothing of all this; `to` leads to it.
#[inline(never)]
pub(crate) fn welcome<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    seen: &Seen,
    known: &Known,
    to: &Rewrite,
) -> u64 {
    let Some(tcp) = packet.at::<Tcp>(seen.l4 as usize) else { return Step::drop(Reason::Malformed).0 };
    if tcp.flags & (ACK | RST) != ACK {
        return Step::drop(Reason::NotReady).0;
    }
    let initial = u32::from_be(tcp.sequence);
    let proxy = known.work & (Flow::PROXY | Flow::TOLD) == Flow::PROXY;
    let tell = if proxy {
        Tell::PROXY
    } else if known.work & Flow::TOA != 0 {
        Tell::TOA
    } else {
        Tell::NOTHING
    };
    if known.work & Flow::WAITING != 0 && !T::DRY {
        // The number first: nobody uses it as long as the flow waits.
        tables.flow(known.index, |flow| flow.ahead = known.ahead.wrapping_sub(initial));
        tables.barrier();
        tables.flow(known.index, |flow| {
            // The client was there before the real.
            flow.answered = Flow::HEARD;
            flow.work = known.work & !Flow::WAITING | if proxy { Flow::SENT } else { 0 };
        });
    }
    let segment = Segment {
        to: None,
        sequence: known.start,
        acknowledgement: initial.wrapping_add(1),
        flags: ACK,
        window: CAREFUL,
        mss: 0,
        tell,
    };
    let ends =
        Ends { client: &to.destination, vip: &to.source, client_port: to.destination_port, vip_port: to.source_port };
    match compose(packet, seen, None, &segment, &ends) {
        0 => Step::drop(Reason::NoRoom).0,
        _ => Step::TRANSMIT.0,
    }
}
