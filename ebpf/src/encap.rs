//! The modes in which the real answers the client itself: only the hardware address, or a tunnel around the packet.

use crate::{
    abi::{Address, Hop, Real, Reason, Service, Settings, UDP},
    balance::{Packet, Step, Tables},
    checksum, link,
    parse::Seen,
    wire::{DO_NOT_FRAGMENT, ETHERTYPE_V4, ETHERTYPE_V6, Ethernet, IPV4_INSIDE, IPV6_INSIDE, Ipv4, Ipv6, Ports, Udp},
};

/// A tunnel's time to live (RFC 1340's recommendation, and every kernel's default).
const TTL: u8 = 64;
/// GUE's source ports: the dynamic range (RFC 6335), so that receivers spread flows by it.
const ENTROPY: u16 = 0xc000;

/// Sends the packet to a real that has the VIP.
#[inline(always)]
pub(crate) fn forward<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    seen: &Seen,
    service: &Service,
    real: &Real,
    hop: &Hop,
    hash: u32,
) -> Step {
    let v4 = real.address.is_v4();
    let around = overhead(service.mode, v4);
    if hop.mtu != 0 && seen.length as usize + around > hop.mtu as usize {
        return Step::refuse(Reason::TooBig, hop.mtu.wrapping_sub(around as u16));
    }
    let Some(settings) = tables.settings() else { return Step::drop(Reason::NoRoute) };
    send(packet, settings, seen, service, real, hop, hash)
}

/// As [`forward`], when it is known to fit.
#[inline(always)]
pub(crate) fn send<P: Packet>(
    packet: &mut P,
    settings: &Settings,
    seen: &Seen,
    service: &Service,
    real: &Real,
    hop: &Hop,
    hash: u32,
) -> Step {
    let ifindex = packet.ifindex();
    let Some(class) = pass_on(packet, seen) else { return Step::drop(Reason::Malformed) };
    if service.mode == Service::DIRECT {
        return link::send(packet, seen, hop, ifindex);
    }
    let v4 = real.address.is_v4();
    let source = if v4 { settings.tunnel_v4 } else { settings.tunnel_v6 };
    let outer = Outer {
        source,
        destination: real.address,
        class,
        inside_v4: seen.v4,
        length: seen.length,
        port: if service.mode == Service::GUE { service.tunnel_port } else { 0 },
        hash,
    };
    // The usual tunnel is written here and now; all others share one function.
    let usual =
        service.mode == Service::IPIP && v4 == seen.v4 && hop.vlan == 0 && seen.l3 as usize == size_of::<Ethernet>();
    let done = if usual {
        ipip(packet, &outer, hop).is_some()
    } else {
        // Copies: what has an address is written to the stack, and that only where the packet comes by.
        wrap(packet, seen.l3, &{ outer }, &{ *hop }) != 0
    };
    if done { Step::leave(ifindex, hop) } else { Step::drop(Reason::NoRoom) }
}

/// Bytes that a mode puts around a packet.
#[inline(always)]
#[must_use]
pub const fn overhead(mode: u8, outer_v4: bool) -> usize {
    let ip = if outer_v4 { size_of::<Ipv4>() } else { size_of::<Ipv6>() };
    match mode {
        Service::IPIP => ip,
        Service::GUE => ip + size_of::<Udp>(),
        _ => 0,
    }
}

/// One hop more, which also ends the loop of two balancers that send to each other. Returns the traffic class.
#[inline(always)]
fn pass_on<P: Packet>(packet: &mut P, seen: &Seen) -> Option<u8> {
    if seen.v4 {
        let ip = packet.at::<Ipv4>(seen.l3 as usize)?;
        ip.ttl = ip.ttl.wrapping_sub(1);
        ip.checksum = checksum::mend(ip.checksum, checksum::ONE_HOP);
        Some(ip.tos)
    } else {
        let ip = packet.at::<Ipv6>(seen.l3 as usize)?;
        ip.hops = ip.hops.wrapping_sub(1);
        Some((u16::from_be(ip.version_class) >> 4) as u8)
    }
}

