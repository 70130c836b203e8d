//! A frame as one line for people, header by header, tunnels included: also of one that is not all there.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use tidegate_ebpf::abi::{ICMP, ICMP6, TCP, UDP};

const FLAGS: [(u8, char); 6] = [(2, 'S'), (1, 'F'), (4, 'R'), (8, 'P'), (32, 'U'), (16, '.')];
/// Tunnels in tunnels are followed so far.
const DEPTH: u32 = 4;

/// `02:00:00:00:00:0c > 02:00:00:00:00:01 / IP 10.77.0.10 > 10.77.100.1 ttl 64 / TCP 4000 > 80 [S] seq 1 win 65535`.
#[must_use]
pub fn line(frame: &[u8]) -> String {
    let mut text = String::new();
    if ethernet(frame, &mut text).is_none() {
        text.push_str(" (cut)");
    }
    text.trim_start().to_owned()
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn ethernet(frame: &[u8], text: &mut String) -> Option<()> {
    let mac = |at: usize| Some(super::mac(frame.get(at..at + 6)?.try_into().ok()?));
    let _ = write!(text, "{} > {}", mac(6)?, mac(0)?);
    let (mut ethertype, mut at) = (half(frame, 12)?, 14);
    if ethertype == 0x8100 {
        let _ = write!(text, " vlan {}", half(frame, 14)? & 0xfff);
        (ethertype, at) = (half(frame, 16)?, 18);
    }
    match ethertype {
        0x0800 | 0x86dd => network(frame.get(at..)?, text, DEPTH),
        0x0806 => {
            text.push_str(" / ARP");
            Some(())
        }
        other => {
            let _ = write!(text, " / type {other:#06x}");
            Some(())
        }
    }
}

fn network(packet: &[u8], text: &mut String, depth: u32) -> Option<()> {
    if packet.first()? >> 4 == 4 {
        let header = usize::from(packet[0] & 15) * 4;
        let address = |at: usize| Some(Ipv4Addr::from(word(packet, at)?));
        let _ = write!(text, " / IP {} > {} ttl {}", address(12)?, address(16)?, packet.get(8)?);
        let fragment = half(packet, 6)?;
        let offset = (fragment & 0x1fff) * 8;
        if offset != 0 || fragment & 0x2000 != 0 {
            let _ = write!(text, " fragment at {offset}");
        }
        let body = usize::from(half(packet, 2)?).checked_sub(header)?;
        if offset != 0 {
            return Some(());
        }
        return transport(packet[9], packet.get(header..)?, body, text, depth);
    }
    let address = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?));
    let _ = write!(text, " / IP6 {} > {} ttl {}", address(8)?, address(24)?, packet.get(7)?);
    let (mut next, mut at, mut body) = (*packet.get(6)?, 40, usize::from(half(packet, 4)?));
    // Hop-by-hop, routing, destination options.
    while matches!(next, 0 | 43 | 60) {
        let length = 8 + 8 * usize::from(*packet.get(at + 1)?);
        (next, at, body) = (*packet.get(at)?, at + length, body.checked_sub(length)?);
    }
    if next == 44 {
        let offset = half(packet, at + 2)? & 0xfff8;
        let _ = write!(text, " fragment at {offset}");
        if offset != 0 {
            return Some(());
        }
        (next, at, body) = (*packet.get(at)?, at + 8, body.checked_sub(8)?);
    }
    transport(next, packet.get(at..)?, body, text, depth)
}

/// `length` is the body's, of which less may be here.
fn transport(protocol: u8, body: &[u8], length: usize, text: &mut String, depth: u32) -> Option<()> {
    match protocol {
        TCP => {
            let _ = write!(text, " / TCP {} > {} [", half(body, 0)?, half(body, 2)?);
            let flags = *body.get(13)?;
            text.extend(FLAGS.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, letter)| *letter));
            let _ = write!(text, "] seq {}", word(body, 4)?);
            if flags & 16 != 0 {
                let _ = write!(text, " ack {}", word(body, 8)?);
            }
            let _ = write!(text, " win {}", half(body, 14)?);
            let header = usize::from(body[12] >> 4) * 4;
            options(body.get(20..header)?, text);
            payload(length.checked_sub(header)?, text);
        }
        UDP => {
            let _ = write!(text, " / UDP {} > {}", half(body, 0)?, half(body, 2)?);
            let length = length.checked_sub(8)?;
            match body.get(8..) {
                // GUE variant 1: an IP packet that fills the datagram.
                Some(inside) if depth > 0 && fills(inside, length) => {
                    text.push_str(" GUE");
                    return network(inside, text, depth - 1);
                }
                _ => payload(length, text),
            }
        }
        ICMP | ICMP6 => {
            let name = if protocol == ICMP { "ICMP" } else { "ICMP6" };
            let _ = write!(text, " / {name} type {} code {}", body.first()?, body.get(1)?);
        }
        4 | 41 if depth > 0 => return network(body, text, depth - 1),
        other => {
            let _ = write!(text, " / protocol {other}");
            payload(length, text);
        }
    }
    Some(())
}

