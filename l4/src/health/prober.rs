//! When which real is probed: one task for all of them. A change costs what it changes.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::mpsc,
    task::{Id, JoinSet},
    time::{Instant, sleep_until},
};

use super::{
    judge::Name,
    path::Traffic,
    probe::{Outcome, probe},
    source::Sources,
};
use crate::input::{Forward, Frontend, Real, RealState, Service};

/// Probes on their way at once: half of the source ports, so that a port rests between two.
const AT_ONCE: usize = 256;

/// A service that is new, another, or (`None`) no longer to be probed.
pub(crate) type Change = (Frontend, Option<Arc<Service>>);

#[derive(Debug)]
pub(crate) struct Probed {
    pub(crate) frontend: Frontend,
    pub(crate) real: Name,
    pub(crate) outcome: Outcome,
    pub(crate) took: Duration,
    /// It was sent a whole interval or more after its time.
    pub(crate) late: bool,
}

type Key = (Frontend, Name);

struct Target {
    service: Arc<Service>,
    /// The next probe; while one is on its way, when it was due.
    due: Instant,
    on_its_way: bool,
}

pub(crate) struct Prober {
    sources: Arc<Sources>,
    services: HashMap<Frontend, Arc<Service>>,
    targets: HashMap<Key, Target>,
    queue: BTreeSet<(Instant, Key)>,
    running: JoinSet<Probed>,
    keys: HashMap<Id, Key>,
}

impl Prober {
    pub(crate) fn new(sources: Sources) -> Self {
        Self {
            sources: Arc::new(sources),
            services: HashMap::new(),
            targets: HashMap::new(),
            queue: BTreeSet::new(),
            running: JoinSet::new(),
            keys: HashMap::new(),
        }
    }

    /// Until nobody changes or listens any more.
    pub(crate) async fn run(mut self, mut changes: mpsc::UnboundedReceiver<Change>, results: mpsc::Sender<Probed>) {
        loop {
            let due = self.queue.first().map(|(due, _)| *due).filter(|_| self.running.len() < AT_ONCE);
            tokio::select! {
                change = changes.recv() => match change {
                    Some((frontend, service)) => self.change(frontend, service),
                    None => return,
                },
                Some(done) = self.running.join_next_with_id() => {
                    let id = done.as_ref().map_or_else(|error| error.id(), |(id, _)| *id);
                    if let Some(key) = self.keys.remove(&id) {
                        self.again(key);
                    }
                    // One that panicked says nothing about the real.
                    if let Ok((_, probed)) = done
                        && results.send(probed).await.is_err()
                    {
                        return;
                    }
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.start(),
            }
        }
    }

    fn change(&mut self, frontend: Frontend, service: Option<Arc<Service>>) {
        let service = service.filter(|service| service.probe.is_some());
        let old = match &service {
            Some(service) => self.services.insert(frontend, Arc::clone(service)),
            None => self.services.remove(&frontend),
        };
        // One that drains is about to stop: that it answers no longer is no news.
        let names = |service: &Option<Arc<Service>>| -> BTreeSet<Name> {
            let active = |real: &&Real| real.state == RealState::Active;
            let reals = service.iter().flat_map(|service| &service.reals);
            reals.filter(active).map(|real| (real.address, real.port)).collect()
        };
        let (before, now) = (names(&old), names(&service));
        for gone in before.difference(&now) {
            if let Some(target) = self.targets.remove(&(frontend, *gone)) {
                self.queue.remove(&(target.due, (frontend, *gone)));
            }
        }
        let Some(service) = service else { return };
        let same_times = old.is_some_and(|old| interval(&old) == interval(&service));
        for real in now {
            let key = (frontend, real);
            if let Some(target) = self.targets.get_mut(&key) {
                target.service = Arc::clone(&service);
                if same_times || target.on_its_way {
                    continue;
                }
                self.queue.remove(&(target.due, key));
            }
            // Somewhere within the interval, so that not all are asked at the same time.
            let due = Instant::now() + interval(&service).mul_f32(fastrand::f32());
            let target = Target { service: Arc::clone(&service), due, on_its_way: false };
            self.targets.insert(key, target);
            self.queue.insert((due, key));
        }
    }

    fn start(&mut self) {
        let Some((due, (frontend, real))) = self.queue.pop_first() else { return };
        let Some(target) = self.targets.get_mut(&(frontend, real)) else { return };
        target.due = due;
        target.on_its_way = true;
        let late = due.elapsed() > interval(&target.service);
        let (service, sources) = (Arc::clone(&target.service), Arc::clone(&self.sources));
        let task = self.running.spawn(async move {
            let forward = service.forward;
            let way = (forward != Forward::FullNat).then_some(Traffic { frontend, forward });
            let (outcome, took) = match &service.probe {
                Some(kind) => probe(kind, SocketAddr::new(real.0, real.1), way.as_ref(), &sources).await,
                None => (Outcome::Unable("the service has no probe".into()), Duration::ZERO),
            };
            Probed { frontend, real, outcome, took, late }
        });
        self.keys.insert(task.id(), (frontend, real));
    }

    fn again(&mut self, key: Key) {
        let Some(target) = self.targets.get_mut(&key) else { return };
        if !target.on_its_way {
            // It went and came back while the probe of its former life was on its way.
            return;
        }
        target.on_its_way = false;
        // In step, unless the time for it is over.
        target.due = (target.due + interval(&target.service)).max(Instant::now());
        self.queue.insert((target.due, key));
    }
}

fn interval(service: &Service) -> Duration {
    Duration::from_millis(service.probe.as_ref().map_or(u32::MAX, |probe| probe.interval_ms).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        health::path::Path,
        input::{Probe, ProbeKind, Protocol},
    };

    fn service(interval_ms: u32, reals: std::ops::Range<u8>) -> Arc<Service> {
        let real = |last: u8| Real { address: [10, 77, 1, last].into(), port: 80, weight: 1, state: RealState::Active };
        let probe = Probe { kind: ProbeKind::Tcp, interval_ms, timeout_ms: 100, rise: 1, fall: 1 };
        Arc::new(Service { reals: reals.map(real).collect(), probe: Some(probe), ..Service::default() })
    }

    fn dues(prober: &Prober) -> HashMap<Key, Instant> {
        assert_eq!(prober.queue.len(), prober.targets.len());
        prober.queue.iter().map(|(due, key)| (*key, *due)).collect()
    }

    #[test]
    fn only_what_changes_is_scheduled_anew() {
        let mut prober = Prober::new(Sources::new(&[], Path::new(&[])));
        let frontend = Frontend { vip: [10, 77, 100, 1].into(), port: 80, protocol: Protocol::Tcp };
        prober.change(frontend, Some(service(60_000, 0..8)));
        let first = dues(&prober);
        let spread: BTreeSet<Instant> = first.values().copied().collect();
        assert_eq!(spread.len(), 8, "all are asked at different times");
        prober.change(frontend, Some(service(60_000, 4..10)));
        let second = dues(&prober);
        assert_eq!(second.len(), 6);
        let kept = second.iter().filter(|(key, due)| first.get(*key) == Some(*due)).count();
        assert_eq!(kept, 4, "those that stay keep their time");
        // A shorter interval counts from now on.
        prober.change(frontend, Some(service(10, 4..10)));
        let soon = Instant::now() + Duration::from_millis(10);
        assert!(dues(&prober).values().all(|due| *due <= soon));
        prober.change(frontend, None);
        assert!(dues(&prober).is_empty() && prober.services.is_empty());
    }
}
