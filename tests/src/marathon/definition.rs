//! An app's definition: what the stand-in does with what a client put.

use std::time::Duration;

use serde_json::{Map, Value};

pub(crate) type Object = Map<String, Value>;

/// Ports that Marathon hands out for `servicePort: 0` (`local_port_min` and `local_port_max`).
pub(crate) const SERVICE_PORTS: std::ops::Range<u16> = 10_000..20_000;

/// One version of one app.
#[derive(Clone, Debug)]
pub struct Definition {
    pub id: String,
    pub version: String,
    /// What the API shows, without `id`, `version` and `instances`.
    pub json: Object,
    pub instances: u32,
    /// What to run: `/bin/sh -c cmd`, or the arguments as they are.
    pub command: Vec<String>,
    pub network: Network,
    pub ports: Vec<Port>,
    pub health: Vec<HealthCheck>,
    pub readiness: Vec<ReadinessCheck>,
    pub minimum_health: f64,
    pub maximum_over: f64,
    pub kill_grace: Duration,
    pub oldest_first: bool,
    pub backoff: Backoff,
    /// After how long an unreachable instance is replaced, and forgotten; `None`: never.
    pub unreachable: Option<(Duration, Duration)>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Network {
    Host,
    Bridge,
    Container,
}

/// One `portDefinition` or `portMapping`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Port {
    pub name: Option<String>,
    /// `tcp`, `udp` or `udp,tcp`.
    pub protocol: String,
    /// Inside the container; 0: the same as the host port.
    pub container: u16,
    /// `Some(0)`: any port of the agent; `None`: no port of the agent.
    pub host: Option<u16>,
    pub service: u16,
}

#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    pub first: Duration,
    pub factor: f64,
    pub most: Duration,
}

#[derive(Clone, Debug)]
pub struct HealthCheck {
    pub kind: Probe,
    /// Mesos runs it on the agent and keeps its result; Marathon's own results are lost with the leader.
    pub by_mesos: bool,
    pub target: PortChoice,
    pub grace: Duration,
    pub interval: Duration,
    pub timeout: Duration,
    /// 0: never kill.
    pub max_failures: u32,
    /// As events quote it.
    pub json: Value,
}

#[derive(Clone, Debug)]
pub enum Probe {
    Http(String),
    Tcp,
    Command(String),
}

#[derive(Clone, Debug)]
pub enum PortChoice {
    Index(usize),
    Number(u16),
    Name(String),
}

#[derive(Clone, Debug)]
pub struct ReadinessCheck {
    pub name: String,
    pub path: String,
    pub port: PortChoice,
    pub interval: Duration,
    pub timeout: Duration,
    pub ready_codes: Vec<u16>,
    pub keep_response: bool,
}

impl Definition {
    /// The JSON that an update starts from: what is shown, and the number of instances.
    pub(crate) fn as_put(&self) -> Object {
        let mut put = self.json.clone();
        put.insert("instances".into(), self.instances.into());
        put
    }

    /// Whether going to `other` needs new tasks (and not only more or fewer).
    pub(crate) fn needs_restart(&self, other: &Definition) -> bool {
        self.json != other.json
    }

    pub(crate) fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.json["labels"].as_object().into_iter().flatten().filter_map(|(k, v)| Some((k.as_str(), v.as_str()?)))
    }

    pub(crate) fn env(&self) -> impl Iterator<Item = (&str, &str)> {
        self.json["env"].as_object().into_iter().flatten().filter_map(|(k, v)| Some((k.as_str(), v.as_str()?)))
    }

    /// The index of the port that a check is sent to.
    pub(crate) fn port_index(&self, choice: &PortChoice) -> Option<usize> {
        match choice {
            PortChoice::Index(index) => Some(*index),
            PortChoice::Name(name) => self.ports.iter().position(|p| p.name.as_ref() == Some(name)),
            PortChoice::Number(_) => None,
        }
    }
}

/// `/a/b` of `a/b/`, `//a/b` or `/a/b`.
pub(crate) fn absolute(id: &str) -> String {
    let parts: Vec<&str> = id.split('/').filter(|p| !p.is_empty()).collect();
    format!("/{}", parts.join("/"))
}

/// The group that holds an app or a group: `/a` of `/a/b`.
pub(crate) fn parent(id: &str) -> &str {
    match id.rfind('/') {
        None | Some(0) => "/",
        Some(at) => &id[..at],
    }
}
