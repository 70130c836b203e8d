//! The packets of flows that need more than a translation: the client's address told to the real (TOA, PROXY), and
//! sequence numbers of a handshake that was ours.
//!
//! A PROXY header makes the client's stream longer: it is bytes of the stream that the client does not know of. What
//! starts the stream (the handshake's last segment already, so that protocols in which the server speaks first work
//! too) carries the header until the real has acknowledged it; every other segment is numbered that much higher, and
//! the real's acknowledgements that much lower. The length depends on nothing but the family, so that a flow that was
//! forgotten can be taken up again in the middle.

use crate::{
    abi::{Address, Flow, Hop, Real, Reason, ServiceKey, TCP},
    balance::{Packet, Step, Tables, next_hop, noted_in_place},
    checksum, cookie, flows, link,
    nat::{self, Rewrite},
    options::{self, Edit},
    parse::Seen,
    proxy::{self, Ends},
    select,
    stretch::{self, TCP_MOST, Tell},
    wire::{ACK, RST, SYN, Tcp},
};

/// A client's packet of the flow at `index`; what was read of it is still there.
#[inline(always)]
pub(crate) fn out<P: Packet, T: Tables>(packet: &mut P, tables: &T, index: u32) -> Step {
    tables.scratch(|seen| noted_in_place(tables, seen, outwards(packet, tables, seen, index))).unwrap_or(Step::PASS)
}

/// A real's packet.
#[inline(always)]
pub(crate) fn back<P: Packet, T: Tables>(packet: &mut P, tables: &T, index: u32) -> Step {
    tables.scratch(|seen| noted_in_place(tables, seen, backwards(packet, tables, seen, index))).unwrap_or(Step::PASS)
}

/// What a flow's entry says.
#[derive(Clone, Copy)]
pub(crate) struct Known {
    pub(crate) index: u32,
    pub(crate) work: u8,
    pub(crate) start: u32,
    pub(crate) ahead: u32,
    real: u32,
}

const STRANGER: Known = Known { index: flows::NONE, work: 0, start: 0, ahead: 0, real: select::NOBODY };

