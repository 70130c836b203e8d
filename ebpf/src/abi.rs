//! Every map, once: names, keys, values and capacities, shared by the kernel and user space.
//!
//! Values hold no implicit padding: the kernel compares keys byte by byte, and padding would be garbage.
//! Ports are in host order; addresses are as they stand in a packet, IPv4 mapped into IPv6 (`::ffff:a.b.c.d`).
//!
//! Maps that are marked *mapped* are made with `BPF_F_MMAPABLE`: user space reads and writes them as memory, and their
//! values begin at a page, so that a value of 64 bytes is one cache line (those of other arrays begin anywhere).

mod address;
mod flow;
mod guard;
mod see;

pub use address::{Address, Mac};
pub use flow::{Flow, Move, RECORDS_PER_LINE, Record, RecordLine};
pub use guard::{ACCESS_DATA, Access, AccessKey, AccessKeyData, Fragment, FragmentKey, Limits, SourceKey};
pub use see::{CAPTURE_BYTES, Captured, Event, Trace, Watch, Why};

/// Counts up whenever a type here changes, or what it means. User space refuses to adopt pinned maps of another layout.
pub const LAYOUT: u32 = 3;

/// The maps by their pinned names.
pub mod map {
    /// `Array<Settings>`, one entry, mapped.
    pub const SETTINGS: &str = "settings";
    /// `Array<FilterWord>`, mapped: which addresses may be ours, by [`super::filter_bit`].
    pub const FILTER: &str = "filter";
    /// `Array<Address>`: FULLNAT sources by local index: IPv4 from 0, IPv6 from [`super::Settings::first_v6`].
    pub const LOCALS: &str = "locals";
    /// `Hash<Address, u32>`: the local index of a FULLNAT source.
    pub const LOCAL_INDEX: &str = "local_index";
    /// `Hash<ServiceKey, Service>`; with port 0 and protocol 0: the VIP itself.
    pub const SERVICES: &str = "services";
    /// `Array<Head>`, mapped: services and FULLNAT sources again, each at the place that [`super::Head::place`] says if
    /// no other has it.
    pub const HEADS: &str = "heads";
    /// `Array<Frontend>` by service id: what a service's clients see.
    pub const FRONTENDS: &str = "frontends";
    /// `Array<Real>` by real id.
    pub const REALS: &str = "reals";
    /// `Array<RingBlock>`, mapped: every service's ring, in regions.
    pub const RINGS: &str = "rings";
    /// `Array<Move>`, mapped: what the moving slots of rings point at.
    pub const MOVES: &str = "moves";
    /// `Array<RecordLine>`, mapped: which real a flow on a moving slot has.
    pub const RECORDS: &str = "records";
    /// `Array<Flow>`, mapped: the FULLNAT flows, by local index and local port ([`super::Flow::index`]).
    pub const FLOWS: &str = "flows";
    /// `Array<Limits>` by service id.
    pub const LIMITS: &str = "limits";
    /// `Array<u64>`, mapped: token buckets, two for each service id: its new flows, its SYNs.
    pub const METERS: &str = "meters";
    /// `LruHash<SourceKey, u64>`: token buckets of source prefixes.
    pub const SOURCES: &str = "sources";
    /// `LpmTrie<AccessKey, u32>`: who may talk to a service; a value of [`super::Access`].
    pub const ACCESS: &str = "access";
    /// `LruHash<FragmentKey, Fragment>`: the ports of fragmented packets.
    pub const FRAGMENTS: &str = "fragments";
    /// `Array<Counters>`, mapped: of services, by CPU and service id ([`super::Settings::services`]).
    pub const SERVICE_COUNTERS: &str = "service_counts";
    /// `Array<Counters>`, mapped: of reals, by CPU and real id.
    pub const REAL_COUNTERS: &str = "real_counts";
    /// `PerCpuArray<u64>` by [`super::Reason`].
    pub const DROPS: &str = "drops";
    /// `RingBuf` of [`super::Event`]: sampled new flows and dropped packets.
    pub const EVENTS: &str = "events";
    /// `Array<Watch>`, one entry, mapped: what whoever looks wants to see.
    pub const WATCH: &str = "watch";
    /// `RingBuf` of [`super::Captured`].
    pub const CAPTURED: &str = "captured";
    /// `Array<Trace>`, one entry: what the program `explain` found out.
    pub const TRACE: &str = "trace";
    /// `Array<u64>`, one entry, mapped: the program `beat` writes its clock there.
    pub const CLOCK: &str = "clock";
    /// `ProgramArray`, one entry: the program `rest`. Pinned as long as the program that is attached, and never adopted.
    pub const PROGRAMS: &str = "programs";

