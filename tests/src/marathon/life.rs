//! The life of one task, from the launch queue to its last event, told from top to bottom by [`live`].

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::{
    sync::mpsc,
    time::{sleep, sleep_until},
};

use super::{
    core::Core,
    definition::{Definition, Network},
    events, health,
    instance::{Condition, Instance, Order, iso},
    place::{self, Launch, Spawned},
    world::{Delay, World},
};
use crate::lab::{Mapping, Protocol};

/// Host ports of an agent that Mesos offers.
const HOST_PORTS: std::ops::RangeInclusive<u16> = 31_000..=32_000;
/// A task that ran for longer is not a crash.
const STABLE: Duration = Duration::from_secs(60);

/// Asks for `n` more instances of the definition.
pub(crate) fn launch(core: &Arc<Core>, world: &mut World, definition: &Arc<Definition>, n: usize) {
    for _ in 0..n {
        let (orders, inbox) = mpsc::unbounded_channel();
        let instance = Arc::new(Instance::new(definition.clone(), Some(orders)));
        core.bus.publish(events::instance_changed(&instance));
        let Some(app) = world.app_mut(&definition.id) else { return };
        app.instances.insert(instance.id.clone(), instance.clone());
        core.spawn(live(core.clone(), instance, inbox));
    }
}

/// Decides to stop an instance. The decision is announced: as an `instance_changed_event` with the old condition.
pub(crate) fn stop(core: &Arc<Core>, world: &mut World, instance: &Instance) {
    let (app, id) = (&instance.definition.id, &instance.id);
    if world.change(app, id, |i| !std::mem::replace(&mut i.doomed, true)) != Some(true) {
        return;
    }
    let Some(instance) = world.instance(app, id).cloned() else { return };
    core.bus.publish(events::instance_changed(&instance));
    match &instance.orders {
        // Its life is over if nobody listens any more.
        Some(orders) => _ = orders.send(Order::Kill),
        None => {
            end(core, world, &instance, Condition::Killed, "");
        }
    }
}

/// Brings an app that no deployment works on to its number of instances.
pub(crate) fn settle(core: &Arc<Core>, world: &mut World, app: &str) {
    let Some(state) = world.apps.get(app).filter(|a| !a.gone && !a.synthetic).cloned() else { return };
    if !world.locks([app]).is_empty() || core.stop.is_cancelled() {
        return;
    }
    let (have, want) = (state.counting().count(), state.definition.instances as usize);
    launch(core, world, &state.definition, want.saturating_sub(have));
    for victim in state.victims(have.saturating_sub(want)) {
        stop(core, world, &victim);
    }
}

async fn live(core: Arc<Core>, instance: Arc<Instance>, mut inbox: mpsc::UnboundedReceiver<Order>) {
    let mut life = Life { core, app: instance.definition.id.clone(), instance, agent: None };
    if let Some((condition, message)) = life.whole(&mut inbox).await {
        let Life { core, app, instance, agent } = life;
        core.change(|world| {
            if let Some(agent) = agent {
                instance.ports.iter().for_each(|port| _ = world.host_ports[agent].remove(port));
            }
            let Some(known) = world.instance(&app, &instance.id).cloned() else {
                // Expunged while it could not be reached: nobody knows it any more.
                core.bus.publish(events::unknown_instance_terminated(&instance));
                return;
            };
            end(&core, world, &known, condition, &message);
        });
    }
}

/// The last words about an instance.
pub(crate) fn end(core: &Arc<Core>, world: &mut World, instance: &Instance, condition: Condition, message: &str) {
    let app_id = &instance.definition.id;
    let placed = instance.agent.is_some();
    let mut ended = instance.clone();
    ended.condition = condition;
    if placed {
        core.bus.publish(events::status_update(&ended, message));
        core.bus.publish(events::instance_changed(&ended));
    }
    let Some(app) = world.app_mut(app_id) else { return };
    app.instances.remove(&instance.id);
    if matches!(condition, Condition::Failed | Condition::Gone) {
        app.last_failure = Some(json!({
            "appId": app_id, "host": ended.host(), "message": message, "state": condition.task_state(),
            "taskId": ended.task_id(), "instanceId": ended.id, "timestamp": iso(Timestamp::now()),
            "version": ended.definition.version, "slaveId": ended.agent.as_ref().map(|(_, id)| id),
        }));
    }
    let crashed = !instance.doomed && matches!(condition, Condition::Failed | Condition::Finished | Condition::Gone);
    if crashed {
        let ran = instance.started_at.map_or(Duration::ZERO, |at| Timestamp::now().duration_since(at).unsigned_abs());
        delay(world, &ended.definition, ran);
    }
    settle(core, world, app_id);
}

