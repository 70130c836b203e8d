//! How drains ended: with how many flows alive.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::{
    census::Census,
    report::{DrainTotals, Drained},
    tables::Departed,
};

/// The report tells so many.
const KEPT: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct Drains {
    /// Those that left since the last census.
    open: Vec<Departed>,
    ended: VecDeque<Drained>,
    totals: DrainTotals,
}

impl Drains {
    pub(crate) fn departed(&mut self, departed: Vec<Departed>) {
        self.open.extend(departed);
    }

    /// A census is wanted soon: connections of who left end by themselves.
    pub(crate) fn waiting(&self) -> bool {
        !self.open.is_empty()
    }

    /// `now` and the monotonic clock's `ns` are the same moment. One that left without a drain is told if it cost
    /// anything.
    pub(crate) fn count(&mut self, census: &Census, now: Instant, ns: u64) {
        for left in self.open.extract_if(.., |left| left.at <= census.at) {
            let cut = census.live(left.id);
            let since = left.draining.unwrap_or(left.at);
            if left.draining.is_none() && cut == 0 {
                continue;
            }
            self.totals.ended += 1;
            self.totals.cut += cut;
            let ago = Duration::from_nanos(ns.saturating_sub(since));
            self.ended.push_back(Drained {
                frontend: left.frontend,
                real: left.real,
                began: now.checked_sub(ago).unwrap_or(now),
                lasted: Duration::from_nanos(left.at.saturating_sub(since)),
                cut,
            });
        }
        self.ended.drain(..self.ended.len().saturating_sub(KEPT));
    }

    pub(crate) fn ended(&self) -> Vec<Drained> {
        self.ended.iter().cloned().collect()
    }

    pub(crate) fn totals(&self) -> DrainTotals {
        self.totals
    }
}

#[cfg(test)]
mod tests {
    use tidegate_ebpf::abi::{Record, SECOND};

    use super::*;
    use crate::{Frontend, Protocol};

    #[test]
    fn a_drain_ends_with_how_long_it_took_and_what_it_cost() {
        let frontend = Frontend { vip: [10, 77, 100, 1].into(), port: 80, protocol: Protocol::Tcp };
        let ns = 1000 * SECOND;
        let departed = |id, draining: Option<u64>| Departed {
            frontend,
            real: ([10, 77, 1, id as u8], 80).into(),
            id,
            draining: draining.map(|ago| ns - ago * SECOND),
            at: ns - SECOND,
        };
        let mut drains = Drains::default();
        drains.departed(vec![departed(1, Some(31)), departed(2, Some(3)), departed(3, None), departed(4, None)]);
        let record = |real| Record { mark: 1, real, state: Record::OPEN, age: Record::now(ns) };
        let census = Census::take(ns, [].into_iter(), [record(2), record(2), record(4)].into_iter());
        let now = Instant::now();
        drains.count(&Census::empty(ns - 2 * SECOND), now, ns);
        assert!(drains.waiting() && drains.ended().is_empty(), "that count was before they left");
        drains.count(&census, now, ns);
        let told: Vec<_> = drains.ended().iter().map(|d| (d.real.ip(), d.lasted.as_secs(), d.cut)).collect();
        let ip = |last| std::net::IpAddr::from([10, 77, 1, last]);
        assert_eq!(told, [(ip(1), 30, 0), (ip(2), 2, 2), (ip(4), 0, 1)]);
        assert_eq!(now - drains.ended()[0].began, Duration::from_secs(31));
        assert!(!drains.waiting());

        drains.departed((0..100).map(|id| departed(id, Some(5))).collect());
        drains.count(&census, now, ns);
        assert_eq!(drains.ended().len(), KEPT);
        assert_eq!(drains.totals(), DrainTotals { ended: 103, cut: 6 }, "what is told no more still counts");
    }
}