fn fills(inside: &[u8], length: usize) -> bool {
    let says = match inside.first().map(|byte| byte >> 4) {
        Some(4) => half(inside, 2).map(usize::from),
        Some(6) => half(inside, 4).map(|length| usize::from(length) + 40),
        _ => None,
    };
    says == Some(length)
}

/// The ones that matter here: the client's address, and the segment size.
fn options(mut options: &[u8], text: &mut String) {
    while let [kind, rest @ ..] = options {
        let length = match (kind, rest.first()) {
            (0, _) => return,
            (1, _) => 1,
            (_, Some(length)) if *length >= 2 => usize::from(*length),
            _ => return,
        };
        match (kind, length) {
            (2, 4) => _ = half(options, 2).map(|mss| write!(text, " mss {mss}")),
            (254, 8 | 20) => _ = client(options, length).map(|client| write!(text, " client {client}")),
            _ => {}
        }
        options = options.get(length..).unwrap_or_default();
    }
}

fn client(option: &[u8], length: usize) -> Option<SocketAddr> {
    let address = match option.get(4..length)? {
        v4 if v4.len() == 4 => IpAddr::from(<[u8; 4]>::try_from(v4).ok()?),
        v6 => IpAddr::from(<[u8; 16]>::try_from(v6).ok()?),
    };
    Some(SocketAddr::new(address, half(option, 2)?))
}

fn payload(bytes: usize, text: &mut String) {
    if bytes != 0 {
        let _ = write!(text, ", {bytes} bytes");
    }
}

#[cfg(test)]
mod tests {
    use tidegate_ebpf::layers;

    use super::*;

    #[test]
    fn every_header_is_on_the_line() {
        let macs = "02:00:00:00:00:0c > 02:00:00:00:00:01";
        for (frame, expect) in [
            (
                "eth c>b vlan=7 / ip4 10.77.0.10 > 10.77.100.1 / tcp 4000 > 80 SA seq=7 ack=9 toa=1.2.3.4:5 +10",
                " vlan 7 / IP 10.77.0.10 > 10.77.100.1 ttl 64 / TCP 4000 > 80 [S.] seq 7 ack 9 win 65535 client 1.2.3.4:5, \
                 10 bytes",
            ),
            (
                "eth c>b / ip4 1.1.1.1 > 2.2.2.2 / ip6 fd77::10 > fd77::1 ttl=9 / udp 5 > 53 +4",
                " / IP 1.1.1.1 > 2.2.2.2 ttl 64 / IP6 fd77::10 > fd77::1 ttl 9 / UDP 5 > 53, 4 bytes",
            ),
            (
                "eth c>b / ip6 fd77::1 > fd77::2 / udp 50000 > 6080 / ip4 1.1.1.1 > 2.2.2.2 / tcp 1 > 2 F mss=1400",
                " / IP6 fd77::1 > fd77::2 ttl 64 / UDP 50000 > 6080 GUE / IP 1.1.1.1 > 2.2.2.2 ttl 64 / TCP 1 > 2 [F] seq \
                 0 win 65535 mss 1400",
            ),
            ("eth c>b / ip4 1.1.1.1 > 2.2.2.2 / icmp type=8 +4", " / IP 1.1.1.1 > 2.2.2.2 ttl 64 / ICMP type 8 code 0"),
            (
                "eth c>b / ip6 fd77::1 > fd77::2 / frag off=100 / piece proto=17 +8",
                " / IP6 fd77::1 > fd77::2 ttl 64 fragment at 800",
            ),
            ("eth c>b type=2054", " / ARP"),
        ] {
            assert_eq!(line(&layers::write(frame)), format!("{macs}{expect}"), "{frame}");
        }
    }

    #[test]
    fn a_frame_that_ends_early_is_told_so_far() {
        let frame = layers::write("eth c>b / ip4 10.77.0.10 > 10.77.100.1 / tcp 4000 > 80 S mss=1400 +10");
        for length in 0..frame.len() {
            let text = line(&frame[..length]);
            assert_eq!(text.ends_with("(cut)"), length < 58, "{length}: {text}");
        }
    }
}
