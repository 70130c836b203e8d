//! Health probes in the modes without translation: the map that the probes' programs read, and the outer headers.
//!
//! A probe's socket connects to the real's own address. On its way out the packet gets the VIP as its destination and,
//! for tunnels, an outer header to the real: what a client's packet looks like behind the balancer. The answer comes
//! from the VIP; on its way in, before the kernel takes it for one that forges this machine's own address, its source
//! becomes the real's address again.

use crate::{
    abi::{Address, UDP},
    wire::{Ipv4, Ipv6, Ports, Udp},
};

/// Where probes come from: above the ports of well-known servers, and below those of flows.
pub const FIRST_PORT: u16 = 512;
pub const LAST_PORT: u16 = 1023;

/// The map's name: `Hash<WayKey, Way>`.
pub const WAYS: &str = "ways";
/// Probes come from 512 ports, by two protocols and over two families.
pub const WAYS_CAPACITY: usize = 2048;
/// The programs at the way out and at the way in.
pub const OUT: &str = "probe_out";
pub const IN: &str = "probe_in";

/// A probe's socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct WayKey {
    /// Its own port.
    pub port: u16,
    pub protocol: u8,
    /// 1: IPv4.
    pub v4: u8,
}

/// What its packets become.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Way {
    pub real: Address,
    pub vip: Address,
    pub real_port: u16,
    pub vip_port: u16,
    /// [`Way::DIRECT`], [`Way::IPIP`] or [`Way::GUE`].
    pub mode: u16,
    pub gue_port: u16,
}

impl Way {
    pub const DIRECT: u16 = 0;
    pub const IPIP: u16 = 1;
    pub const GUE: u16 = 2;
}

const _: () = {
    assert!(size_of::<WayKey>() == 4);
    assert!(size_of::<Way>() == 40);
};

const TTL: u8 = 64;
const IPIP_V4: u8 = 4;
const IPIP_V6: u8 = 41;

/// The outer header of a packet of `length` bytes, of which those of an outer UDP header are some.
#[inline(always)]
#[must_use]
pub fn outer_v4(inner: &Ipv4, length: u16, real: u32, mode: u16) -> Ipv4 {
    let mut outer = Ipv4 {
        version_ihl: 0x45,
        tos: inner.tos,
        length: (size_of::<Ipv4>() as u16).wrapping_add(length).to_be(),
        id: 0,
        // Not to be cut up.
        fragment: 0x4000_u16.to_be(),
        ttl: TTL,
        protocol: if mode == Way::GUE { UDP } else { IPIP_V4 },
        checksum: 0,
        source: inner.source,
        destination: real,
    };
    outer.checksum = checksum(&outer);
    outer
}

#[inline(always)]
#[must_use]
pub fn outer_v6(inner: &Ipv6, length: u16, real: [u32; 4], mode: u16) -> Ipv6 {
    Ipv6 {
        version_class: inner.version_class,
        flow: inner.flow,
        length: length.to_be(),
        next: if mode == Way::GUE { UDP } else { IPIP_V6 },
        hops: TTL,
        source: inner.source,
        destination: real,
    }
}

/// GUE's UDP header; `length` as for the outer one. Without a checksum: what is inside has its own.
#[inline(always)]
#[must_use]
pub fn gue(port: u16, own_port: u16, length: u16) -> Udp {
    Udp {
        // Of the ephemeral ports, and another for each probe: links are chosen by it.
        ports: Ports { source: (0xc000 | own_port).to_be(), destination: port.to_be() },
        length: length.to_be(),
        checksum: 0,
    }
}

#[inline(always)]
fn checksum(header: &Ipv4) -> u16 {
    let halves = |word: u32| (word & 0xffff) + (word >> 16);
    let sum = u32::from(u16::from_ne_bytes([header.version_ihl, header.tos]))
        + u32::from(header.length)
        + u32::from(header.fragment)
        + u32::from(u16::from_ne_bytes([header.ttl, header.protocol]))
        + halves(header.source)
        + halves(header.destination);
    !(halves(halves(sum)) as u16)
}

#[cfg(feature = "user")]
mod user {
    use super::{Way, WayKey};

    // SAFETY: `repr(C)`, Copy, made of integers alone, and without padding (the sizes above add up).
    unsafe impl aya::Pod for WayKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Way {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outer_header_has_a_checksum_that_holds() {
        let inner = Ipv4 {
            version_ihl: 0x45,
            tos: 0,
            length: 40_u16.to_be(),
            id: 7,
            fragment: 0,
            ttl: 3,
            protocol: 6,
            checksum: 0,
            source: u32::from_ne_bytes([255, 254, 253, 252]),
            destination: 0,
        };
        let outer = outer_v4(&inner, 48, u32::from_ne_bytes([10, 77, 255, 255]), Way::GUE);
        // SAFETY: twenty bytes without padding.
        let bytes: [u8; 20] = unsafe { core::mem::transmute(outer) };
        let sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "{bytes:?}");
        assert_eq!(bytes[2..4], [0, 68]);
        assert_eq!((bytes[8], bytes[9]), (64, 17));
        assert_eq!(bytes[12..], [255, 254, 253, 252, 10, 77, 255, 255]);
    }
}
