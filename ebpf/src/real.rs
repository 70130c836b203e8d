//! The real server's side: tunnels taken apart ([`decap`]), a client's address read from TCP ([`toa`]), and here its maps,
//! shared by the kernel and user space.
//!
//! Like [`crate::abi`] for the balancer: no implicit padding, ports in host order, addresses as they stand in a packet.

use crate::abi::Address;

pub mod decap;
pub mod options;
pub mod toa;

/// The maps by their pinned names.
pub mod map {
    /// `Array<Settings>`, one entry.
    pub const SETTINGS: &str = "settings";
    /// `Hash<Address, u32>`: the VIPs that this real has joined.
    pub const VIPS: &str = "vips";
    /// `Hash<Address, u32>`: the host's own addresses, to which tunnelled packets are sent.
    pub const HOSTS: &str = "hosts";
    /// `LpmTrie<Address, u32>`: where the balancers' packets come from.
    pub const FROM: &str = "from";
    /// `PerCpuArray<u64>` by [`super::Count`].
    pub const COUNTS: &str = "counts";
    /// `SkStorage<Client>`: the client of each socket whose balancer has told it.
    pub const CLIENTS: &str = "clients";
    /// `Hash<u32, u32>`: the kernel's settings as they were before; user space's alone.
    pub const BEFORE: &str = "before";

    pub const ALL: [&str; 7] = [SETTINGS, VIPS, HOSTS, FROM, COUNTS, CLIENTS, BEFORE];
    /// What must outlive a join; the others are made anew with each.
    pub const KEPT: [&str; 3] = [COUNTS, CLIENTS, BEFORE];
}

/// The programs by their names.
pub mod program {
    pub const OPEN: &str = "open";
    /// The same where [`OPEN`] finds no place.
    pub const OPEN_TC: &str = "open_tc";
    pub const CLAMP: &str = "clamp";
    pub const LEARN: &str = "learn";
    pub const PEER_V4: &str = "peer_v4";
    pub const PEER_V6: &str = "peer_v6";
}

/// How many VIPs, host addresses and prefixes there is room for.
pub const CAPACITY: usize = 4096;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Settings {
    /// Not 0: IP in IP (protocols 4 and 41) is taken apart.
    pub ipip: u32,
    /// Not 0: GUE, variant 1, is taken apart at this UDP port.
    pub gue_port: u32,
    /// Not 0: only from [`map::FROM`].
    pub only_from: u32,
    /// The largest segment that a SYN from a VIP may ask for; 0: as it is.
    pub mss_v4: u32,
    pub mss_v6: u32,
}

/// The client behind a connection of the balancer's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Client {
    pub address: Address,
    pub port: u16,
    pub pad: u16,
}

/// What is counted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum Count {
    V4InV4,
    V6InV6,
    V4InV6,
    V6InV4,
    GueV4InV4,
    GueV6InV6,
    GueV4InV6,
    GueV6InV4,
    /// Tunnelled to this host from an address that is no balancer's.
    Stranger,
    /// Tunnelled to this host for an address that is no joined VIP.
    NotVip,
    /// Tunnelled to this host, and what is inside is not what was promised.
    Broken,
    /// SYNs that asked for a smaller segment than the server had meant.
    Clamped,
    /// Connections whose client is known by TOA.
    Told,
    /// Connections from a balancer that told no client.
    Untold,
}

impl Count {
    /// By number, as they are shown.
    pub const NAMES: [&str; 14] = [
        "IPv4 in IPv4",
        "IPv6 in IPv6",
        "IPv4 in IPv6",
        "IPv6 in IPv4",
        "GUE: IPv4 in IPv4",
        "GUE: IPv6 in IPv6",
        "GUE: IPv4 in IPv6",
        "GUE: IPv6 in IPv4",
        "left alone: not from a balancer",
        "left alone: not for a joined VIP",
        "left alone: broken inside",
        "SYNs with a lower MSS",
        "connections with a told client",
        "connections without",
    ];

    #[inline(always)]
    #[must_use]
    pub fn tunnel(gue: bool, outer_v4: bool, inner_v4: bool) -> Self {
        match (gue, outer_v4, inner_v4) {
            (false, true, true) => Self::V4InV4,
            (false, false, false) => Self::V6InV6,
            (false, false, true) => Self::V4InV6,
            (false, true, false) => Self::V6InV4,
            (true, true, true) => Self::GueV4InV4,
            (true, false, false) => Self::GueV6InV6,
            (true, false, true) => Self::GueV4InV6,
            (true, true, false) => Self::GueV6InV4,
        }
    }
}

const _: () = {
    assert!(size_of::<Settings>() == 20);
    assert!(size_of::<Client>() == 20);
    assert!(Count::Untold as usize + 1 == Count::NAMES.len());
};

// SAFETY: `repr(C)`, Copy, made of integers alone, and without padding (the sizes above add up).
#[cfg(feature = "user")]
unsafe impl aya::Pod for Settings {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Client {}
