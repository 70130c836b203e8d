//! What protects a service: lists, limits, and the table of fragments.

use super::Address;

/// The key of `access`: the service, then the client's network. A longer prefix wins.
/// The map's own key puts the prefix length (in bits of all of this) before it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct AccessKeyData {
    /// Big-endian, since the trie compares from the first bit on.
    pub service: u32,
    pub client: Address,
}

/// As a look-up passes it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct AccessKey {
    pub prefix: u32,
    pub data: AccessKeyData,
}

/// Bits of [`AccessKeyData`].
pub const ACCESS_DATA: u32 = 8 * size_of::<AccessKeyData>() as u32;

/// A value of `access`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum Access {
    Deny = 0,
    Allow = 1,
}

/// A service's limits. What is limited is new flows: TCP's SYNs, and every UDP datagram.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Limits {
    /// ns between two new flows of one source prefix (a rate's reciprocal), and how far ahead of time it may be.
    pub source_gap: u64,
    pub source_ahead: u64,
    /// The same for all clients of the service.
    pub service_gap: u64,
    pub service_ahead: u64,
    /// ns between two SYNs that are forwarded as they come; those beyond get cookies.
    pub cookie_gap: u64,
    pub cookie_ahead: u64,
    /// The leading bits of a client's address that make its source prefix, by family: a mask for each word.
    pub mask_v4: u32,
    pub mask_v6: [u32; 4],
    pub pad: u32,
}

/// A source prefix of one service.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct SourceKey {
    pub prefix: Address,
    pub service: u32,
}

/// What fragments of one packet have in common (RFC 791, section 3.2; RFC 8200, section 4.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct FragmentKey {
    pub source: Address,
    pub destination: Address,
    pub id: u32,
    pub protocol: u8,
    pub pad: [u8; 3],
}

/// The ports that only the first fragment carries.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Fragment {
    pub source_port: u16,
    pub destination_port: u16,
}

const _: () = {
    assert!(size_of::<AccessKey>() == 24 && ACCESS_DATA == 160);
    assert!(size_of::<Limits>() == 72);
    assert!(size_of::<SourceKey>() == 20);
    assert!(size_of::<FragmentKey>() == 40);
};