    pub const ALL: [&str; 25] = [
        SETTINGS,
        FILTER,
        LOCALS,
        LOCAL_INDEX,
        SERVICES,
        HEADS,
        FRONTENDS,
        REALS,
        RINGS,
        MOVES,
        RECORDS,
        FLOWS,
        LIMITS,
        METERS,
        SOURCES,
        ACCESS,
        FRAGMENTS,
        SERVICE_COUNTERS,
        REAL_COUNTERS,
        DROPS,
        EVENTS,
        WATCH,
        CAPTURED,
        TRACE,
        CLOCK,
    ];
}

/// Capacities as compiled in; user space may set others when it makes the maps.
pub mod capacity {
    /// 10,000 services are promised; the rest is room for those that come while others go.
    pub const SERVICES: usize = 16_384;
    /// 10,000 services of 10 reals are promised.
    pub const REALS: usize = 131_072;
    /// Twice the services: few have to share a place. A power of two. 2 MB.
    pub const HEADS: usize = 32_768;
    /// 10,000 rings of 1,024 slots fill 160,000 blocks. 48 MB.
    pub const RING_BLOCKS: usize = 196_608;
    /// A real that leaves a service of N reals takes N - 1.
    pub const MOVES: usize = 65_536;
    /// 524,288 flows on moving slots, 4 MB. A power of two.
    pub const RECORD_LINES: usize = 65_536;
    /// One local address. User space makes room for all that are configured, 4 MB each.
    pub const FLOWS: usize = super::PORTS as usize;
    pub const SOURCES: usize = 65_536;
    pub const ACCESS: usize = 65_536;
    pub const FRAGMENTS: usize = 8_192;
    pub const EVENTS_BYTES: usize = 1 << 18;
    pub const CAPTURED_BYTES: usize = 1 << 22;
}

/// At most so many FULLNAT addresses of one family.
pub const LOCALS: u32 = 64;
/// All ports of an address; those below [`FIRST_PORT`] are never given.
pub const PORTS: u32 = 65_536;
/// FULLNAT source ports start above the well-known ones.
pub const FIRST_PORT: u32 = 1024;
/// Ring slots in one map entry.
pub const BLOCK_SLOTS: usize = 64;
/// A ring's slot is a real's id, or with this bit the index of a [`Move`].
pub const MOVING: u32 = 1 << 31;
/// Bits of a real's id.
pub const REAL_ID_BITS: u32 = 20;

/// Protocol numbers in an IP header.
pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP6: u8 = 58;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Settings {
    /// [`LAYOUT`]; stays the first word for ever, so that any version can read it.
    pub layout: u32,
    /// How many of `locals` are in use, by family.
    pub locals_v4: u32,
    pub locals_v6: u32,
    /// The local index of the first IPv6 one; IPv4 begins at 0.
    pub first_v6: u32,
    /// Until when the next hops in `reals` may be believed, ns of the program's clock. User space has the program `beat`
    /// push it ahead while it watches routes and neighbours; when it dies, the kernel is asked instead.
    pub hops_until: u64,
    /// Service and real ids below these have counters: entry `cpu * services + id`.
    pub services: u32,
    pub reals: u32,
    /// ns of a jiffy: the program's clock counts jiffies, which it reads without a call.
    pub jiffy: u32,
    pub pad: u32,
    /// Where tunnelled packets come from, by family.
    pub tunnel_v4: Address,
    pub tunnel_v6: Address,
}

/// 64 addresses' worth of doubt: a clear bit says that an address with this hash is not ours.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct FilterWord {
    pub vips: u64,
    pub locals: u64,
}

pub const FILTER_WORDS: usize = 1024;

/// The filter's bit of an address: its word, and its place in the word.
#[inline(always)]
#[must_use]
pub fn filter_bit(address: &Address) -> (u32, u32) {
    let [a, b, c, d] = address.0;
    let fold = u64::from(a ^ c) << 32 | u64::from(b ^ d);
    // 2^64 divided by the golden ratio.
    let mixed = (fold ^ fold >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed >> 54) as u32, (mixed >> 48) as u32 & 63)
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ServiceKey {
    pub vip: Address,
    pub port: u16,
    pub protocol: u8,
    pub pad: u8,
}

