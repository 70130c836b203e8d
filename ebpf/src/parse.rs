//! Bytes to [`Seen`]: the only bounds checks.
//!
//! Whatever is unusual (VLAN tags, IPv4 options, fragments, IPv6 extension headers, protocols other than TCP and UDP,
//! broken lengths) is not ours: it goes to the host as it came.

use crate::{
    abi::{Address, TCP, Tuple, UDP},
    balance::Packet,
};

/// A header as it stands in a packet.
///
/// # Safety
/// Every bit pattern is a value, the alignment is at most 2 (headers follow the 14 bytes of Ethernet), no padding.
pub unsafe trait Wire: Copy {}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Ethernet {
    pub destination: [u8; 6],
    pub source: [u8; 6],
    pub ethertype: u16,
}

#[repr(C, packed(2))]
#[derive(Clone, Copy, Debug)]
pub struct Ipv4 {
    pub version_ihl: u8,
    pub tos: u8,
    pub length: u16,
    pub id: u16,
    pub fragment: u16,
    pub ttl: u8,
    pub protocol: u8,
    pub checksum: u16,
    pub source: u32,
    pub destination: u32,
}

#[repr(C, packed(2))]
#[derive(Clone, Copy, Debug)]
pub struct Ipv6 {
    pub version_class: u16,
    pub flow: u16,
    pub length: u16,
    pub next: u8,
    pub hops: u8,
    pub source: [u32; 4],
    pub destination: [u32; 4],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Tcp {
    pub source_port: u16,
    pub destination_port: u16,
    pub sequence: [u16; 2],
    pub acknowledgement: [u16; 2],
    pub offset: u8,
    pub flags: u8,
    pub window: u16,
    pub checksum: u16,
    pub urgent: u16,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Udp {
    pub source_port: u16,
    pub destination_port: u16,
    pub length: u16,
    pub checksum: u16,
}

/// A frame's beginning. One bounds check covers all of it, so a rewrite happens whole or not at all.
#[repr(C, packed(2))]
#[derive(Clone, Copy, Debug)]
pub struct Frame<Network, Transport> {
    pub ethernet: Ethernet,
    pub network: Network,
    pub transport: Transport,
}

/// Nothing looked at yet above the network header.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Unread;

// SAFETY: integers and arrays of them, `repr(C)` with alignment of at most 2, sizes asserted below.
unsafe impl Wire for Ethernet {}
// SAFETY: as above.
unsafe impl Wire for Ipv4 {}
// SAFETY: as above.
unsafe impl Wire for Ipv6 {}
// SAFETY: as above.
unsafe impl Wire for Tcp {}
// SAFETY: as above.
unsafe impl Wire for Udp {}
// SAFETY: no bytes at all.
unsafe impl Wire for Unread {}
// SAFETY: all parts have even sizes and alignments of at most 2, so there is no padding between them.
unsafe impl<N: Wire, T: Wire> Wire for Frame<N, T> {}

const _: () = {
    assert!(size_of::<Ethernet>() == 14 && align_of::<Ethernet>() == 2);
    assert!(size_of::<Ipv4>() == 20 && align_of::<Ipv4>() == 2);
    assert!(size_of::<Ipv6>() == 40 && align_of::<Ipv6>() == 2);
    assert!(size_of::<Tcp>() == 20 && align_of::<Tcp>() == 2);
    assert!(size_of::<Udp>() == 8 && align_of::<Udp>() == 2);
    assert!(size_of::<Frame<Ipv6, Tcp>>() == 74);
};

/// TCP's flags.
pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;

const ETHERTYPE_V4: u16 = 0x0800_u16.to_be();
const ETHERTYPE_V6: u16 = 0x86dd_u16.to_be();
/// Of the fragment field: all but "do not fragment" and the reserved bit.
const FRAGMENTED: u16 = 0x3fff_u16.to_be();

/// What a decision needs to know of a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Seen {
    pub tuple: Tuple,
    pub v4: bool,
    pub ttl: u8,
    /// TCP's flags; 0 for UDP.
    pub flags: u8,
    pub from_mac: [u8; 6],
    pub to_mac: [u8; 6],
}

impl Seen {
    /// A packet that opens a TCP connection.
    #[inline(always)]
    #[must_use]
    pub fn opens(&self) -> bool {
        self.flags & (SYN | ACK | RST | FIN) == SYN
    }

