//! One instance: what Marathon knows of a task, from the wish to start it to its end.

use std::{net::IpAddr, sync::Arc};

use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::mpsc;

use super::definition::{Definition, Network, PortChoice};

#[derive(Clone, Debug)]
pub struct Instance {
    /// `group_app.instance-<uuid>`.
    pub id: Arc<str>,
    pub definition: Arc<Definition>,
    pub condition: Condition,
    /// Marathon has decided to stop it.
    pub doomed: bool,
    /// Its agent's host and Mesos id; none before it is placed.
    pub agent: Option<(Arc<str>, Arc<str>)>,
    /// Ports of the agent, in the order of the definition's ports that have one.
    pub ports: Vec<u16>,
    pub addresses: Vec<IpAddr>,
    pub staged_at: Timestamp,
    pub started_at: Option<Timestamp>,
    /// One per health check of the definition.
    pub health: Vec<Option<HealthResult>>,
    /// One per readiness check that has answered, only while a deployment watches it.
    pub readiness: Vec<ReadinessResult>,
    pub pid: Option<i32>,
    /// To the task that runs its life; none for a synthetic one.
    pub(crate) orders: Option<mpsc::UnboundedSender<Order>>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Condition {
    Scheduled,
    Provisioned,
    Starting,
    Running,
    Killing,
    Unreachable,
    UnreachableInactive,
    Killed,
    Finished,
    Failed,
    Gone,
}

/// What the life of a task is told from outside.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    /// TERM, and after the grace period KILL.
    Kill,
    /// A signal as if from somebody on the agent.
    Signal(i32),
    /// The agent is silent.
    Lose,
    /// The agent is heard again.
    Return,
    /// Mesos reports TASK_LOST.
    Vanish,
}

#[derive(Clone, Debug)]
pub struct HealthResult {
    pub alive: bool,
    pub consecutive_failures: u32,
    pub first_success: Option<Timestamp>,
    pub last_success: Option<Timestamp>,
    pub last_failure: Option<Timestamp>,
    pub last_failure_cause: Option<String>,
}

#[derive(Clone, Debug)]
pub struct ReadinessResult {
    pub name: String,
    pub ready: bool,
    pub last_response: Option<Value>,
}

impl Condition {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Condition::Scheduled => "Scheduled",
            Condition::Provisioned => "Provisioned",
            Condition::Starting => "Starting",
            Condition::Running => "Running",
            Condition::Killing => "Killing",
            Condition::Unreachable => "Unreachable",
            Condition::UnreachableInactive => "UnreachableInactive",
            Condition::Killed => "Killed",
            Condition::Finished => "Finished",
            Condition::Failed => "Failed",
            Condition::Gone => "Gone",
        }
    }

    pub(crate) fn task_state(self) -> &'static str {
        match self {
            Condition::Scheduled | Condition::Provisioned => "TASK_STAGING",
            Condition::Starting => "TASK_STARTING",
            Condition::Running => "TASK_RUNNING",
            Condition::Killing => "TASK_KILLING",
            Condition::Unreachable | Condition::UnreachableInactive => "TASK_UNREACHABLE",
            Condition::Killed => "TASK_KILLED",
            Condition::Finished => "TASK_FINISHED",
            Condition::Failed => "TASK_FAILED",
            Condition::Gone => "TASK_LOST",
        }
    }
}

impl Instance {
    pub(crate) fn new(definition: Arc<Definition>, orders: Option<mpsc::UnboundedSender<Order>>) -> Self {
        let id = format!("{}.instance-{}", definition.id.trim_start_matches('/').replace('/', "_"), uuid());
        Instance {
            id: id.into(),
            condition: Condition::Scheduled,
            doomed: false,
            agent: None,
            ports: Vec::new(),
            addresses: Vec::new(),
            staged_at: Timestamp::now(),
            started_at: None,
            health: vec![None; definition.health.len()],
            readiness: Vec::new(),
            pid: None,
            orders,
            definition,
        }
    }

    pub fn task_id(&self) -> String {
        format!("{}._app.1", self.id)
    }

    pub fn host(&self) -> &str {
        self.agent.as_ref().map_or("", |(host, _)| host)
    }

    /// Whether it counts as one of the instances that the app wants.
    pub(crate) fn counts(&self) -> bool {
        !self.doomed && !matches!(self.condition, Condition::UnreachableInactive | Condition::Killing)
    }

    /// Over all checks: `None` while one of them has no result.
    pub(crate) fn healthy(&self) -> Option<bool> {
        if self.health.is_empty() {
            return None;
        }
        let results: Option<Vec<bool>> = self.health.iter().map(|r| r.as_ref().map(|r| r.alive)).collect();
        results.map(|alive| alive.into_iter().all(|a| a))
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.definition.readiness.iter().all(|check| self.readiness.iter().any(|r| r.name == check.name && r.ready))
    }

    /// Whether a deployment may count it as started.
    pub(crate) fn serves(&self) -> bool {
        self.condition == Condition::Running && !self.doomed && (self.health.is_empty() || self.healthy() == Some(true))
    }

    /// Where a port is reached from outside: the agent's host and its port, or the container's own.
    pub(crate) fn endpoint(&self, choice: &PortChoice) -> Option<(String, u16)> {
        let definition = &self.definition;
        let index = match definition.port_index(choice) {
            Some(index) => index,
            None => match choice {
                PortChoice::Number(port) => return Some((self.address_for(None)?, *port)),
                _ => return None,
            },
        };
        let port = definition.ports.get(index)?;
        match port.host {
            Some(_) => {
                let nth = definition.ports[..index].iter().filter(|p| p.host.is_some()).count();
                Some((self.host().to_owned(), *self.ports.get(nth)?))
            }
            None => Some((self.address_for(Some(port.container))?, port.container)),
        }
    }

    fn address_for(&self, _container_port: Option<u16>) -> Option<String> {
        match self.definition.network {
            Network::Host | Network::Bridge => Some(self.host().to_owned()),
            Network::Container => self.addresses.first().map(IpAddr::to_string),
        }
    }
}

/// Random (version 4), as Mesos makes them.
pub(crate) fn uuid() -> String {
    let bits = fastrand::u128(..) & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// As Marathon writes times: milliseconds, UTC.
pub(crate) fn iso(time: Timestamp) -> String {
    format!("{time:.3}")
}
