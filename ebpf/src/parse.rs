//! Bytes to [`Seen`]: the bounds checks.
//!
//! [`plain`] reads what nearly every packet is: TCP or UDP right after an IP header without options. [`unusual`] also
//! reads 802.1Q tags, IPv4 options, IPv6 extension headers, fragments, and the packets that ICMP errors quote.

use crate::{
    abi::{Address, FragmentKey, ICMP, ICMP6, TCP, Tuple, UDP},
    balance::Packet,
    wire::{
        self, ETHERTYPE_V4, ETHERTYPE_V6, ETHERTYPE_VLAN, Ethernet, FIN, FRAGMENTED, Icmp, Ipv4, Ipv6, MORE_FRAGMENTS,
        OFFSET, Ports, RST, SYN, Tcp, Udp, Wire,
    },
};

/// What a decision needs to know of a packet.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Seen {
    /// Of an ICMP error: of the quoted packet, turned around (as if its receiver had sent it).
    pub tuple: Tuple,
    pub v4: bool,
    pub ttl: u8,
    /// TCP's flags; 0 for UDP, ICMP errors and later fragments.
    pub flags: u8,
    /// Nothing above the network header is there: a later fragment.
    pub headless: bool,
    /// It is an ICMP error about the flow, not a packet of it.
    pub quoted: bool,
    /// The tag that the frame came with; 0: none.
    pub vlan: u16,
    /// Where the network header begins, and the transport header.
    pub l3: u16,
    pub l4: u16,
    /// Of an ICMP error: where the quoted ports are.
    pub ports: u16,
    /// Bytes from the network header to the packet's end, without what Ethernet padded.
    pub length: u16,
}

impl Seen {
    /// A packet that opens a TCP connection.
    #[inline(always)]
    #[must_use]
    pub fn opens(&self) -> bool {
        self.flags & (SYN | wire::ACK | RST | FIN) == SYN
    }

    /// Flags that no TCP sends (RFC 9293, section 3.5).
    #[inline(always)]
    #[must_use]
    pub fn absurd(&self) -> bool {
        self.tuple.protocol == TCP
            && !self.headless
            && !self.quoted
            && (self.flags & (SYN | wire::ACK | RST | FIN) == 0
                || (self.flags & SYN != 0 && self.flags & (FIN | RST) != 0))
    }

    /// How the sender's side ends with this packet ([`crate::abi::Flow::client_end`]).
    #[inline(always)]
    #[must_use]
    pub fn end(&self) -> u8 {
        match (self.flags & FIN, self.flags & RST) {
            (_, RST) => crate::abi::Flow::RST,
            (FIN, _) => crate::abi::Flow::FIN,
            _ => 0,
        }
    }
}

/// An IP header, for code that is the same for both families.
pub trait Network: Wire {
    const V4: bool;
    /// Source, destination, protocol, time to live, and the whole packet's length. `None`: it is not a plain one.
    fn read(&self) -> Option<(Address, Address, u8, u8, usize)>;
}

impl Network for Ipv4 {
    const V4: bool = true;

    #[inline(always)]
    fn read(&self) -> Option<(Address, Address, u8, u8, usize)> {
        if self.version_ihl != 0x45 || self.fragment & FRAGMENTED != 0 {
            return None;
        }
        let length = u16::from_be(self.length) as usize;
        Some((Address::v4(self.source), Address::v4(self.destination), self.protocol, self.ttl, length))
    }
}

impl Network for Ipv6 {
    const V4: bool = false;

    #[inline(always)]
    fn read(&self) -> Option<(Address, Address, u8, u8, usize)> {
        if u16::from_be(self.version_class) >> 12 != 6 {
            return None;
        }
        let length = u16::from_be(self.length) as usize + size_of::<Ipv6>();
        Some((Address(self.source), Address(self.destination), self.next, self.hops, length))
    }
}

/// Where a plain packet's network header begins.
pub const PLAIN_L3: usize = size_of::<Ethernet>();

/// The network header of a plain packet; the ports are not looked at yet.
#[inline(always)]
pub fn plain<P: Packet, N: Network>(packet: &mut P) -> Option<Seen> {
    let frame = packet.length();
    let (source, destination, protocol, ttl, length) = packet.at::<N>(PLAIN_L3)?.read()?;
    if (protocol != TCP && protocol != UDP) || PLAIN_L3 + length > frame {
        return None;
    }
    Some(Seen {
        tuple: Tuple { source, destination, protocol, ..Tuple::default() },
        v4: N::V4,
        ttl,
        flags: 0,
        headless: false,
        quoted: false,
        vlan: 0,
        l3: PLAIN_L3 as u16,
        l4: (PLAIN_L3 + size_of::<N>()) as u16,
        ports: 0,
        length: length as u16,
    })
}