    /// Flags that no TCP sends (RFC 9293, section 3.5).
    #[inline(always)]
    #[must_use]
    pub fn absurd(&self) -> bool {
        self.tuple.protocol == TCP
            && (self.flags & (SYN | ACK | RST | FIN) == 0 || (self.flags & SYN != 0 && self.flags & (FIN | RST) != 0))
    }

    /// How the sender's side ends with this packet ([`crate::abi::Reverse::client_end`]).
    #[inline(always)]
    #[must_use]
    pub fn end(&self) -> u8 {
        match (self.flags & FIN, self.flags & RST) {
            (_, RST) => crate::abi::Reverse::RST,
            (FIN, _) => crate::abi::Reverse::FIN,
            _ => 0,
        }
    }
}

/// `None`: not a plain TCP or UDP packet, hence the host's.
#[inline(always)]
pub fn parse<P: Packet>(packet: &mut P) -> Option<Seen> {
    let length = packet.length();
    let ethernet = *packet.head::<Ethernet>()?;
    // Broadcast and multicast are no client's way to a VIP.
    if ethernet.destination[0] & 1 != 0 {
        return None;
    }
    let mut seen = Seen {
        tuple: Tuple::default(),
        v4: ethernet.ethertype == ETHERTYPE_V4,
        ttl: 0,
        flags: 0,
        from_mac: ethernet.source,
        to_mac: ethernet.destination,
    };
    match ethernet.ethertype {
        ETHERTYPE_V4 => {
            let ip = packet.head::<Frame<Ipv4, Unread>>()?.network;
            let total = u16::from_be(ip.length) as usize;
            if ip.version_ihl != 0x45 || ip.fragment & FRAGMENTED != 0 || 14 + total > length {
                return None;
            }
            seen.ttl = ip.ttl;
            seen.tuple.source = Address::v4(ip.source);
            seen.tuple.destination = Address::v4(ip.destination);
            seen.tuple.protocol = ip.protocol;
            transport::<P, Ipv4>(packet, &mut seen, total.wrapping_sub(20))?;
        }
        ETHERTYPE_V6 => {
            let ip = packet.head::<Frame<Ipv6, Unread>>()?.network;
            let payload = u16::from_be(ip.length) as usize;
            if u16::from_be(ip.version_class) >> 12 != 6 || 54 + payload > length {
                return None;
            }
            seen.ttl = ip.hops;
            seen.tuple.source = Address(ip.source);
            seen.tuple.destination = Address(ip.destination);
            seen.tuple.protocol = ip.next;
            transport::<P, Ipv6>(packet, &mut seen, payload)?;
        }
        _ => return None,
    }
    Some(seen)
}

/// `payload` is what the network header promises; it may have wrapped around for a length that is too short.
#[inline(always)]
fn transport<P: Packet, N: Wire>(packet: &mut P, seen: &mut Seen, payload: usize) -> Option<()> {
    let (source, destination) = match seen.tuple.protocol {
        TCP => {
            let tcp = packet.head::<Frame<N, Tcp>>()?.transport;
            let offset = (tcp.offset >> 4) as usize * 4;
            if offset < 20 || !(offset..=u16::MAX as usize).contains(&payload) {
                return None;
            }
            seen.flags = tcp.flags;
            (tcp.source_port, tcp.destination_port)
        }
        UDP => {
            let udp = packet.head::<Frame<N, Udp>>()?.transport;
            if !(8..=u16::MAX as usize).contains(&payload) {
                return None;
            }
            (udp.source_port, udp.destination_port)
        }
        _ => return None,
    };
    seen.tuple.source_port = u16::from_be(source);
    seen.tuple.destination_port = u16::from_be(destination);
    Some(())
}
