//! Headers as they stand in a packet.
//!
//! Everything after Ethernet's 14 bytes is aligned to 4 as long as the frame begins 2 after a multiple of 4, and so the
//! types are written: whole words are read and written at once. On a laptop frames are laid out that way. In the kernel
//! they are not (or are, where the architecture needs it: NET_IP_ALIGN), and the loads and stores are as good as on
//! aligned words on every architecture where the verifier lets them pass.

use crate::abi::Mac;

/// A header as it stands in a packet.
///
/// # Safety
/// Every bit pattern is a value, the alignment is at most 4, there is no padding.
pub unsafe trait Wire: Copy {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Ethernet {
    pub destination: Mac,
    pub source: Mac,
    pub ethertype: u16,
}

/// What an 802.1Q tag puts before the network header: the tag's own type stands in [`Ethernet::ethertype`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Vlan {
    /// Priority, drop eligibility, and the identifier in the lower 12 bits.
    pub control: u16,
    pub ethertype: u16,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
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

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Ipv6 {
    pub version_class: u16,
    pub flow: u16,
    pub length: u16,
    pub next: u8,
    pub hops: u8,
    pub source: [u32; 4],
    pub destination: [u32; 4],
}

/// Hop-by-hop, routing and destination options.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Extension {
    pub next: u8,
    /// In units of 8 bytes, without the first 8.
    pub length: u8,
    pub kind: u8,
    pub segments_left: u8,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FragmentHeader {
    pub next: u8,
    pub reserved: u8,
    pub offset: u16,
    pub id: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Ports {
    pub source: u16,
    pub destination: u16,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Tcp {
    pub ports: Ports,
    pub sequence: u32,
    pub acknowledgement: u32,
    pub offset: u8,
    pub flags: u8,
    pub window: u16,
    pub checksum: u16,
    pub urgent: u16,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Udp {
    pub ports: Ports,
    pub length: u16,
    pub checksum: u16,
}

/// ICMP and ICMPv6: the first eight bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Icmp {
    pub kind: u8,
    pub code: u8,
    pub checksum: u16,
    /// What the message's kind makes of it: an echo's identifier and number, the MTU of a packet that is too big.
    pub rest: u32,
}

/// Headers that follow one another, under one bounds check.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Pair<A, B> {
    pub first: A,
    pub second: B,
}

macro_rules! wire {
    ($($type:ty: $size:literal)*) => {$(
        // SAFETY: integers and arrays of them, `repr(C)`, with the size and an alignment as asserted below.
        unsafe impl Wire for $type {}
        const _: () = assert!(size_of::<$type>() == $size && align_of::<$type>() <= 4);
    )*};
}
wire!(Ethernet: 14  Vlan: 4  Ipv4: 20  Ipv6: 40  Extension: 4  FragmentHeader: 8  Ports: 4  Tcp: 20  Udp: 8  Icmp: 8);
// SAFETY: an array of integers without padding, aligned to 2.
unsafe impl<const N: usize> Wire for [u16; N] {}
// SAFETY: the same, aligned to 4.
unsafe impl<const N: usize> Wire for [u32; N] {}
// SAFETY: the parts that are paired have sizes of multiples of 4, so there is no padding between them.
unsafe impl<A: Wire, B: Wire> Wire for Pair<A, B> {}

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const URG: u8 = 0x20;

pub const ETHERTYPE_V4: u16 = 0x0800_u16.to_be();
pub const ETHERTYPE_V6: u16 = 0x86dd_u16.to_be();
pub const ETHERTYPE_VLAN: u16 = 0x8100_u16.to_be();

/// Of IPv4's fragment field, in memory order: all but "do not fragment" and the reserved bit.
pub const FRAGMENTED: u16 = 0x3fff_u16.to_be();
pub const MORE_FRAGMENTS: u16 = 0x2000_u16.to_be();
pub const OFFSET: u16 = 0x1fff_u16.to_be();
pub const DO_NOT_FRAGMENT: u16 = 0x4000_u16.to_be();

pub const HOP_BY_HOP: u8 = 0;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const DESTINATION_OPTIONS: u8 = 60;
/// Protocol numbers of IP in IP.
pub const IPV4_INSIDE: u8 = 4;
pub const IPV6_INSIDE: u8 = 41;

pub const ECHO_V4: u8 = 8;
pub const ECHO_REPLY_V4: u8 = 0;
pub const ECHO_V6: u8 = 128;
pub const ECHO_REPLY_V6: u8 = 129;

/// No header is looked for beyond this offset: a mask that the verifier understands bounds every one that is not
/// constant. Headers that go further are not ours.
pub const FURTHEST: usize = 0x200;

/// The bytes at an offset, if they lie between the packet's start and its end.
///
/// # Safety
/// Start and end are a context's, read since the packet was last changed, and nobody else refers to the bytes.
#[cfg(feature = "kernel")]
#[inline(always)]
#[must_use]
pub unsafe fn inside<'a, T: Wire>(start: usize, end: usize, offset: usize) -> Option<&'a mut T> {
    const { assert!(FURTHEST.is_power_of_two()) };
    // The mask bounds offsets that are not constant, as the verifier wants; it changes none.
    let start = start + (offset & (FURTHEST - 1));
    if start + size_of::<T>() > end {
        return None;
    }
    // SAFETY: the bytes are inside the packet (checked above, and by the verifier again), and `Wire` takes any bytes.
    // They may be misaligned: a load or store is one instruction all the same (see above), and nothing else is made of
    // the alignment.
    Some(unsafe { &mut *(start as *mut T) })
}
