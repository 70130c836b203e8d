//! SYNs from addresses that nobody has, as fast as one thread can send them.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    process::Command,
    thread,
};

use super::Namespace;

/// Sends so many SYNs from `namespace`, each of another address and port below 10.99.0.0/16. Both namespaces' `eth0` are
/// on one network.
pub fn syns(namespace: &Namespace, to: &Namespace, vip: SocketAddrV4, count: u32) -> thread::JoinHandle<()> {
    let destination = mac(to);
    let source = mac(namespace);
    let (started, running) = std::sync::mpsc::channel();
    namespace.run(move || {
        let index = nix::net::if_::if_nametoindex("eth0").unwrap();
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: a new descriptor that nobody else has.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let flood = thread::spawn(move || {
            for number in 0..count {
                let from = Ipv4Addr::new(10, 99, (number >> 8) as u8, number as u8);
                let port = 1024 + (number.wrapping_mul(40_503) % 60_000) as u16;
                let frame = [&destination[..], &source, &[8, 0], &syn(SocketAddrV4::new(from, port), vip)].concat();
                send(&socket, index, &frame);
            }
        });
        started.send(flood).unwrap();
    });
    running.recv().unwrap()
}

fn mac(namespace: &Namespace) -> [u8; 6] {
    namespace.run(|| {
        let output = Command::new("ip").args(["-br", "link", "show", "dev", "eth0"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mac = text.split_whitespace().nth(2).unwrap();
        let bytes: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        bytes.try_into().unwrap()
    })
}

fn syn(from: SocketAddrV4, to: SocketAddrV4) -> Vec<u8> {
    let ends = [from.ip().octets(), to.ip().octets()].concat();
    let mut header = [&[0x45, 0, 0, 44, 0, 0, 0x40, 0, 64, 6, 0, 0][..], &ends].concat();
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum);
    let mut segment = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    segment.extend(u32::from_be_bytes(from.ip().octets()).wrapping_mul(2_654_435_761).to_be_bytes());
    // No acknowledgement; six words, SYN; MSS 1460.
    segment.extend([0, 0, 0, 0, 0x60, 2, 0xff, 0xff, 0, 0, 0, 0, 2, 4, 5, 0xb4]);
    let sum = checksum(&[&ends[..], &[0, 6, 0, 24], &segment].concat());
    segment[16..18].copy_from_slice(&sum);
    header.extend(segment);
    header
}

fn checksum(bytes: &[u8]) -> [u8; 2] {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    (!(((sum & 0xffff) + (sum >> 16)) as u16)).to_be_bytes()
}

fn send(socket: &OwnedFd, index: u32, frame: &[u8]) {
    // SAFETY: integers and an array of them, for which zero is a value.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = index as i32;
    to.sll_halen = 6;
    to.sll_addr[..6].copy_from_slice(&frame[..6]);
    // A frame that finds no room is lost, as on a real link.
    // SAFETY: the frame and the address are as long as is said, and live until the call returns.
    unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
}
