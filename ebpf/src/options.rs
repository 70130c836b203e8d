//! The TCP options of a SYN or of its answer: the MSS is read or lowered, others are blotted out.

use crate::{
    balance::{Packet, Stage, Tables},
    forget::forget,
    toa,
    wire::Tcp,
};

const END: u8 = 0;
const NOTHING: u8 = 1;
const MSS: u8 = 2;
const SACK_PERMITTED: u8 = 4;
/// RFC 7413: data in a SYN.
const FAST_OPEN: u8 = 34;
/// For experiments (RFC 4727), which this is none of: receivers ignore it.
const UNKNOWN: u8 = 253;
/// Bytes of options at most.
const MOST: usize = 40;
/// Room for them, and a power of two.
pub const ROOM: usize = 64;

/// What shall be done to the options of a TCP header.
#[derive(Clone, Copy)]
pub(crate) struct Edit {
    /// Where the header begins.
    pub(crate) l4: u16,
    /// Subtracted from the MSS.
    pub(crate) less: u16,
    /// What is made to mean nothing: none or more of the constants below.
    pub(crate) blot: u32,
}

impl Edit {
    /// What allows selective acknowledgements and data in a SYN.
    pub(crate) const PERMISSIONS: u32 = 1;
    /// What tells a client's address: whoever connects can write it.
    pub(crate) const CLIENT: u32 = 2;
}

/// What was changed, for the checksum, in the lower half, and above it the MSS that was there, or 0.
#[inline(always)]
pub(crate) fn change<P: Packet, T: Tables>(packet: &mut P, tables: &T, edit: Edit) -> u64 {
    let Edit { l4, less, blot } = edit;
    packet.stage(tables, Stage::Options, u64::from(l4) | u64::from(less) << 16 | u64::from(blot) << 32)
}

/// Walks over the options.
///
/// Options may begin at any byte, which no header type does: they are copied, and copied back.
#[inline(always)]
pub(crate) fn edit<P: Packet>(packet: &mut P, value: u64) -> u64 {
    let (l4, less, blot) = (value as u16, (value >> 16) as u16, (value >> 32) as u32);
    let first = l4 as usize + size_of::<Tcp>();
    let Some(tcp) = packet.at::<Tcp>(l4 as usize) else { return 0 };
    let length = ((tcp.offset >> 4) as usize * 4).wrapping_sub(size_of::<Tcp>()) & (ROOM - 1);
    let mut bytes = [0; ROOM];
    if length == 0 || length > MOST {
        return 0;
    }
    // Kernels before 6.4 lose a bound that is compared in one register and passed in another: it is masked.
    let length = (forget(length as u32 - 1) as usize & (ROOM - 1)) + 1;
    if !packet.load(first, &mut bytes, length) {
        return 0;
    }
    let before = sum(&bytes);
    let mss = walk(&mut bytes, less, blot);
    let after = sum(&bytes);
    if before != after && !packet.store(first, &bytes, length) {
        return 0;
    }
    // Of every half the complement of what was, and what is.
    let change = (MOST as u32 / 2 * 0xffff).wrapping_sub(before).wrapping_add(after);
    u64::from(change) | u64::from(mss) << 32
}

#[inline(always)]
fn walk(bytes: &mut [u8; ROOM], less: u16, blot: u32) -> u16 {
    let mut mss = 0;
    // A bit for each place from here on where an option begins. Place by place instead of option by option: then the
    // verifier has two cases at each place, inside an option and at its start, and not all the ways to get there.
    let mut begins = 1_u64;
    let mut at = 0;
    while at < MOST {
        let here = begins & 1;
        begins >>= 1;
        if here != 0 {
            let kind = bytes[at & (ROOM - 1)];
            let mut size = bytes[(at + 1) & (ROOM - 1)];
            // Behind the last option there is nothing but zeros, and nothing is written.
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
            } else if kind == SACK_PERMITTED && forget(blot) & Edit::PERMISSIONS != 0 {
                bytes[at & (ROOM - 1)] = NOTHING;
                bytes[(at + 1) & (ROOM - 1)] = NOTHING;
                size = 2;
            } else if kind == FAST_OPEN && forget(blot) & Edit::PERMISSIONS != 0
                || kind == toa::KIND && forget(blot) & Edit::CLIENT != 0
            {
                bytes[at & (ROOM - 1)] = UNKNOWN;
            }
            // What is as long as all of them has no next one.
            begins |= 1_u64.checked_shl(u32::from(size) - 1).unwrap_or(0);
        }
        at += 1;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn walked(options: &[u8], less: u16, blot: u32) -> (u16, Vec<u8>) {
        let mut bytes = [0; ROOM];
        bytes[..options.len()].copy_from_slice(options);
        let mss = walk(&mut bytes, less, blot);
        (mss, bytes[..options.len()].to_vec())
    }

    #[test]
    fn the_mss_is_found_and_lowered_wherever_it_stands() {
        for before in 0..=36 {
            let options = |mss: u16| [&vec![NOTHING; before][..], &[MSS, 4], &mss.to_be_bytes()].concat();
            assert_eq!(walked(&options(1460), 60, 0), (1460, options(1400)), "{before}");
        }
        assert_eq!(walked(&[8, 10, 0, 0, 0, 0, 2, 4, 9, 9, MSS, 4, 5, 180], 0, 0).0, 1460);
    }

    #[test]
    fn what_is_no_option_ends_the_walk() {
        for broken in [[END, MSS, 4, 5, 180], [8, 0, MSS, 4, 5], [8, 1, MSS, 4, 5], [8, 255, MSS, 4, 5]] {
            assert_eq!(walked(&broken, 60, Edit::PERMISSIONS | Edit::CLIENT), (0, broken.to_vec()), "{broken:?}");
        }
    }

    #[test]
    fn only_what_is_to_be_blotted_is() {
        let options = [SACK_PERMITTED, 2, FAST_OPEN, 6, 1, 2, 3, 4, toa::KIND, 3, 7, NOTHING];
        assert_eq!(walked(&options, 0, 0).1, options);
        let blotted = [NOTHING, NOTHING, UNKNOWN, 6, 1, 2, 3, 4, toa::KIND, 3, 7, NOTHING];
        assert_eq!(walked(&options, 0, Edit::PERMISSIONS).1, blotted);
        let blotted = [SACK_PERMITTED, 2, FAST_OPEN, 6, 1, 2, 3, 4, UNKNOWN, 3, 7, NOTHING];
        assert_eq!(walked(&options, 0, Edit::CLIENT).1, blotted);
    }
}
