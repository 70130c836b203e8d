//! The client's address as a TCP option, as DPVS and others send it: kind 254 (RFC 6994 would want an experiment's
//! identifier behind it; every reader there is wants none), the length, the port, the address, in network order.

use crate::abi::Address;

pub const KIND: u8 = 254;
/// Bytes of the option with an IPv4 address.
pub const V4: u8 = 8;
/// With an IPv6 address.
pub const V6: u8 = 20;

/// Bytes of the option.
#[inline(always)]
#[must_use]
pub const fn length(v4: bool) -> usize {
    if v4 { V4 as usize } else { V6 as usize }
}

#[inline(always)]
#[must_use]
pub fn v4(address: &Address, port: u16) -> [u32; V4 as usize / 4] {
    [head(V4, port), address.0[3]]
}

#[inline(always)]
#[must_use]
pub fn v6(address: &Address, port: u16) -> [u32; V6 as usize / 4] {
    let [a, b, c, d] = address.0;
    [head(V6, port), a, b, c, d]
}

#[inline(always)]
fn head(length: u8, port: u16) -> u32 {
    let [high, low] = port.to_be_bytes();
    u32::from_ne_bytes([KIND, length, high, low])
}