impl ServiceKey {
    /// The entry that says that an address is a VIP.
    #[inline(always)]
    #[must_use]
    pub const fn of_vip(vip: Address) -> Self {
        Self { vip, port: 0, protocol: 0, pad: 0 }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Service {
    pub id: u32,
    /// The first block of its ring.
    pub block: u32,
    /// Slots of its ring less one (slots are a power of two); 0: no real, and no ring.
    pub mask: u32,
    /// [`Service::FULLNAT`] or another way to the reals.
    pub mode: u8,
    /// [`Service::HIDDEN`] or another way to tell the client's address (FULLNAT only).
    pub client: u8,
    /// What must be looked at first: [`Service::ACCESS`] and others, or-ed.
    pub checks: u8,
    pub pad: u8,
    /// GUE's UDP port.
    pub tunnel_port: u16,
    pub pad2: u16,
}

impl Service {
    /// Address and port translated on both ways; the real answers to us.
    pub const FULLNAT: u8 = 0;
    /// Only the hardware address is written; the real has the VIP and answers the client itself.
    pub const DIRECT: u8 = 1;
    /// IP in IP (RFC 2003, RFC 2473); the real unwraps and answers the client itself.
    pub const IPIP: u8 = 2;
    /// GUE variant 1: the IP packet right after a UDP header (draft-ietf-intarea-gue-09, section 4).
    pub const GUE: u8 = 3;

    /// The real sees our local address as its client.
    pub const HIDDEN: u8 = 0;
    /// A TCP option ([`crate::toa`]) in the first segments.
    pub const TOA: u8 = 1;
    /// A PROXY protocol header, version 2, as the first bytes of the stream.
    pub const PROXY: u8 = 2;

    /// Look into `access`.
    pub const ACCESS: u8 = 1;
    /// Without an entry in `access` a client is refused.
    pub const CLOSED: u8 = 2;
    /// New flows of a source prefix are limited.
    pub const SOURCE_RATE: u8 = 4;
    /// New flows of all clients together are limited.
    pub const SERVICE_RATE: u8 = 8;
    /// SYNs above a rate are answered with cookies (FULLNAT, TCP).
    pub const COOKIES: u8 = 16;
}

/// A service, or a FULLNAT source, where the usual packet finds it by one look: a line of a table in which everybody
/// has one place. Who finds it taken is found in `services` or `local_index` alone.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Head {
    /// All zeros: nobody's. With [`Head::LOCAL`] as its protocol: a FULLNAT source.
    pub key: ServiceKey,
    /// Of a FULLNAT source: `id` is its local index.
    pub service: Service,
    pub pad: [u32; 6],
}

impl Head {
    pub const LOCAL: u8 = 255;

    #[inline(always)]
    #[must_use]
    pub fn place(key: &ServiceKey) -> u32 {
        let [a, b, c, d] = key.vip.0;
        let port = (key.port as u32) << 8 | key.protocol as u32;
        let fold = u64::from(a ^ c ^ port) << 32 | u64::from(b ^ d);
        let mixed = (fold ^ fold >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 49) as u32
    }
}

/// What a service's clients see.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Frontend {
    pub vip: Address,
    pub port: u16,
    pub protocol: u8,
    pub mode: u8,
    pub client: u8,
    pub pad: [u8; 3],
}

/// One array entry of ring slots: real ids, or moves.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct RingBlock(pub [u32; BLOCK_SLOTS]);

/// The way to the next machine, as user space found it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Hop {
    /// 0: not known; the kernel is asked.
    pub ifindex: u32,
    pub source_mac: Mac,
    pub destination_mac: Mac,
    /// 802.1Q identifier to send with; 0: untagged.
    pub vlan: u16,
    /// The largest IP packet that fits; 0: not known.
    pub mtu: u16,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Real {
    pub address: Address,
    /// The id of the service that it answers for.
    pub service: u32,
    pub port: u16,
    pub weight: u16,
    /// [`Real::GONE`], [`Real::ACTIVE`], [`Real::DRAINING`] or [`Real::LEFT`].
    pub state: u32,
    pub hop: Hop,
    pub pad: [u32; 4],
}