/// Makes the next start of the app wait longer.
fn delay(world: &mut World, definition: &Definition, ran: Duration) {
    let backoff = definition.backoff;
    let key: Arc<str> = definition.id.as_str().into();
    let last = match world.delays.get(&key) {
        Some(delay) if ran < STABLE => delay.last.mul_f64(backoff.factor),
        _ => backoff.first,
    };
    let last = last.min(backoff.most);
    world.delays.insert(key, Delay { last, until: Instant::now() + last });
}

struct Life {
    core: Arc<Core>,
    app: String,
    /// As it was last seen.
    instance: Arc<Instance>,
    /// Its agent's number.
    agent: Option<usize>,
}

type End = (Condition, String);

impl Life {
    /// How it ended, or `None` when the stand-in stops.
    async fn whole(&mut self, inbox: &mut mpsc::UnboundedReceiver<Order>) -> Option<End> {
        if !self.wait_for_a_place(inbox).await {
            return Some((Condition::Killed, String::new()));
        }
        let agent = &self.core.agents[self.agent?];
        let env = environment(&self.instance, &agent.host);
        let launch = Launch {
            command: self.instance.definition.command.clone(),
            network: self.instance.definition.network,
            mappings: mappings(&self.instance),
            sandbox: place::sandbox(self.core.sandbox.path(), &self.instance.task_id()),
            env: env.clone(),
        };
        let spawned = agent.place.spawn(launch).await;
        let (task, addresses) = match spawned {
            Ok((task, addresses)) => (Arc::new(task), addresses),
            Err(error) => return Some((Condition::Failed, format!("Failed to launch container: {error:#}"))),
        };
        let pid = task.pid();
        self.become_(Condition::Starting, "", |i| {
            i.addresses = addresses;
            i.pid = Some(pid);
        })?;
        self.become_(Condition::Running, "", |i| i.started_at = Some(Timestamp::now()))?;
        let checks = health::watch(&self.core, &self.instance, &task, env);
        let end = self.run(&task, inbox).await;
        drop(checks);
        end
    }

    /// The launch queue: until the app's backoff is over and an agent has room. `false`: killed before.
    async fn wait_for_a_place(&mut self, inbox: &mut mpsc::UnboundedReceiver<Order>) -> bool {
        let core = self.core.clone();
        let mut changes = core.changes();
        loop {
            changes.mark_unchanged();
            let delay = |world: &World| world.delays.get(self.app.as_str()).map(|d| d.until);
            let until = core.read(delay).filter(|at| *at > Instant::now());
            if until.is_none()
                && let Some((agent, instance)) = core.quietly(|world| place_on_an_agent(&core, world, &self.instance))
            {
                (self.agent, self.instance) = (Some(agent), instance);
                return true;
            }
            let later = sleep_until(until.unwrap_or(Instant::now() + Duration::from_secs(1)).into());
            tokio::select! {
                () = later => {}
                // The delay may have been reset.
                _ = changes.changed(), if until.is_some() => {}
                order = inbox.recv() => if !matches!(order, Some(Order::Return | Order::Lose)) { return false },
                () = core.stop.cancelled() => return false,
            }
        }
    }

