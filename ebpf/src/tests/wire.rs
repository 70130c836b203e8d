//! TCP segments as values, for conversations whose payload matters.

use std::net::{IpAddr, SocketAddr};

#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Segment {
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) sequence: u32,
    pub(super) acknowledgement: u32,
    pub(super) flags: u8,
    /// A multiple of four bytes.
    pub(super) options: Vec<u8>,
    pub(super) payload: Vec<u8>,
}

impl Default for Segment {
    fn default() -> Self {
        let nobody = SocketAddr::from(([0, 0, 0, 0], 0));
        Self {
            source: nobody,
            destination: nobody,
            sequence: 0,
            acknowledgement: 0,
            flags: 0,
            options: Vec::new(),
            payload: Vec::new(),
        }
    }
}

const MACS: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0xc];

/// The segment's frame, with checksums of the whole.
pub(super) fn frame(segment: &Segment) -> Vec<u8> {
    let mut tcp = [segment.source.port().to_be_bytes(), segment.destination.port().to_be_bytes()].concat();
    tcp.extend(segment.sequence.to_be_bytes());
    tcp.extend(segment.acknowledgement.to_be_bytes());
    tcp.extend([(5 + segment.options.len() as u8 / 4) << 4, segment.flags, 0xff, 0xff, 0, 0, 0, 0]);
    tcp.extend(&segment.options);
    tcp.extend(&segment.payload);
    let addresses = [octets(segment.source.ip()), octets(segment.destination.ip())].concat();
    let sum = checksum(&[&addresses, &pseudo(tcp.len()), &tcp]);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    let mut frame = MACS.to_vec();
    if segment.source.is_ipv4() {
        frame.extend([8, 0]);
        let mut ip = vec![0x45, 0];
        ip.extend((20 + tcp.len() as u16).to_be_bytes());
        ip.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
        ip.extend(&addresses);
        let sum = checksum(&[&ip]);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        frame.extend(ip);
    } else {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend((tcp.len() as u16).to_be_bytes());
        frame.extend([6, 64]);
        frame.extend(&addresses);
    }
    frame.extend(tcp);
    frame
}

/// The frame's segment. Panics where a length or a checksum is wrong, or where the packet is larger than Ethernet's.
pub(super) fn checked(frame: &[u8]) -> Segment {
    let (head, packet) = frame.split_at(14);
    let v4 = head[12..] == [8, 0];
    let half = |bytes: &[u8], at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let word = |bytes: &[u8], at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    assert!(packet.len() <= 1500, "{} bytes do not fit", packet.len());
    let (ip, tcp) = packet.split_at(if v4 { 20 } else { 40 });
    let addresses = if v4 { &ip[12..] } else { &ip[8..] };
    if v4 {
        assert_eq!((ip[0], half(ip, 2) as usize, ip[9]), (0x45, packet.len(), 6));
        assert_eq!(checksum(&[ip]), 0, "the header's checksum");
    } else {
        assert_eq!((ip[0] >> 4, half(ip, 4) as usize, ip[6]), (6, tcp.len(), 6));
    }
    assert_eq!(checksum(&[addresses, &pseudo(tcp.len()), tcp]), 0, "the segment's checksum");
    let address = |bytes: &[u8]| match <[u8; 4]>::try_from(bytes) {
        Ok(v4) => IpAddr::from(v4),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(bytes).unwrap()),
    };
    let (source, destination) = addresses.split_at(addresses.len() / 2);
    let header = usize::from(tcp[12] >> 4) * 4;
    Segment {
        source: (address(source), half(tcp, 0)).into(),
        destination: (address(destination), half(tcp, 2)).into(),
        sequence: word(tcp, 4),
        acknowledgement: word(tcp, 8),
        flags: tcp[13],
        options: tcp[20..header].to_vec(),
        payload: tcp[header..].to_vec(),
    }
}

/// A router's message to `to` that a packet, which begins like this, does not fit.
pub(super) fn error(to: SocketAddr, quote: &[u8]) -> Vec<u8> {
    let v4 = to.is_ipv4();
    let router: IpAddr = if v4 { [10, 77, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() };
    let addresses = [octets(router), octets(to.ip())].concat();
    let mut icmp = vec![if v4 { 3 } else { 2 }, if v4 { 4 } else { 0 }, 0, 0, 0, 0, 5, 120];
    icmp.extend(quote);
    let pseudo = [0, 58, 0, icmp.len() as u8];
    let sum = if v4 { checksum(&[&icmp]) } else { checksum(&[&addresses, &pseudo, &icmp]) };
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = MACS.to_vec();
    if v4 {
        frame.extend([8, 0]);
        let mut ip = vec![0x45, 0, 0, 20 + icmp.len() as u8, 0, 0, 0, 0, 64, 1, 0, 0];
        ip.extend(&addresses);
        let sum = checksum(&[&ip]);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        frame.extend(ip);
    } else {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, icmp.len() as u8, 58, 64]);
        frame.extend(&addresses);
    }
    frame.extend(icmp);
    frame
}

/// What such a message quotes, if its checksum holds.
pub(super) fn quoted(frame: &[u8]) -> Segment {
    let v4 = frame[12..14] == [8, 0];
    let (ip, icmp) = frame[14..].split_at(if v4 { 20 } else { 40 });
    let pseudo = [0, 58, 0, icmp.len() as u8];
    assert_eq!(if v4 { checksum(&[icmp]) } else { checksum(&[&ip[8..], &pseudo, icmp]) }, 0, "the message's checksum");
    let (ip, tcp) = icmp[8..].split_at(if v4 { 20 } else { 40 });
    let end = |at: usize, port: usize| -> SocketAddr {
        let ip: IpAddr = if v4 {
            <[u8; 4]>::try_from(&ip[12 + 4 * at..][..4]).unwrap().into()
        } else {
            <[u8; 16]>::try_from(&ip[8 + 16 * at..][..16]).unwrap().into()
        };
        (ip, u16::from_be_bytes([tcp[port], tcp[port + 1]])).into()
    };
    let sequence = u32::from_be_bytes(tcp[4..8].try_into().unwrap());
    Segment { source: end(0, 0), destination: end(1, 2), sequence, ..Segment::default() }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn pseudo(length: usize) -> [u8; 4] {
    let [high, low] = (length as u16).to_be_bytes();
    [0, 6, high, low]
}

/// RFC 1071, over parts that all but the last have an even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u32 = words.map(|word| u32::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}
