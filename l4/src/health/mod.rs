//! Which reals are fit for new flows.
//!
//! ```text
//! Input's services ─► judge ◄── prober: a probe of each real now and then, by the way of its traffic
//!                      │  ▲
//!                      │  └──── passive: what the packet path counted
//!                      ▼
//! effective services: an unfit real drains ─► tables
//! ```
//!
//! `judge` and `standing` are pure: they decide. `prober`, `probe`, `source` and `path` ask.

pub mod judge;
mod path;
mod probe;
mod prober;
mod source;
mod standing;

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use imbl::{OrdMap, ordmap::DiffItem};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};
use tracing::{info, warn};

pub use self::standing::Passive;
use self::{
    judge::{Judge, Name},
    path::Path,
    probe::Outcome,
    prober::{Change, Probed, Prober},
    source::Sources,
};
use crate::{
    input::{Frontend, Service},
    report::{Health as RealHealth, Probes},
};

/// How often it is looked whether an ejection is over.
const TICK: Duration = Duration::from_millis(500);
/// A probe that could not be sent is a problem for so long.
const UNABLE: Duration = Duration::from_secs(60);
/// At most so many services are named one by one among the problems.
const NAMED: usize = 10;

/// The face. Dropped, it stops probing.
#[derive(Debug)]
pub struct Health {
    shared: Arc<Shared>,
    changes: mpsc::UnboundedSender<Change>,
    tasks: [JoinHandle<()>; 2],
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
    /// The judge's time counts from here.
    start: Instant,
}

#[derive(Debug, Default)]
struct State {
    judge: Judge,
    /// What the prober was told.
    services: OrdMap<Frontend, Arc<Service>>,
    probes: Probes,
    unable: Option<(Instant, String)>,
}

/// What is known, for the plane's report.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Of each real, in the order of its service's; services about which there is nothing to say are not there.
    pub healths: OrdMap<Frontend, Arc<[RealHealth]>>,
    pub fail_open: Vec<Frontend>,
    pub probes: Probes,
    pub problems: Vec<String>,
}

impl Health {
    /// Probes come from `locals` (of a family without one, from an address of the kernel's choice) and, in the modes
    /// without translation, by `interfaces`.
    #[must_use]
    pub fn start(locals: &[IpAddr], interfaces: &[String]) -> Self {
        let (changes, told) = mpsc::unbounded_channel();
        let (results, probed) = mpsc::channel(1024);
        let prober = Prober::new(Sources::new(locals, Path::new(interfaces)));
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Notify::new(), start: Instant::now() });
        let tasks = [tokio::spawn(prober.run(told, results)), tokio::spawn(hear(Arc::clone(&shared), probed))];
        Self { shared, changes, tasks }
    }

    /// What the maps hold from an earlier process, to be told before the first Input: a probed real that drained there
    /// and is active in that Input was most likely out, and stays so until its probes are good.
    pub fn adopt(&self, applied: &OrdMap<Frontend, Arc<Service>>) {
        self.shared.lock().judge.adopt(applied);
    }

    /// Takes the services of a new Input, and answers with what shall be done of them.
    pub fn input(&self, services: &OrdMap<Frontend, Arc<Service>>) -> OrdMap<Frontend, Arc<Service>> {
        let mut state = self.shared.lock();
        for item in state.services.diff(services) {
            let change = match item {
                DiffItem::Remove(frontend, service) => service.probe.is_some().then_some((*frontend, None)),
                DiffItem::Add(frontend, service) => {
                    service.probe.is_some().then(|| (*frontend, Some(Arc::clone(service))))
                }
                DiffItem::Update { old: (_, old), new: (frontend, new) } => {
                    (old.probe.is_some() || new.probe.is_some()).then(|| (*frontend, Some(Arc::clone(new))))
                }
            };
            if let Some(change) = change {
                // The prober ends only with us.
                let _ = self.changes.send(change);
            }
        }
        state.services = services.clone();
        state.judge.input(services);
        state.log();
        state.judge.effective().clone()
    }

    /// What the packet path counted of reals since the call before; to be called about once a second.
    pub fn passive(&self, counted: impl IntoIterator<Item = (Frontend, Name, Passive)>) {
        self.shared.judge(|state, now| state.judge.passive(counted, now));
    }

    /// Waits until probes or traffic have changed the effective services. May be cancelled and asked again.
    pub async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    /// The services as they shall be: a real that is unfit drains.
    #[must_use]
    pub fn effective(&self) -> OrdMap<Frontend, Arc<Service>> {
        self.shared.lock().judge.effective().clone()
    }

    #[must_use]
    pub fn report(&self) -> Report {
        let state = self.shared.lock();
        let open = state.judge.open();
        let named = open.iter().take(NAMED).map(|(frontend, why)| {
            format!(
                "{frontend}: {why}; they get new flows all the same: look at the network between here and their hosts"
            )
        });
        let mut problems: Vec<String> = named.collect();
        if open.len() > NAMED {
            problems.push(format!("and {} more front ends are served by reals that look bad", open.len() - NAMED));
        }
        if let Some((at, why)) = &state.unable
            && at.elapsed() < UNABLE
        {
            problems.push(format!("probes could not be sent, their reals are used as if they were well: {why}"));
        }
        Report {
            healths: state.judge.healths().clone(),
            fail_open: open.keys().copied().collect(),
            probes: state.probes.clone(),
            problems,
        }
    }
}

impl Report {
    /// What is thought of one real of a service.
    #[must_use]
    pub fn of(&self, frontend: &Frontend, service: &Service, real: Name) -> RealHealth {
        let health = || {
            let index = service.reals.binary_search_by_key(&real, |real| (real.address, real.port)).ok()?;
            self.healths.get(frontend)?.get(index).cloned()
        };
        health().unwrap_or_default()
    }
}

impl Drop for Health {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done that a later call would not mend.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn judge(&self, work: impl FnOnce(&mut State, Duration) -> bool) {
        let mut state = self.lock();
        let changed = work(&mut state, self.start.elapsed());
        state.log();
        if changed {
            self.changed.notify_one();
        }
    }
}

impl State {
    fn log(&mut self) {
        for line in self.judge.said() {
            info!("{line}");
        }
    }

    fn probed(&mut self, probed: Probed, now: Duration) -> bool {
        let Probed { frontend, real, outcome, took, late } = probed;
        self.probes.late += u64::from(late);
        let result = match &outcome {
            Outcome::Good => {
                self.probes.last_took = Some(took);
                Ok(())
            }
            Outcome::Bad(why) => {
                self.probes.failed += 1;
                self.probes.last_error = Some((frontend, SocketAddr::new(real.0, real.1), why.as_ref().into()));
                Err(&**why)
            }
            Outcome::Unable(why) => {
                self.probes.unable += 1;
                if self.unable.as_ref().is_none_or(|(_, known)| known != why) {
                    warn!("{frontend}: {}:{} could not be probed: {why}", real.0, real.1);
                }
                self.unable = Some((Instant::now(), why.clone()));
                return false;
            }
        };
        self.probes.sent += 1;
        self.judge.probed(frontend, real, result, now)
    }
}

/// Brings the judge what the prober hears, and the time.
async fn hear(shared: Arc<Shared>, mut probed: mpsc::Receiver<Probed>) {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            probed = probed.recv() => match probed {
                Some(probed) => shared.judge(|state, now| state.probed(probed, now)),
                None => return,
            },
            _ = tick.tick() => shared.judge(|state, now| state.judge.tick(now)),
        }
    }
}
