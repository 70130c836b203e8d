//! The internet checksum (RFC 1071), whole and by what changed (RFC 1624, equation 3).
//!
//! Sums are of 16-bit words as they lie in memory: the order of bytes cancels out.

use crate::abi::Address;

/// `~old + new` over all halves of an address. In IPv4 the mapped prefix stands in both and cancels out.
#[inline(always)]
#[must_use]
pub fn addresses(old: &Address, new: &Address) -> u32 {
    word(old.0[0], new.0[0]) + word(old.0[1], new.0[1]) + word(old.0[2], new.0[2]) + word(old.0[3], new.0[3])
}

/// `~old + new` of 32 bits.
#[inline(always)]
#[must_use]
pub fn word(old: u32, new: u32) -> u32 {
    half(old as u16, new as u16) + half((old >> 16) as u16, (new >> 16) as u16)
}

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
