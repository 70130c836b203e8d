//! Every map, once: names, keys, values and capacities, shared by the kernel and user space.
//!
//! Values hold no implicit padding: the kernel compares keys byte by byte, and padding would be garbage.
//! Ports are in host order; addresses are as they stand in a packet, IPv4 mapped into IPv6 (`::ffff:a.b.c.d`).

use core::net::{IpAddr, Ipv6Addr};

/// Counts up whenever a type here changes. User space refuses to adopt pinned maps of another layout.
pub const LAYOUT: u32 = 1;

/// The maps by their pinned names.
pub mod map {
    /// `Array<Settings>`, one entry.
    pub const SETTINGS: &str = "settings";
    /// `Array<Address>`: FULLNAT sources, IPv4 from 0, IPv6 from [`super::LOCALS`].
    pub const LOCALS: &str = "locals";
    /// `Hash<ServiceKey, Service>`.
    pub const SERVICES: &str = "services";
    /// `Array<Real>` by real id.
    pub const REALS: &str = "reals";
    /// `Array<RingBlock>`: every service's ring, in regions.
    pub const RINGS: &str = "rings";
    /// `LruHash<Tuple, Flow>`: as the client sends.
    pub const FLOWS: &str = "flows";
    /// `LruHash<Tuple, Reverse>`: as the real answers.
    pub const REVERSES: &str = "reverses";
    /// `PerCpuArray<Counters>` by service id.
    pub const SERVICE_COUNTERS: &str = "service_counts";
    /// `PerCpuArray<Counters>` by real id.
    pub const REAL_COUNTERS: &str = "real_counts";
    /// `PerCpuArray<u64>` by [`super::Reason`].
    pub const DROPS: &str = "drops";

    pub const ALL: [&str; 10] =
        [SETTINGS, LOCALS, SERVICES, REALS, RINGS, FLOWS, REVERSES, SERVICE_COUNTERS, REAL_COUNTERS, DROPS];
}

/// Capacities as compiled in; user space may set others when it makes the maps.
pub mod capacity {
    /// 10,000 services are promised; the rest is room for those that come while others go.
    pub const SERVICES: usize = 16_384;
    /// 10,000 services of 10 reals are promised.
    pub const REALS: usize = 131_072;
    /// 10,000 rings of 1,024 slots fill 160,000 blocks. 48 MB.
    pub const RING_BLOCKS: usize = 196_608;
    pub const FLOWS: usize = 262_144;
}

/// At most so many FULLNAT addresses of one family.
pub const LOCALS: u32 = 16;
/// Ring slots in one map entry: one system call fills 64 of them, and an array of bare u32 would take twice the memory.
pub const BLOCK_SLOTS: usize = 64;
/// A slot that points at no real.
pub const NO_REAL: u32 = u32::MAX;

/// TCP's number in an IP header.
pub const TCP: u8 = 6;
/// UDP's number in an IP header.
pub const UDP: u8 = 17;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Address(pub [u32; 4]);

const MAPPED: u32 = 0xffff_u32.to_be();

impl Address {
    /// From the four bytes of an IPv4 header, in memory order.
    #[inline(always)]
    #[must_use]
    pub const fn v4(word: u32) -> Self {
        Self([0, 0, MAPPED, word])
    }

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

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Settings {
    /// [`LAYOUT`]; stays the first word for ever, so that any version can read it.
    pub layout: u32,
    /// How many of `locals` are in use, by family.
    pub locals_v4: u32,
    pub locals_v6: u32,
    pub pad: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ServiceKey {
    pub vip: Address,
    pub port: u16,
    pub protocol: u8,
    pub pad: u8,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Service {
    pub id: u32,
    /// The first block of its ring.
    pub block: u32,
    /// Slots of its ring less one (slots are a power of two); 0: no active real, and no ring.
    pub mask: u32,
}

/// One array entry of ring slots; a slot is the id of a real.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct RingBlock(pub [u32; BLOCK_SLOTS]);

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Real {
    pub address: Address,
    /// The id of the service that it answers for.
    pub service: u32,
    /// Which tenant of this entry it is: ids are used again, and a flow of the one before must not count for this one.
    pub epoch: u32,
    pub port: u16,
    pub weight: u16,
    /// [`Real::GONE`], [`Real::ACTIVE`] or [`Real::DRAINING`].
    pub state: u32,
}

impl Real {
    pub const GONE: u32 = 0;
    pub const ACTIVE: u32 = 1;
    pub const DRAINING: u32 = 2;
}

/// The five values that name a flow, as seen in one direction.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Tuple {
    pub source: Address,
    pub destination: Address,
    pub source_port: u16,
    pub destination_port: u16,
    pub protocol: u8,
    pub pad: [u8; 3],
}

/// Where a client's packets go. Written once; all that changes is in the [`Reverse`] entry.
/// It holds all that the flow needs, so a flow outlives its real's entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Flow {
    pub real: Address,
    pub local: Address,
    pub real_port: u16,
    pub local_port: u16,
    pub real_id: u32,
    pub epoch: u32,
}

/// Where a real's answers go, and how the flow does.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Reverse {
    /// When a packet of either direction was last seen, ns of the coarse monotonic clock; to a second.
    pub seen: u64,
    pub client: Address,
    pub vip: Address,
    pub client_port: u16,
    pub vip_port: u16,
    pub real_id: u32,
    pub epoch: u32,
    /// The way back is the way that the client's packets come: the kernel never hears the client, since XDP takes
    /// every packet before it, and might not know its neighbour entry.
    pub ifindex: u32,
    pub client_mac: [u8; 6],
    pub own_mac: [u8; 6],
    /// How each side ended, in a byte of its own, since two CPUs may write them at once.
    pub client_end: u8,
    pub real_end: u8,
    /// 1 once the real has answered.
    pub answered: u8,
    pub pad: u8,
}

