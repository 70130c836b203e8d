//! What the API may see: the loop's state as of a moment ago, and the planes' newest reports.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Instant,
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;

use crate::{
    config::Role,
    cycle::{Alarm, Event, Generations, Marathon, State},
    lately::Lately,
};

/// Shared by the loop, which writes, and the API, which reads and never makes the loop wait.
#[derive(Debug)]
pub struct View {
    now: ArcSwap<Snapshot>,
    pub reports: Reports,
    /// The planes that run in this process, and `control`.
    pub roles: Vec<Role>,
    pub started: Timestamp,
    /// Faults of this process that are no business of `step`: the store, the node that is followed.
    troubles: Mutex<BTreeMap<&'static str, Alarm>>,
    lately: Mutex<Lately>,
    /// The revision of the desired state, for those who wait for the next.
    revision: watch::Sender<u64>,
}

/// The loop's state after an event. All of it is shared, so that making one costs little.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub state: State,
    pub marathon: MarathonSeen,
}

impl Snapshot {
    /// The newest generations that the planes were given; 0 as long as they were given nothing.
    pub fn published(&self) -> Generations {
        let compiled = &self.state.compiled;
        match self.state.published() {
            false => Generations::default(),
            true => {
                Generations { l4: compiled.l4.generation, l7: compiled.l7.generation, dns: compiled.dns.generation }
            }
        }
    }
}

/// What was heard of Marathon since the start.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct MarathonSeen {
    /// The event stream is attached now.
    pub attached: bool,
    /// When all apps were last read. Absent: Marathon has not been reached yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub snapshot_at: Option<Timestamp>,
    /// What failed last, while it fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreachable: Option<String>,
    /// Messages of the event stream.
    pub events: u64,
    /// Times that all apps were read.
    pub snapshots: u64,
}

impl MarathonSeen {
    /// Takes note of an event on its way to `step`.
    pub fn note(&mut self, event: &Event, now: Timestamp) {
        let Event::Marathon(marathon) = event else { return };
        match marathon {
            Marathon::Attached => (self.attached, self.unreachable) = (true, None),
            Marathon::Unreachable(why) => (self.attached, self.unreachable) = (false, Some(why.clone())),
            Marathon::Snapshot { .. } => {
                self.snapshots += 1;
                self.snapshot_at = Some(now);
                self.unreachable = None;
            }
            Marathon::Stream(_) => self.events += 1,
            Marathon::App { .. }
            | Marathon::Broken { .. }
            | Marathon::Definition { .. }
            | Marathon::FetchFailed { .. } => {}
        }
    }
}

/// The planes' reports, newest value only.
#[derive(Clone, Debug)]
pub struct Reports {
    pub l4: watch::Receiver<Arc<tidegate_l4::Report>>,
    pub l7: watch::Receiver<Arc<tidegate_l7::Report>>,
    pub dns: watch::Receiver<Arc<tidegate_dns::Report>>,
}

/// The planes' ends of [`Reports`].
#[derive(Debug)]
pub struct Reporters {
    pub l4: watch::Sender<Arc<tidegate_l4::Report>>,
    pub l7: watch::Sender<Arc<tidegate_l7::Report>>,
    pub dns: watch::Sender<Arc<tidegate_dns::Report>>,
}

pub fn reports() -> (Reporters, Reports) {
    let (l4_in, l4) = watch::channel(Arc::default());
    let (l7_in, l7) = watch::channel(Arc::default());
    let (dns_in, dns) = watch::channel(Arc::default());
    (Reporters { l4: l4_in, l7: l7_in, dns: dns_in }, Reports { l4, l7, dns })
}

/// What one plane was told and has done.
#[derive(Clone, Debug)]
pub struct PlaneState {
    pub plane: Role,
    pub desired: u64,
    pub applied: u64,
    pub refused: Option<String>,
    pub problems: Vec<String>,
}

impl View {
    pub fn new(state: State, reports: Reports, roles: Vec<Role>, started: Timestamp) -> Self {
        let revision = watch::Sender::new(state.desired.revision);
        let snapshot = Snapshot { state, marathon: MarathonSeen::default() };
        Self {
            now: ArcSwap::from_pointee(snapshot),
            reports,
            roles,
            started,
            troubles: Mutex::default(),
            lately: Mutex::default(),
            revision,
        }
    }

    pub fn now(&self) -> Arc<Snapshot> {
        self.now.load_full()
    }

