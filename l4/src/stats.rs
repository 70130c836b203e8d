//! Reads the counters once a second and makes the report's part of them.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use imbl::{OrdMap, ordmap::DiffItem};
use tidegate_ebpf::abi::Counters;

use crate::{
    health,
    input::{Frontend, RealState, Service},
    maps::Maps,
    report::{RealCounters, ServiceCounters},
    tables::Tables,
};

/// Counting live flows walks the whole flow table: not more often than this, and only while something drains.
const WALK_EVERY: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub(crate) struct Stats {
    /// The services that the last reading was of.
    of: OrdMap<Frontend, Arc<Service>>,
    raw: HashMap<Frontend, Counters>,
    services: OrdMap<Frontend, Arc<ServiceCounters>>,
    /// By real id and epoch.
    live: HashMap<(u32, u32), u64>,
    walked: Option<Instant>,
    health: health::Report,
}

impl Stats {
    /// The counters now. A service that counted nothing since the last time and did not change costs one look.
    pub(crate) fn read(
        &mut self,
        maps: &Maps,
        tables: &Tables,
        health: health::Report,
        now: Instant,
    ) -> anyhow::Result<OrdMap<Frontend, Arc<ServiceCounters>>> {
        let applied = tables.applied().clone();
        for item in self.of.diff(&applied) {
            match item {
                DiffItem::Add(frontend, _) | DiffItem::Update { new: (frontend, _), .. } => {
                    self.raw.remove(frontend);
                }
                DiffItem::Remove(frontend, _) => {
                    self.raw.remove(frontend);
                    self.services.remove(frontend);
                }
            }
        }
        self.of = applied.clone();
        self.walk(maps, tables, now);
        for (frontend, service) in &applied {
            let Some(placed) = tables.get(frontend) else { continue };
            let counters = maps.service_counters(placed.id)?;
            let drains = service.reals.iter().any(|real| real.state == RealState::Draining);
            let same_health = self.health.healths.get(frontend) == health.healths.get(frontend);
            if self.raw.get(frontend) == Some(&counters) && !drains && same_health {
                continue;
            }
            let mut reals = Vec::with_capacity(placed.reals.len());
            for placed in &placed.reals {
                let counters = maps.real_counters(placed.id)?;
                reals.push(RealCounters {
                    address: placed.real.address,
                    port: placed.real.port,
                    packets: counters.packets,
                    bytes: counters.bytes,
                    flows: counters.flows,
                    live: (placed.real.state == RealState::Draining)
                        .then(|| self.live.get(&(placed.id, placed.epoch)).copied())
                        .flatten(),
                    health: health.of(frontend, service, (placed.real.address, placed.real.port)),
                });
            }
            let Counters { packets, bytes, flows } = counters;
            let report = ServiceCounters { packets, bytes, flows, reals };
            if self.services.get(frontend).is_none_or(|before| **before != report) {
                self.services.insert(*frontend, Arc::new(report));
            }
            self.raw.insert(*frontend, counters);
        }
        self.health = health;
        Ok(self.services.clone())
    }

    fn walk(&mut self, maps: &Maps, tables: &Tables, now: Instant) {
        let draining: HashMap<(u32, u32), u64> = tables
            .applied()
            .iter()
            .filter(|(_, service)| service.reals.iter().any(|real| real.state == RealState::Draining))
            .filter_map(|(frontend, _)| tables.get(frontend))
            .flat_map(|placed| &placed.reals)
            .filter(|placed| placed.real.state == RealState::Draining)
            .map(|placed| ((placed.id, placed.epoch), 0))
            .collect();
        if draining.is_empty() {
            self.live.clear();
            return;
        }
        if self.walked.is_some_and(|walked| now.duration_since(walked) < WALK_EVERY) {
            return;
        }
        self.live = draining;
        self.walked = Some(now);
        maps.live(&mut self.live, monotonic());
    }
}

/// The clock that the program stamps flows with.
fn monotonic() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec that lives through the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
