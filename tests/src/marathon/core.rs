//! What all parts of the stand-in share: the world behind a lock, and the signal that it has changed.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use tokio::{runtime::Handle, sync::watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    events::Bus,
    faults::Faults,
    instance::Instance,
    leader::Leadership,
    place::{Dialer, Place},
    serve::Node,
    world::World,
};

#[derive(Debug)]
pub(crate) struct Core {
    world: Mutex<World>,
    changed: watch::Sender<u64>,
    pub bus: Arc<Bus>,
    pub faults: Mutex<Faults>,
    pub leadership: watch::Sender<Leadership>,
    /// One name per endpoint, `host:port`.
    pub nodes: Vec<String>,
    pub agents: Vec<Agent>,
    pub dialer: Dialer,
    pub settings: Settings,
    pub stop: CancellationToken,
    /// Lives and deployments.
    pub tasks: TaskTracker,
    /// Library calls may come from threads outside of it.
    pub runtime: Handle,
    pub sandbox: tempfile::TempDir,
    pub endpoints: OnceLock<Vec<Arc<Node>>>,
    /// Instances that were lost on command, for their return.
    pub lost: Mutex<HashMap<Arc<str>, Arc<Instance>>>,
}

#[derive(Debug)]
pub(crate) struct Agent {
    pub place: Place,
    pub host: Arc<str>,
    /// As Mesos names it.
    pub id: Arc<str>,
}

/// How this Marathon is configured; the defaults are Marathon's own where it has them.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `--http_credentials`.
    pub credentials: Option<(String, String)>,
    /// The feature `task_killing`: TASK_KILLING is announced.
    pub task_killing: bool,
    /// From the change of an instance's goal, which is announced, to the first signal. In Marathon a write to
    /// ZooKeeper and a message through Mesos lie between.
    pub goal_to_kill: Duration,
    pub keep_alive: Duration,
    /// Events that a stream may lag behind before it is closed.
    pub outstanding_events: usize,
    pub max_running_deployments: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            credentials: None,
            task_killing: true,
            goal_to_kill: Duration::from_millis(20),
            keep_alive: Duration::from_secs(10),
            outstanding_events: 1024,
            max_running_deployments: 100,
        }
    }
}

impl Core {
    pub(crate) fn new(
        nodes: Vec<String>,
        agents: Vec<Place>,
        dialer: Dialer,
        settings: Settings,
    ) -> std::io::Result<Arc<Self>> {
        let framework = super::instance::uuid();
        let agent = |(n, place): (usize, Place)| Agent {
            host: place.host().into(),
            id: format!("{framework}-S{n}").into(),
            place,
        };
        let agents: Vec<Agent> = agents.into_iter().enumerate().map(agent).collect();
        Ok(Arc::new(Core {
            world: Mutex::new(World::new(agents.len())),
            changed: watch::Sender::new(0),
            bus: Bus::new(settings.outstanding_events, Handle::current()),
            faults: Mutex::default(),
            leadership: watch::Sender::new(Leadership { leader: Some(0), ready: true }),
            nodes,
            agents,
            dialer,
            settings,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            runtime: Handle::current(),
            sandbox: tempfile::Builder::new().prefix("marathon-stand-in-").tempdir()?,
            endpoints: OnceLock::new(),
            lost: Mutex::default(),
        }))
    }

    pub(crate) fn read<R>(&self, look: impl FnOnce(&World) -> R) -> R {
        look(&self.world.lock().expect("nobody panics with it"))
    }

    /// Changes the world and wakes whoever waits for that.
    pub(crate) fn change<R>(&self, change: impl FnOnce(&mut World) -> R) -> R {
        let result = change(&mut self.world.lock().expect("nobody panics with it"));
        self.changed.send_modify(|n| *n += 1);
        result
    }

    /// Changes the world (or only tries to) and wakes nobody.
    pub(crate) fn quietly<R>(&self, change: impl FnOnce(&mut World) -> R) -> R {
        change(&mut self.world.lock().expect("nobody panics with it"))
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Changes one instance and, if it was there, returns it as it is now.
    pub(crate) fn change_instance(
        &self,
        app: &str,
        id: &str,
        change: impl FnOnce(&mut Instance),
    ) -> Option<Arc<Instance>> {
        self.change(|world| {
            world.change(app, id, change)?;
            world.instance(app, id).cloned()
        })
    }

    /// Runs until it is done or the stand-in stops.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(task, &self.runtime);
    }

    pub(crate) fn faults(&self) -> Faults {
        self.faults.lock().expect("nobody panics with it").clone()
    }

    pub(crate) fn set_faults(&self, faults: Faults) {
        self.bus.set_faults(faults.events.clone());
        *self.faults.lock().expect("nobody panics with it") = faults;
    }
}