    pub fn publish(&self, snapshot: Snapshot) {
        let revision = snapshot.state.desired.revision;
        self.now.store(Arc::new(snapshot));
        self.revision.send_if_modified(|now| std::mem::replace(now, revision) != revision);
    }

    /// The revision of the desired state, now and whenever it changes.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    pub fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// Raises or ends a fault of the process itself.
    pub fn trouble(&self, key: &'static str, text: Option<String>, now: Timestamp) {
        let mut troubles = self.troubles.lock().expect("no holder panics");
        match text {
            None => {
                if troubles.remove(key).is_some() {
                    tracing::info!(alarm = key, "over");
                }
            }
            Some(text) => {
                let since = troubles.get(key).map_or(now, |alarm| alarm.since);
                if troubles.get(key).is_none_or(|alarm| alarm.text != text) {
                    tracing::warn!(alarm = key, "{text}");
                }
                troubles.insert(key, Alarm { since, text });
            }
        }
    }

    /// Everything that is wrong now: what `step` says, and the faults of the process.
    pub fn alarms(&self, snapshot: &Snapshot) -> BTreeMap<String, Alarm> {
        let mut alarms = snapshot.state.alarms.clone();
        let troubles = self.troubles.lock().expect("no holder panics");
        alarms.extend(troubles.iter().map(|(key, alarm)| ((*key).to_owned(), alarm.clone())));
        alarms
    }

    /// The planes that run here.
    pub fn planes(&self, snapshot: &Snapshot) -> Vec<PlaneState> {
        let desired = snapshot.published();
        let (l4, l7, dns) = (self.reports.l4.borrow(), self.reports.l7.borrow(), self.reports.dns.borrow());
        let refused = |generation: u64, why: String| format!("generation {generation} was refused: {why}");
        let all = [
            PlaneState {
                plane: Role::L4,
                desired: desired.l4,
                applied: l4.generation,
                refused: l4.refused.as_ref().map(|(generation, why)| refused(*generation, why.to_string())),
                problems: l4.problems.iter().cloned().chain(self.lately(Lately::problems)).collect(),
            },
            PlaneState {
                plane: Role::L7,
                desired: desired.l7,
                applied: l7.generation,
                refused: l7.refused.as_ref().map(|(generation, why)| refused(*generation, why.to_string())),
                problems: l7.problems.clone(),
            },
            PlaneState {
                plane: Role::Dns,
                desired: desired.dns,
                applied: dns.generation,
                refused: dns.refused.as_ref().map(|(generation, why)| refused(*generation, why.to_string())),
                problems: dns.problems.clone(),
            },
        ];
        all.into_iter().filter(|state| self.has(state.plane)).collect()
    }

    /// Takes note of what layer 4 counts, whenever it reports.
    pub async fn heed_layer4(&self, stop: CancellationToken) {
        let mut reports = self.reports.l4.clone();
        // A plane that is gone counts nothing any more.
        while let Some(Ok(())) = stop.run_until_cancelled(reports.changed()).await {
            self.note_layer4(Instant::now());
        }
    }

    pub fn note_layer4(&self, now: Instant) {
        let report = self.reports.l4.borrow().clone();
        self.lately.lock().expect("no holder panics").note(&report, now);
    }

    /// What layer 4 counted in the last minutes.
    pub fn lately<R>(&self, look: impl FnOnce(&Lately) -> R) -> R {
        look(&self.lately.lock().expect("no holder panics"))
    }

    /// What layer 4 reported last, where it runs.
    pub fn layer4<R>(&self, look: impl FnOnce(&tidegate_l4::Report) -> R) -> Option<R> {
        self.has(Role::L4).then(|| look(&self.reports.l4.borrow()))
    }

    /// Where layer 7 should listen and cannot.
    pub fn unopened(&self) -> Vec<std::net::SocketAddr> {
        self.reports.l7.borrow().unopened.clone()
    }

    /// Until every plane that runs here has applied what is published now.
    pub async fn applied(&self) {
        let desired = self.now().published();
        let mut reports = self.reports.clone();
        // A plane that is gone applies nothing any more: there is nothing to wait for.
        if self.has(Role::L4) {
            let _ = reports.l4.wait_for(|report| report.generation >= desired.l4).await;
        }
        if self.has(Role::L7) {
            let _ = reports.l7.wait_for(|report| report.generation >= desired.l7).await;
        }
        if self.has(Role::Dns) {
            let _ = reports.dns.wait_for(|report| report.generation >= desired.dns).await;
        }
    }
}
