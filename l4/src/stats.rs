//! Reads the counters and makes the report's part of them.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use imbl::{OrdMap, ordmap::DiffItem};
use tidegate_ebpf::abi::Counters;

use crate::{
    census::Census,
    health::{self, Passive},
    input::{Forward, Frontend, RealState, Service},
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
    health: health::Report,
}

/// What was read.
pub(crate) struct Counted {
    pub(crate) services: OrdMap<Frontend, Arc<ServiceCounters>>,
    /// What the traffic since the last reading says of reals.
    pub(crate) passives: Vec<(Frontend, (IpAddr, u16), Passive)>,
}

impl Stats {
    /// The counters now. A service that counted nothing since the last time and did not change costs one look.
    pub(crate) fn read(
        &mut self,
        maps: &Maps,
        tables: &Tables,
        census: Option<&Census>,
        health: health::Report,
    ) -> Counted {
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
        let mut passives = Vec::new();
        for (frontend, service) in &applied {
            let Some(placed) = tables.get(frontend) else { continue };
            let counters = maps.service_counters(placed.id);
            let same_health = self.health.healths.get(frontend) == health.healths.get(frontend);
            if self.raw.get(frontend) == Some(&counters) && !new_census && same_health {
                continue;
            }
            let known = self.services.get(frontend).map(|service| service.reals.as_slice()).unwrap_or_default();
            let reals = placed.reals.iter().map(|placed| {
                let Counters { packets, bytes, flows, opens, answers, resets } = maps.real_counters(placed.id);
                let census = census.filter(|_| countable(service.forward, placed.real.state));
                let live = census.map(|census| census.live(placed.id));
                let (address, port) = (placed.real.address, placed.real.port);
                let health = health.of(frontend, service, (address, port));
                RealCounters { address, port, packets, bytes, flows, opens, answers, resets, live, health }
            });
            let reals: Vec<RealCounters> = reals.collect();
            let voices = reals.iter().filter_map(|real| {
                let before = known.iter().find(|known| (known.address, known.port) == (real.address, real.port))?;
                let passive = passive(before, real, service.forward);
                (passive != Passive::default()).then_some((*frontend, (real.address, real.port), passive))
            });
            passives.extend(voices);
            let Counters { packets, bytes, flows, opens, .. } = counters;
            let report = ServiceCounters { packets, bytes, flows, opens, reals };
            if self.services.get(frontend).is_none_or(|before| **before != report) {
                self.services.insert(*frontend, Arc::new(report));
            }
            self.raw.insert(*frontend, counters);
        }
        self.health = health;
        Counted { services: self.services.clone(), passives }
    }
}

/// Whether the maps have every flow of a real: without translation they have those on moving slots alone, and all slots of
/// a real that drains move.
fn countable(forward: Forward, state: RealState) -> bool {
    forward == Forward::FullNat || state == RealState::Draining
}

/// The clock that the program stamps flows with, ns.
pub(crate) fn monotonic() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec that lives through the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// What a real's counters say since they were read before. Only under FULLNAT its answers come by; in the other modes a
/// client's further packets say that it was answered.
fn passive(before: &RealCounters, now: &RealCounters, forward: Forward) -> Passive {
    let since = |now: u64, before: u64| now.saturating_sub(before);
    let opens = since(now.opens, before.opens);
    if forward == Forward::FullNat {
        let resets = since(now.resets, before.resets);
        return Passive { opens, answers: since(now.answers, before.answers), resets };
    }
    Passive { opens, answers: since(now.packets, before.packets).saturating_sub(opens), resets: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_flows_are_told_only_where_all_of_them_are_known() {
        assert!(countable(Forward::FullNat, RealState::Active) && countable(Forward::FullNat, RealState::Draining));
        assert!(countable(Forward::Direct, RealState::Draining));
        assert!(!countable(Forward::Direct, RealState::Active) && !countable(Forward::IpIp, RealState::Active));
    }
}
