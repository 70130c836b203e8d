//! Our balancer as the kernel gets it, filled through the plane's own tables: all that this bench knows of either.

use std::{net::IpAddr, sync::Arc, time::Duration};

use anyhow::Context;
use aya::{EbpfLoader, programs::Xdp};
use imbl::{OrdMap, OrdSet};
use tidegate_ebpf::abi::Hop;
use tidegate_l4::{
    Forward, Frontend, Input, Protocol, Real, RealState, Service,
    maps::{self, Maps},
    tables::{Found, Tables},
    xdp,
};

use super::guest::network::{
    INSIDE, INSIDE_MAC, LOCALS, REAL_MACS, REAL_PORT, REALS_V4, REALS_V6, VIP_PORT, VIP_V4, VIP_V6,
};

/// Nobody is there who keeps next hops believed: for as long as any guest lives.
const BELIEVE: Duration = Duration::from_secs(3600);

/// The way to a real, as the plane would find it in the guest.
fn hop(address: IpAddr) -> Hop {
    let number = REALS_V4.iter().chain(&REALS_V6).position(|real| *real == address).unwrap_or_default();
    Hop {
        ifindex: nix::net::if_::if_nametoindex(INSIDE).unwrap_or_default(),
        source_mac: INSIDE_MAC.into(),
        destination_mac: REAL_MACS[number % REAL_MACS.len()].into(),
        vlan: 0,
        mtu: 1500,
    }
}

/// The balancer with one service on each VIP and protocol.
pub(super) struct Ours {
    maps: Maps,
    tables: Tables,
}

impl Ours {
    /// With maps of the size that is shipped.
    pub(super) fn load() -> anyhow::Result<Self> {
        let mut loader = EbpfLoader::new();
        for (name, entries) in maps::sizes(LOCALS.len())? {
            loader.map_max_entries(name, entries);
        }
        let mut ebpf = loader.load(xdp::object()?).context("loading the balancer's maps")?;
        xdp::load(&mut ebpf).context("loading the balancer")?;
        let mut maps = Maps::take(ebpf)?;
        maps.settle(&LOCALS.map(IpAddr::from), &[])?;
        let clock = maps.beat(BELIEVE)?;
        let tables = Tables::adopt(&Found::default(), maps.capacity()?, clock);
        Ok(Self { maps, tables })
    }

    pub(super) fn serve(&mut self, forward: Forward) -> anyhow::Result<()> {
        let mut services = OrdMap::new();
        for (vip, reals) in [(VIP_V4, REALS_V4), (VIP_V6, REALS_V6)] {
            let real = |address| Real { address, port: REAL_PORT, weight: 1, state: RealState::Active };
            let service = Arc::new(Service { reals: reals.map(real).to_vec(), forward, ..Service::default() });
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                services.insert(Frontend { vip, port: VIP_PORT, protocol }, Arc::clone(&service));
            }
        }
        let announce: OrdSet<IpAddr> = services.keys().map(|frontend| frontend.vip).collect();
        let mut written = Ok(());
        let Self { maps, tables, .. } = self;
        let clock = maps.beat(BELIEVE)?;
        tables.plan(&Input { generation: 1, services, announce }, clock, &hop, |write| {
            if written.is_ok() {
                written = maps.apply(&write);
            }
        })?;
        written
    }

    pub(super) fn program(&mut self) -> anyhow::Result<&mut Xdp> {
        self.maps.program("balance")
    }

    /// How much the verifier had to read, and what became of it.
    pub(super) fn size(&mut self) -> anyhow::Result<(u32, u32)> {
        let info = self.program()?.info()?;
        Ok((info.verified_instruction_count().unwrap_or_default(), info.size_jitted()))
    }
}