/// Reads the ports and flags. `None`: broken.
#[inline(always)]
pub fn transport<P: Packet>(packet: &mut P, seen: &mut Seen) -> Option<()> {
    let l4 = seen.l4 as usize;
    let room = (seen.l3 as usize + seen.length as usize).wrapping_sub(l4);
    let ports = if seen.tuple.protocol == TCP {
        let tcp = packet.at::<Tcp>(l4)?;
        let offset = (tcp.offset >> 4) as usize * 4;
        if offset < size_of::<Tcp>() || !(offset..=u16::MAX as usize).contains(&room) {
            return None;
        }
        seen.flags = tcp.flags;
        tcp.ports
    } else {
        let udp = packet.at::<Udp>(l4)?;
        if !(size_of::<Udp>()..=u16::MAX as usize).contains(&room) {
            return None;
        }
        udp.ports
    };
    seen.tuple.source_port = u16::from_be(ports.source);
    seen.tuple.destination_port = u16::from_be(ports.destination);
    Some(())
}

/// What an unusual packet is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Not IP, or not TCP, UDP or ICMP, or broken below the transport header: the host's.
    Other,
    /// TCP or UDP.
    Flow,
    /// TCP or UDP, the first of several fragments.
    First(FragmentKey),
    /// A later fragment: its ports are not in it.
    Later(FragmentKey),
    /// An echo request; its header is at `l4`.
    Echo,
    /// An ICMP error about a TCP or UDP packet: its tuple is the quoted one.
    Error,
}

/// At most so many IPv6 extension headers are walked over (RFC 8200, section 4.1 lists six).
const EXTENSIONS: usize = 6;

/// Any packet.
#[inline(always)]
pub fn unusual<P: Packet>(packet: &mut P, seen: &mut Seen) -> Kind {
    read(packet, seen).unwrap_or(Kind::Other)
}

#[inline(always)]
fn read<P: Packet>(packet: &mut P, seen: &mut Seen) -> Option<Kind> {
    let frame = packet.length();
    let ethernet = packet.at::<Ethernet>(0)?;
    // Broadcast and multicast are no client's way to a VIP.
    if ethernet.destination.to_many() {
        return None;
    }
    let mut ethertype = ethernet.ethertype;
    let mut l3 = size_of::<Ethernet>();
    if ethertype == ETHERTYPE_VLAN {
        let tag = packet.at::<wire::Vlan>(l3)?;
        seen.vlan = u16::from_be(tag.control) & 0xfff;
        ethertype = tag.ethertype;
        l3 += size_of::<wire::Vlan>();
    }
    seen.l3 = l3 as u16;
    let mut fragment = None;
    match ethertype {
        ETHERTYPE_V4 => {
            let ip = *packet.at::<Ipv4>(l3)?;
            let header = (ip.version_ihl & 0xf) as usize * 4;
            let length = u16::from_be(ip.length) as usize;
            if ip.version_ihl >> 4 != 4 || header < size_of::<Ipv4>() || length < header || l3 + length > frame {
                return None;
            }
            seen.v4 = true;
            seen.ttl = ip.ttl;
            seen.length = length as u16;
            seen.l4 = (l3 + header) as u16;
            seen.tuple.source = Address::v4(ip.source);
            seen.tuple.destination = Address::v4(ip.destination);
            seen.tuple.protocol = ip.protocol;
            if ip.fragment & FRAGMENTED != 0 {
                fragment = Some((u32::from(ip.id), ip.fragment & OFFSET == 0));
            }
        }
        ETHERTYPE_V6 => {
            let ip = *packet.at::<Ipv6>(l3)?;
            let length = u16::from_be(ip.length) as usize + size_of::<Ipv6>();
            if u16::from_be(ip.version_class) >> 12 != 6 || l3 + length > frame {
                return None;
            }
            seen.v4 = false;
            seen.ttl = ip.hops;
            seen.length = length as u16;
            seen.tuple.source = Address(ip.source);
            seen.tuple.destination = Address(ip.destination);
            let (next, l4, part) = extensions(packet, ip.next, l3 + size_of::<Ipv6>())?;
            seen.tuple.protocol = next;
            seen.l4 = l4 as u16;
            fragment = part;
        }
        _ => return None,
    }
    let protocol = seen.tuple.protocol;
    let flow = protocol == TCP || protocol == UDP;
    if let Some((id, first)) = fragment {
        if !flow {
            return None;
        }
        let Tuple { source, destination, .. } = seen.tuple;
        let key = FragmentKey { source, destination, id, protocol, pad: [0; 3] };
        if first {
            transport(packet, seen)?;
            return Some(Kind::First(key));
        }
        seen.headless = true;
        return Some(Kind::Later(key));
    }
    if flow {
        transport(packet, seen)?;
        return Some(Kind::Flow);
    }
    if protocol == if seen.v4 { ICMP } else { ICMP6 } {
        return icmp(packet, seen);
    }
    None
}

