//! Addresses of packets and frames, compared without calls.

use core::net::{IpAddr, Ipv6Addr};

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialOrd)]
#[expect(clippy::derived_hash_with_manual_eq, reason = "the same relation")]
pub struct Address(pub [u32; 4]);

impl PartialEq for Address {
    /// Without a call of `memcmp`, which the derived one is.
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let [a, b, c, d] = self.0;
        let [e, f, g, h] = other.0;
        (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) == 0
    }
}

/// A hardware address as it lies in a frame. Of halves, since so far frames are always aligned.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash)]
#[expect(clippy::derived_hash_with_manual_eq, reason = "the same relation")]
pub struct Mac(pub [u16; 3]);

impl PartialEq for Mac {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let [a, b, c] = self.0;
        let [d, e, f] = other.0;
        (a ^ d) | (b ^ e) | (c ^ f) == 0
    }
}

impl Mac {
    /// Broadcast or multicast.
    #[inline(always)]
    #[must_use]
    pub fn to_many(&self) -> bool {
        self.0[0].to_ne_bytes()[0] & 1 != 0
    }

    /// Writes `other` here. By halves: for all that LLVM knows the two overlap, and then a plain assignment is a call.
    #[inline(always)]
    pub fn set(&mut self, other: &Self) {
        let [a, b, c] = other.0;
        self.0[0] = a;
        self.0[1] = b;
        self.0[2] = c;
    }
}

impl From<[u8; 6]> for Mac {
    #[inline(always)]
    fn from(bytes: [u8; 6]) -> Self {
        let [a, b, c, d, e, f] = bytes;
        Self([u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]), u16::from_ne_bytes([e, f])])
    }
}

impl From<Mac> for [u8; 6] {
    fn from(mac: Mac) -> Self {
        let [[a, b], [c, d], [e, f]] = mac.0.map(u16::to_ne_bytes);
        [a, b, c, d, e, f]
    }
}

const MAPPED: u32 = 0xffff_u32.to_be();

impl Address {
    /// From the four bytes of an IPv4 header, in memory order.
    #[inline(always)]
    #[must_use]
    pub const fn v4(word: u32) -> Self {
        Self([0, 0, MAPPED, word])
    }

    #[inline(always)]
    #[must_use]
    pub fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == MAPPED
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        let bytes = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        let word = |shift: u32| ((bytes >> shift) as u32).to_be();
        Self([word(96), word(64), word(32), word(0)])
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        let word = |i: usize| u128::from(u32::from_be(address.0[i]));
        Ipv6Addr::from_bits(word(0) << 96 | word(1) << 64 | word(2) << 32 | word(3)).to_canonical()
    }
}
