//! `/v2/apps`: apps with their definitions, tasks, deployments and readiness, in every style that Marathon has had.

use std::{collections::BTreeMap, sync::Arc};

use imbl::OrdMap;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use super::read::{Address, addresses, instance_id, nullable};
use crate::model::app::{App, AppId, Definition, Health, Instance, Network, Port, TaskState, Version};

#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    #[error("its id {0:?} does not start with /")]
    Id(String),
    #[error("it has no version")]
    NoVersion,
}

/// A full list: what could be read, and what could not.
#[derive(Debug, Default)]
pub(super) struct List {
    pub(super) apps: Vec<App>,
    pub(super) broken: Vec<(AppId, String)>,
}

#[derive(Deserialize)]
struct Strict {
    apps: Vec<RawApp>,
}

#[derive(Deserialize)]
struct Loose {
    apps: Vec<Value>,
}

/// Reads the list at once; only if an app in it is broken, app by app.
pub(super) fn decode_list(body: &[u8]) -> Result<List, Unreadable> {
    let mut list = List::default();
    if let Ok(strict) = serde_json::from_slice::<Strict>(body) {
        for raw in strict.apps {
            let id = raw.id.clone();
            list.take(&id, raw.into_app());
        }
        return Ok(list);
    }
    for value in serde_json::from_slice::<Loose>(body)?.apps {
        let id = value.get("id").and_then(Value::as_str).unwrap_or("(without an id)").to_owned();
        let app = serde_json::from_value::<RawApp>(value).map_err(Unreadable::from).and_then(RawApp::into_app);
        list.take(&id, app);
    }
    Ok(list)
}

impl List {
    fn take(&mut self, id: &str, app: Result<App, Unreadable>) {
        match app {
            Ok(app) => self.apps.push(app),
            Err(why) => self.broken.push((id.into(), why.to_string())),
        }
    }
}

/// `{"app": {...}}`.
pub(super) fn decode_one(body: &[u8]) -> Result<App, Unreadable> {
    #[derive(Deserialize)]
    struct One {
        app: RawApp,
    }
    serde_json::from_slice::<One>(body)?.app.into_app()
}

