//! Our balancer as the kernel gets it, filled through the plane's own tables: all that this bench knows of either.

use std::{net::IpAddr, sync::Arc};

use anyhow::Context;
use aya::{Ebpf, EbpfLoader, programs::Xdp};
use imbl::{OrdMap, OrdSet};
use tidegate_l4::{
    Forward, Frontend, Input, Protocol, Real, RealState, Service,
    maps::Maps,
    tables::{Found, Tables},
    xdp,
};

use super::guest::network::{LOCALS, REAL_PORT, REALS_V4, REALS_V6, VIP_PORT, VIP_V4, VIP_V6};

/// The balancer with one service on each VIP and protocol.
pub(super) struct Ours {
    ebpf: Ebpf,
    maps: Maps,
    tables: Tables,
}

impl Ours {
    /// With maps of the size that is shipped.
    pub(super) fn load() -> anyhow::Result<Self> {
        let mut ebpf = EbpfLoader::new().load(xdp::object()?).context("loading the balancer's maps")?;
        let program: &mut Xdp = ebpf.program_mut("balance").context("there is no `balance`")?.try_into()?;
        program.load().context("loading the balancer")?;
        let mut maps = Maps::take(&mut ebpf)?;
        maps.settle(&LOCALS.map(IpAddr::from))?;
        let tables = Tables::adopt(&Found::default(), maps.capacity()?);
        Ok(Self { ebpf, maps, tables })
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
        tables.plan(&Input { generation: 1, services, announce }, |write| {
            if written.is_ok() {
                written = maps.apply(&write);
            }
        })?;
        written
    }

    pub(super) fn program(&mut self) -> anyhow::Result<&mut Xdp> {
        Ok(self.ebpf.program_mut("balance").context("there is no `balance`")?.try_into()?)
    }

    /// How much the verifier had to read, and what became of it.
    pub(super) fn size(&mut self) -> anyhow::Result<(u32, u32)> {
        let info = self.program()?.info()?;
        Ok((info.verified_instruction_count().unwrap_or_default(), info.size_jitted()))
    }
}
