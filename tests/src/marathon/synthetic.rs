//! Apps whose tasks are no processes: for benches that need very many, and events at known instants.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Instant};

use anyhow::{Context, anyhow};
use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::watch;

use super::{
    Standin,
    definition::{Definition, absolute},
    events::{self, Event, Receipt},
    instance::{Condition, HealthResult, Instance},
    world::App,
};

/// Where a task is said to run.
#[derive(Clone, Debug)]
pub struct SyntheticTask {
    pub host: String,
    /// Ports of the agent, one for each port of the app that has one.
    pub ports: Vec<u16>,
    /// Of the container, in container mode.
    pub addresses: Vec<IpAddr>,
}

/// What is to happen to a synthetic app.
#[derive(Clone, Debug)]
pub enum SyntheticChange {
    /// A new task runs.
    Start(SyntheticTask),
    /// Marathon has decided to stop the task (its goal changes).
    Doom(String),
    /// TASK_KILLING.
    Killing(String),
    /// TASK_KILLED, and it is gone.
    Killed(String),
    Health(String, bool),
}

/// An event that is on its way to the streams.
#[derive(Debug)]
pub struct Pushed {
    /// The instance's id.
    pub instance: Arc<str>,
    written: watch::Receiver<Option<Instant>>,
}

impl Pushed {
    /// The instant just before the event's bytes were handed to the kernel, on the stream that was first. Waits for
    /// ever when there is no stream.
    pub async fn written(mut self) -> Instant {
        loop {
            if let Some(at) = *self.written.borrow_and_update() {
                return at;
            }
            if self.written.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

impl Standin {
    /// Puts many apps at once, running already; no event tells of it. The JSON is as for `POST /v2/apps`; `instances`
    /// is the number of tasks given.
    pub fn add_synthetic(&self, apps: impl IntoIterator<Item = (Value, Vec<SyntheticTask>)>) -> anyhow::Result<()> {
        self.core.change(|world| {
            let version = world.new_version();
            for (json, tasks) in apps {
                let mut put = json.as_object().cloned().context("an app is a JSON object")?;
                let id = absolute(put.get("id").and_then(Value::as_str).context("an app needs an id")?);
                put.insert("instances".into(), tasks.len().into());
                // A command that never runs.
                put.entry("cmd").or_insert("true".into());
                let definition = Definition::parse(&id, &put, &version, &mut || world.service_port())
                    .map_err(|details| anyhow!("{id} is not valid: {details:?}"))?;
                let definition = Arc::new(definition);
                let instances = tasks.into_iter().map(|task| running(&self.core.agents, &definition, task));
                let app = App {
                    versions: BTreeMap::from([(version.clone(), definition.clone())]),
                    instances: instances.map(|i| (i.id.clone(), Arc::new(i))).collect(),
                    definition,
                    scaled_at: version.clone(),
                    configured_at: version.clone(),
                    gone: false,
                    last_failure: None,
                    synthetic: true,
                };
                world.apps.insert(id.into(), Arc::new(app));
            }
            Ok(())
        })
    }

    /// Makes a change and says so with the events that Marathon would send; the first of them is the one whose way is
    /// followed.
    pub fn push(&self, app: &str, change: SyntheticChange) -> anyhow::Result<Pushed> {
        let (receipt, written) = Receipt::new();
        let core = &self.core;
        let instance = core.change(|world| {
            let state = world.app_mut(app).with_context(|| format!("there is no app {app}"))?;
            let (instance, said): (Arc<Instance>, Vec<Event>) = match change {
                SyntheticChange::Start(task) => {
                    let instance = Arc::new(running(&core.agents, &state.definition, task));
                    state.instances.insert(instance.id.clone(), instance.clone());
                    let definition =
                        Definition { instances: state.counting().count() as u32, ..(*state.definition).clone() };
                    state.definition = Arc::new(definition);
                    let said = vec![events::status_update(&instance, ""), events::instance_changed(&instance)];
                    (instance, said)
                }
                SyntheticChange::Doom(id) => {
                    let instance = edit(state, &id, |i| i.doomed = true)?;
                    let said = vec![events::instance_changed(&instance)];
                    (instance, said)
                }
                SyntheticChange::Killing(id) => {
                    let instance = edit(state, &id, |i| (i.doomed, i.condition) = (true, Condition::Killing))?;
                    let said = vec![events::status_update(&instance, ""), events::instance_changed(&instance)];
                    (instance, said)
                }
                SyntheticChange::Killed(id) => {
                    let instance = edit(state, &id, |i| (i.doomed, i.condition) = (true, Condition::Killed))?;
                    state.instances.remove(&instance.id);
                    let definition =
                        Definition { instances: state.counting().count() as u32, ..(*state.definition).clone() };
                    state.definition = Arc::new(definition);
                    let said = vec![events::status_update(&instance, ""), events::instance_changed(&instance)];
                    (instance, said)
                }
                SyntheticChange::Health(id, alive) => {
                    let instance = edit(state, &id, |i| {
                        let now = Timestamp::now();
                        i.health.fill(Some(HealthResult {
                            alive,
                            consecutive_failures: if alive { 0 } else { u32::MAX },
                            first_success: Some(i.started_at.unwrap_or(now)),
                            last_success: alive.then_some(now),
                            last_failure: (!alive).then_some(now),
                            last_failure_cause: None,
                        }));
                    })?;
                    let said = vec![
                        events::instance_health_changed(&instance),
                        events::health_status_changed(&instance, alive),
                    ];
                    (instance, said)
                }
            };
            let mut receipt = Some(receipt);
            said.into_iter().for_each(|event| core.bus.publish_with(event, receipt.take()));
            anyhow::Ok(instance)
        })?;
        Ok(Pushed { instance: instance.id.clone(), written })
    }

    /// Says anything on the event bus.
    pub fn say(&self, event: Event) {
        self.core.bus.publish(event);
    }
}

fn edit(app: &mut App, id: &str, edit: impl FnOnce(&mut Instance)) -> anyhow::Result<Arc<Instance>> {
    let id = id.split("._app").next().unwrap_or(id);
    let instance = app.instances.get_mut(id).with_context(|| format!("there is no instance {id}"))?;
    edit(Arc::make_mut(instance));
    Ok(instance.clone())
}

fn running(agents: &[super::core::Agent], definition: &Arc<Definition>, task: SyntheticTask) -> Instance {
    let mut instance = Instance::new(definition.clone(), None);
    let known = agents.iter().find(|a| *a.host == *task.host).map(|a| a.id.clone());
    instance.condition = Condition::Running;
    instance.agent =
        Some((task.host.as_str().into(), known.unwrap_or_else(|| format!("synthetic-{}-S0", task.host).into())));
    instance.ports = task.ports;
    instance.addresses = task.addresses;
    instance.started_at = Some(instance.staged_at);
    instance
}
