//! What Marathon runs: apps, their definitions and their instances, as Marathon tells them.

use std::{net::IpAddr, sync::Arc};

use imbl::OrdMap;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// `/group/web`: absolute, as Marathon writes it.
pub type AppId = Arc<str>;
/// The task's id without its attempt suffix (`group_web.instance-<uuid>`), so that tasks and instance events meet.
pub type InstanceId = Arc<str>;
/// Marathon's version of a definition: a timestamp, but only ever compared for equality.
pub type Version = Arc<str>;

/// An app and everything that runs for it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct App {
    pub id: AppId,
    /// The newest definition's version.
    pub version: Version,
    /// How many instances Marathon is asked to run.
    pub wanted: u32,
    /// By version: the newest, and those that instances of a rolling deployment still run.
    pub definitions: OrdMap<Version, Arc<Definition>>,
    pub instances: OrdMap<InstanceId, Arc<Instance>>,
    /// The ids of the deployments that touch the app now.
    pub deployments: Vec<String>,
}

/// The part of an app's definition that traffic depends on.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Definition {
    pub network: Network,
    /// In Marathon's order: `portDefinitions` in host mode, `portMappings` otherwise.
    pub ports: Vec<Port>,
    pub labels: OrdMap<String, String>,
    /// `maxConsecutiveFailures` of each health check; empty: the app has none.
    pub health_checks: Vec<u32>,
    /// Whether a new instance must pass a readiness check before its deployment goes on.
    pub readiness: bool,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum Network {
    #[default]
    Host,
    Bridge,
    Container,
}

/// One port of a definition.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Port {
    pub name: Option<String>,
    pub tcp: bool,
    pub udp: bool,
    /// The port inside the container; in host mode the port of the definition (0: any).
    pub container: u16,
    /// `None`: no port of the agent is mapped, the container's own address is used. Some(0): Marathon chooses.
    pub host: Option<u16>,
    pub service: u16,
    pub labels: OrdMap<String, String>,
}

/// One instance, as last heard of.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Instance {
    pub id: InstanceId,
    /// The task's id as Marathon writes it: the canonical DNS name carries its hash.
    #[serde(default)]
    pub task: Arc<str>,
    pub state: TaskState,
    pub version: Version,
    /// The agent's name or address, as Marathon writes it.
    pub host: Arc<str>,
    /// The agent's Mesos id (`<uuid>-S12`), where Marathon tells it.
    pub agent: Option<Arc<str>>,
    /// As Marathon lists them. Only in container mode are they the container's own: in host mode they are the agent's,
    /// in bridge mode they are of no use outside it.
    pub addresses: Vec<IpAddr>,
    /// Host ports, in the order of the definition's ports that have one.
    pub ports: Vec<u16>,
    pub health: Health,
    /// `None`: Marathon says nothing (no readiness check, or the deployment is over).
    pub ready: Option<bool>,
    pub started_at: Option<Timestamp>,
    /// Set by the first sign that Marathon is about to stop it; never taken back.
    pub stopping: Option<StopSign>,
    /// It passed its admission (health, readiness, one connect) or served before Tidegate looked: from here on only bad
    /// news takes it out, never the lack of news.
    #[serde(default)]
    pub admitted: bool,
}

impl App {
    /// The newest definition; an app that was read always has it.
    pub fn newest(&self) -> Option<&Arc<Definition>> {
        self.definitions.get(&self.version)
    }

    /// The definition that the instance was started with.
    pub fn definition_of(&self, instance: &Instance) -> Option<&Arc<Definition>> {
        self.definitions.get(&instance.version)
    }
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum TaskState {
    Staging,
    Starting,
    Running,
    Killing,
    /// Silent: its agent cannot be reached. It may still serve.
    Unreachable,
}

/// Over all health checks of the instance.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Health {
    /// No result yet from at least one check, or no checks.
    Unknown,
    Healthy,
    Unhealthy,
}

/// What told that an instance is about to stop.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum StopSign {
    /// An `instance_changed_event` that says Running of an instance that runs already: its goal has changed.
    GoalChanged,
    /// TASK_KILLING.
    Killing,
    /// `unhealthy_instance_kill_event`.
    UnhealthyKill,
}
