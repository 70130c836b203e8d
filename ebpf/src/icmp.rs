//! ICMP and ICMPv6: echoes of a VIP, errors about flows on their way to the right real or client, and the errors that
//! the balancer itself has to send.

use crate::{
    abi::{Address, Hop, ICMP, ICMP6, Reason, ServiceKey, Why},
    balance::{Packet, Step, Tables, next_hop},
    checksum, client, flows, link,
    parse::{self, PLAIN_L3, Seen},
    select,
    wire::{
        DO_NOT_FRAGMENT, ECHO_REPLY_V4, ECHO_REPLY_V6, ETHERTYPE_V4, ETHERTYPE_V6, Ethernet, Icmp, Ipv4, Ipv6, Pair,
        Ports,
    },
};

/// Bytes of the packet that an error quotes: IPv4's header and eight more (RFC 792); IPv6's and a TCP header.
const QUOTE_V4: usize = size_of::<Ipv4>() + 8;
const QUOTE_V6: usize = size_of::<Ipv6>() + 20;
const TTL: u8 = 64;

/// Answers an echo request to a VIP.
#[inline(always)]
pub(crate) fn echo<P: Packet, T: Tables>(packet: &mut P, tables: &T, seen: &Seen) -> Step {
    if tables.service(&ServiceKey::of_vip(seen.tuple.destination)).is_none() {
        return Step::PASS;
    }
    answer_echo(packet, seen).map_or(Step::PASS, |()| Step::TRANSMIT)
}

#[inline(always)]
fn answer_echo<P: Packet>(packet: &mut P, seen: &Seen) -> Option<()> {
    // All there, before anything is written.
    packet.at::<Icmp>(seen.l4 as usize)?;
    let reply = if seen.v4 { ECHO_REPLY_V4 } else { ECHO_REPLY_V6 };
    if seen.v4 {
        let ip = packet.at::<Ipv4>(seen.l3 as usize)?;
        let before = u16::from_ne_bytes([ip.ttl, ip.protocol]);
        ip.ttl = TTL;
        ip.checksum = checksum::mend(ip.checksum, checksum::half(before, u16::from_ne_bytes([TTL, ip.protocol])));
        core::mem::swap(&mut ip.source, &mut ip.destination);
    } else {
        let ip = packet.at::<Ipv6>(seen.l3 as usize)?;
        ip.hops = TTL;
        core::mem::swap(&mut ip.source, &mut ip.destination);
    }
    let icmp = packet.at::<Icmp>(seen.l4 as usize)?;
    let before = u16::from_ne_bytes([icmp.kind, icmp.code]);
    icmp.kind = reply;
    icmp.checksum = checksum::mend(icmp.checksum, checksum::half(before, u16::from_ne_bytes([reply, 0])));
    let ethernet = packet.at::<Ethernet>(0)?;
    core::mem::swap(&mut ethernet.source, &mut ethernet.destination);
    Some(())
}

/// An error about the flow at `index`, on to its real.
#[inline(always)]
pub(crate) fn to_real<P: Packet, T: Tables>(packet: &mut P, tables: &T, seen: &Seen, index: u32) -> Step {
    let id = tables.flow(index, |flow| flow.real()).unwrap_or(select::NOBODY);
    let (Some(real), Some(local)) = (tables.real(id), tables.local(index >> 16)) else { return Step::PASS };
    tables.trace(|trace| (trace.why, trace.real, trace.flow) = (Why::Error as u32, id, index));
    let hop = match next_hop(tables, real, packet.ifindex()) {
        Ok(hop) => hop,
        Err(reason) => {
            tables.count_drop(reason);
            return Step::drop(reason);
        }
    };
    let to = Requoted {
        receiver: real.address,
        from: None,
        source: real.address,
        source_port: real.port,
        destination: local,
        destination_port: index as u16,
        less: client::ahead(tables, index),
    };
    requote(packet, seen, &to, &hop)
}

/// An error from the real's side, about a packet that we sent from a local address, on to the client.
#[inline(always)]
pub(crate) fn to_client<P: Packet, T: Tables>(packet: &mut P, tables: &T, seen: &Seen, index: u32) -> Step {
    let Some(back) = flows::back(tables, seen, index) else { return Step::PASS };
    tables.trace(|trace| (trace.why, trace.flow) = (Why::Error as u32, index));
    let Some(sequence) = packet.at::<[u32; 1]>(seen.ports as usize + size_of::<Ports>()) else {
        return Step::drop(Reason::Malformed);
    };
    let sequence = u32::from_be(sequence[0]);
    let to = Requoted {
        receiver: back.to.destination,
        // What the real says comes from the VIP; what a router says, from the router.
        from: Some((seen.tuple.source, back.to.source)),
        source: back.to.destination,
        source_port: back.to.destination_port,
        destination: back.to.source,
        destination_port: back.to.source_port,
        less: client::shift(tables, seen, index, sequence),
    };
    requote(packet, seen, &to, &back.hop)
}