/// `/v2/apps/{id}/versions/{version}`: the app itself, without tasks.
pub(super) fn decode_definition(body: &[u8]) -> Result<Definition, Unreadable> {
    Ok(serde_json::from_slice::<RawApp>(body)?.definition())
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawApp {
    id: String,
    version: Option<Version>,
    #[serde(default, deserialize_with = "nullable")]
    instances: u32,
    #[serde(default, deserialize_with = "nullable")]
    version_info: VersionInfo,
    #[serde(default, deserialize_with = "nullable")]
    container: Container,
    #[serde(default, deserialize_with = "nullable")]
    networks: Vec<RawNetwork>,
    ip_address: Option<IpAddress>,
    port_definitions: Option<Vec<PortDefinition>>,
    #[serde(default, deserialize_with = "nullable")]
    ports: Vec<u16>,
    #[serde(default, deserialize_with = "nullable")]
    labels: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "nullable")]
    health_checks: Vec<HealthCheck>,
    #[serde(default, deserialize_with = "nullable")]
    readiness_checks: Vec<Value>,
    #[serde(default, deserialize_with = "nullable")]
    readiness_check_results: Vec<ReadinessResult>,
    #[serde(default, deserialize_with = "nullable")]
    deployments: Vec<Deployment>,
    #[serde(default, deserialize_with = "nullable")]
    tasks: Vec<Task>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct VersionInfo {
    last_config_change_at: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    port_mappings: Option<Vec<PortMapping>>,
    #[serde(default, deserialize_with = "nullable")]
    docker: Docker,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Docker {
    network: Option<String>,
    port_mappings: Option<Vec<PortMapping>>,
}

#[derive(Debug, Deserialize)]
struct RawNetwork {
    mode: Option<String>,
    name: Option<String>,
}

/// The way of Marathon 0.13 to 1.4 to give a container its own address.
#[derive(Debug, Deserialize)]
struct IpAddress {
    #[serde(default, deserialize_with = "nullable")]
    discovery: Discovery,
}

#[derive(Debug, Default, Deserialize)]
struct Discovery {
    #[serde(default, deserialize_with = "nullable")]
    ports: Vec<DiscoveryPort>,
}

#[derive(Debug, Deserialize)]
struct DiscoveryPort {
    number: u16,
    name: Option<String>,
    protocol: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PortMapping {
    #[serde(default, deserialize_with = "nullable")]
    container_port: u16,
    host_port: Option<u16>,
    #[serde(default, deserialize_with = "nullable")]
    service_port: u16,
    name: Option<String>,
    protocol: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct PortDefinition {
    #[serde(default, deserialize_with = "nullable")]
    port: u16,
    name: Option<String>,
    protocol: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HealthCheck {
    max_consecutive_failures: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReadinessResult {
    task_id: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    ready: bool,
}

#[derive(Debug, Deserialize)]
struct Deployment {
    id: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Task {
    id: Arc<str>,
    #[serde(default, deserialize_with = "nullable")]
    host: String,
    #[serde(default, deserialize_with = "nullable")]
    ports: Vec<u16>,
    #[serde(default, deserialize_with = "nullable")]
    ip_addresses: Vec<Address>,
    state: Option<String>,
    version: Option<Version>,
    slave_id: Option<Arc<str>>,
    started_at: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    health_check_results: Vec<Option<HealthResult>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HealthResult {
    #[serde(default, deserialize_with = "nullable")]
    alive: bool,
    #[serde(default, deserialize_with = "nullable")]
    consecutive_failures: u32,
}

/// Marathon's default for `maxConsecutiveFailures`.
const MAX_FAILURES: u32 = 3;

impl RawApp {
    fn into_app(self) -> Result<App, Unreadable> {
        if !self.id.starts_with('/') {
            return Err(Unreadable::Id(self.id));
        }
        let version = self.version.clone().ok_or(Unreadable::NoVersion)?;
        let definition = Arc::new(self.definition());
        let mut definitions = OrdMap::unit(version.clone(), definition.clone());
        // Scaling makes a new version without a new definition: instances since the last real change run this one.
        let unchanged_since = self.version_info.last_config_change_at.as_deref().and_then(time);
        let mut instances = OrdMap::new();
        for task in &self.tasks {
            let Some(instance) = self.instance(task, &version, &definition) else { continue };
            if let (Some(since), Some(started_with)) = (unchanged_since, time(&instance.version))
                && started_with >= since
            {
                definitions.insert(instance.version.clone(), definition.clone());
            }
            instances.insert(instance.id.clone(), Arc::new(instance));
        }
        Ok(App {
            id: self.id.into(),
            version,
            wanted: self.instances,
            definitions,
            instances,
            deployments: self.deployments.into_iter().map(|deployment| deployment.id).collect(),
        })
    }

    /// `None`: the task has ended, or is nowhere yet.
    fn instance(&self, task: &Task, newest: &Version, definition: &Definition) -> Option<Instance> {
        let state = match task.state.as_deref() {
            Some("TASK_RUNNING") => TaskState::Running,
            Some("TASK_STAGING") => TaskState::Staging,
            Some("TASK_STARTING") => TaskState::Starting,
            Some("TASK_KILLING") => TaskState::Killing,
            Some("TASK_UNREACHABLE" | "TASK_LOST") => TaskState::Unreachable,
            // Before 1.2 there was no state: a task that has started runs.
            None if task.started_at.is_some() => TaskState::Running,
            None => TaskState::Staging,
            Some(_) => return None,
        };
        let id = instance_id(&task.id);
        let mut readiness = self
            .readiness_check_results
            .iter()
            .filter(|result| result.task_id.as_deref().is_some_and(|task| instance_id(task) == id))
            .map(|result| result.ready)
            .peekable();
        let ready = readiness.peek().is_some().then(|| readiness.all(|ready| ready));
        Some(Instance {
            id,
            task: task.id.clone(),
            state,
            version: task.version.clone().unwrap_or_else(|| newest.clone()),
            host: task.host.as_str().into(),
            agent: task.slave_id.clone(),
            addresses: addresses(&task.ip_addresses),
            ports: task.ports.clone(),
            health: health(definition, &task.health_check_results),
            ready,
            started_at: task.started_at.as_deref().and_then(time),
            stopping: None,
            admitted: false,
        })
    }

    fn definition(&self) -> Definition {
        let network = self.network();
        Definition {
            network,
            ports: self.ports(network),
            labels: self.labels.clone().into_iter().collect(),
            health_checks: self
                .health_checks
                .iter()
                .map(|check| check.max_consecutive_failures.unwrap_or(MAX_FAILURES))
                .collect(),
            readiness: !self.readiness_checks.is_empty(),
        }
    }

    fn network(&self) -> Network {
        let mode = |network: &RawNetwork| match (network.mode.as_deref(), &network.name) {
            (Some("container/bridge"), _) => Network::Bridge,
            (Some("container"), _) | (None, Some(_)) => Network::Container,
            _ => Network::Host,
        };
        // Since 1.5; what is told in the old way before it.
        if let Some(network) = self.networks.first() {
            return mode(network);
        }
        match self.container.docker.network.as_deref() {
            _ if self.ip_address.is_some() => Network::Container,
            Some("USER") => Network::Container,
            Some("BRIDGE") => Network::Bridge,
            _ => Network::Host,
        }
    }

    fn ports(&self, network: Network) -> Vec<Port> {
        if network == Network::Host {
            return match &self.port_definitions {
                Some(definitions) => definitions.iter().map(PortDefinition::to_port).collect(),
                None => self.ports.iter().map(|&port| host_port(port, None, None)).collect(),
            };
        }
        let mappings = self.container.port_mappings.as_ref().or(self.container.docker.port_mappings.as_ref());
        match (mappings, &self.ip_address) {
            (Some(mappings), _) if !mappings.is_empty() => {
                mappings.iter().map(|mapping| mapping.to_port(network)).collect()
            }
            (_, Some(address)) => address.discovery.ports.iter().map(DiscoveryPort::to_port).collect(),
            _ => Vec::new(),
        }
    }
}

impl PortMapping {
    fn to_port(&self, network: Network) -> Port {
        let (tcp, udp) = protocols(self.protocol.as_deref());
        Port {
            name: name(&self.name),
            tcp,
            udp,
            container: self.container_port,
            // On a bridge every port is mapped to one of the agent's: null is 0, Marathon chooses.
            host: if network == Network::Bridge { Some(self.host_port.unwrap_or(0)) } else { self.host_port },
            service: self.service_port,
            labels: self.labels.clone().into_iter().collect(),
        }
    }
}

impl PortDefinition {
    fn to_port(&self) -> Port {
        let labels = self.labels.clone().into_iter().collect();
        Port { labels, ..host_port(self.port, name(&self.name), self.protocol.as_deref()) }
    }
}

impl DiscoveryPort {
    fn to_port(&self) -> Port {
        Port { host: None, service: 0, ..host_port(self.number, name(&self.name), self.protocol.as_deref()) }
    }
}

fn host_port(port: u16, name: Option<String>, protocol: Option<&str>) -> Port {
    let (tcp, udp) = protocols(protocol);
    Port { name, tcp, udp, container: port, host: Some(port), service: port, labels: OrdMap::new() }
}

fn name(name: &Option<String>) -> Option<String> {
    name.clone().filter(|name| !name.is_empty())
}

/// `tcp`, `udp`, or both as `udp,tcp`; TCP if nothing is said.
fn protocols(listed: Option<&str>) -> (bool, bool) {
    let has = |wanted: &str| listed.is_some_and(|listed| listed.split(',').any(|one| one.trim() == wanted));
    (has("tcp") || !has("udp"), has("udp"))
}

/// Healthy by all checks, unhealthy by one that has failed often enough. `alive` alone turns at the first failure:
/// until the count is reached that is no news.
fn health(definition: &Definition, results: &[Option<HealthResult>]) -> Health {
    // The results do not say whose they are: the most patient check counts.
    let most = definition.health_checks.iter().copied().max().unwrap_or(MAX_FAILURES).max(1);
    let told = || results.iter().flatten();
    if definition.health_checks.is_empty() {
        Health::Unknown
    } else if told().any(|result| !result.alive && result.consecutive_failures >= most) {
        Health::Unhealthy
    } else if told().filter(|result| result.alive).count() >= definition.health_checks.len() {
        Health::Healthy
    } else {
        Health::Unknown
    }
}

fn time(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

#[cfg(test)]
#[path = "apps_tests.rs"]
mod tests;
