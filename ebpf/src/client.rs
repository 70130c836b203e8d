//! The packets of flows that need more than a translation: the client's address told to the real (TOA, PROXY), and
//! sequence numbers of a handshake that was ours.
//!
//! A PROXY header makes the client's stream longer: it is bytes of the stream that the client does not know of. What
//! starts the stream (the handshake's last segment already, so that protocols in which the server speaks first work
//! too) carries the header until the real has acknowledged it; every other segment is numbered that much higher, and
//! the real's acknowledgements that much lower. The length depends on nothing but the family, so that a flow that was
//! forgotten can be taken up again in the middle.

use crate::{
    abi::{Address, Flow, Hop, Mac, Real, Reason, ServiceKey, TCP},
    balance::{Packet, Step, Tables, next_hop, noted},
    checksum, cookie, flows, link,
    nat::{self, Rewrite},
    options, parse,
    parse::Seen,
    proxy::{self, Ends},
    select,
    stretch::{self, TCP_MOST, Tell},
    wire::{ACK, ETHERTYPE_V4, ETHERTYPE_V6, Ethernet, Ipv4, Ipv6, RST, SYN, Tcp},
};

/// A client's packet of the flow at `index`.
#[inline(always)]
pub(crate) fn out<P: Packet, T: Tables>(packet: &mut P, tables: &T, index: u32) -> Step {
    let step = tables.scratch(|seen| match reread(packet, seen) {
        Some(()) => noted(tables, seen, outwards(packet, tables, seen, index)),
        None => Step::PASS,
    });
    step.unwrap_or(Step::PASS)
}

/// A real's packet.
#[inline(always)]
pub(crate) fn back<P: Packet, T: Tables>(packet: &mut P, tables: &T, index: u32) -> Step {
    let step = tables.scratch(|seen| match reread(packet, seen) {
        Some(()) => noted(tables, seen, backwards(packet, tables, seen, index)),
        None => Step::PASS,
    });
    step.unwrap_or(Step::PASS)
}

/// Reads a plain packet again; what is known of an unusual one is still there.
#[inline(always)]
pub(crate) fn reread<P: Packet>(packet: &mut P, seen: &mut Seen) -> Option<()> {
    let plain = match packet.at::<Ethernet>(0)?.ethertype {
        ETHERTYPE_V4 => parse::plain::<P, Ipv4>(packet),
        ETHERTYPE_V6 => parse::plain::<P, Ipv6>(packet),
        _ => None,
    };
    if let Some(plain) = plain {
        *seen = plain;
        parse::transport(packet, seen)?;
    }
    Some(())
}

/// What a flow's entry says, for what goes out.
#[derive(Clone, Copy)]
pub(crate) struct Known {
    pub(crate) work: u8,
    pub(crate) start: u32,
    pub(crate) ahead: u32,
    real: u32,
}

const STRANGER: Known = Known { work: 0, start: 0, ahead: 0, real: select::NOBODY };

#[inline(always)]
fn know<T: Tables>(tables: &T, seen: &Seen, index: u32, sequence: u32) -> Known {
    let known = tables.peek(index, |flow| {
        let own =
            flow.protocol == TCP && flow.client_port == seen.tuple.source_port && flow.client == seen.tuple.source;
        if own { Known { work: flow.work, start: flow.start, ahead: flow.ahead, real: flow.real() } } else { STRANGER }
    });
    let mut known = known.unwrap_or(STRANGER);
    // The flow that would have been made.
    if T::DRY && known.real == select::NOBODY {
        tables.trace(|trace| known.real = trace.real);
        let tuple = &seen.tuple;
        let key = ServiceKey { vip: tuple.destination, port: tuple.destination_port, protocol: TCP, pad: 0 };
        if let Some(service) = tables.service(&key) {
            known.work = flows::work(&service, seen);
            known.start = sequence.wrapping_add(1);
        }
    }
    known
}