#[inline(always)]
fn know<T: Tables>(tables: &T, seen: &Seen, index: u32, sequence: u32) -> Known {
    let known = tables.peek(index, |flow| {
        let own =
            flow.protocol == TCP && flow.client_port == seen.tuple.source_port && flow.client == seen.tuple.source;
        if own {
            Known { index, work: flow.work, start: flow.start, ahead: flow.ahead, real: flow.real() }
        } else {
            STRANGER
        }
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
        return finish(packet, seen, &to, &hop, Edits::default());
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
    let handshake = known.work & Flow::PROXY != 0 && tcp.flags & SYN != 0;
    let mut blot = if handshake { Edit::PERMISSIONS } else { 0 };
    if tell != Tell::NOTHING {
        let (options, payload) = (tell.options(seen.v4), tell.payload(seen.v4));
        let small = hop.mtu == 0 || seen.length as usize + options + payload <= hop.mtu as usize;
        let fits = (tcp.offset >> 4) as usize * 4 + options <= TCP_MOST && stretch::elastic(packet, seen);
        if tell == Tell::TOA {
            if !small || !fits {
                // Another segment will tell, and this one shall not tell what the client made up.
                tell = Tell::NOTHING;
                blot = Edit::CLIENT;
            }
        } else if !small {
            // The client sends more than it was told to.
            return Step::refuse(Reason::TooBig, hop.mtu.wrapping_sub(payload as u16));
        } else if !fits {
            return Step::drop(Reason::Malformed);
        }
    }
    let ahead = if known.work & Flow::SPLICED != 0 && tcp.flags & ACK != 0 { known.ahead } else { 0 };
    let ends = Ends {
        client: &seen.tuple.source,
        vip: &seen.tuple.destination,
        client_port: seen.tuple.source_port,
        vip_port: seen.tuple.destination_port,
    };
    let change =
        if blot == 0 { 0 } else { options::change(packet, tables, Edit { l4: seen.l4, less: 0, blot }) as u32 };
    let edits = Edits { sequence: plan.shift, acknowledgement: ahead.wrapping_neg(), change };
    // What is told lies behind everything that a translation looks at.
    if tell != Tell::NOTHING && stretch::tell(packet, seen, tell, &ends) == 0 {
        return Step::drop(Reason::NoRoom);
    }
    finish(packet, seen, &to, &hop, edits)
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

/// What is added to a segment's numbers, and what was changed in it already.
#[derive(Clone, Copy, Default)]
struct Edits {
    sequence: u32,
    acknowledgement: u32,
    change: u32,
}

/// Translates the packet, with other numbers, and sends it.
#[inline(always)]
fn finish<P: Packet>(packet: &mut P, seen: &Seen, to: &Rewrite, hop: &Hop, edits: Edits) -> Step {
    let ifindex = packet.ifindex();
    if translate(packet, seen, to, &edits) == 0 {
        return Step::drop(Reason::Malformed);
    }
    link::send(packet, seen, hop, ifindex)
}

/// 1: done.
#[inline(never)]
fn translate<P: Packet>(packet: &mut P, seen: &Seen, to: &Rewrite, edits: &Edits) -> u32 {
    u32::from(renumber(packet, seen, edits).and_then(|()| nat::rewrite(packet, seen, to)).is_some())
}

#[inline(always)]
fn renumber<P: Packet>(packet: &mut P, seen: &Seen, edits: &Edits) -> Option<()> {
    if seen.headless {
        return Some(());
    }
    let tcp = packet.at::<Tcp>(seen.l4 as usize)?;
    let sequence = u32::from_be(tcp.sequence).wrapping_add(edits.sequence).to_be();
    let acknowledgement = u32::from_be(tcp.acknowledgement).wrapping_add(edits.acknowledgement).to_be();
    let change = checksum::word(tcp.sequence, sequence) + checksum::word(tcp.acknowledgement, acknowledgement);
    tcp.sequence = sequence;
    tcp.acknowledgement = acknowledgement;
    tcp.checksum = checksum::mend(tcp.checksum, edits.change + change);
    Some(())
}

/// How much further the client counts than the real.
#[inline(always)]
pub(crate) fn ahead<T: Tables>(tables: &T, index: u32) -> u32 {
    tables.peek(index, |flow| if flow.work & Flow::SPLICED != 0 { flow.ahead } else { 0 }).unwrap_or(0)
}

/// How much further the real counts than the client, at what the real knows as this number.
#[inline(always)]
pub(crate) fn shift<T: Tables>(tables: &T, seen: &Seen, index: u32, sequence: u32) -> u32 {
    let shifted = tables.peek(index, |flow| {
        let after = flow.work & Flow::TOLD != 0 || sequence.wrapping_sub(flow.start) as i32 > 0;
        flow.work & Flow::PROXY != 0 && after
    });
    if shifted.unwrap_or(false) { u32::from(proxy::length(seen.v4)) } else { 0 }
}

#[inline(always)]
fn backwards<P: Packet, T: Tables>(packet: &mut P, tables: &T, seen: &Seen, index: u32) -> Step {
    let mut known = Known { index, ..STRANGER };
    let mut to =
        Rewrite { source: Address::default(), destination: Address::default(), source_port: 0, destination_port: 0 };
    let mut hop = Hop::default();
    let service = tables.peek(index, |flow| {
        (known.work, known.start, known.ahead) = (flow.work, flow.start, flow.ahead);
        (to.destination, to.destination_port) = (flow.client, flow.client_port);
        (hop.ifindex, hop.vlan) = (flow.ifindex, flow.vlan());
        (hop.source_mac, hop.destination_mac) = (flow.own_mac, flow.client_mac);
        flow.service
    });
    let Some(frontend) = tables.frontend(service.unwrap_or(u32::MAX)) else { return Step::PASS };
    (to.source, to.source_port) = (frontend.vip, frontend.port);
    if seen.headless {
        return finish(packet, seen, &to, &hop, Edits::default());
    }
    let Some(tcp) = packet.at::<Tcp>(seen.l4 as usize) else { return Step::drop(Reason::Malformed) };
    let tcp = *tcp;
    let (sequence, acknowledgement) = (u32::from_be(tcp.sequence), u32::from_be(tcp.acknowledgement));
    let opens = tcp.flags & SYN != 0;
    let before = (known.work, known.start);
    let (mut forth, mut less) = (0, 0);
    if known.work & Flow::SPLICED != 0 && opens && acknowledgement == known.start {
        return Step(cookie::welcome(packet, tables, seen, &known, &to));
    }
    if known.work & Flow::WAITING != 0 {
        if tcp.flags & RST == 0 {
            return Step::drop(Reason::NotReady);
        }
        // Refused. To the client it comes right after our SYN.
        forth = known.ahead.wrapping_add(1).wrapping_sub(sequence);
    } else if known.work & Flow::SPLICED != 0 {
        forth = known.ahead;
    }
    let mut acknowledged = 0;
    if opens {
        // The real begins (perhaps anew, with a client that forgot the connection before): here the stream starts.
        if known.start != acknowledgement {
            known.start = acknowledgement;
            known.work &= !(Flow::TOLD | Flow::SENT | Flow::SPLICED);
            forth = 0;
        }
        if known.work & Flow::PROXY != 0 {
            less = proxy::length(seen.v4);
        }
    } else {
        // It took the handshake's last segment, and the option with it.
        known.work &= !Flow::TOA;
        if known.work & Flow::PROXY != 0 && tcp.flags & ACK != 0 {
            let length = u32::from(proxy::length(seen.v4));
            let beyond = acknowledgement.wrapping_sub(known.start) as i32;
            if known.work & Flow::TOLD != 0 || beyond >= length as i32 {
                known.work |= Flow::TOLD;
                acknowledged = length;
            } else if beyond > 0 {
                acknowledged = beyond as u32;
            }
        }
    }
    if before != (known.work, known.start) && !T::DRY {
        // Bit by bit: a client's packet may be noting something at the same time.
        let (gone, come) = (before.0 & !known.work, known.work & !before.0);
        tables.flow(index, |flow| (flow.work, flow.start) = (flow.work & !gone | come, known.start));
    }
    let edit = Edit { l4: seen.l4, less, blot: 0 };
    let change = if less == 0 { 0 } else { options::change(packet, tables, edit) as u32 };
    let edits = Edits { sequence: forth, acknowledgement: acknowledged.wrapping_neg(), change };
    finish(packet, seen, &to, &hop, edits)
}
