//! The TCP options of a SYN or of its answer: the MSS is read or lowered, others are blotted out.

use crate::{balance::Packet, toa, wire::Tcp};

const END: u8 = 0;
const NOTHING: u8 = 1;
const MSS: u8 = 2;
const SACK_PERMITTED: u8 = 4;
/// RFC 7413: data in a SYN.
const FAST_OPEN: u8 = 34;
/// For experiments (RFC 4727), which this is none of: receivers ignore it.
const UNKNOWN: u8 = 253;
/// Bytes of options at most, of which no SYN has more than so many that are not just padding.
const MOST: usize = 40;
const OPTIONS: usize = 16;
/// Room for them, and a power of two.
pub const ROOM: usize = 64;

/// Walks over the options of the TCP header at `l4`: subtracts `less` from the MSS and, if `blot` is not 0, makes what
/// allows selective acknowledgements and data in a SYN mean nothing. Returns what was changed, for the checksum, in the
/// lower half, and above it the MSS that was there, or 0.
///
/// Options may begin at any byte, which no header type does: they are copied, and copied back.
#[inline(never)]
pub(crate) fn edit<P: Packet>(packet: &mut P, l4: u16, less: u16, blot: u32) -> u64 {
    let mut bytes = [0; ROOM];
    let length = load(packet, l4, &mut bytes);
    if length == 0 {
        return 0;
    }
    let before = sum(&bytes);
    let mss = walk(&mut bytes, length, less, blot != 0);
    u64::from(store(packet, l4, &bytes, length, before)) | u64::from(mss) << 32
}

/// Makes every option mean nothing that tells a client's address: whoever connects can write it. Returns what was
/// changed, for the checksum.
///
/// Place by place, with a bit for each that says whether an option begins there: however many there are, the verifier
/// has two cases at each (see `real::options`).
#[inline(never)]
pub(crate) fn silence<P: Packet>(packet: &mut P, l4: u16) -> u32 {
    let mut bytes = [0; ROOM];
    let length = load(packet, l4, &mut bytes);
    if length == 0 {
        return 0;
    }
    let before = sum(&bytes);
    let mut begins = 1_u64;
    let mut at = 0;
    while at < MOST {
        let here = begins & 1;
        begins >>= 1;
        if here != 0 {
            let kind = bytes[at];
            let size = if kind == NOTHING { 1 } else { bytes[at + 1] };
            if kind == END || kind != NOTHING && size < 2 {
                break;
            }
            if kind == toa::KIND {
                bytes[at] = UNKNOWN;
            }
            begins |= 1_u64.checked_shl(u32::from(size).wrapping_sub(1)).unwrap_or(0);
        }
        at += 1;
    }
    store(packet, l4, &bytes, length, before)
}

/// How many bytes of options there are.
#[inline(always)]
fn load<P: Packet>(packet: &mut P, l4: u16, bytes: &mut [u8; ROOM]) -> usize {
    let Some(tcp) = packet.at::<Tcp>(l4 as usize) else { return 0 };
    let length = ((tcp.offset >> 4) as usize * 4).wrapping_sub(size_of::<Tcp>()) & (ROOM - 1);
    let there = length != 0 && length <= MOST && packet.load(l4 as usize + size_of::<Tcp>(), bytes, length);
    if there { length } else { 0 }
}

#[inline(always)]
fn store<P: Packet>(packet: &mut P, l4: u16, bytes: &[u8; ROOM], length: usize, before: u32) -> u32 {
    let after = sum(bytes);
    if before != after && !packet.store(l4 as usize + size_of::<Tcp>(), bytes, length) {
        return 0;
    }
    // Of every half the complement of what was, and what is.
    (MOST as u32 / 2 * 0xffff).wrapping_sub(before).wrapping_add(after)
}

#[inline(always)]
fn walk(bytes: &mut [u8; ROOM], length: usize, less: u16, blot: bool) -> u16 {
    let mut mss = 0;
    let mut at = 0;
    let mut walked = 0;
    while walked < OPTIONS {
        if at >= length {
            break;
        }
        let kind = bytes[at & (ROOM - 1)];
        let mut size = bytes[(at + 1) & (ROOM - 1)];
        if kind == END {
            break;
        }
        if kind == NOTHING {
            size = 1;
        } else if size < 2 {
            break;
        } else if kind == MSS {
            let (high, low) = ((at + 2) & (ROOM - 1), (at + 3) & (ROOM - 1));
            mss = u16::from_be_bytes([bytes[high], bytes[low]]);
            if mss > less {
                [bytes[high], bytes[low]] = (mss - less).to_be_bytes();
            }
        } else if blot && kind == SACK_PERMITTED {
            bytes[at & (ROOM - 1)] = NOTHING;
            bytes[(at + 1) & (ROOM - 1)] = NOTHING;
            size = 2;
        } else if blot && kind == FAST_OPEN {
            bytes[at & (ROOM - 1)] = UNKNOWN;
        }
        // A bound that is the same each time lets the verifier see that it has been here before.
        at = (at + size as usize) & (ROOM - 1);
        walked += 1;
    }
    mss
}

#[inline(always)]
fn sum(bytes: &[u8; ROOM]) -> u32 {
    let mut sum = 0;
    let mut at = 0;
    while at < MOST {
        sum += u32::from(u16::from_ne_bytes([bytes[at & (ROOM - 1)], bytes[(at + 1) & (ROOM - 1)]]));
        at += 2;
    }
    sum
}

const _: () = assert!(ROOM.is_power_of_two() && ROOM > MOST + 4 && MOST.is_multiple_of(2));
