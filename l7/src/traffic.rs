//! The pools as requests see them: who may be chosen now, who has how much to do, and what was counted.
//!
//! A pool lives as long as its name stays in the Input, an upstream as long as its address stays in the pool: counters
//! survive every other change. Counting is by relaxed atomics; requests in flight are counted by guards that undo it
//! when they are dropped, so that a client that goes away in the middle is not counted for ever.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwap;

use crate::{
    input::{Pool, UpstreamState},
    pool::{self, Shares},
    report::{PoolCounters, UpstreamCounters},
};

#[derive(Debug)]
pub(crate) struct PoolTraffic {
    pub(crate) name: Arc<str>,
    upstreams: ArcSwap<Upstreams>,
    turn: AtomicU64,
    requests: AtomicU64,
    in_flight: AtomicU64,
    status: [AtomicU64; 5],
    retries: AtomicU64,
    unavailable: AtomicU64,
}

/// One state of the pool's upstreams: replaced as a whole.
#[derive(Debug, Default)]
struct Upstreams {
    all: Vec<Arc<UpstreamTraffic>>,
    active: Vec<Arc<UpstreamTraffic>>,
    /// Of `active`.
    shares: Shares,
}

#[derive(Debug)]
pub(crate) struct UpstreamTraffic {
    pub(crate) address: SocketAddr,
    requests: AtomicU64,
    in_flight: AtomicU64,
    connect_failures: AtomicU64,
}

impl PoolTraffic {
    pub(crate) fn new(name: Arc<str>, pool: &Pool) -> Arc<Self> {
        let traffic = Self {
            name,
            upstreams: ArcSwap::default(),
            turn: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            status: Default::default(),
            retries: AtomicU64::new(0),
            unavailable: AtomicU64::new(0),
        };
        traffic.set(pool);
        Arc::new(traffic)
    }

    /// From now on these are the upstreams; the ones that stay keep their counters.
    pub(crate) fn set(&self, pool: &Pool) {
        let old = self.upstreams.load();
        let known: HashMap<SocketAddr, _> = old.all.iter().map(|upstream| (upstream.address, upstream)).collect();
        let all: Vec<_> = pool
            .upstreams
            .iter()
            .map(|upstream| match known.get(&upstream.address) {
                Some(known) => Arc::clone(known),
                None => Arc::new(UpstreamTraffic::new(upstream.address)),
            })
            .collect();
        let active = || pool.upstreams.iter().zip(&all).filter(|(upstream, _)| upstream.state == UpstreamState::Active);
        let shares = Shares::new(active().map(|(upstream, _)| upstream.weight));
        let active = active().map(|(_, traffic)| traffic.clone()).collect();
        self.upstreams.store(Arc::new(Upstreams { all, active, shares }));
    }

    /// An active upstream that was not tried yet.
    pub(crate) fn pick(&self, tried: &[SocketAddr], dice: u64) -> Option<UpstreamVisit> {
        let upstreams = self.upstreams.load();
        let active = &upstreams.active;
        let turn = self.turn.fetch_add(1, Relaxed);
        let load = |index: usize| active[index].in_flight.load(Relaxed);
        let was_tried = |index: usize| tried.contains(&active[index].address);
        let picked = pool::pick(&upstreams.shares, load, was_tried, turn, dice)?;
        Some(UpstreamVisit::new(active[picked].clone()))
    }

    pub(crate) fn is_usable(&self) -> bool {
        !self.upstreams.load().active.is_empty()
    }

    /// Why there is nobody to send a request to. `tried` upstreams did not take the connection, the last one for the
    /// reason `last`.
    pub(crate) fn why_unavailable(&self, tried: usize, last: Option<&str>) -> String {
        let upstreams = self.upstreams.load();
        let (name, active) = (&self.name, upstreams.active.len());
        let draining = upstreams.all.len() - active;
        match last {
            Some(last) => format!(
                "the pool {name} did not take the connection: {tried} tried, {active} active, {draining} draining; the last one, {last}"
            ),
            None if draining > 0 => {
                format!("the pool {name} has no active upstream: {draining} draining, finishing what they have")
            }
            None => format!("the pool {name} has no upstream: nothing runs behind it yet"),
        }
    }