impl Reverse {
    /// The side sent a FIN.
    pub const FIN: u8 = 1;
    /// The side sent a RST.
    pub const RST: u8 = 2;
    /// A UDP flow that was silent for so long is over.
    pub const UDP_IDLE: u64 = 30 * SECOND;
    /// A TCP handshake that is not over after so long never will be (Linux gives up after about two minutes).
    pub const TCP_OPENING: u64 = 130 * SECOND;
    /// A TCP connection that was silent for so long lost its peers.
    pub const TCP_IDLE: u64 = 3600 * SECOND;

    /// One side began to close: a SYN now is a new connection.
    #[inline(always)]
    #[must_use]
    pub fn closing(&self) -> bool {
        self.client_end | self.real_end != 0
    }

    /// Nothing more will be sent.
    #[inline(always)]
    #[must_use]
    pub fn closed(&self) -> bool {
        (self.client_end | self.real_end) & Self::RST != 0 || (self.client_end != 0 && self.real_end != 0)
    }

    /// Closed, or silent for longer than its protocol allows.
    #[inline(always)]
    #[must_use]
    pub fn over(&self, protocol: u8, now: u64) -> bool {
        let idle = now.saturating_sub(self.seen);
        if protocol == UDP {
            return idle > Self::UDP_IDLE;
        }
        self.closed() || idle > if self.answered == 0 { Self::TCP_OPENING } else { Self::TCP_IDLE }
    }
}

pub const SECOND: u64 = 1_000_000_000;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Counters {
    pub packets: u64,
    pub bytes: u64,
    pub flows: u64,
}

/// Why a packet was dropped.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Reason {
    /// Its time to live ended here.
    Ttl = 0,
    /// TCP flags that no connection sends (none at all, SYN with FIN or RST).
    TcpFlags = 1,
    /// No FULLNAT source address of its family is set.
    NoLocalAddress = 2,
    /// Every FULLNAT port that was tried is taken.
    NoPort = 3,
    /// The flow table took no new entry.
    TableFull = 4,
    /// The real's (or its gateway's) hardware address is not resolved.
    NoNeighbour = 5,
    /// There is no route to the real.
    NoRoute = 6,
    /// The kernel's forwarding is off for the interface, so it answers no route look-ups.
    ForwardingOff = 7,
}

impl Reason {
    /// By number.
    pub const NAMES: [&str; 8] =
        ["ttl", "tcp-flags", "no-local-address", "no-port", "table-full", "no-neighbour", "no-route", "forwarding-off"];
}

// A changed size means a new LAYOUT.
const _: () = {
    assert!(size_of::<Settings>() == 16);
    assert!(size_of::<Address>() == 16);
    assert!(size_of::<ServiceKey>() == 20);
    assert!(size_of::<Service>() == 12);
    assert!(size_of::<RingBlock>() == 256);
    assert!(size_of::<Real>() == 32);
    assert!(size_of::<Tuple>() == 40);
    assert!(size_of::<Flow>() == 44);
    assert!(size_of::<Reverse>() == 72);
    assert!(size_of::<Counters>() == 24);
};

#[cfg(feature = "user")]
mod user {
    use super::{Address, Counters, Flow, Real, Reverse, RingBlock, Service, ServiceKey, Settings, Tuple};

    macro_rules! pod {
        ($($type:ty)*) => {$(
            // SAFETY: `repr(C)`, Copy, made of integers alone, and without padding (the sizes above add up).
            unsafe impl aya::Pod for $type {}
        )*};
    }
    pod!(Address Counters Flow Real Reverse RingBlock Service ServiceKey Settings Tuple);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_survives_the_way_into_a_map_and_back() {
        for text in ["10.77.100.1", "0.0.0.0", "255.255.255.255", "fd77:0:100::1", "2001:db8::ffff:1"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Address::from(address)), address);
            assert_eq!(Address::from(address).is_v4(), address.is_ipv4());
        }
    }

    #[test]
    fn a_flow_is_over_when_both_sides_ended_or_one_reset_or_silence_was_long() {
        let flow = Reverse { seen: 1000 * SECOND, answered: 1, ..Reverse::default() };
        let now = flow.seen + 60 * SECOND;
        let check = |client_end, real_end, protocol, now, over| {
            assert_eq!(Reverse { client_end, real_end, ..flow }.over(protocol, now), over, "{client_end} {real_end}");
        };
        check(0, 0, TCP, now, false);
        check(Reverse::FIN, 0, TCP, now, false);
        check(Reverse::FIN, Reverse::FIN, TCP, now, true);
        check(0, Reverse::RST, TCP, now, true);
        check(0, 0, TCP, now + 3600 * SECOND, true);
        check(0, 0, UDP, now, true);
        check(0, 0, UDP, flow.seen + 29 * SECOND, false);
        assert!(Reverse { answered: 0, ..flow }.over(TCP, flow.seen + 131 * SECOND));
    }
}
