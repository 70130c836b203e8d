//! A stand-in for Marathon: the part of it that clients see, with real tasks, that can also misbehave on command.
//!
//! ```text
//!   HTTP ─ serve ─ api/* ─┬─ deploy ─ life ─ place ─ processes on agents
//!                         │      └─ health (checks that are really made)
//!   /v2/events ─ stream ─ events ◄── everything that happens
//!                              └─ faults
//! ```
//!
//! It follows Marathon 1.11. All endpoints of one stand-in share one world, as a cluster shares ZooKeeper; one of them
//! leads. What it does not have: pods, constraints, resources, persistent volumes, plugins, DC/OS.
//!
//! Three things that surprise: an image is never pulled, so an app needs a `cmd`; in bridge mode `$PORT0` is the port
//! of the agent, as in Marathon, so a task listens on its `containerPort` by its own knowledge; durations in
//! definitions may be fractions of a second.

mod api;
mod commands;
mod core;
mod definition;
mod deploy;
mod error;
mod events;
mod faults;
mod health;
mod instance;
mod json;
mod leader;
mod life;
mod parse;
mod place;
mod serve;
mod stream;
mod synthetic;
mod world;

use std::{
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use serde_json::{Map, Value};
use tokio::time::timeout;

use self::{
    core::Core,
    definition::{Definition, absolute, parent},
    deploy::Wish,
    world::World,
};

pub use self::{
    core::Settings,
    deploy::Begun,
    error::ApiError,
    events::Event,
    faults::{Command, EventFaults, FailOver, Faults},
    instance::{Condition, HealthResult, Instance},
    place::{Dialer, Place},
    synthetic::{Pushed, SyntheticChange, SyntheticTask},
};

/// What a stand-in is made of.
#[derive(Debug)]
pub struct Config {
    /// The endpoints, the first leads: a bound listener, and the `host:port` under which clients reach it.
    pub nodes: Vec<(TcpListener, String)>,
    pub agents: Vec<Place>,
    /// From where health and readiness checks are made.
    pub dialer: Dialer,
    pub settings: Settings,
}

/// A running Marathon. Stop it with [`Standin::stop`]; dropped, it and its tasks end as well, a little later.
#[derive(Debug)]
pub struct Standin {
    core: Arc<Core>,
}

impl Config {
    /// On this machine's loopback, with `n` endpoints on free ports and one agent, for tests without privileges.
    pub fn local(n: usize) -> std::io::Result<Config> {
        let mut nodes = Vec::new();
        for _ in 0..n {
            // A port that was asked for by number is kept while the endpoint is down; one that was only found is not.
            let found = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
            let listener = TcpListener::bind(found)?;
            let name = listener.local_addr()?.to_string();
            nodes.push((listener, name));
        }
        let agents = vec![Place::Local { name: "127.0.0.1".into() }];
        Ok(Config { nodes, agents, dialer: Dialer::Local, settings: Settings::default() })
    }
}

impl Standin {
    /// Starts to serve; call it inside a tokio runtime, which then runs everything.
    pub fn start(config: Config) -> anyhow::Result<Standin> {
        ensure!(!config.nodes.is_empty(), "a stand-in needs at least one endpoint");
        let (listeners, names): (Vec<_>, Vec<_>) = config.nodes.into_iter().unzip();
        let core = Core::new(names, config.agents, config.dialer, config.settings).context("cannot make a sandbox")?;
        let mut nodes = Vec::new();
        for (n, listener) in listeners.into_iter().enumerate() {
            let (endpoint, node) = serve::Endpoint::new(listener, &core.stop).context("cannot use a listener")?;
            nodes.push(node);
            let service = api::router(core.clone(), n).into_make_service_with_connect_info::<serve::Connection>();
            let stop = core.stop.clone();
            tokio::spawn(async move {
                // Without the graceful kind of shutdown, which would wait for clients of the event stream.
                tokio::select! {
                    _ = axum::serve(endpoint, service) => {}
                    () = stop.cancelled() => {}
                }
            });
        }
        _ = core.endpoints.set(nodes);
        Ok(Standin { core })
    }

    /// The leader's `http://host:port`, or the first endpoint's while there is none.
    pub fn url(&self) -> String {
        format!("http://{}", self.core.leader().unwrap_or_else(|| self.core.nodes[0].clone()))
    }

    /// Every endpoint's `http://host:port`.
    pub fn urls(&self) -> Vec<String> {
        self.core.nodes.iter().map(|node| format!("http://{node}")).collect()
    }

    /// Creates or updates an app, as `PUT /v2/apps/{id}` does; its deployment goes on afterwards.
    pub fn put_app(&self, json: Value) -> anyhow::Result<Begun> {
        let put = json.as_object().context("an app is a JSON object")?;
        let id = absolute(put.get("id").and_then(Value::as_str).context("an app needs an id")?);
        self.change_app(&id, put.clone())
    }

    /// Asks for `n` instances.
    pub fn scale(&self, id: &str, n: u32) -> anyhow::Result<Begun> {
        self.core.read(|world| world.app(id).map(drop))?;
        self.change_app(id, Map::from_iter([("instances".to_owned(), n.into())]))
    }

    fn change_app(&self, id: &str, put: Map<String, Value>) -> anyhow::Result<Begun> {
        Ok(self.core.change(|world| {
            let mut whole = world.app(id).map(|app| app.definition.as_put()).unwrap_or_default();
            whole.extend(put);
            let definition = Definition::parse(id, &whole, "", &mut || world.service_port())?;
            self.begin(world, vec![Wish::Be(Box::new(definition))], id)
        })?)
    }

    /// Starts all its tasks anew, as its upgrade strategy says.
    pub fn restart(&self, id: &str) -> anyhow::Result<Begun> {
        Ok(self.core.change(|world| {
            let definition = (*world.app(id)?.definition).clone();
            self.begin(world, vec![Wish::Restart(Box::new(definition))], id)
        })?)
    }

    pub fn delete_app(&self, id: &str) -> anyhow::Result<Begun> {
        Ok(self.core.change(|world| {
            world.app(id)?;
            self.begin(world, vec![Wish::Go(id.to_owned())], id)
        })?)
    }

    fn begin(&self, world: &mut World, wishes: Vec<Wish>, id: &str) -> Result<Begun, ApiError> {
        deploy::begin(&self.core, world, wishes, false, parent(id))
    }

    /// Marathon kills a task, announced and with its grace period; with `scale` no other takes its place.
    pub fn kill_task(&self, id: &str, scale: bool) -> anyhow::Result<()> {
        let core = &self.core;
        core.change(|world| {
            let instance = world.find(id).cloned().with_context(|| format!("there is no task {id}"))?;
            if scale {
                let wish = Wish::Without(instance.definition.id.clone(), vec![instance.id.clone()]);
                self.begin(world, vec![wish], &instance.definition.id)?;
            } else {
                life::stop(core, world, &instance);
            }
            Ok(())
        })
    }

    /// Its placed instances, the oldest first.
    pub fn tasks(&self, id: &str) -> Vec<Arc<Instance>> {
        let mut tasks: Vec<Arc<Instance>> = self.core.read(|world| {
            let instances = world.app(id).map(|app| app.instances.values().cloned().collect()).unwrap_or_default();
            let instances: Vec<Arc<Instance>> = instances;
            instances.into_iter().filter(|i| i.condition != Condition::Scheduled).collect()
        });
        tasks.sort_by_key(|i| i.staged_at);
        tasks
    }

    /// Waits until no deployment touches the app and it has all its instances running.
    pub async fn wait_deployments_done(&self, id: &str, limit: Duration) -> anyhow::Result<()> {
        let mut changes = self.core.changes();
        let done = async {
            loop {
                changes.mark_unchanged();
                let settled = self.core.read(|world| {
                    let full = world.app(id).map_or(true, |app| {
                        let running = app.instances.values().filter(|i| i.condition == Condition::Running && !i.doomed);
                        running.count() == app.definition.instances as usize
                    });
                    full && world.locks([id]).is_empty()
                });
                if settled || changes.changed().await.is_err() {
                    return;
                }
            }
        };
        if timeout(limit, done).await.is_err() {
            let conditions: Vec<Condition> = self.tasks(id).iter().map(|i| i.condition).collect();
            let failure = self.core.read(|w| w.app(id).ok().and_then(|a| a.last_failure.clone()));
            bail!(
                "{id} is not deployed after {limit:?}: its tasks are {conditions:?}, the last failure was {failure:?}"
            );
        }
        Ok(())
    }

    /// What is set to go wrong.
    pub fn faults(&self) -> Faults {
        self.core.faults()
    }

    /// Sets what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.core.set_faults(faults);
    }

    /// Makes something happen, and waits until it has.
    pub async fn run(&self, command: Command) -> anyhow::Result<()> {
        commands::run(&self.core, command).await.map_err(anyhow::Error::msg)
    }

    /// The leader abdicates to the next endpoint; returns when that one is ready.
    pub async fn fail_over(&self, how: FailOver) {
        leader::fail_over(&self.core, how).await;
    }

    /// How many clients hold the event stream open.
    pub fn streams(&self) -> usize {
        self.core.bus.subscriber_count()
    }

    /// How many events there have been.
    pub fn events_published(&self) -> u64 {
        self.core.bus.published()
    }

    /// Cuts all connections and kills all tasks; returns when they are gone.
    pub async fn stop(self) {
        self.core.stop.cancel();
        self.core.tasks.close();
        self.core.tasks.wait().await;
    }

    /// The addresses of a task's first port: where its app is reached without any balancer.
    pub fn endpoint(&self, instance: &Instance) -> Option<SocketAddr> {
        let (host, port) = instance.endpoint(&definition::PortChoice::Index(0))?;
        Some(SocketAddr::new(host.parse().ok()?, port))
    }
}

impl Drop for Standin {
    fn drop(&mut self) {
        self.core.stop.cancel();
    }
}
