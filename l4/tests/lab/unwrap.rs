//! A real's end of a tunnel, where the kernel has none: unwraps what comes to its namespace, checks the outer headers
//! byte by byte, and gives the inner packet to the namespace's own stack, which checks its checksums.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::mpsc,
    thread,
};

use super::Namespace;

/// The outer packet's ends, and those of its UDP header if it has one.
pub type Outer = (IpAddr, IpAddr, Ports);
type Ports = Option<(u16, u16)>;

/// Unwraps IPIP, and GUE on this port; tells of each packet.
pub fn unwrap(namespace: &Namespace, v4: bool, gue: Option<u16>) -> mpsc::Receiver<Outer> {
    let (sender, seen) = mpsc::channel();
    namespace.run(move || {
        let ethertype = if v4 { libc::ETH_P_IP } else { libc::ETH_P_IPV6 };
        let packets = socket(libc::AF_PACKET, libc::SOCK_DGRAM, i32::from((ethertype as u16).to_be()));
        let family = if v4 { libc::AF_INET } else { libc::AF_INET6 };
        let stack = socket(family, libc::SOCK_RAW, libc::IPPROTO_RAW);
        thread::spawn(move || {
            let mut buffer = [0; 2048];
            loop {
                // SAFETY: the buffer is as long as is said, and outlives the call.
                let length = unsafe { libc::recv(packets.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
                let packet = &buffer[..usize::try_from(length).unwrap()];
                let Some((outer, inner)) = (if v4 { split_v4(packet, gue) } else { split_v6(packet, gue) }) else {
                    continue;
                };
                if sender.send(outer).is_err() {
                    return;
                }
                let to = if v4 {
                    IpAddr::from(<[u8; 4]>::try_from(&inner[16..20]).unwrap())
                } else {
                    IpAddr::from(<[u8; 16]>::try_from(&inner[24..40]).unwrap())
                };
                inject(&stack, inner, to).unwrap();
            }
        });
    });
    seen
}

fn socket(family: i32, kind: i32, protocol: i32) -> OwnedFd {
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: a new descriptor that nobody else has.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn split_v4(packet: &[u8], gue: Option<u16>) -> Option<(Outer, &[u8])> {
    let address = |at: usize| IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).unwrap()));
    let (udp, inner) = rest(packet[9], 4, &packet[20..], gue)?;
    assert_eq!(packet[0], 0x45);
    assert_eq!(usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet.len(), "the outer length");
    let sum: u32 = packet[..20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "the outer checksum");
    assert_eq!(inner[0] >> 4, 4);
    Some(((address(12), address(16), udp), inner))
}

fn split_v6(packet: &[u8], gue: Option<u16>) -> Option<(Outer, &[u8])> {
    let address = |at: usize| IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).unwrap()));
    let (udp, inner) = rest(packet[6], 41, &packet[40..], gue)?;
    assert_eq!(usize::from(u16::from_be_bytes([packet[4], packet[5]])) + 40, packet.len(), "the outer length");
    assert_eq!(inner[0] >> 4, 6);
    Some(((address(8), address(24), udp), inner))
}

/// What follows the outer IP header: another one, or UDP and then that.
fn rest(protocol: u8, tunnel: u8, rest: &[u8], gue: Option<u16>) -> Option<(Ports, &[u8])> {
    let half = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    match gue {
        None => (protocol == tunnel).then_some((None, rest)),
        Some(port) if protocol == 17 && half(2) == port => {
            assert_eq!(usize::from(half(4)), rest.len(), "the UDP length");
            Some((Some((half(0), half(2))), &rest[8..]))
        }
        Some(_) => None,
    }
}

fn inject(stack: &OwnedFd, packet: &[u8], to: IpAddr) -> io::Result<()> {
    let to = nix::sys::socket::SockaddrStorage::from(SocketAddr::new(to, 0));
    nix::sys::socket::sendto(stack.as_raw_fd(), packet, &to, nix::sys::socket::MsgFlags::empty())?;
    Ok(())
}