    pub(crate) fn count_status(&self, status: u16) {
        if let Some(class) = usize::from(status / 100).checked_sub(1).and_then(|class| self.status.get(class)) {
            class.fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn count_retry(&self) {
        self.retries.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_unavailable(&self) {
        self.unavailable.fetch_add(1, Relaxed);
    }

    pub(crate) fn counters(&self) -> PoolCounters {
        PoolCounters {
            requests: self.requests.load(Relaxed),
            in_flight: self.in_flight.load(Relaxed),
            status: std::array::from_fn(|class| self.status[class].load(Relaxed)),
            retries: self.retries.load(Relaxed),
            unavailable: self.unavailable.load(Relaxed),
            upstreams: self.upstreams.load().all.iter().map(|upstream| upstream.counters()).collect(),
        }
    }
}

impl UpstreamTraffic {
    fn new(address: SocketAddr) -> Self {
        Self { address, requests: AtomicU64::new(0), in_flight: AtomicU64::new(0), connect_failures: AtomicU64::new(0) }
    }

    pub(crate) fn count_request(&self) {
        self.requests.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_connect_failure(&self) {
        self.connect_failures.fetch_add(1, Relaxed);
    }

    fn counters(&self) -> UpstreamCounters {
        UpstreamCounters {
            address: self.address,
            requests: self.requests.load(Relaxed),
            in_flight: self.in_flight.load(Relaxed),
            connect_failures: self.connect_failures.load(Relaxed),
        }
    }
}

/// A request that is being answered by a pool.
#[derive(Debug)]
pub(crate) struct PoolVisit(pub(crate) Arc<PoolTraffic>);

impl PoolVisit {
    pub(crate) fn new(pool: Arc<PoolTraffic>) -> Self {
        pool.requests.fetch_add(1, Relaxed);
        pool.in_flight.fetch_add(1, Relaxed);
        Self(pool)
    }
}

impl Drop for PoolVisit {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

/// A request that an upstream has, from the choice on.
#[derive(Debug)]
pub(crate) struct UpstreamVisit(pub(crate) Arc<UpstreamTraffic>);

impl UpstreamVisit {
    fn new(upstream: Arc<UpstreamTraffic>) -> Self {
        upstream.in_flight.fetch_add(1, Relaxed);
        Self(upstream)
    }
}

impl Drop for UpstreamVisit {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::Upstream;

    fn pool(upstreams: &[(u8, UpstreamState)]) -> Pool {
        let upstream = |(last, state): &(u8, UpstreamState)| Upstream {
            address: SocketAddr::from(([10, 0, 0, *last], 80)),
            weight: 1,
            state: *state,
        };
        Pool { upstreams: upstreams.iter().map(upstream).collect() }
    }

    #[test]
    fn a_draining_upstream_keeps_its_requests_and_gets_no_new_ones() {
        use UpstreamState::{Active, Draining};
        let traffic = PoolTraffic::new("shop".into(), &pool(&[(1, Active)]));
        let visit = traffic.pick(&[], 0).unwrap();
        visit.0.count_request();
        traffic.set(&pool(&[(1, Draining), (2, Active)]));
        for dice in 0..100 {
            assert_eq!(traffic.pick(&[], dice << 57).unwrap().0.address.to_string(), "10.0.0.2:80");
        }
        let draining = &traffic.counters().upstreams[0];
        assert_eq!((draining.requests, draining.in_flight), (1, 1));
        drop(visit);
        assert_eq!(traffic.counters().upstreams[0].in_flight, 0);
        traffic.set(&pool(&[(1, Draining)]));
        assert!(traffic.pick(&[], 0).is_none() && !traffic.is_usable());
        assert!(traffic.why_unavailable(0, None).contains("shop has no active upstream: 1 draining"));
    }

    #[test]
    fn guards_count_pool_and_upstream_exactly() {
        let traffic = PoolTraffic::new("shop".into(), &pool(&[(1, UpstreamState::Active)]));
        let visits: Vec<_> = (0..5).map(|_| (PoolVisit::new(traffic.clone()), traffic.pick(&[], 0))).collect();
        let counters = traffic.counters();
        assert_eq!((counters.requests, counters.in_flight, counters.upstreams[0].in_flight), (5, 5, 5));
        drop(visits);
        let counters = traffic.counters();
        assert_eq!((counters.requests, counters.in_flight, counters.upstreams[0].in_flight), (5, 0, 0));
    }

    #[test]
    fn statuses_are_counted_by_class_and_nonsense_is_not() {
        let traffic = PoolTraffic::new("shop".into(), &pool(&[]));
        for status in [101, 200, 204, 302, 404, 503, 599, 0, 99, 600, 999] {
            traffic.count_status(status);
        }
        assert_eq!(traffic.counters().status, [1, 2, 1, 1, 2]);
    }
}
