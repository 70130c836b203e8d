//! The balancer of this build, filled as the plane fills it: the one file here that knows how that is done.

use std::{net::IpAddr, time::Duration};

use anyhow::Context;
use aya::{EbpfLoader, programs::Xdp};
use tidegate_ebpf::abi::{Flow, Hop, LOCALS};
use tidegate_l4::{
    Frontend, Input, maglev,
    maps::{self, Maps},
    tables::{Found, Tables},
    xdp,
};

/// Nobody is there who keeps next hops believed: for as long as any run takes.
const BELIEVE: Duration = Duration::from_secs(24 * 3600);

/// Ports of one local address that FULLNAT gives to flows.
const PORTS: u32 = 64_512;

/// How many FULLNAT flows there shall be room for, by family. They are twice as many as asked for: a table that is half
/// full finds a place for nearly every flow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) v4: u32,
    pub(super) v6: u32,
}

impl Room {
    /// The local addresses that give as many ports.
    pub(super) fn locals(self) -> Vec<IpAddr> {
        let count = |flows: u32| (2 * flows).div_ceil(PORTS).clamp(1, LOCALS);
        let v4 = (1..=count(self.v4)).map(|n| IpAddr::from([10, 77, 101, n as u8]));
        let v6 = (1..=count(self.v6)).map(|n| IpAddr::from([0xfd77, 0, 0x101, 0, 0, 0, 0, n as u16]));
        v4.chain(v6).collect()
    }
}

/// What the balancer itself has counted of a service.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Counts {
    pub(super) packets: u64,
    pub(super) flows: u64,
}

pub(super) struct Ours {
    maps: Maps,
    tables: Tables,
}

impl Ours {
    /// Loads the program and its maps; nothing is attached.
    pub(super) fn load(room: Room) -> anyhow::Result<Self> {
        let locals = room.locals();
        let mut loader = EbpfLoader::new();
        for (name, entries) in maps::sizes(locals.len())? {
            loader.map_max_entries(name, entries);
        }
        let mut ebpf = loader.load(xdp::object()?).context("loading the balancer")?;
        xdp::load(&mut ebpf).context("loading the balancer")?;
        let mut maps = Maps::take(ebpf)?;
        maps.settle(&locals, &[])?;
        let clock = maps.beat(BELIEVE)?;
        let tables = Tables::adopt(&Found::default(), maps.capacity()?, clock);
        Ok(Self { maps, tables })
    }

    /// Makes the maps say what `input` says, and this the way to each real; how many writes that took.
    pub(super) fn give(&mut self, input: &Input, way: &dyn Fn(IpAddr) -> Hop) -> anyhow::Result<usize> {
        let Self { maps, tables, .. } = self;
        let (mut writes, mut result) = (0, Ok(()));
        let clock = maps.beat(BELIEVE)?;
        tables.plan(input, clock, &way, |write| {
            writes += 1;
            if result.is_ok() {
                result = maps.apply(&write);
            }
        })?;
        result.map(|()| writes)
    }

    /// Whether the next hops that it was given are taken for true from now on.
    pub(super) fn believe(&self, believe: bool) -> anyhow::Result<()> {
        self.maps.beat(if believe { BELIEVE } else { Duration::ZERO }).map(drop)
    }

    pub(super) fn program(&mut self) -> anyhow::Result<&mut Xdp> {
        self.maps.program("balance")
    }

    pub(super) fn counts(&self, frontend: &Frontend) -> anyhow::Result<Counts> {
        let placed = self.tables.get(frontend).with_context(|| format!("{frontend} is not served"))?;
        let counters = self.maps.service_counters(placed.id);
        Ok(Counts { packets: counters.packets, flows: counters.flows })
    }

    pub(super) fn drops(&self) -> anyhow::Result<u64> {
        Ok(self.maps.drops()?.iter().map(|(_, count)| count).sum())
    }

    /// What one FULLNAT flow takes in the maps.
    pub(super) const BYTES_PER_FLOW: usize = size_of::<Flow>();

    /// The largest number of reals, up to `most`, whose ring is larger than that of one real less.
    pub(super) fn larger_ring_at(most: u32) -> Option<u32> {
        (2..=most).rev().find(|&reals| maglev::slots(reals as usize) > maglev::slots(reals as usize - 1))
    }
}
