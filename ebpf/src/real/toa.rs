//! TOA: the TCP option in which a balancer tells a real the client's address and port.
//!
//! ```text
//!  kind 254 │ length  8 │ port (2) │ IPv4 address (4)
//!  kind 254 │ length 20 │ port (2) │ IPv6 address (16)
//! ```
//!
//! The kind is one for experiments (RFC 6994), where TCP Fast Open has lengths of its own: the length tells them apart.
//! Whoever connects can write the option: it says something only when the packet comes from a balancer.

use super::{Client, options};
use crate::abi::Address;

const KIND: u8 = 254;
/// The whole option's length, for an IPv4 client.
const V4: usize = 8;
/// The whole option's length, for an IPv6 client.
const V6: usize = 20;

/// The client that a TCP header tells of, if it does. The header is given byte by byte, from its start.
#[inline(always)]
pub fn read(header: usize, byte: impl Fn(usize) -> Option<u8>) -> Option<Client> {
    let ours = |kind, length| kind == KIND && (length == V4 as u8 || length == V6 as u8);
    let at = options::find(header, ours, &byte)?;
    let word = |from: usize| {
        Some(u32::from_ne_bytes([byte(at + from)?, byte(at + from + 1)?, byte(at + from + 2)?, byte(at + from + 3)?]))
    };
    let port = u16::from_be_bytes([byte(at + 2)?, byte(at + 3)?]);
    let address = if byte(at + 1)? == V4 as u8 {
        Address::v4(word(4)?)
    } else {
        Address([word(4)?, word(8)?, word(12)?, word(16)?])
    };
    // An address of nobody is worse than the balancer's.
    if address.0[0] | address.0[1] | address.0[3] == 0 {
        return None;
    }
    Some(Client { address, port, pad: 0 })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn told(options: &[u8]) -> Option<(IpAddr, u16)> {
        let mut bytes = vec![0; 20];
        bytes.extend(options);
        let client = read(bytes.len(), |i| bytes.get(i).copied())?;
        Some((client.address.into(), client.port))
    }

    fn encode(address: IpAddr, port: u16) -> Vec<u8> {
        let port = port.to_be_bytes();
        match address {
            IpAddr::V4(address) => [&[KIND, V4 as u8][..], &port, &address.octets()].concat(),
            IpAddr::V6(address) => [&[KIND, V6 as u8][..], &port, &address.octets()].concat(),
        }
    }

    #[test]
    fn a_client_is_read_also_behind_other_options() {
        for address in ["192.0.2.7", "2001:db8::9"] {
            let address = address.parse().unwrap();
            for before in [&[][..], &[1], &[1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8], &[254, 4, 0xf9, 0x89]] {
                let options = [before, &encode(address, 40000)].concat();
                assert_eq!(told(&options), Some((address, 40000)), "{before:?}");
            }
        }
    }

    #[test]
    fn other_options_tell_nothing() {
        let cases: [&[u8]; 6] = [
            &[],
            &[254, 4, 0xf9, 0x89],
            &[253, 8, 0, 1, 1, 2, 3, 4],
            &[254, 8, 0, 1, 1, 2],
            &[254, 0],
            &[254, 8, 0, 80, 0, 0, 0, 0],
        ];
        for options in cases {
            assert_eq!(told(options), None, "{options:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(header in 0_usize..100, bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Some(client) = read(header, |i| bytes.get(i).copied()) {
                prop_assert!(client.address != Address::default());
            }
        }
    }
}
