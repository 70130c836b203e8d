//! Everything that can happen, and everything that can be asked for: both closed.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use jiff::Timestamp;

use super::Alarm;
use crate::model::{
    app::{App, AppId, Definition, InstanceId, Version},
    desired::Desired,
};

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
    /// A host name was looked up, asked for by [`Effect::Resolve`]. It may come again, when the answer changes.
    Resolved { host: Arc<str>, addresses: Vec<IpAddr> },
    /// Time passes: once a second.
    Tick,
}

/// What Marathon told, parsed, nothing decided.
#[derive(Clone, Debug)]
pub enum Marathon {
    /// The stream is attached: from here on no event is lost, and a snapshot that is asked for now is newer.
    Attached,
    /// The stream is lost or could not be opened; the text says what was tried and why it failed.
    Unreachable(String),
    /// A request was given up after every address was tried; the text says why.
    FetchFailed { fetch: Fetch, why: String },
    /// All apps. `asked_at` is when the request was sent: what events said since is newer.
    Snapshot {
        apps: Vec<App>,
        /// Apps that are listed but could not be read, with the reason.
        broken: Vec<(AppId, String)>,
        asked_at: Timestamp,
    },
    /// One app, refetched; `None`: Marathon says 404.
    App { id: AppId, app: Option<App>, asked_at: Timestamp },
    /// One app that was refetched and could not be read, with the reason.
    Broken { id: AppId, why: String },
    /// The definition of an older version.
    Definition { app: AppId, version: Version, definition: Definition },
    /// One message of the event stream.
    Stream(StreamEvent),
}

/// What can be asked of Marathon.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Fetch {
    All,
    App(AppId),
    Definition { app: AppId, version: Version },
}

/// The messages of the event stream that change something; `io/marathon` maps the rest to `AppsChanged` or drops them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum StreamEvent {
    /// `status_update_event`. The state is Marathon's text (`TASK_RUNNING` ...).
    Status {
        app: AppId,
        instance: InstanceId,
        /// The task's id as it was written.
        task: Arc<str>,
        state: String,
        host: Option<Arc<str>>,
        agent: Option<Arc<str>>,
        addresses: Vec<IpAddr>,
        ports: Vec<u16>,
        version: Option<Version>,
    },
    /// `instance_changed_event`. The condition is Marathon's text (`Running` ...), `at` the event's own timestamp.
    InstanceChanged { app: AppId, instance: InstanceId, condition: String, at: Option<Timestamp> },
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

impl Effect {
    /// The request to Marathon that this effect is, if it is one.
    pub fn fetch(&self) -> Option<Fetch> {
        match self {
            Self::FetchAll => Some(Fetch::All),
            Self::FetchApp(app) => Some(Fetch::App(app.clone())),
            Self::FetchDefinition { app, version } => {
                Some(Fetch::Definition { app: app.clone(), version: version.clone() })
            }
            _ => None,
        }
    }
}
