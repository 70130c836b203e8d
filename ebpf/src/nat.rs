//! Rewrites a packet's addresses, ports and hop, and mends the checksums by what changed.

use crate::{
    abi::{Address, Hop, TCP},
    balance::{Packet, Step},
    checksum, link,
    parse::Seen,
    wire::{Ipv4, Ipv6, Tcp, Udp},
};

/// What a packet shall say instead.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rewrite {
    pub source: Address,
    pub destination: Address,
    pub source_port: u16,
    pub destination_port: u16,
}

/// Rewrites the packet and sends it.
#[inline(always)]
pub(crate) fn send<P: Packet>(packet: &mut P, seen: &Seen, to: &Rewrite, hop: &Hop) -> Step {
    let ifindex = packet.ifindex();
    if rewrite(packet, seen, to).is_none() {
        // Cannot be: the same headers were read before.
        return Step::drop(crate::abi::Reason::Malformed);
    }
    link::send(packet, seen, hop, ifindex)
}

/// Addresses, ports, checksums and the time to live.
#[inline(always)]
pub fn rewrite<P: Packet>(packet: &mut P, seen: &Seen, to: &Rewrite) -> Option<()> {
    let addresses = checksum::addresses(&seen.tuple.source, &to.source, seen.v4)
        + checksum::addresses(&seen.tuple.destination, &to.destination, seen.v4);
    let l3 = seen.l3 as usize;
    if seen.v4 {
        let ip = packet.at::<Ipv4>(l3)?;
        ip.ttl = ip.ttl.wrapping_sub(1);
        ip.checksum = checksum::mend(ip.checksum, addresses + checksum::ONE_HOP);
        ip.source = to.source.0[3];
        ip.destination = to.destination.0[3];
    } else {
        let ip = packet.at::<Ipv6>(l3)?;
        ip.hops = ip.hops.wrapping_sub(1);
        ip.source = to.source.0;
        ip.destination = to.destination.0;
    }
    if seen.headless {
        return Some(());
    }
    let change = addresses
        + checksum::half(seen.tuple.source_port.to_be(), to.source_port.to_be())
        + checksum::half(seen.tuple.destination_port.to_be(), to.destination_port.to_be());
    let l4 = seen.l4 as usize;
    if seen.tuple.protocol == TCP {
        let tcp = packet.at::<Tcp>(l4)?;
        tcp.checksum = checksum::mend(tcp.checksum, change);
        tcp.ports.source = to.source_port.to_be();
        tcp.ports.destination = to.destination_port.to_be();
    } else {
        let udp = packet.at::<Udp>(l4)?;
        // Zero says "no checksum" (RFC 768); a sum that comes out as zero is sent as its other form.
        if udp.checksum != 0 {
            let sum = checksum::mend(udp.checksum, change);
            udp.checksum = if sum == 0 { 0xffff } else { sum };
        }
        udp.ports.source = to.source_port.to_be();
        udp.ports.destination = to.destination_port.to_be();
    }
    Some(())
}