    async fn run(&mut self, task: &Arc<Spawned>, inbox: &mut mpsc::UnboundedReceiver<Order>) -> Option<End> {
        let core = self.core.clone();
        let ended = task.ended();
        tokio::pin!(ended);
        let mut lost = false;
        // Set once it is told to stop: when the next, stronger step is due.
        let mut kill_at: Option<(tokio::time::Instant, Step)> = None;
        loop {
            let step = async {
                match kill_at {
                    Some((at, step)) => {
                        sleep_until(at).await;
                        step
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = core.stop.cancelled() => {
                    task.signal(Signal::SIGKILL);
                    ended.await;
                    return None;
                }
                status = &mut ended => {
                    let how = status.map(place::describe).unwrap_or_default();
                    return Some(match (kill_at.is_some(), status.is_some_and(|s| s.success())) {
                        (true, _) => (Condition::Killed, format!("Command terminated with {how}")),
                        (false, true) => (Condition::Finished, format!("Command exited with {how}")),
                        (false, false) => (Condition::Failed, format!("Command terminated with {how}")),
                    });
                }
                step = step => kill_at = Some(self.take(step, task)),
                order = inbox.recv() => match order? {
                    Order::Kill if kill_at.is_none() => {
                        kill_at = Some((tokio::time::Instant::now() + core.settings.goal_to_kill, Step::Terminate));
                    }
                    Order::Kill => {}
                    Order::Signal(number) => if let Ok(signal) = Signal::try_from(number) { task.signal(signal) },
                    Order::Lose if !lost => {
                        lost = true;
                        self.lose();
                    }
                    Order::Lose => {}
                    Order::Return => {
                        lost = false;
                        if self.become_(Condition::Running, "", |_| {}).is_none() {
                            // Marathon does not know it any more, and has it killed.
                            task.signal(Signal::SIGKILL);
                        }
                    }
                    Order::Vanish => {
                        task.signal(Signal::SIGKILL);
                        ended.await;
                        return Some((Condition::Gone, "Slave lost".to_owned()));
                    }
                },
            }
        }
    }

    fn take(&mut self, step: Step, task: &Spawned) -> (tokio::time::Instant, Step) {
        let now = tokio::time::Instant::now();
        match step {
            Step::Terminate => {
                if self.core.settings.task_killing {
                    self.become_(Condition::Killing, "", |_| {});
                }
                task.signal(Signal::SIGTERM);
                (now + self.instance.definition.kill_grace, Step::Kill)
            }
            Step::Kill => {
                task.signal(Signal::SIGKILL);
                (now + Duration::from_secs(1), Step::Kill)
            }
        }
    }

    /// Not heard of: first unreachable, then replaced, then forgotten, as the app's strategy says.
    fn lose(&mut self) {
        self.become_(Condition::Unreachable, "", |_| {});
        let Some((inactive, expunge)) = self.instance.definition.unreachable else { return };
        let (core, app, id) = (self.core.clone(), self.app.clone(), self.instance.id.clone());
        self.core.spawn(async move {
            let still = |world: &World| {
                world.instance(&app, &id).filter(|i| i.condition.task_state() == "TASK_UNREACHABLE").cloned()
            };
            tokio::select! { () = sleep(inactive) => {}, () = core.stop.cancelled() => return }
            core.change(|world| {
                if still(world).is_some() {
                    world.change(&app, &id, |i| i.condition = Condition::UnreachableInactive);
                    let instance = world.instance(&app, &id).expect("just changed").clone();
                    core.bus.publish(events::instance_changed(&instance));
                    settle(&core, world, &app);
                }
            });
            tokio::select! { () = sleep(expunge.saturating_sub(inactive)) => {}, () = core.stop.cancelled() => return }
            core.change(|world| {
                if still(world).is_some()
                    && let Some(app) = world.app_mut(&app)
                {
                    app.instances.remove(&id);
                }
            });
        });
    }

    /// Takes the next condition and says so; `None` if Marathon has forgotten the instance.
    fn become_(&mut self, condition: Condition, message: &str, also: impl FnOnce(&mut Instance)) -> Option<()> {
        let (core, app, id) = (&self.core, &self.app, &self.instance.id);
        // Said before anybody can act on it, or the deployment's next step would be heard of first.
        self.instance = core.change(|world| {
            world.change(app, id, |i| {
                also(i);
                i.condition = condition;
            })?;
            let instance = world.instance(app, id)?.clone();
            core.bus.publish(events::status_update(&instance, message));
            core.bus.publish(events::instance_changed(&instance));
            Some(instance)
        })?;
        Some(())
    }
}

#[derive(Clone, Copy)]
enum Step {
    Terminate,
    Kill,
}

/// The agent with the fewest tasks of the app that has the ports free. Constraints other than that are not obeyed.
fn place_on_an_agent(core: &Core, world: &mut World, instance: &Instance) -> Option<(usize, Arc<Instance>)> {
    let definition = &instance.definition;
    let app = world.apps.get(definition.id.as_str())?;
    let load = |n: &usize| app.instances.values().filter(|i| i.host() == &*core.agents[*n].host).count();
    let mut order: Vec<usize> = (0..core.agents.len()).collect();
    order.sort_by_key(load);
    let wanted: Vec<u16> = definition.ports.iter().filter_map(|p| p.host).collect();
    for n in order {
        let agent = &core.agents[n];
        let Some(ports) = take_ports(&mut world.host_ports[n], &wanted, &agent.place) else { continue };
        world.change(&definition.id, &instance.id, |i| {
            i.condition = Condition::Provisioned;
            i.agent = Some((agent.host.clone(), agent.id.clone()));
            i.ports = ports;
            i.staged_at = Timestamp::now();
        })?;
        let instance = world.instance(&definition.id, &instance.id)?.clone();
        core.bus.publish(events::status_update(&instance, ""));
        core.bus.publish(events::instance_changed(&instance));
        return Some((n, instance));
    }
    None
}

/// All or none.
fn take_ports(taken: &mut std::collections::BTreeSet<u16>, wanted: &[u16], place: &place::Place) -> Option<Vec<u16>> {
    let mut ports = Vec::new();
    let span = HOST_PORTS.end() - HOST_PORTS.start() + 1;
    for port in wanted {
        // From a random start, so that two stand-ins on one loopback seldom meet.
        let start = fastrand::u16(0..span);
        let free = |p: &u16| !taken.contains(p) && !ports.contains(p) && place.is_free(*p);
        let found = match *port {
            0 => (0..span).map(|n| HOST_PORTS.start() + (start + n) % span).find(free)?,
            fixed => Some(fixed).filter(|p| !taken.contains(p))?,
        };
        ports.push(found);
    }
    taken.extend(&ports);
    Some(ports)
}

fn mappings(instance: &Instance) -> Vec<Mapping> {
    if instance.definition.network == Network::Host {
        return Vec::new();
    }
    let mapped = instance.definition.ports.iter().filter(|p| p.host.is_some());
    mapped
        .zip(&instance.ports)
        .flat_map(|(port, host)| {
            let container = if port.container == 0 { *host } else { port.container };
            let protocols = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];
            let wanted = protocols.into_iter().filter(|(name, _)| port.protocol.contains(name));
            wanted.map(move |(_, protocol)| Mapping { host: *host, container, protocol })
        })
        .collect()
}

/// What Marathon and Mesos put into a task's environment; the app's own variables win.
fn environment(instance: &Instance, host: &str) -> BTreeMap<String, String> {
    let definition = &instance.definition;
    let mut env = BTreeMap::new();
    let mut set = |key: String, value: String| env.insert(key, value);
    let mut host_ports = instance.ports.iter();
    let mut all = Vec::new();
    for (n, port) in definition.ports.iter().enumerate() {
        // A port of the agent if it has one, else the container's.
        let number = port.host.and_then(|_| host_ports.next().copied()).unwrap_or(port.container);
        all.push(number.to_string());
        set(format!("PORT{n}"), number.to_string());
        let requested = if definition.network == Network::Host { port.service } else { port.container };
        set(format!("PORT_{requested}"), number.to_string());
        if let Some(name) = &port.name {
            set(
                format!("PORT_{}", name.to_uppercase().replace(|c: char| !c.is_ascii_alphanumeric(), "_")),
                number.to_string(),
            );
        }
    }
    if let Some(first) = all.first() {
        set("PORT".into(), first.clone());
    }
    set("PORTS".into(), all.join(","));
    for key in ["HOST", "TASK_HOST", "LIBPROCESS_IP"] {
        set(key.into(), host.to_owned());
    }
    set("MESOS_TASK_ID".into(), instance.task_id());
    set("MARATHON_APP_ID".into(), definition.id.clone());
    set("MARATHON_APP_VERSION".into(), definition.version.clone());
    for (key, resource) in [("cpus", "CPUS"), ("mem", "MEM"), ("disk", "DISK"), ("gpus", "GPUS")] {
        set(format!("MARATHON_APP_RESOURCE_{resource}"), definition.json[key].to_string());
    }
    let labels: Vec<String> = definition.labels().map(|(k, _)| k.to_uppercase()).collect();
    set("MARATHON_APP_LABELS".into(), labels.join(" "));
    for (key, value) in definition.labels() {
        set(format!("MARATHON_APP_LABEL_{}", key.to_uppercase()), value.to_owned());
    }
    env.extend(definition.env().map(|(k, v)| (k.to_owned(), v.to_owned())));
    env
}
