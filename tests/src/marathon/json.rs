//! Marathon's JSON of what is in the world. Written straight to bytes: a bench asks for 100,000 tasks.

use std::{net::IpAddr, sync::Arc};

use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::{Value, json};

use super::{
    definition::{Definition, Object},
    deploy::Deployment,
    instance::{Condition, Instance, iso},
    world::App,
};

/// What a client wants to see beside the definition.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Embed {
    pub tasks: bool,
    pub counts: bool,
    pub deployments: bool,
    pub readiness: bool,
    pub last_failure: bool,
}

/// An app as `/v2/apps` shows it.
pub(crate) struct AppView<'a> {
    pub app: &'a App,
    pub embed: Embed,
    pub deployments: Vec<String>,
    /// A fault: keys that are written over.
    pub broken: Option<&'a Object>,
}

/// A task; with service ports only in `/v2/tasks`, as in Marathon.
pub(crate) struct TaskView<'a> {
    pub instance: &'a Instance,
    pub service_ports: bool,
}

impl Serialize for AppView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let App { definition, instances, .. } = self.app;
        let mut map = serializer.serialize_map(None)?;
        let broken = |key: &str| self.broken.is_some_and(|b| b.contains_key(key));
        for (key, value) in definition.json.iter().filter(|(key, _)| !broken(key)) {
            map.serialize_entry(key, value)?;
        }
        for (key, value) in self.broken.into_iter().flatten() {
            map.serialize_entry(key, value)?;
        }
        let mut entry = |key: &str, value: &dyn ErasedSerialize| match broken(key) {
            true => Ok(()),
            false => map.serialize_entry(key, &value.value()),
        };
        entry("id", &definition.id)?;
        entry("instances", &definition.instances)?;
        entry("version", &definition.version)?;
        entry(
            "versionInfo",
            &json!({"lastScalingAt": self.app.scaled_at, "lastConfigChangeAt": self.app.configured_at}),
        )?;
        let tasks = || instances.values().filter(|i| i.condition != Condition::Scheduled);
        if self.embed.counts {
            let count = |wanted: &dyn Fn(&Instance) -> bool| tasks().filter(|i| wanted(i)).count();
            let staged = |i: &Instance| matches!(i.condition, Condition::Provisioned | Condition::Starting);
            entry("tasksStaged", &count(&staged))?;
            entry("tasksRunning", &count(&|i| i.condition == Condition::Running))?;
            entry("tasksHealthy", &count(&|i| i.healthy() == Some(true)))?;
            entry("tasksUnhealthy", &count(&|i| i.healthy() == Some(false)))?;
        }
        if self.embed.deployments || self.embed.tasks {
            let ids: Vec<Value> = self.deployments.iter().map(|id| json!({"id": id})).collect();
            entry("deployments", &Value::Array(ids))?;
        }
        if self.embed.readiness {
            entry("readinessCheckResults", &Value::Array(tasks().flat_map(|i| readiness_results(i)).collect()))?;
        }
        if let Some(failure) = self.app.last_failure.as_ref().filter(|_| self.embed.last_failure) {
            entry("lastTaskFailure", failure)?;
        }
        if self.embed.tasks && !broken("tasks") {
            let list: Vec<TaskView> = tasks().map(|instance| TaskView { instance, service_ports: false }).collect();
            map.serialize_entry("tasks", &list)?;
        }
        map.end()
    }
}

/// The few kinds of values that an app's own keys have.
trait ErasedSerialize {
    fn value(&self) -> Value;
}

impl<T: Serialize> ErasedSerialize for T {
    fn value(&self) -> Value {
        serde_json::to_value(self).expect("text, numbers and JSON")
    }
}

