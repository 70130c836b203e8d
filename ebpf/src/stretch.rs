//! Puts the client's address into a TCP segment that is on its way: room is made, the headers move to the front, and
//! lengths and checksums are mended.

use crate::{
    abi::Address,
    balance::Packet,
    checksum,
    forget::forget,
    parse::Seen,
    proxy::{self, Ends},
    toa,
    wire::{FRAGMENTED, Ipv4, Ipv6, Tcp},
};

/// How a segment tells the client's address. Not an enum: see [`crate::balance`]'s steps.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Tell(u8);

impl Tell {
    pub(crate) const NOTHING: Self = Self(0);
    pub(crate) const TOA: Self = Self(1);
    pub(crate) const PROXY: Self = Self(2);

    /// Bytes of it among the TCP options.
    #[inline(always)]
    pub(crate) fn options(self, v4: bool) -> usize {
        if self == Self::TOA { toa::length(v4) } else { 0 }
    }

    /// Bytes of it before the payload.
    #[inline(always)]
    pub(crate) fn payload(self, v4: bool) -> usize {
        if self == Self::PROXY { proxy::length(v4) as usize } else { 0 }
    }
}

/// A data offset says at most so many bytes.
pub(crate) const TCP_MOST: usize = 60;
/// The most that stands before a segment's payload: a tagged frame, IP and TCP with all options they can have.
const HEADERS_MOST: usize = 18 + 60 + TCP_MOST;

/// Whether bytes may be put into the packet: it is whole, and its TCP header follows at once on an IPv6 header.
#[inline(always)]
pub(crate) fn elastic<P: Packet>(packet: &mut P, seen: &Seen) -> bool {
    let l3 = seen.l3 as usize;
    if seen.v4 {
        packet.at::<Ipv4>(l3).is_some_and(|ip| ip.fragment & FRAGMENTED == 0)
    } else {
        packet.at::<Ipv6>(l3).is_some_and(|ip| ip.next == crate::abi::TCP)
    }
}

/// Puts the option behind the fixed TCP header, or the header before the payload. There may be such bytes: see
/// [`elastic`]. 1, or 0 where there is no room.
#[inline(never)]
pub(crate) fn tell<P: Packet>(packet: &mut P, seen: &Seen, tell: Tell, ends: &Ends<'_>) -> u32 {
    u32::from(put(packet, seen, tell, ends).is_some())
}

#[inline(always)]
fn put<P: Packet>(packet: &mut P, seen: &Seen, tell: Tell, ends: &Ends<'_>) -> Option<()> {
    let l4 = seen.l4 as usize;
    let fixed = size_of::<Tcp>();
    let offset = packet.at::<Tcp>(l4)?.offset;
    let (options, payload) = (tell.options(seen.v4), tell.payload(seen.v4));
    let at = l4 + if options != 0 { fixed } else { (offset >> 4) as usize * 4 };
    let more = options + payload;
    room(packet, at, more)?;
    // Bounded by what was just checked, which kernels before 6.4 lose: `at` is to bound it anew.
    let at = forget(at as u32) as usize;
    let mut change = write(packet, at, tell, seen.v4, ends)?;
    let length = seen.length.wrapping_add(more as u16);
    if seen.v4 {
        let ip = packet.at::<Ipv4>(seen.l3 as usize)?;
        ip.checksum = checksum::mend(ip.checksum, checksum::half(ip.length, length.to_be()));
        ip.length = length.to_be();
    } else {
        let ip = packet.at::<Ipv6>(seen.l3 as usize)?;
        ip.length = length.wrapping_sub(size_of::<Ipv6>() as u16).to_be();
    }
    // The pseudo-header has the segment's length.
    let segment = seen.length.wrapping_sub(seen.l4.wrapping_sub(seen.l3));
    change += checksum::half(segment.to_be(), segment.wrapping_add(more as u16).to_be());
    let tcp = packet.at::<Tcp>(l4)?;
    let before = u16::from_ne_bytes([tcp.offset, tcp.flags]);
    tcp.offset = tcp.offset.wrapping_add((options as u8 / 4) << 4);
    change += checksum::half(before, u16::from_ne_bytes([tcp.offset, tcp.flags]));
    if payload != 0 && tcp.flags & crate::wire::URG != 0 {
        let urgent = u16::from_be(tcp.urgent).wrapping_add(payload as u16).to_be();
        change += checksum::half(tcp.urgent, urgent);
        tcp.urgent = urgent;
    }
    tcp.checksum = checksum::mend(tcp.checksum, change);
    Some(())
}

/// Writes the bytes that tell and returns their sum.
#[inline(always)]
pub(crate) fn write<P: Packet>(packet: &mut P, at: usize, tell: Tell, v4: bool, ends: &Ends<'_>) -> Option<u32> {
    let address: &Address = ends.client;
    match (tell, v4) {
        (Tell::TOA, true) => lay(packet, at, toa::v4(address, ends.client_port)),
        (Tell::TOA, false) => lay(packet, at, toa::v6(address, ends.client_port)),
        (Tell::PROXY, true) => lay(packet, at, proxy::v4(ends)),
        (Tell::PROXY, false) => lay(packet, at, proxy::v6(ends)),
        _ => Some(0),
    }
}

#[inline(always)]
fn lay<P: Packet, const N: usize>(packet: &mut P, at: usize, words: [u32; N]) -> Option<u32> {
    let place = packet.at::<[u32; N]>(at)?;
    let mut sum = 0;
    let mut i = 0;
    while i < N {
        if let (Some(word), Some(place)) = (words.get(i), place.get_mut(i)) {
            sum += checksum::halves(*word);
            *place = *word;
        }
        i += 1;
    }
    Some(sum)
}

/// Makes room for `more` bytes (a multiple of 4) at `at`, by moving what stands before it to the front.
#[inline(always)]
fn room<P: Packet>(packet: &mut P, at: usize, more: usize) -> Option<()> {
    if at > HEADERS_MOST || !packet.grow(more as i32) {
        return None;
    }
    // Ethernet's 14 bytes are a half word and words.
    let first = *packet.at::<[u16; 1]>(more)?;
    *packet.at::<[u16; 1]>(0)? = first;
    let mut place = 2;
    while place < HEADERS_MOST {
        if place >= at {
            break;
        }
        let word = *packet.at::<[u32; 1]>(place + more)?;
        *packet.at::<[u32; 1]>(place)? = word;
        place += 4;
    }
    Some(())
}
