//! The internet checksum (RFC 1071), whole and by what changed (RFC 1624, equation 3).
//!
//! Sums are of 16-bit words as they lie in memory: the order of bytes cancels out.

use crate::abi::Address;

/// `~old + new` over an address of this family.
#[inline(always)]
#[must_use]
pub fn addresses(old: &Address, new: &Address, v4: bool) -> u32 {
    let change = |n: usize| u64::from(!old.0[n]) + u64::from(new.0[n]);
    narrow(if v4 { change(3) } else { change(0) + change(1) + change(2) + change(3) })
}

/// `~old + new` of 32 bits.
#[inline(always)]
#[must_use]
pub fn word(old: u32, new: u32) -> u32 {
    narrow(u64::from(!old) + u64::from(new))
}

/// A sum of words of 32 bits as one of halves.
#[inline(always)]
fn narrow(sum: u64) -> u32 {
    (sum & 0xffff) as u32 + (sum >> 16 & 0xffff) as u32 + (sum >> 32) as u32
}

/// `~old + new` of the half word whose first byte is a packet's time to live, which is one less.
pub const ONE_HOP: u32 = !0x0100_u16.to_be() as u32;

/// `~old + new` of 16 bits.
#[inline(always)]
#[must_use]
pub fn half(old: u16, new: u16) -> u32 {
    u32::from(!old) + u32::from(new)
}

/// The sum folded into 16 bits; it was made of at most 65,536 words.
#[inline(always)]
#[must_use]
pub fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// A checksum after its words changed by `difference`.
#[inline(always)]
#[must_use]
pub fn mend(checksum: u16, difference: u32) -> u16 {
    !fold(u32::from(!checksum) + difference)
}

/// The two halves of 32 bits in memory order.
#[inline(always)]
#[must_use]
pub fn halves(word: u32) -> u32 {
    (word & 0xffff) + (word >> 16)
}

/// What an address adds to a pseudo-header's sum.
#[inline(always)]
#[must_use]
pub fn address(address: &Address, v4: bool) -> u32 {
    let [a, b, c, d] = address.0;
    if v4 { halves(d) } else { halves(a) + halves(b) + halves(c) + halves(d) }
}
