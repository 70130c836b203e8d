//! Rewrites a packet's addresses, ports and hop, and mends the checksums by what changed (RFC 1624, equation 3).

use crate::{
    abi::{Address, TCP},
    balance::{Hop, Packet},
    parse::{Frame, Ipv4, Ipv6, Seen, Tcp, Udp, Wire},
};

/// What a packet shall say instead.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rewrite {
    pub source: Address,
    pub destination: Address,
    pub source_port: u16,
    pub destination_port: u16,
}

/// Everything is written, or nothing is and the answer is `None`.
#[inline(always)]
pub fn rewrite<P: Packet>(packet: &mut P, seen: &Seen, to: &Rewrite, hop: &Hop) -> Option<()> {
    match (seen.v4, seen.tuple.protocol == TCP) {
        (true, true) => apply::<P, Ipv4, Tcp>(packet, seen, to, hop),
        (true, false) => apply::<P, Ipv4, Udp>(packet, seen, to, hop),
        (false, true) => apply::<P, Ipv6, Tcp>(packet, seen, to, hop),
        (false, false) => apply::<P, Ipv6, Udp>(packet, seen, to, hop),
    }
}

#[inline(always)]
fn apply<P: Packet, N: Network, T: Transport>(packet: &mut P, seen: &Seen, to: &Rewrite, hop: &Hop) -> Option<()> {
    let frame = packet.head::<Frame<N, T>>()?;
    // In IPv4 the mapped prefix stands in both sums and cancels out.
    let addresses = difference(&seen.tuple.source, &to.source) + difference(&seen.tuple.destination, &to.destination);
    let ports = word_difference(seen.tuple.source_port.to_be(), to.source_port.to_be())
        + word_difference(seen.tuple.destination_port.to_be(), to.destination_port.to_be());
    frame.ethernet.destination = hop.destination_mac;
    frame.ethernet.source = hop.source_mac;

    let mut network = frame.network;
    network.forward(to, addresses);
    frame.network = network;

    let mut transport = frame.transport;
    transport.forward(to, addresses + ports);
    frame.transport = transport;
    Some(())
}

trait Network: Wire {
    fn forward(&mut self, to: &Rewrite, addresses: u32);
}

trait Transport: Wire {
    fn forward(&mut self, to: &Rewrite, change: u32);
}

impl Network for Ipv4 {
    #[inline(always)]
    fn forward(&mut self, to: &Rewrite, addresses: u32) {
        let before = u16::from_ne_bytes([self.ttl, self.protocol]);
        self.ttl = self.ttl.wrapping_sub(1);
        let after = u16::from_ne_bytes([self.ttl, self.protocol]);
        self.checksum = mend(self.checksum, addresses + word_difference(before, after));
        self.source = to.source.0[3];
        self.destination = to.destination.0[3];
    }
}

impl Network for Ipv6 {
    #[inline(always)]
    fn forward(&mut self, to: &Rewrite, _addresses: u32) {
        self.hops = self.hops.wrapping_sub(1);
        self.source = to.source.0;
        self.destination = to.destination.0;
    }
}

impl Transport for Tcp {
    #[inline(always)]
    fn forward(&mut self, to: &Rewrite, change: u32) {
        self.checksum = mend(self.checksum, change);
        self.source_port = to.source_port.to_be();
        self.destination_port = to.destination_port.to_be();
    }
}

impl Transport for Udp {
    #[inline(always)]
    fn forward(&mut self, to: &Rewrite, change: u32) {
        // Zero says "no checksum" (RFC 768); a sum that comes out as zero is sent as its other form.
        if self.checksum != 0 {
            let sum = mend(self.checksum, change);
            self.checksum = if sum == 0 { 0xffff } else { sum };
        }
        self.source_port = to.source_port.to_be();
        self.destination_port = to.destination_port.to_be();
    }
}

/// `~old + new` over all halves: what RFC 1624 adds to the complement of the old checksum.
#[inline(always)]
fn difference(old: &Address, new: &Address) -> u32 {
    half_difference(old.0[0], new.0[0])
        + half_difference(old.0[1], new.0[1])
        + half_difference(old.0[2], new.0[2])
        + half_difference(old.0[3], new.0[3])
}

#[inline(always)]
fn half_difference(old: u32, new: u32) -> u32 {
    word_difference(old as u16, new as u16) + word_difference((old >> 16) as u16, (new >> 16) as u16)
}

#[inline(always)]
fn word_difference(old: u16, new: u16) -> u32 {
    u32::from(!old) + u32::from(new)
}

/// The checksum after its words changed by `difference` (a sum of at most 40 words, which cannot overflow).
#[inline(always)]
fn mend(checksum: u16, difference: u32) -> u16 {
    let sum = u32::from(!checksum) + difference;
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}