/// What an error shall say instead. The quoted packet's source was our side's address, and becomes the receiver's.
struct Requoted {
    receiver: Address,
    /// If the first sent the error, it shall come from the second.
    from: Option<(Address, Address)>,
    source: Address,
    source_port: u16,
    destination: Address,
    destination_port: u16,
    /// How much lower the receiver's sequence number is. It would not believe the quoted one (RFC 5927, section 4.1).
    less: u32,
}

#[inline(always)]
fn requote<P: Packet>(packet: &mut P, seen: &Seen, to: &Requoted, hop: &Hop) -> Step {
    let ifindex = packet.ifindex();
    match rewrite(packet, seen, to) {
        Some(()) => link::send(packet, seen, hop, ifindex),
        None => Step::drop(Reason::Malformed),
    }
}

#[inline(always)]
fn rewrite<P: Packet>(packet: &mut P, seen: &Seen, to: &Requoted) -> Option<()> {
    // The quoted packet went from `tuple.destination` (ours) to `tuple.source`.
    let addresses = checksum::addresses(&seen.tuple.destination, &to.source, seen.v4)
        + checksum::addresses(&seen.tuple.source, &to.destination, seen.v4);
    let mut change = checksum::half(seen.tuple.destination_port.to_be(), to.source_port.to_be())
        + checksum::half(seen.tuple.source_port.to_be(), to.destination_port.to_be());
    let quote = seen.l4 as usize + size_of::<Icmp>();
    // At least so much is quoted (RFC 792).
    packet.at::<[u32; 2]>(seen.ports as usize)?;
    if seen.v4 {
        // The header's own sum takes the addresses' change up, so that the message's sum does not see it.
        let inner = packet.at::<Ipv4>(quote)?;
        inner.checksum = checksum::mend(inner.checksum, addresses);
        inner.source = to.source.0[3];
        inner.destination = to.destination.0[3];
        let ip = packet.at::<Ipv4>(seen.l3 as usize)?;
        let source = match &to.from {
            Some((before, after)) if ip.source == before.0[3] => after.0[3],
            _ => ip.source,
        };
        ip.ttl = ip.ttl.wrapping_sub(1);
        let outer =
            checksum::word(ip.source, source) + checksum::word(ip.destination, to.receiver.0[3]) + checksum::ONE_HOP;
        ip.checksum = checksum::mend(ip.checksum, outer);
        ip.source = source;
        ip.destination = to.receiver.0[3];
    } else {
        let inner = packet.at::<Ipv6>(quote)?;
        inner.source = to.source.0;
        inner.destination = to.destination.0;
        let ip = packet.at::<Ipv6>(seen.l3 as usize)?;
        let (from, at) = (Address(ip.source), Address(ip.destination));
        let source = match &to.from {
            Some((before, after)) if from == *before => *after,
            _ => from,
        };
        ip.hops = ip.hops.wrapping_sub(1);
        ip.source = source.0;
        ip.destination = to.receiver.0;
        change +=
            addresses + checksum::addresses(&from, &source, false) + checksum::addresses(&at, &to.receiver, false);
    }
    if to.less != 0 {
        let sequence = packet.at::<[u32; 1]>(seen.ports as usize + size_of::<Ports>())?;
        let lower = u32::from_be(sequence[0]).wrapping_sub(to.less).to_be();
        change += checksum::word(sequence[0], lower);
        sequence[0] = lower;
    }
    let ports = packet.at::<Ports>(seen.ports as usize)?;
    ports.source = to.source_port.to_be();
    ports.destination = to.destination_port.to_be();
    let icmp = packet.at::<Icmp>(seen.l4 as usize)?;
    icmp.checksum = checksum::mend(icmp.checksum, change);
    Some(())
}

/// Turns a packet that must be dropped into an error to its sender: time exceeded, or packet too big (RFC 1191; RFC
/// 4443, section 3.2). Where none may be sent it is dropped in silence: about an ICMP error or a later fragment (RFC
/// 1122, section 3.2.2), about what arrived with a tag or options (the quote would have another shape), and about a
/// packet that does not say that it must not be fragmented.
#[inline(always)]
pub(crate) fn refuse<P: Packet, T: Tables>(packet: &mut P, tables: &T, reason: Reason, mtu: u16) -> Step {
    tables.count_drop(reason);
    tables.trace(|trace| trace.reason = reason as u32);
    let told = !T::DRY && tell(packet, reason, mtu).is_some();
    if told { Step::TRANSMIT } else { Step::drop(reason) }
}

#[inline(always)]
fn tell<P: Packet>(packet: &mut P, reason: Reason, mtu: u16) -> Option<()> {
    let too_big = reason == Reason::TooBig;
    match packet.at::<Ethernet>(0)?.ethertype {
        ETHERTYPE_V4 => {
            let seen = parse::plain::<P, Ipv4>(packet)?;
            let (kind, code) = if too_big { (3, 4) } else { (11, 0) };
            refuse_v4(packet, &seen, &Refusal { kind, code, mtu })
        }
        ETHERTYPE_V6 => {
            let seen = parse::plain::<P, Ipv6>(packet)?;
            let kind = if too_big { 2 } else { 3 };
            refuse_v6(packet, &seen, &Refusal { kind, code: 0, mtu })
        }
        _ => None,
    }
}

