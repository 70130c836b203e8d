//! The PROXY protocol's header, version 2 (haproxy's doc/proxy-protocol.txt, section 2.2): twelve bytes that no other
//! protocol begins with, what follows, and both ends of the client's connection.

use crate::abi::Address;

/// Of the bytes `\r\n\r\n\0\r\nQUIT\n`.
const SIGNATURE: [u32; 3] = [
    u32::from_ne_bytes([0x0d, 0x0a, 0x0d, 0x0a]),
    u32::from_ne_bytes([0x00, 0x0d, 0x0a, 0x51]),
    u32::from_ne_bytes([0x55, 0x49, 0x54, 0x0a]),
];
/// Version 2, for somebody else (not a probe of the proxy's own).
const PROXY: u8 = 0x21;
const TCP_V4: u8 = 0x11;
const TCP_V6: u8 = 0x21;
/// Bytes of the header.
pub const V4: usize = 16 + 12;
pub const V6: usize = 16 + 36;

/// Bytes of the header.
#[inline(always)]
#[must_use]
pub const fn length(v4: bool) -> u16 {
    if v4 { V4 as u16 } else { V6 as u16 }
}

/// Both ends of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Ends<'a> {
    pub client: &'a Address,
    pub vip: &'a Address,
    pub client_port: u16,
    pub vip_port: u16,
}

#[inline(always)]
#[must_use]
pub fn v4(ends: &Ends<'_>) -> [u32; V4 / 4] {
    let [a, b, c] = SIGNATURE;
    [a, b, c, head(TCP_V4, V4), ends.client.0[3], ends.vip.0[3], ports(ends)]
}

#[inline(always)]
#[must_use]
pub fn v6(ends: &Ends<'_>) -> [u32; V6 / 4] {
    let [a, b, c] = SIGNATURE;
    let [d, e, f, g] = ends.client.0;
    let [h, i, j, k] = ends.vip.0;
    [a, b, c, head(TCP_V6, V6), d, e, f, g, h, i, j, k, ports(ends)]
}

#[inline(always)]
fn head(family: u8, length: usize) -> u32 {
    u32::from_ne_bytes([PROXY, family, 0, length as u8 - 16])
}

#[inline(always)]
fn ports(ends: &Ends<'_>) -> u32 {
    let ([a, b], [c, d]) = (ends.client_port.to_be_bytes(), ends.vip_port.to_be_bytes());
    u32::from_ne_bytes([a, b, c, d])
}
