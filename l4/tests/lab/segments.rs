//! A TCP client that is written byte by byte: from any address, with any options.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

use super::Namespace;

const SYN: u8 = 2;
const ACK: u8 = 16;

/// Connects, with these options in its SYN, and those in the segment that completes the handshake. The namespace must
/// know the way to the other end, and need not have the address.
pub fn handshake(namespace: &Namespace, from: SocketAddr, to: SocketAddr, first: &'static [u8], last: &'static [u8]) {
    namespace.run(move || {
        let ethertype = if to.is_ipv4() { libc::ETH_P_IP } else { libc::ETH_P_IPV6 };
        let packets = socket(libc::AF_PACKET, libc::SOCK_DGRAM, i32::from((ethertype as u16).to_be()));
        let stack =
            socket(if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }, libc::SOCK_RAW, libc::IPPROTO_RAW);
        send(&stack, &packet(from, to, 1, 0, SYN, first), to.ip()).unwrap();
        let sequence = answer(&packets, from, to);
        send(&stack, &packet(from, to, 2, sequence.wrapping_add(1), ACK, last), to.ip()).unwrap();
    });
}

/// The sequence number of the answer to the SYN.
fn answer(packets: &OwnedFd, from: SocketAddr, to: SocketAddr) -> u32 {
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut buffer = [0; 2048];
    while Instant::now() < deadline {
        let got = nix::sys::socket::recv(packets.as_raw_fd(), &mut buffer, nix::sys::socket::MsgFlags::MSG_DONTWAIT);
        let Ok(length) = got else {
            std::thread::yield_now();
            continue;
        };
        let packet = &buffer[..length];
        let segment = if to.is_ipv4() { packet.get(20..) } else { packet.get(40..) };
        let ports = [to.port().to_be_bytes(), from.port().to_be_bytes()].concat();
        if let Some(segment) = segment.filter(|segment| segment.len() >= 20 && segment[..4] == ports) {
            assert_eq!(segment[13], SYN | ACK, "{to} refuses {from}");
            return u32::from_be_bytes(segment[4..8].try_into().unwrap());
        }
    }
    panic!("{to} does not answer {from}");
}

fn packet(from: SocketAddr, to: SocketAddr, sequence: u32, acknowledged: u32, flags: u8, options: &[u8]) -> Vec<u8> {
    let mut segment = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    segment.extend(sequence.to_be_bytes());
    segment.extend(acknowledged.to_be_bytes());
    let padded = options.len().next_multiple_of(4);
    segment.extend([(((20 + padded) / 4) << 4) as u8, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(options);
    segment.resize(20 + padded, 1);
    let (mut header, ends) = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let ends = [from.octets(), to.octets()].concat();
            // The kernel writes the checksum.
            let mut header = vec![0x45, 0];
            header.extend((20 + segment.len() as u16).to_be_bytes());
            header.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
            (header, ends)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend((segment.len() as u16).to_be_bytes());
            header.extend([6, 64]);
            (header, [from.octets(), to.octets()].concat())
        }
        _ => unreachable!("a test mixes address families"),
    };
    let pseudo = [&ends[..], &[0, 6], &(segment.len() as u16).to_be_bytes(), &segment].concat();
    let sum: u32 = pseudo.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    segment[16..18].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    header.extend(ends);
    header.extend(segment);
    header
}

fn send(stack: &OwnedFd, packet: &[u8], to: IpAddr) -> io::Result<()> {
    let to = nix::sys::socket::SockaddrStorage::from(SocketAddr::new(to, 0));
    nix::sys::socket::sendto(stack.as_raw_fd(), packet, &to, nix::sys::socket::MsgFlags::empty())?;
    Ok(())
}

fn socket(family: i32, kind: i32, protocol: i32) -> OwnedFd {
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: a new descriptor that nobody else has.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