impl Real {
    /// Nobody; no flow refers to this id.
    pub const GONE: u32 = 0;
    /// Gets new flows.
    pub const ACTIVE: u32 = 1;
    /// Keeps its flows.
    pub const DRAINING: u32 = 2;
    /// Not listed any more; the entry stays for the flows that still name it.
    pub const LEFT: u32 = 3;
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

pub const SECOND: u64 = 1_000_000_000;

/// Of a service: packets and bytes from its clients. Of a real: those that went to it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Counters {
    pub packets: u64,
    pub bytes: u64,
    /// Flows that were given a real; in the direct and tunnelling modes the TCP connections that were opened.
    pub flows: u64,
    /// SYNs, also repeated ones.
    pub opens: u64,
    /// The real's answers to what opens a flow, also repeated ones (FULLNAT).
    pub answers: u64,
    /// Its refusals: resets before any answer (FULLNAT).
    pub resets: u64,
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
    /// Every FULLNAT port that was tried is taken by a flow that lives.
    NoPort = 3,
    /// The real's (or its gateway's) hardware address is not resolved.
    NoNeighbour = 4,
    /// There is no route to the real.
    NoRoute = 5,
    /// The kernel's forwarding is off for the interface, so it answers no route look-ups.
    ForwardingOff = 6,
    /// A fragment whose first one was not seen, or not yet.
    Fragment = 7,
    /// It does not fit the way to the real with what is wrapped around it; the client was told, if it can be.
    TooBig = 8,
    /// The client is on the deny list, or not on the allow list.
    Denied = 9,
    /// Its source prefix opens too many flows.
    SourceRate = 10,
    /// The service's clients open too many flows.
    ServiceRate = 11,
    /// An acknowledgement of no connection, while cookies are sent.
    Cookie = 12,
    /// The ring names a real that is not there (a fault of ours).
    NoReal = 13,
    /// Headers that contradict each other, in a packet to a VIP.
    Malformed = 14,
    /// The frame could not be grown or shrunk (a fault of the driver).
    NoRoom = 15,
    /// The real has not taken the connection yet; the client will repeat it.
    NotReady = 16,
}

impl Reason {
    /// By number.
    pub const NAMES: [&str; 17] = [
        "ttl",
        "tcp-flags",
        "no-local-address",
        "no-port",
        "no-neighbour",
        "no-route",
        "forwarding-off",
        "fragment",
        "too-big",
        "denied",
        "source-rate",
        "service-rate",
        "cookie",
        "no-real",
        "malformed",
        "no-room",
        "not-ready",
    ];

    /// By number; one that is not a reason is [`Reason::Malformed`].
    #[inline(always)]
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Ttl,
            1 => Self::TcpFlags,
            2 => Self::NoLocalAddress,
            3 => Self::NoPort,
            4 => Self::NoNeighbour,
            5 => Self::NoRoute,
            6 => Self::ForwardingOff,
            7 => Self::Fragment,
            8 => Self::TooBig,
            9 => Self::Denied,
            10 => Self::SourceRate,
            11 => Self::ServiceRate,
            12 => Self::Cookie,
            13 => Self::NoReal,
            15 => Self::NoRoom,
            16 => Self::NotReady,
            _ => Self::Malformed,
        }
    }
}

// A changed size means a new LAYOUT.
const _: () = {
    assert!(size_of::<Settings>() == 72);
    assert!(size_of::<Head>() == 64 && capacity::HEADS == 1 << 15);
    assert!(size_of::<FilterWord>() == 16);
    assert!(size_of::<Address>() == 16);
    assert!(size_of::<ServiceKey>() == 20);
    assert!(size_of::<Service>() == 20);
    assert!(size_of::<Frontend>() == 24);
    assert!(size_of::<RingBlock>() == 256);
    assert!(size_of::<Hop>() == 20);
    assert!(size_of::<Real>() == 64);
    assert!(size_of::<Tuple>() == 40);
    assert!(size_of::<Counters>() == 48);
    assert!(capacity::REALS <= 1 << REAL_ID_BITS);
    assert!(capacity::RECORD_LINES.is_power_of_two());
};

#[cfg(feature = "user")]
mod user {
    use super::*;

    macro_rules! pod {
        ($($type:ty)*) => {$(
            // SAFETY: `repr(C)`, Copy, made of integers alone, and without padding (the sizes add up).
            unsafe impl aya::Pod for $type {}
        )*};
    }
    pod!(AccessKeyData Address Captured Counters Event FilterWord Flow Fragment FragmentKey Frontend Head
         Limits Move Real RecordLine RingBlock Service ServiceKey Settings SourceKey Trace Tuple Watch);
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

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
    fn a_reason_survives_being_a_number() {
        for number in 0..Reason::NAMES.len() as u32 {
            assert_eq!(Reason::from_number(number) as u32, number);
        }
    }

    #[test]
    fn addresses_of_one_network_spread_over_the_filter() {
        let mut bits = std::collections::BTreeSet::new();
        for last in 0..=255_u8 {
            let bit = filter_bit(&Address::from(IpAddr::from([10, 77, 100, last])));
            assert!(bit.0 < FILTER_WORDS as u32 && bit.1 < 64);
            bits.insert(bit);
        }
        assert!(bits.len() > 250, "{} bits for 256 addresses", bits.len());
    }
}