impl Serialize for TaskView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let i = self.instance;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("appId", &i.definition.id)?;
        map.serialize_entry("id", &i.task_id())?;
        map.serialize_entry("host", i.host())?;
        map.serialize_entry("ipAddresses", &Addresses(&i.addresses))?;
        map.serialize_entry("ports", &i.ports)?;
        let service_ports: Vec<u16> = match self.service_ports {
            true => i.definition.ports.iter().map(|p| p.service).collect(),
            false => Vec::new(),
        };
        map.serialize_entry("servicePorts", &service_ports)?;
        if let Some((_, slave)) = &i.agent {
            map.serialize_entry("slaveId", slave)?;
        }
        map.serialize_entry("state", i.condition.task_state())?;
        map.serialize_entry("stagedAt", &iso(i.staged_at))?;
        if let Some(at) = i.started_at {
            map.serialize_entry("startedAt", &iso(at))?;
        }
        map.serialize_entry("version", &i.definition.version)?;
        map.serialize_entry("localVolumes", &[(); 0])?;
        map.serialize_entry("role", "*")?;
        let health: Vec<Value> = i.health.iter().flatten().map(|result| health_result(i, result)).collect();
        if !health.is_empty() {
            map.serialize_entry("healthCheckResults", &health)?;
        }
        map.end()
    }
}

struct Addresses<'a>(&'a [IpAddr]);

impl Serialize for Addresses<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(
            self.0.iter().map(|address| Address {
                ip_address: *address,
                protocol: if address.is_ipv4() { "IPv4" } else { "IPv6" },
            }),
        )
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Address {
    ip_address: IpAddr,
    protocol: &'static str,
}

pub(crate) fn ip_addresses(addresses: &[IpAddr]) -> Value {
    Addresses(addresses).value()
}

fn health_result(instance: &Instance, result: &super::instance::HealthResult) -> Value {
    json!({
        "alive": result.alive, "consecutiveFailures": result.consecutive_failures,
        "firstSuccess": result.first_success.map(iso), "lastFailure": result.last_failure.map(iso),
        "lastSuccess": result.last_success.map(iso), "lastFailureCause": result.last_failure_cause,
        "instanceId": instance.id,
    })
}

pub(crate) fn readiness_results(instance: &Instance) -> Vec<Value> {
    let shown = |r: &super::instance::ReadinessResult| {
        let mut json = json!({"name": r.name, "taskId": instance.task_id(), "ready": r.ready});
        if let Some(response) = &r.last_response {
            json["lastResponse"] = response.clone();
        }
        json
    };
    instance.readiness.iter().map(shown).collect()
}

/// A definition alone: in events, in `/versions/{v}`, in groups and in the queue.
pub(crate) fn definition(d: &Definition) -> Value {
    let mut json = d.json.clone();
    json.insert("id".into(), d.id.as_str().into());
    json.insert("instances".into(), d.instances.into());
    json.insert("version".into(), d.version.as_str().into());
    Value::Object(json)
}

/// A deployment as `/v2/deployments` lists it.
pub(crate) fn deployment(d: &Deployment, app: &dyn Fn(&str) -> Option<Arc<App>>) -> Value {
    let current: Vec<Value> = d
        .steps
        .get(d.current.saturating_sub(1))
        .into_iter()
        .flatten()
        .map(|action| {
            let results: Vec<Value> = app(&action.app)
                .map(|a| a.instances.values().flat_map(|i| readiness_results(i)).collect())
                .unwrap_or_default();
            json!({"action": action.kind.name(), "app": action.app, "readinessCheckResults": results})
        })
        .collect();
    json!({
        "id": d.id, "version": d.version, "affectedApps": d.affected, "affectedPods": [], "steps": steps(d),
        "currentActions": current, "currentStep": d.current, "totalSteps": d.steps.len(),
    })
}

fn steps(d: &Deployment) -> Vec<Value> {
    d.steps
        .iter()
        .map(|step| {
            let actions: Vec<Value> = step.iter().map(|a| json!({"action": a.kind.name(), "app": a.app})).collect();
            json!({"actions": actions})
        })
        .collect()
}

/// A deployment as events quote it (the light form, the only one since 1.8).
pub(crate) fn plan(d: &Deployment) -> Value {
    json!({"id": d.id, "version": d.version, "affectedApps": d.affected, "affectedPods": [], "steps": steps(d)})
}

pub(crate) fn step(d: &Deployment, number: usize) -> Value {
    let actions = d.steps.get(number).into_iter().flatten();
    json!({"actions": actions.map(|a| json!({"action": a.kind.name(), "app": a.app})).collect::<Vec<_>>()})
}
