//! The event stream: what a message says is applied at once where that is enough, else the app is asked for.
//!
//! Order is not guaranteed and messages may be lost or come twice, so nothing here is taken back by an older word:
//! a dead instance does not come back by an event, and a sign of stopping stays.

use std::{net::IpAddr, sync::Arc};

use super::{StreamEvent, Turn};
use crate::model::app::{AppId, Health, Instance, InstanceId, StopSign, TaskState, Version};

/// What `status_update_event` says of a task that runs.
struct Running {
    task: Arc<str>,
    host: Option<Arc<str>>,
    agent: Option<Arc<str>>,
    addresses: Vec<IpAddr>,
    ports: Vec<u16>,
    version: Option<Version>,
}

impl Turn<'_> {
    pub(super) fn stream(&mut self, event: StreamEvent) {
        if let StreamEvent::Status { instance, .. }
        | StreamEvent::InstanceChanged { instance, .. }
        | StreamEvent::Health { instance, .. }
        | StreamEvent::UnhealthyKill { instance, .. }
        | StreamEvent::Gone { instance, .. } = &event
        {
            self.state.recent.touch(instance, self.now);
            self.state.unexplained.remove(instance);
        }
        match event {
            StreamEvent::Status { app, instance, task, state, host, agent, addresses, ports, version } => {
                match state.as_str() {
                    "TASK_KILLING" => self.stops(&app, &instance, StopSign::Killing),
                    "TASK_RUNNING" => {
                        let told = Running { task, host, agent, addresses, ports, version };
                        self.runs(&app, &instance, told);
                    }
                    "TASK_UNREACHABLE" | "TASK_LOST" => self.unreachable_instance(&app, &instance),
                    "TASK_FINISHED"
                    | "TASK_FAILED"
                    | "TASK_KILLED"
                    | "TASK_ERROR"
                    | "TASK_DROPPED"
                    | "TASK_GONE"
                    | "TASK_GONE_BY_OPERATOR" => self.ends(&app, &instance),
                    // Staging and starting: nothing to serve yet, TASK_RUNNING follows.
                    _ => {}
                }
            }
            StreamEvent::InstanceChanged { app, instance, condition, at } => match condition.as_str() {
                "Running" => self.said_running(&app, &instance, at),
                "Killing" => self.stops(&app, &instance, StopSign::Killing),
                "Unreachable" | "UnreachableInactive" => self.unreachable_instance(&app, &instance),
                "Killed" | "Finished" | "Failed" | "Error" | "Dropped" | "Gone" => self.ends(&app, &instance),
                _ => {}
            },
            StreamEvent::Health { app, instance, healthy } => {
                let health = match healthy {
                    Some(true) => Health::Healthy,
                    Some(false) => Health::Unhealthy,
                    // No result is no news (a new leader starts without results).
                    None => return,
                };
                if !self.change(&app, &instance, |instance| instance.health = health)
                    && !self.state.recent.is_dead(&instance)
                {
                    self.fetch_app(&app);
                }
            }
            StreamEvent::UnhealthyKill { app, instance } => {
                self.state.recent.stops(&instance, StopSign::UnhealthyKill, self.now);
                self.change(&app, &instance, |instance| {
                    instance.stopping.get_or_insert(StopSign::UnhealthyKill);
                });
            }
            StreamEvent::Gone { app, instance } => self.ends(&app, &instance),
            StreamEvent::AppTerminated { app } => {
                self.state.recent.bury_app(&app, self.now);
                self.remove_app(&app);
                if self.state.doubts.contains_key(&app) {
                    let others = self.state.doubts.keys().filter(|doubted| **doubted != app).cloned().collect();
                    self.believe_or_doubt(others);
                }
            }
            StreamEvent::AppsChanged { apps } => apps.iter().for_each(|app| self.fetch_app(app)),
            // New apps of the group are in no list here: only the full one tells.
            StreamEvent::GroupChanged { .. } => self.fetch_all(),
            StreamEvent::SchedulerDisconnected(true) => {
                self.state.links.disconnected = true;
                let text = "Marathon has lost its Mesos master and cannot see what runs: nothing is withdrawn because a \
                            list leaves it out, until it is back. Check the Mesos masters";
                self.raise("scheduler-disconnected", text.to_owned());
            }
            StreamEvent::SchedulerDisconnected(false) => {
                self.state.links.disconnected = false;
                self.calm("scheduler-disconnected");
                self.fetch_all();
            }
        }
    }

    fn stops(&mut self, app: &AppId, instance: &InstanceId, sign: StopSign) {
        self.state.recent.stops(instance, sign, self.now);
        self.change(app, instance, |instance| {
            instance.stopping.get_or_insert(sign);
            if sign == StopSign::Killing {
                instance.state = TaskState::Killing;
            }
        });
    }

    fn ends(&mut self, app: &AppId, instance: &InstanceId) {
        self.state.recent.bury(instance, self.now);
        let known = self.state.observed.apps.get(app).is_some_and(|app| app.instances.contains_key(instance));
        if known {
            self.app_mut(app, |app| {
                app.instances.remove(instance);
            });
        }
    }

    fn unreachable_instance(&mut self, app: &AppId, instance: &InstanceId) {
        self.change(app, instance, |instance| {
            if matches!(instance.state, TaskState::Running) {
                instance.state = TaskState::Unreachable;
            }
        });
        self.fetch_app(app);
    }

    fn runs(&mut self, app: &AppId, id: &InstanceId, told: Running) {
        let known = self.state.observed.apps.get(app).and_then(|app| app.instances.get(id)).map(|known| known.state);
        match known {
            // Repeated with every Mesos health result: nothing new.
            Some(TaskState::Running | TaskState::Killing) => {}
            Some(TaskState::Unreachable) => {
                self.state.recent.runs(id, self.now);
                self.change(app, id, |instance| instance.state = TaskState::Running);
                self.fetch_app(app);
            }
            Some(TaskState::Staging | TaskState::Starting) => {
                self.state.recent.runs(id, self.now);
                self.change(app, id, |instance| {
                    instance.state = TaskState::Running;
                    instance.host = told.host.unwrap_or_else(|| instance.host.clone());
                    instance.agent = told.agent.or_else(|| instance.agent.clone());
                    instance.addresses = told.addresses;
                    instance.ports = told.ports;
                });
                self.fetch_app(app);
            }
            None => {
                if !self.state.recent.is_dead(id) {
                    self.state.recent.runs(id, self.now);
                    self.appears(app, id, told);
                }
                self.fetch_app(app);
            }
        }
    }

    /// Takes an instance in by its event alone, if the definition that it runs is known. Not with readiness checks:
    /// whether a deployment runs is only in the app's answer.
    fn appears(&mut self, app: &AppId, id: &InstanceId, told: Running) {
        let (Some(host), Some(version)) = (told.host, told.version) else { return };
        let definition = self.state.observed.apps.get(app).and_then(|app| app.definitions.get(&version));
        if definition.is_none_or(|definition| definition.readiness) {
            return;
        }
        let instance = Instance {
            id: id.clone(),
            task: told.task,
            state: TaskState::Running,
            version,
            host,
            agent: told.agent,
            addresses: told.addresses,
            ports: told.ports,
            health: Health::Unknown,
            ready: None,
            started_at: None,
            stopping: self.state.recent.stop_sign(id),
            admitted: false,
        };
        self.app_mut(app, |app| {
            app.instances.insert(instance.id.clone(), Arc::new(instance));
        });
    }

    /// Running of an instance that runs already is the first sign that Marathon is about to stop it.
    fn said_running(&mut self, app: &AppId, id: &InstanceId, at: Option<jiff::Timestamp>) {
        let known = self.state.observed.apps.get(app).and_then(|app| app.instances.get(id)).cloned();
        match known {
            Some(known) if known.state == TaskState::Running => {
                if known.stopping.is_none() && self.state.recent.is_goal_change(id, at, known.started_at, self.now) {
                    self.stops(app, id, StopSign::GoalChanged);
                }
            }
            Some(known) => {
                self.state.recent.announces(id, at, self.now);
                if known.state == TaskState::Unreachable {
                    self.change(app, id, |instance| instance.state = TaskState::Running);
                }
                self.fetch_app(app);
            }
            None => {
                self.state.recent.announces(id, at, self.now);
                self.fetch_app(app);
            }
        }
    }
}