struct Refusal {
    kind: u8,
    code: u8,
    mtu: u16,
}

#[inline(always)]
fn refuse_v4<P: Packet>(packet: &mut P, seen: &Seen, refusal: &Refusal) -> Option<()> {
    const HEAD: usize = size_of::<Pair<Ipv4, Icmp>>();
    const LENGTH: usize = HEAD + QUOTE_V4;
    let ethernet = *packet.at::<Ethernet>(0)?;
    let ip = *packet.at::<Ipv4>(PLAIN_L3)?;
    if refusal.kind == 3 && ip.fragment & DO_NOT_FRAGMENT == 0 {
        return None;
    }
    let hop = returning(&ethernet);
    if !packet.cut(PLAIN_L3 + QUOTE_V4) {
        return None;
    }
    let at = link::begin(packet, PLAIN_L3, HEAD, &hop, ETHERTYPE_V4)?;
    let quoted = packet.at::<[u16; QUOTE_V4 / 2]>(at + HEAD)?;
    let mut sum = words(quoted);
    let mut icmp = Icmp { kind: refusal.kind, code: refusal.code, checksum: 0, rest: u32::from(refusal.mtu).to_be() };
    sum += u32::from(u16::from_ne_bytes([icmp.kind, icmp.code])) + checksum::halves(icmp.rest);
    icmp.checksum = !checksum::fold(sum);
    let mut outer = Ipv4 {
        version_ihl: 0x45,
        tos: 0,
        length: (LENGTH as u16).to_be(),
        id: 0,
        fragment: DO_NOT_FRAGMENT,
        ttl: TTL,
        protocol: ICMP,
        checksum: 0,
        source: seen.tuple.destination.0[3],
        destination: seen.tuple.source.0[3],
    };
    let sum = u32::from(u16::from_ne_bytes([0x45, 0]))
        + u32::from(outer.length)
        + u32::from(DO_NOT_FRAGMENT)
        + u32::from(u16::from_ne_bytes([TTL, ICMP]))
        + checksum::halves(outer.source)
        + checksum::halves(outer.destination);
    outer.checksum = !checksum::fold(sum);
    *packet.at::<Pair<Ipv4, Icmp>>(at)? = Pair { first: outer, second: icmp };
    Some(())
}

#[inline(always)]
fn refuse_v6<P: Packet>(packet: &mut P, seen: &Seen, refusal: &Refusal) -> Option<()> {
    const HEAD: usize = size_of::<Pair<Ipv6, Icmp>>();
    const LENGTH: usize = size_of::<Icmp>() + QUOTE_V6;
    let ethernet = *packet.at::<Ethernet>(0)?;
    let hop = returning(&ethernet);
    // A UDP packet may be shorter than what is quoted of others.
    if (seen.length as usize) < QUOTE_V6 || !packet.cut(PLAIN_L3 + QUOTE_V6) {
        return None;
    }
    let at = link::begin(packet, PLAIN_L3, HEAD, &hop, ETHERTYPE_V6)?;
    let quoted = packet.at::<[u16; QUOTE_V6 / 2]>(at + HEAD)?;
    let mut icmp = Icmp { kind: refusal.kind, code: refusal.code, checksum: 0, rest: u32::from(refusal.mtu).to_be() };
    let sum = words(quoted)
        + u32::from(u16::from_ne_bytes([icmp.kind, icmp.code]))
        + checksum::halves(icmp.rest)
        + checksum::address(&seen.tuple.source, false)
        + checksum::address(&seen.tuple.destination, false)
        + u32::from((LENGTH as u16).to_be())
        + u32::from(u16::from(ICMP6).to_be());
    icmp.checksum = !checksum::fold(sum);
    let outer = Ipv6 {
        version_class: 0x6000_u16.to_be(),
        flow: 0,
        length: (LENGTH as u16).to_be(),
        next: ICMP6,
        hops: TTL,
        source: seen.tuple.destination.0,
        destination: seen.tuple.source.0,
    };
    *packet.at::<Pair<Ipv6, Icmp>>(at)? = Pair { first: outer, second: icmp };
    Some(())
}

/// Back to where the frame came from.
#[inline(always)]
fn returning(ethernet: &Ethernet) -> Hop {
    Hop { ifindex: 0, source_mac: ethernet.destination, destination_mac: ethernet.source, vlan: 0, mtu: 0 }
}

#[inline(always)]
fn words<const N: usize>(words: &[u16; N]) -> u32 {
    let mut sum = 0;
    let mut i = 0;
    while i < N {
        sum += words.get(i).map_or(0, |word| u32::from(*word));
        i += 1;
    }
    sum
}