/// What the outer headers say.
#[derive(Clone, Copy)]
struct Outer {
    source: Address,
    destination: Address,
    /// Copied, with the congestion bits (RFC 6040).
    class: u8,
    inside_v4: bool,
    length: u16,
    /// 0: no UDP.
    port: u16,
    hash: u32,
}

/// IPv4 in IPv4 or IPv6 in IPv6, untagged as it came.
#[inline(always)]
fn ipip<P: Packet>(packet: &mut P, outer: &Outer, hop: &Hop) -> Option<()> {
    const L3: usize = size_of::<Ethernet>();
    if outer.inside_v4 {
        link::begin(packet, L3, size_of::<Ipv4>(), hop, ETHERTYPE_V4)?;
        *packet.at::<Ipv4>(L3)? = ipv4(outer, IPV4_INSIDE, outer.length.wrapping_add(20));
    } else {
        link::begin(packet, L3, size_of::<Ipv6>(), hop, ETHERTYPE_V6)?;
        *packet.at::<Ipv6>(L3)? = ipv6(outer, IPV6_INSIDE, outer.length);
    }
    Some(())
}

/// 1: done.
#[inline(never)]
fn wrap<P: Packet>(packet: &mut P, l3: u16, outer: &Outer, hop: &Hop) -> u32 {
    u32::from(any(packet, l3 as usize, outer, hop).is_some())
}

#[inline(always)]
fn any<P: Packet>(packet: &mut P, l3: usize, outer: &Outer, hop: &Hop) -> Option<()> {
    let v4 = outer.destination.is_v4();
    let inside = if outer.inside_v4 { IPV4_INSIDE } else { IPV6_INSIDE };
    let gue = outer.port != 0;
    let header = if v4 { size_of::<Ipv4>() } else { size_of::<Ipv6>() };
    let around = if gue { header + size_of::<Udp>() } else { header };
    let at = link::begin(packet, l3, around, hop, if v4 { ETHERTYPE_V4 } else { ETHERTYPE_V6 })?;
    let protocol = if gue { UDP } else { inside };
    if v4 {
        *packet.at::<Ipv4>(at)? = ipv4(outer, protocol, outer.length.wrapping_add(around as u16));
    } else {
        *packet.at::<Ipv6>(at)? = ipv6(outer, protocol, outer.length.wrapping_add((around - header) as u16));
    }
    if gue {
        *packet.at::<Udp>(at + header)? = udp(outer);
    }
    Some(())
}

#[inline(always)]
fn ipv4(outer: &Outer, protocol: u8, length: u16) -> Ipv4 {
    let (source, destination) = (outer.source.0[3], outer.destination.0[3]);
    let sum = u32::from(u16::from_ne_bytes([0x45, outer.class]))
        + u32::from(length.to_be())
        + u32::from(DO_NOT_FRAGMENT)
        + u32::from(u16::from_ne_bytes([TTL, protocol]))
        + checksum::halves(source)
        + checksum::halves(destination);
    Ipv4 {
        version_ihl: 0x45,
        tos: outer.class,
        length: length.to_be(),
        id: 0,
        fragment: DO_NOT_FRAGMENT,
        ttl: TTL,
        protocol,
        checksum: !checksum::fold(sum),
        source,
        destination,
    }
}

#[inline(always)]
fn ipv6(outer: &Outer, next: u8, length: u16) -> Ipv6 {
    Ipv6 {
        version_class: (0x6000 | u16::from(outer.class) << 4).to_be(),
        flow: (outer.hash as u16).to_be(),
        length: length.to_be(),
        next,
        hops: TTL,
        source: outer.source.0,
        destination: outer.destination.0,
    }
}

/// Without a checksum, as tunnels may be sent also over IPv6 (RFC 6935, section 5).
#[inline(always)]
fn udp(outer: &Outer) -> Udp {
    let source = ENTROPY | (outer.hash >> 16) as u16;
    Udp {
        ports: Ports { source: source.to_be(), destination: outer.port.to_be() },
        length: outer.length.wrapping_add(8).to_be(),
        checksum: 0,
    }
}
