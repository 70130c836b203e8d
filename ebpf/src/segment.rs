//! TCP segments of the balancer's own, written over a packet that came.

use crate::{
    abi::{Hop, TCP},
    balance::Packet,
    checksum, link,
    nat::Rewrite,
    parse::Seen,
    proxy::Ends,
    stretch::{self, Tell},
    wire::{DO_NOT_FRAGMENT, ETHERTYPE_V4, ETHERTYPE_V6, Ethernet, Ipv4, Ipv6, Ports, Tcp, Vlan},
};

/// Every kernel's default.
const TTL: u8 = 64;
const MSS: u16 = 0x0204;

/// What a segment says; it has no payload but a PROXY header.
pub(crate) struct Segment<'a> {
    /// `None`: to whom the packet came from, from whom it came to.
    pub(crate) to: Option<&'a Rewrite>,
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    /// 0: without the option.
    pub(crate) mss: u16,
    pub(crate) tell: Tell,
}

/// Writes the segment over a packet with a TCP header, for a hop or back the way that it came: 1, or 0 where there is
/// no room.
#[inline(never)]
pub(crate) fn compose<P: Packet>(
    packet: &mut P,
    seen: &Seen,
    hop: Option<&Hop>,
    segment: &Segment<'_>,
    ends: &Ends<'_>,
) -> u32 {
    u32::from(any(packet, seen, hop, segment, ends).is_some())
}

#[inline(always)]
fn any<P: Packet>(
    packet: &mut P,
    seen: &Seen,
    hop: Option<&Hop>,
    segment: &Segment<'_>,
    ends: &Ends<'_>,
) -> Option<()> {
    let v4 = seen.v4;
    let tuple = &seen.tuple;
    let (from, source_port, to, destination_port) = match segment.to {
        Some(to) => (&to.source, to.source_port, &to.destination, to.destination_port),
        None => (&tuple.destination, tuple.destination_port, &tuple.source, tuple.source_port),
    };
    let hop = match hop {
        Some(hop) => *hop,
        None => {
            let ethernet = packet.at::<Ethernet>(0)?;
            let (source_mac, destination_mac) = (ethernet.destination, ethernet.source);
            Hop { ifindex: 0, source_mac, destination_mac, vlan: seen.vlan, mtu: 0 }
        }
    };
    let l3 = size_of::<Ethernet>() + if hop.vlan == 0 { 0 } else { size_of::<Vlan>() };
    let l4 = l3 + if v4 { size_of::<Ipv4>() } else { size_of::<Ipv6>() };
    let mss = if segment.mss == 0 { 0 } else { size_of::<u32>() };
    let header = size_of::<Tcp>() + mss + segment.tell.options(v4);
    let length = header + segment.tell.payload(v4);
    // The end goes, the beginning grows: all of it is written anew.
    let kept = seen.l4 as usize + size_of::<Tcp>();
    if !packet.cut(kept) {
        return None;
    }
    let whole = l4 + length;
    let fits = if whole < kept { packet.cut(whole) } else { packet.grow((whole - kept) as i32) };
    if !fits {
        return None;
    }
    link::begin(packet, l3, 0, &hop, if v4 { ETHERTYPE_V4 } else { ETHERTYPE_V6 })?;
    if v4 {
        let (source, destination) = (from.0[3], to.0[3]);
        let total = ((l4 - l3 + length) as u16).to_be();
        let sum = u32::from(u16::from_ne_bytes([0x45, 0]))
            + u32::from(total)
            + u32::from(DO_NOT_FRAGMENT)
            + u32::from(u16::from_ne_bytes([TTL, TCP]))
            + checksum::halves(source)
            + checksum::halves(destination);
        let ip = packet.at::<Ipv4>(l3)?;
        ip.version_ihl = 0x45;
        ip.tos = 0;
        ip.length = total;
        ip.id = 0;
        ip.fragment = DO_NOT_FRAGMENT;
        ip.ttl = TTL;
        ip.protocol = TCP;
        ip.checksum = !checksum::fold(sum);
        ip.source = source;
        ip.destination = destination;
    } else {
        let ip = packet.at::<Ipv6>(l3)?;
        ip.version_class = 0x6000_u16.to_be();
        ip.flow = 0;
        ip.length = (length as u16).to_be();
        ip.next = TCP;
        ip.hops = TTL;
        // Word by word, as in `link`.
        let ([a, b, c, d], [e, f, g, h]) = (from.0, to.0);
        (ip.source, ip.destination) = ([a, b, c, d], [e, f, g, h]);
    }
    let mut sum = checksum::address(from, v4)
        + checksum::address(to, v4)
        + u32::from((length as u16).to_be())
        + u32::from(u16::from(TCP).to_be());
    let options = l4 + size_of::<Tcp>();
    if mss != 0 {
        let place = packet.at::<[u16; 2]>(options)?;
        *place = [MSS.to_be(), segment.mss.to_be()];
        sum += u32::from(place[0]) + u32::from(place[1]);
    }
    sum += stretch::write(packet, options + mss, segment.tell, v4, ends)?;
    let tcp = packet.at::<Tcp>(l4)?;
    tcp.ports = Ports { source: source_port.to_be(), destination: destination_port.to_be() };
    tcp.sequence = segment.sequence.to_be();
    tcp.acknowledgement = segment.acknowledgement.to_be();
    tcp.offset = (header as u8 / 4) << 4;
    tcp.flags = segment.flags;
    tcp.window = segment.window.to_be();
    tcp.urgent = 0;
    sum += u32::from(tcp.ports.source)
        + u32::from(tcp.ports.destination)
        + checksum::halves(tcp.sequence)
        + checksum::halves(tcp.acknowledgement)
        + u32::from(u16::from_ne_bytes([tcp.offset, tcp.flags]))
        + u32::from(tcp.window);
    tcp.checksum = !checksum::fold(sum);
    Some(())
}
