//! A tunnelled packet: whether it is for us, and how much of it is the tunnel's.
//!
//! ```text
//!  Ethernet │ outer IPv4 or IPv6 │ (UDP, for GUE) │ inner IPv4 or IPv6 │ ...
//!           └────────── taken away ──────────────┘
//! ```
//!
//! IP in IP (RFC 2003, 2473, 4213) and GUE in variant 1, where the inner packet follows UDP at once and its version
//! nibble says what it is. What is unusual outside (options, fragments, extension headers) is left to the host.

use super::{Count, Settings};
use crate::{
    abi::{Address, UDP},
    balance::{Headers, Packet},
    checksum,
    wire::{ETHERTYPE_V4, ETHERTYPE_V6, Ethernet, FRAGMENTED, IPV4_INSIDE, IPV6_INSIDE, Ipv4, Ipv6, Udp},
};

/// What the host knows.
pub trait Known {
    fn settings(&self) -> Settings;
    /// An address of this host's own.
    fn is_host(&self, address: &Address) -> bool;
    /// A VIP that was joined.
    fn is_vip(&self, address: &Address) -> bool;
    /// A balancer's address.
    fn is_from(&self, address: &Address) -> bool;
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Look {
    /// Nothing of ours.
    Other,
    /// A tunnel's packet that is not believed: the host gets it as it came.
    Refused(Count),
    /// Take away so much behind the Ethernet header.
    Peel(Peel),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Peel {
    pub length: usize,
    pub inner_v4: bool,
    pub count: Count,
}

impl Peel {
    /// What the Ethernet header must say.
    #[inline(always)]
    #[must_use]
    pub fn ethertype(&self) -> u16 {
        if self.inner_v4 { ETHERTYPE_V4 } else { ETHERTYPE_V6 }
    }
}

struct Outer {
    v4: bool,
    source: Address,
    destination: Address,
    protocol: u8,
    /// Its own length.
    header: usize,
    /// Bytes behind it.
    payload: usize,
    ecn: u8,
}

struct Inner {
    destination: Address,
    length: usize,
    ecn: u8,
    sound: bool,
}

/// "Congestion experienced" (RFC 3168).
const CONGESTED: u8 = 3;
const NETWORK: usize = size_of::<Ethernet>();
/// Nothing behind so many bytes is looked at.
pub const LOOKED_AT: usize = NETWORK + size_of::<Ipv6>() + size_of::<Udp>() + size_of::<Ipv6>();

/// Takes a tunnel's headers away, if they are for us. The Ethernet header moves, with the new type.
#[inline(always)]
pub fn open<P: Packet>(packet: &mut P, known: &impl Known) -> Look {
    let look = look(packet, known);
    if let Look::Peel(peel) = look {
        let Some(ethernet) = packet.at::<Ethernet>(0).copied() else { return Look::Other };
        if !packet.grow(-(peel.length as i32)) {
            return Look::Refused(Count::Broken);
        }
        if let Some(head) = packet.at::<Ethernet>(0) {
            *head = Ethernet { ethertype: peel.ethertype(), ..ethernet };
        }
    }
    look
}

/// Decides, and carries the mark of congestion over from the outer header to the inner one (RFC 6040). Nothing is taken
/// away yet: where the packet is no bare frame any more, the kernel has to know more than how much.
#[inline(always)]
pub fn look<P: Headers>(packet: &mut P, known: &impl Known) -> Look {
    let Some(outer) = outer(packet) else { return Look::Other };
    let settings = known.settings();
    let udp = NETWORK + outer.header;
    let (gue, inner_v4) = match outer.protocol {
        IPV4_INSIDE if settings.ipip != 0 => (false, true),
        IPV6_INSIDE if settings.ipip != 0 => (false, false),
        UDP if settings.gue_port != 0 => {
            let Some(header) = packet.at::<Udp>(udp) else { return Look::Other };
            let ours = u32::from(u16::from_be(header.ports.destination)) == settings.gue_port;
            let Some(first) = packet.at::<[u16; 1]>(udp + size_of::<Udp>()) else { return Look::Other };
            // Another variant of GUE (control messages, options) has other first bits.
            match (ours, u16::from_be(first[0]) >> 12) {
                (true, 4) => (true, true),
                (true, 6) => (true, false),
                _ => return Look::Other,
            }
        }
        _ => return Look::Other,
    };
    if !known.is_host(&outer.destination) {
        return Look::Other;
    }
    if settings.only_from != 0 && !known.is_from(&outer.source) {
        return Look::Refused(Count::Stranger);
    }
    let around = outer.header + if gue { size_of::<Udp>() } else { 0 };
    let at = NETWORK + around;
    let inner = if inner_v4 { inner_v4_at(packet, at) } else { inner_v6_at(packet, at) };
    let Some(inner) = inner else { return Look::Refused(Count::Broken) };
    if !inner.sound || around + inner.length > outer.header + outer.payload {
        return Look::Refused(Count::Broken);
    }
    if !known.is_vip(&inner.destination) {
        return Look::Refused(Count::NotVip);
    }
    if outer.ecn == CONGESTED && inner.ecn != CONGESTED {
        // An inner packet whose sender does not know the mark cannot have been given it on the way.
        if inner.ecn == 0 {
            return Look::Refused(Count::Broken);
        }
        if inner_v4 { mark_v4(packet, at) } else { mark_v6(packet, at) }
    }
    Look::Peel(Peel { length: around, inner_v4, count: Count::tunnel(gue, outer.v4, inner_v4) })
}

#[inline(always)]
fn outer<P: Headers>(packet: &mut P) -> Option<Outer> {
    let length = packet.length();
    let ethernet = packet.at::<Ethernet>(0)?;
    if ethernet.destination.to_many() {
        return None;
    }
    match ethernet.ethertype {
        ETHERTYPE_V4 => {
            let ip = packet.at::<Ipv4>(NETWORK)?;
            let total = u16::from_be(ip.length) as usize;
            let header = size_of::<Ipv4>();
            if ip.version_ihl != 0x45 || ip.fragment & FRAGMENTED != 0 || total < header || NETWORK + total > length {
                return None;
            }
            Some(Outer {
                v4: true,
                source: Address::v4(ip.source),
                destination: Address::v4(ip.destination),
                protocol: ip.protocol,
                header,
                payload: total - header,
                ecn: ip.tos & CONGESTED,
            })
        }
        ETHERTYPE_V6 => {
            let ip = packet.at::<Ipv6>(NETWORK)?;
            let payload = u16::from_be(ip.length) as usize;
            let header = size_of::<Ipv6>();
            let class = u16::from_be(ip.version_class);
            if class >> 12 != 6 || NETWORK + header + payload > length {
                return None;
            }
            Some(Outer {
                v4: false,
                source: Address(ip.source),
                destination: Address(ip.destination),
                protocol: ip.next,
                header,
                payload,
                ecn: (class >> 4) as u8 & CONGESTED,
            })
        }
        _ => None,
    }
}

#[inline(always)]
fn inner_v4_at<P: Headers>(packet: &mut P, at: usize) -> Option<Inner> {
    let ip = packet.at::<Ipv4>(at)?;
    let length = u16::from_be(ip.length) as usize;
    let header = (ip.version_ihl & 15) as usize * 4;
    Some(Inner {
        destination: Address::v4(ip.destination),
        length,
        ecn: ip.tos & CONGESTED,
        sound: ip.version_ihl >> 4 == 4 && header >= size_of::<Ipv4>() && length >= header,
    })
}

#[inline(always)]
fn inner_v6_at<P: Headers>(packet: &mut P, at: usize) -> Option<Inner> {
    let ip = packet.at::<Ipv6>(at)?;
    let class = u16::from_be(ip.version_class);
    Some(Inner {
        destination: Address(ip.destination),
        length: size_of::<Ipv6>() + u16::from_be(ip.length) as usize,
        ecn: (class >> 4) as u8 & CONGESTED,
        sound: class >> 12 == 6,
    })
}

#[inline(always)]
fn mark_v4<P: Headers>(packet: &mut P, at: usize) {
    let Some(ip) = packet.at::<Ipv4>(at) else { return };
    let before = u16::from_ne_bytes([ip.version_ihl, ip.tos]);
    ip.tos |= CONGESTED;
    let after = u16::from_ne_bytes([ip.version_ihl, ip.tos]);
    ip.checksum = checksum::mend(ip.checksum, checksum::half(before, after));
}

#[inline(always)]
fn mark_v6<P: Headers>(packet: &mut P, at: usize) {
    let Some(ip) = packet.at::<Ipv6>(at) else { return };
    ip.version_class |= (u16::from(CONGESTED) << 4).to_be();
}

#[cfg(test)]
mod tests;
