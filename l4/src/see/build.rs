//! The packet that a client would send.

use std::net::{IpAddr, SocketAddr};

use tidegate_ebpf::abi::{TCP, UDP};

const ETHERTYPE_V4: u16 = 0x0800;
const ETHERTYPE_V6: u16 = 0x86dd;
const TTL: u8 = 64;
const SYN: u8 = 2;
const ACK: u8 = 16;
/// Locally administered, and nobody's: the client's side of the wire.
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xc];

/// A frame without payload. For UDP `opens` means nothing.
pub(super) fn frame(mac: [u8; 6], client: SocketAddr, server: SocketAddr, protocol: u8, opens: bool) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(client.port().to_be_bytes());
    segment.extend(server.port().to_be_bytes());
    let sum_at = if protocol == TCP {
        // Sequence numbers, five words of header, flags, window, checksum, urgent pointer.
        segment.extend([0, 0, 0, 1, 0, 0, 0, if opens { 0 } else { 1 }]);
        segment.extend([5 << 4, if opens { SYN } else { ACK }, 0xff, 0xff, 0, 0, 0, 0]);
        16
    } else {
        segment.extend([0, 8, 0, 0]);
        6
    };
    let length = segment.len() as u16;
    let (pseudo, ethertype, mut header) = match (client.ip(), server.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let addresses = [source.octets(), destination.octets()].concat();
            let mut header = vec![0x45, 0];
            header.extend((20 + length).to_be_bytes());
            header.extend([0, 0, 0x40, 0, TTL, protocol, 0, 0]);
            header.extend(&addresses);
            let sum = checksum(&[&header]);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            (addresses, ETHERTYPE_V4, header)
        }
        (source, destination) => {
            let octets = |address| match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            let addresses = [octets(source), octets(destination)].concat();
            let mut header = vec![0x60, 0, 0, 0];
            header.extend(length.to_be_bytes());
            header.extend([protocol, TTL]);
            header.extend(&addresses);
            (addresses, ETHERTYPE_V6, header)
        }
    };
    let sum = checksum(&[&pseudo, &[0, protocol], &length.to_be_bytes(), &segment]);
    let sum = if sum == 0 && protocol == UDP { 0xffff } else { sum };
    segment[sum_at..sum_at + 2].copy_from_slice(&sum.to_be_bytes());
    let mut frame = [mac, CLIENT_MAC].concat();
    frame.extend(ethertype.to_be_bytes());
    frame.append(&mut header);
    frame.extend(segment);
    frame
}

/// RFC 1071, over parts of even lengths.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2)).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use tidegate_ebpf::layers;

    use super::*;

    #[test]
    fn the_packet_is_one_that_a_client_would_send() {
        let mac = [2, 0, 0, 0, 0, 1];
        let read = |client: &str, server: &str, protocol, opens| {
            layers::read(&frame(mac, client.parse().unwrap(), server.parse().unwrap(), protocol, opens))
        };
        assert_eq!(
            read("10.77.0.10:4000", "10.77.100.1:80", TCP, true),
            "eth c>b / ip4 10.77.0.10 > 10.77.100.1 df / tcp 4000 > 80 S seq=1"
        );
        assert_eq!(
            read("[fd77::10]:4000", "[fd77:0:100::1]:80", TCP, false),
            "eth c>b / ip6 fd77::10 > fd77:0:100::1 / tcp 4000 > 80 A seq=1 ack=1"
        );
        assert_eq!(
            read("[fd77::10]:4000", "[fd77:0:100::1]:53", UDP, true),
            "eth c>b / ip6 fd77::10 > fd77:0:100::1 / udp 4000 > 53"
        );
    }
}
