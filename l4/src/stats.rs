//! Reads the counters and makes the report's part of them.

use std::{collections::HashMap, sync::Arc};

use imbl::{OrdMap, ordmap::DiffItem};
use tidegate_ebpf::abi::Counters;

use crate::{
    census::Census,
    input::{Frontend, Service},
    maps::Maps,
    report::{RealCounters, ServiceCounters},
    tables::Tables,
};

#[derive(Debug, Default)]
pub(crate) struct Stats {
    /// The services that the last reading was of, and the census that it knew.
    of: OrdMap<Frontend, Arc<Service>>,
    counted: u64,
    raw: HashMap<Frontend, Counters>,
    services: OrdMap<Frontend, Arc<ServiceCounters>>,
}

impl Stats {
    /// The counters now. A service that counted nothing since the last time and did not change costs one look.
    pub(crate) fn read(
        &mut self,
        maps: &Maps,
        tables: &Tables,
        census: Option<&Census>,
    ) -> OrdMap<Frontend, Arc<ServiceCounters>> {
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
        let counted = census.map_or(0, |census| census.at);
        let new_census = std::mem::replace(&mut self.counted, counted) != counted;
        for (frontend, _) in &applied {
            let Some(placed) = tables.get(frontend) else { continue };
            let counters = maps.service_counters(placed.id);
            if self.raw.get(frontend) == Some(&counters) && !new_census {
                continue;
            }
            let reals = placed.reals.iter().map(|placed| {
                let Counters { packets, bytes, flows, opens, answers, resets } = maps.real_counters(placed.id);
                let live = census.map(|census| census.live(placed.id));
                let (address, port) = (placed.real.address, placed.real.port);
                RealCounters { address, port, packets, bytes, flows, opens, answers, resets, live }
            });
            let Counters { packets, bytes, flows, opens, .. } = counters;
            let report = ServiceCounters { packets, bytes, flows, opens, reals: reals.collect() };
            if self.services.get(frontend).is_none_or(|before| **before != report) {
                self.services.insert(*frontend, Arc::new(report));
            }
            self.raw.insert(*frontend, counters);
        }
        self.services.clone()
    }
}

/// The clock that the program stamps flows with, ns.
pub(crate) fn monotonic() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec that lives through the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