#[inline(always)]
fn outwards<P: Packet, T: Tables>(packet: &mut P, tables: &T, seen: &Seen, index: u32) -> Step {
    let tcp = if seen.headless {
        Tcp::default()
    } else {
        match packet.at::<Tcp>(seen.l4 as usize) {
            Some(tcp) => *tcp,
            None => return Step::drop(Reason::Malformed),
        }
    };
    let sequence = u32::from_be(tcp.sequence);
    let known = know(tables, seen, index, sequence);
    let real = match tables.real(known.real) {
        Some(real) if real.state != Real::GONE => real,
        _ => return Step::drop(Reason::NoReal),
    };
    let Some(local) = tables.local(index >> 16) else { return Step::drop(Reason::NoLocalAddress) };
    let ifindex = packet.ifindex();
    let hop = match next_hop(tables, real, ifindex) {
        Ok(hop) => hop,
        Err(reason) => return Step::drop(reason),
    };
    let to =
        Rewrite { source: local, destination: real.address, source_port: index as u16, destination_port: real.port };
    if seen.headless {
        return nat::send(packet, seen, &to, &hop);
    }
    let mut known = known;
    if known.work & Flow::WAITING != 0 && tcp.flags & RST == 0 {
        if tcp.flags & SYN == 0 {
            return cookie::knock(packet, tables, seen, &known, &to, &hop);
        }
        if sequence.wrapping_add(1) == known.start {
            return Step::drop(Reason::NotReady);
        }
        // The client knows nothing of the handshake that was ours any more.
        known.work &= !(Flow::WAITING | Flow::SPLICED);
        if !T::DRY {
            tables.flow(index, |flow| flow.work = known.work);
        }
    }
    let plan = match plan(tables, seen, index, &known, &tcp) {
        Ok(plan) => plan,
        Err(reason) => return Step::drop(reason),
    };
    let mut tell = plan.tell;
    if tell != Tell::NOTHING {
        let (options, payload) = (tell.options(seen.v4), tell.payload(seen.v4));
        let small = hop.mtu == 0 || seen.length as usize + options + payload <= hop.mtu as usize;
        let fits = (tcp.offset >> 4) as usize * 4 + options <= TCP_MOST && stretch::elastic(packet, seen);
        if tell == Tell::TOA {
            // Another segment will tell.
            tell = if small && fits { tell } else { Tell::NOTHING };
        } else if !small {
            // The client sends more than it was told to.
            return Step::refuse(Reason::TooBig, hop.mtu.wrapping_sub(payload as u16));
        } else if !fits {
            return Step::drop(Reason::Malformed);
        }
    }
    let blot = u32::from(known.work & Flow::PROXY != 0 && tcp.flags & SYN != 0);
    let ahead = if known.work & Flow::SPLICED != 0 && tcp.flags & ACK != 0 { known.ahead } else { 0 };
    let ends = Ends {
        client: &seen.tuple.source,
        vip: &seen.tuple.destination,
        client_port: seen.tuple.source_port,
        vip_port: seen.tuple.destination_port,
    };
    let done = nat::rewrite(packet, seen, &to)
        .and_then(|()| renumber(packet, seen, plan.shift, ahead.wrapping_neg(), (0, blot)))
        .and_then(|()| if tell == Tell::NOTHING { Some(()) } else { stretch::tell(packet, seen, tell, &ends) });
    match done {
        Some(()) => link::send(packet, seen, &hop, ifindex),
        None => Step::drop(Reason::NoRoom),
    }
}

/// What is done to a client's segment.
#[derive(Clone, Copy)]
struct Plan {
    tell: Tell,
    shift: u32,
}

/// Decides, and notes in the flow what it has to know.
#[inline(always)]
fn plan<T: Tables>(tables: &T, seen: &Seen, index: u32, known: &Known, tcp: &Tcp) -> Result<Plan, Reason> {
    if known.work & Flow::PROXY == 0 {
        let tell = if known.work & Flow::TOA != 0 { Tell::TOA } else { Tell::NOTHING };
        return Ok(Plan { tell, shift: 0 });
    }
    let length = u32::from(proxy::length(seen.v4));
    let sequence = u32::from_be(tcp.sequence);
    if tcp.flags & SYN != 0 {
        // Its data would come before the header. The client repeats the SYN without.
        let header = u16::from(tcp.offset >> 4) * 4;
        if seen.length.wrapping_sub(seen.l4.wrapping_sub(seen.l3)) > header {
            return Err(Reason::NotReady);
        }
        // If the real took it in the middle of a connection it would say so: then its answer tells.
        let start = sequence.wrapping_add(1);
        if known.work & Flow::TOLD == 0 && known.start != start && !T::DRY {
            tables.flow(index, |flow| (flow.start, flow.work) = (start, flow.work & !Flow::SENT));
        }
        return Ok(Plan { tell: Tell::NOTHING, shift: 0 });
    }
    if known.work & Flow::TOLD != 0 {
        return Ok(Plan { tell: Tell::NOTHING, shift: length });
    }
    let beyond = sequence.wrapping_sub(known.start) as i32;
    if beyond == 0 && tcp.flags & RST == 0 {
        if known.work & Flow::SENT == 0 && !T::DRY {
            tables.flow(index, |flow| flow.work |= Flow::SENT);
        }
        return Ok(Plan { tell: Tell::PROXY, shift: 0 });
    }
    let shift = if beyond > 0 || known.work & Flow::SENT != 0 { length } else { 0 };
    Ok(Plan { tell: Tell::NOTHING, shift })
}