/// A fragment: its identification, and whether it is the first.
type Part = (u32, bool);

/// What follows the extension headers, where, and which fragment it is.
#[inline(always)]
fn extensions<P: Packet>(packet: &mut P, mut next: u8, mut at: usize) -> Option<(u8, usize, Option<Part>)> {
    let mut fragment = None;
    let mut walked = 0;
    while walked < EXTENSIONS {
        match next {
            wire::HOP_BY_HOP | wire::DESTINATION_OPTIONS | wire::ROUTING => {
                let extension = packet.at::<wire::Extension>(at)?;
                // With segments left its destination is not the last one (RFC 8200, section 4.4): not ours to judge.
                if next == wire::ROUTING && extension.segments_left != 0 {
                    return None;
                }
                next = extension.next;
                at += (extension.length as usize + 1) * 8;
            }
            wire::FRAGMENT => {
                let part = packet.at::<wire::FragmentHeader>(at)?;
                next = part.next;
                let field = part.offset;
                // An atomic fragment (RFC 6946) is a whole packet.
                if u16::from_be(field) & !0x6 != 0 {
                    fragment = Some((part.id, u16::from_be(field) >> 3 == 0));
                }
                at += size_of::<wire::FragmentHeader>();
            }
            _ => return (at < wire::FURTHEST).then_some((next, at, fragment)),
        }
        if at >= wire::FURTHEST {
            return None;
        }
        walked += 1;
    }
    None
}

#[inline(always)]
fn icmp<P: Packet>(packet: &mut P, seen: &mut Seen) -> Option<Kind> {
    let l4 = seen.l4 as usize;
    let icmp = *packet.at::<Icmp>(l4)?;
    let echo = if seen.v4 { wire::ECHO_V4 } else { wire::ECHO_V6 };
    if icmp.kind == echo && icmp.code == 0 {
        return Some(Kind::Echo);
    }
    // RFC 792: unreachable, source quench, time exceeded, parameter problem; RFC 4443: types below 128.
    let error = if seen.v4 { matches!(icmp.kind, 3 | 4 | 11 | 12) } else { (1..=4).contains(&icmp.kind) };
    if !error {
        return None;
    }
    let quote = l4 + size_of::<Icmp>();
    let (source, destination, protocol, ports) = if seen.v4 {
        let ip = *packet.at::<Ipv4>(quote)?;
        let header = (ip.version_ihl & 0xf) as usize * 4;
        // Later fragments quote no ports.
        if ip.version_ihl >> 4 != 4 || header < size_of::<Ipv4>() || ip.fragment & OFFSET != 0 {
            return None;
        }
        (Address::v4(ip.source), Address::v4(ip.destination), ip.protocol, quote + header)
    } else {
        let ip = *packet.at::<Ipv6>(quote)?;
        if u16::from_be(ip.version_class) >> 12 != 6 {
            return None;
        }
        (Address(ip.source), Address(ip.destination), ip.next, quote + size_of::<Ipv6>())
    };
    if protocol != TCP && protocol != UDP {
        return None;
    }
    let quoted = *packet.at::<Ports>(ports)?;
    // Errors about our packets come to the address that they were sent from.
    if source != seen.tuple.destination {
        return None;
    }
    seen.quoted = true;
    seen.tuple = Tuple {
        source: destination,
        destination: source,
        source_port: u16::from_be(quoted.destination),
        destination_port: u16::from_be(quoted.source),
        protocol,
        pad: [0; 3],
    };
    seen.ports = ports as u16;
    Some(Kind::Error)
}

const _: () = assert!(MORE_FRAGMENTS & OFFSET == 0 && MORE_FRAGMENTS | OFFSET == FRAGMENTED);
