//! The heart: one event in, the effects out. Start reading here.
//!
//! `step` is pure. Whoever calls it holds the [`State`], gives the time, and carries out the [`Effect`]s.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;

use crate::{
    compile::Compiled,
    model::{
        app::{App, AppId, Definition, InstanceId, Version},
        desired::Desired,
        observed::Observed,
    },
};

/// Rules that hold for the whole run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Policy {
    /// The zone of every name, without a trailing dot.
    pub domain: Arc<str>,
    /// Seconds that clients may keep an answer.
    pub ttl: u32,
    /// How long an unexplained "nothing runs" must be repeated before it is believed.
    pub distrust: Duration,
}

/// Everything that the next decision depends on.
#[derive(Clone, Debug)]
pub struct State {
    pub policy: Policy,
    pub desired: Desired,
    pub observed: Observed,
    pub compiled: Compiled,
    /// What is wrong now, by a stable key (`marathon-unreachable`, `empty-answer` ...).
    pub alarms: BTreeMap<String, Alarm>,
}

/// Something that an operator should look at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Alarm {
    pub since: Timestamp,
    /// What is wrong, what Tidegate does meanwhile, what to do.
    pub text: String,
}

/// Everything that can happen.
#[derive(Clone, Debug)]
pub enum Event {
    /// The ELBs have changed (or were read from the store at start).
    Desired(Desired),
    /// The apps as they were last believed, read from the store at start.
    Remembered(Vec<App>),
    /// What came from Marathon.
    Marathon(Marathon),
    /// A TCP connect to an instance that has no health check, asked for by [`Effect::Probe`].
    Probed { app: AppId, instance: InstanceId, open: bool },
    /// A host name was looked up, asked for by [`Effect::Resolve`].
    Resolved { host: Arc<str>, addresses: Vec<IpAddr> },
    /// Time passes: once a second.
    Tick,
}

/// What Marathon told, parsed, nothing decided.
#[derive(Clone, Debug)]
pub enum Marathon {
    /// The stream is attached: from here on no event is lost, and a snapshot that is asked for now is newer.
    Attached,
    /// The stream or a fetch failed; the text says what was tried and why it failed.
    Unreachable(String),
    /// All apps. `asked_at` is when the request was sent: what events said since is newer.
    Snapshot { apps: Vec<App>, asked_at: Timestamp },
    /// One app, refetched; `None`: Marathon says 404.
    App { id: AppId, app: Option<App>, asked_at: Timestamp },
    /// The definition of an older version.
    Definition { app: AppId, version: Version, definition: Definition },
    /// One message of the event stream.
    Stream(StreamEvent),
}

/// The messages of the event stream that change something; `io/marathon` maps the rest to `AppChanged` or drops them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum StreamEvent {
    /// `status_update_event`. The state is Marathon's text (`TASK_RUNNING` ...).
    Status {
        app: AppId,
        instance: InstanceId,
        state: String,
        host: Option<Arc<str>>,
        agent: Option<Arc<str>>,
        addresses: Vec<IpAddr>,
        ports: Vec<u16>,
        version: Option<Version>,
    },
    /// `instance_changed_event`. The condition is Marathon's text (`Running` ...).
    InstanceChanged { app: AppId, instance: InstanceId, condition: String },
    /// `instance_health_changed_event`.
    Health { app: AppId, instance: InstanceId, healthy: Option<bool> },
    /// `unhealthy_instance_kill_event`.
    UnhealthyKill { app: AppId, instance: InstanceId },
    /// `unknown_instance_terminated_event`.
    Gone { app: AppId, instance: InstanceId },
    /// `app_terminated_event`.
    AppTerminated { app: AppId },
    /// Something about these apps has changed: refetch them.
    AppsChanged { apps: Vec<AppId> },
    /// Something about every app below this group has changed.
    GroupChanged { group: String },
    /// Marathon lost its Mesos master (`true`) or has it back.
    SchedulerDisconnected(bool),
}

/// Everything that `step` may ask for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Effect {
    /// Give the planes their new Inputs: those whose generation has changed.
    Publish,
    FetchAll,
    FetchApp(AppId),
    FetchDefinition {
        app: AppId,
        version: Version,
    },
    /// One TCP connect, answered by [`Event::Probed`].
    Probe {
        app: AppId,
        instance: InstanceId,
        address: SocketAddr,
    },
    /// Look up a host name, answered by [`Event::Resolved`].
    Resolve {
        host: Arc<str>,
    },
    /// Keep this app for a restart without Marathon; `None`: forget it.
    Remember {
        id: AppId,
        app: Option<Arc<App>>,
    },
    /// An alarm was raised (`Some`) or is over.
    Alarm {
        key: String,
        alarm: Option<Alarm>,
    },
    /// One line for the log: a decision and its reason.
    Note(String),
}

impl State {
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            desired: Desired::default(),
            observed: Observed::default(),
            compiled: Compiled::default(),
            alarms: BTreeMap::new(),
        }
    }
}

/// One event, its effects.
pub fn step(state: &mut State, event: Event, now: Timestamp) -> Vec<Effect> {
    let _ = (state, event, now);
    Vec::new()
}