/// Adds to a segment's numbers, subtracts from its MSS, blots out options (see [`options::edit`]).
#[inline(always)]
fn renumber<P: Packet>(
    packet: &mut P,
    seen: &Seen,
    sequence: u32,
    acknowledgement: u32,
    (less, blot): (u16, u32),
) -> Option<()> {
    let mut change = 0;
    if less != 0 || blot != 0 {
        change = options::edit(packet, seen.l4, less, blot) as u32;
    }
    let tcp = packet.at::<Tcp>(seen.l4 as usize)?;
    let next = u32::from_be(tcp.sequence).wrapping_add(sequence).to_be();
    change += checksum::word(tcp.sequence, next);
    tcp.sequence = next;
    let next = u32::from_be(tcp.acknowledgement).wrapping_add(acknowledgement).to_be();
    change += checksum::word(tcp.acknowledgement, next);
    tcp.acknowledgement = next;
    tcp.checksum = checksum::mend(tcp.checksum, change);
    Some(())
}

/// What a flow's entry says, for what comes back.
#[derive(Clone, Copy)]
pub(crate) struct Way {
    pub(crate) client: Address,
    pub(crate) client_port: u16,
    pub(crate) vlan: u16,
    pub(crate) work: u8,
    pub(crate) service: u32,
    pub(crate) ifindex: u32,
    pub(crate) client_mac: Mac,
    pub(crate) own_mac: Mac,
    pub(crate) start: u32,
    pub(crate) ahead: u32,
}

#[inline(always)]
fn backwards<P: Packet, T: Tables>(packet: &mut P, tables: &T, seen: &Seen, index: u32) -> Step {
    let way = tables.peek(index, |flow| Way {
        client: flow.client,
        client_port: flow.client_port,
        vlan: flow.vlan(),
        work: flow.work,
        service: flow.service,
        ifindex: flow.ifindex,
        client_mac: flow.client_mac,
        own_mac: flow.own_mac,
        start: flow.start,
        ahead: flow.ahead,
    });
    let Some(mut way) = way else { return Step::PASS };
    let Some(frontend) = tables.frontend(way.service) else { return Step::PASS };
    let to = Rewrite {
        source: frontend.vip,
        destination: way.client,
        source_port: frontend.port,
        destination_port: way.client_port,
    };
    let hop =
        Hop { ifindex: way.ifindex, source_mac: way.own_mac, destination_mac: way.client_mac, vlan: way.vlan, mtu: 0 };
    if seen.headless {
        return nat::send(packet, seen, &to, &hop);
    }
    let Some(tcp) = packet.at::<Tcp>(seen.l4 as usize) else { return Step::drop(Reason::Malformed) };
    let tcp = *tcp;
    let (sequence, acknowledgement) = (u32::from_be(tcp.sequence), u32::from_be(tcp.acknowledgement));
    let opens = tcp.flags & SYN != 0;
    let before = (way.work, way.start);
    let (mut forth, mut less) = (0, 0);
    if way.work & Flow::SPLICED != 0 && opens && acknowledgement == way.start {
        return cookie::welcome(packet, tables, seen, index, &way, &to);
    }
    if way.work & Flow::WAITING != 0 {
        if tcp.flags & RST == 0 {
            return Step::drop(Reason::NotReady);
        }
        // Refused. To the client it comes right after our SYN.
        forth = way.ahead.wrapping_add(1).wrapping_sub(sequence);
    } else if way.work & Flow::SPLICED != 0 {
        forth = way.ahead;
    }
    let mut acknowledged = 0;
    if opens {
        // The real begins (perhaps anew, with a client that forgot the connection before): here the stream starts.
        if way.start != acknowledgement {
            way.start = acknowledgement;
            way.work &= !(Flow::TOLD | Flow::SENT | Flow::SPLICED);
            forth = 0;
        }
        if way.work & Flow::PROXY != 0 {
            less = proxy::length(seen.v4);
        }
    } else {
        // It took the handshake's last segment, and the option with it.
        way.work &= !Flow::TOA;
        if way.work & Flow::PROXY != 0 && tcp.flags & ACK != 0 {
            let length = u32::from(proxy::length(seen.v4));
            let beyond = acknowledgement.wrapping_sub(way.start) as i32;
            if way.work & Flow::TOLD != 0 || beyond >= length as i32 {
                way.work |= Flow::TOLD;
                acknowledged = length;
            } else if beyond > 0 {
                acknowledged = beyond as u32;
            }
        }
    }
    if before != (way.work, way.start) && !T::DRY {
        tables.flow(index, |flow| (flow.work, flow.start) = (way.work, way.start));
    }
    let ifindex = packet.ifindex();
    let done = nat::rewrite(packet, seen, &to)
        .and_then(|()| renumber(packet, seen, forth, acknowledged.wrapping_neg(), (less, 0)));
    match done {
        Some(()) => link::send(packet, seen, &hop, ifindex),
        None => Step::drop(Reason::Malformed),
    }
}
