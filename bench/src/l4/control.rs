//! What a change of the reals costs: planned and written into the maps, as the plane does when an instance comes or goes.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Instant};

use anyhow::Context;
use imbl::{OrdMap, OrdSet};
use tidegate_ebpf::abi::Hop;
use tidegate_l4::{Frontend, Input, Protocol, Real, RealState, Service};

use super::{
    ours::{Ours, Room},
    row, world,
};
use crate::{
    Settings,
    figures::{Outcome, median},
};

const GOAL_MS: f64 = 0.2;
const LOAD_GOAL_S: f64 = 2.0;
/// Reals of the VIP that changes, and of the others.
const MANY: u32 = 1000;
const FEW: u32 = 10;

pub(super) fn measure(settings: &Settings, outcome: &mut Outcome) -> anyhow::Result<()> {
    eprintln!("changes of the reals ...");
    let changes = if settings.quick { 20 } else { 200 };
    for vips in [10, 1000] {
        let mut ours = Ours::load(Room { v4: 1, v6: 1 })?;
        let mut input = input(vips);
        ours.give(&input, &way)?;
        let (mut gone, mut come, mut writes) = (Vec::new(), Vec::new(), 0);
        for change in 0..changes {
            for (reals, times) in [(without(change), &mut gone), (service(0, MANY), &mut come)] {
                input.generation += 1;
                input.services.insert(frontend(0), Arc::new(reals));
                let began = Instant::now();
                writes = ours.give(&input, &way)?;
                times.push(began.elapsed().as_secs_f64() * 1e3);
            }
        }
        for (what, times) in [("less", gone), ("more", come)] {
            let case = format!("one real {what} of {MANY}, on one VIP of {vips}");
            let ms = median(&times).context("there were changes")?;
            outcome.rows.push(row(case, "ms", ms, BTreeMap::new(), Some(GOAL_MS)));
        }
        outcome.notes.push(format!("one real more on one VIP of {vips}: {writes} writes into maps"));
    }
    grow(changes, outcome)?;
    let input = input(10_000);
    let mut times = Vec::new();
    for _ in 0..if settings.quick { 1 } else { 3 } {
        let mut ours = Ours::load(Room { v4: 1, v6: 1 })?;
        let began = Instant::now();
        ours.give(&input, &way)?;
        times.push(began.elapsed().as_secs_f64());
    }
    let s = median(&times).context("there was a load")?;
    outcome.rows.push(row(format!("load 10k VIPs x {FEW} reals"), "s", s, BTreeMap::new(), Some(LOAD_GOAL_S)));
    Ok(())
}

/// The one real for which the ring becomes a larger one, if there is such a number of reals.
fn grow(changes: u32, outcome: &mut Outcome) -> anyhow::Result<()> {
    let Some(reals) = Ours::larger_ring_at(MANY) else { return Ok(()) };
    let mut ours = Ours::load(Room { v4: 1, v6: 1 })?;
    let mut input = input(10);
    let mut times = Vec::new();
    for _ in 0..changes {
        for count in [reals - 1, reals] {
            input.generation += 1;
            input.services.insert(frontend(0), Arc::new(service(0, count)));
            let began = Instant::now();
            ours.give(&input, &way)?;
            if count == reals {
                times.push(began.elapsed().as_secs_f64() * 1e3);
            }
        }
    }
    let ms = median(&times).context("there were changes")?;
    outcome.rows.push(row(format!("one real more, the {reals}th: the ring grows"), "ms", ms, BTreeMap::new(), None));
    Ok(())
}

/// As if all were behind one router.
fn way(_: IpAddr) -> Hop {
    world::hop(1, world::LINK_MAC, world::FAR_MAC)
}

/// The first VIP has many reals, the others few; of ten thousand VIPs, none has many.
fn input(vips: u32) -> Input {
    let reals = |vip| if vip == 0 && vips <= 1000 { MANY } else { FEW };
    let services: OrdMap<_, _> = (0..vips).map(|vip| (frontend(vip), Arc::new(service(vip, reals(vip))))).collect();
    let announce: OrdSet<IpAddr> = services.keys().map(|frontend: &Frontend| frontend.vip).collect();
    Input { generation: 1, services, announce }
}

fn frontend(vip: u32) -> Frontend {
    Frontend { vip: IpAddr::from((0x0a4d_8000 + vip).to_be_bytes()), port: 80, protocol: Protocol::Tcp }
}

fn service(vip: u32, reals: u32) -> Service {
    // 1,024 addresses for each VIP.
    let address = |n: u32| IpAddr::from((0x1000_0000 + vip * 1024 + n).to_be_bytes());
    let real = |n| Real { address: address(n), port: 8080, weight: 1, state: RealState::Active };
    Service { reals: (0..reals).map(real).collect(), ..Service::default() }
}

/// The first VIP's service with a real less, another one each time.
fn without(change: u32) -> Service {
    let mut service = service(0, MANY);
    service.reals.remove((change * 7 % MANY) as usize);
    service
}
