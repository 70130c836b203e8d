//! All that Marathon keeps: apps with their versions and instances, groups, deployments. Data and the plain questions
//! to it; what happens over time is in `life` and `deploy`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::{
    definition::{Definition, SERVICE_PORTS, parent},
    deploy::Deployment,
    error::ApiError,
    instance::{Condition, Instance, iso},
};

#[derive(Debug)]
pub(crate) struct World {
    pub apps: BTreeMap<Arc<str>, Arc<App>>,
    /// Groups that were put; one with apps in it exists anyhow.
    pub groups: BTreeSet<String>,
    pub deployments: Vec<Deployment>,
    /// Of the root group.
    pub version: String,
    /// Crash backoff, by app.
    pub delays: HashMap<Arc<str>, Delay>,
    /// By agent.
    pub host_ports: Vec<BTreeSet<u16>>,
    newest: Timestamp,
    service_ports: BTreeSet<u16>,
    next_service_port: u16,
}

#[derive(Clone, Debug)]
pub(crate) struct App {
    pub definition: Arc<Definition>,
    pub versions: BTreeMap<String, Arc<Definition>>,
    pub instances: BTreeMap<Arc<str>, Arc<Instance>>,
    pub scaled_at: String,
    pub configured_at: String,
    /// Deleted, but its tasks still end: no client sees it.
    pub gone: bool,
    pub last_failure: Option<Value>,
    /// Its tasks are no processes and start no deployments' work.
    pub synthetic: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Delay {
    pub last: Duration,
    pub until: Instant,
}

impl World {
    pub(crate) fn new(agents: usize) -> Self {
        World {
            apps: BTreeMap::new(),
            groups: BTreeSet::new(),
            deployments: Vec::new(),
            version: iso(Timestamp::now()),
            delays: HashMap::new(),
            host_ports: vec![BTreeSet::new(); agents],
            newest: Timestamp::now(),
            service_ports: BTreeSet::new(),
            next_service_port: SERVICE_PORTS.start,
        }
    }

    /// A version that nothing has yet: now, or a millisecond after the last one.
    pub(crate) fn new_version(&mut self) -> String {
        self.newest = Timestamp::now().max(self.newest + SignedDuration::from_millis(1));
        self.version = iso(self.newest);
        self.version.clone()
    }

    /// A free service port; when all are taken, one is given twice (as no Marathon does; only benches get so far).
    pub(crate) fn service_port(&mut self) -> u16 {
        for _ in SERVICE_PORTS {
            let port = self.next_service_port;
            self.next_service_port = if port + 1 == SERVICE_PORTS.end { SERVICE_PORTS.start } else { port + 1 };
            if self.service_ports.insert(port) {
                return port;
            }
        }
        self.next_service_port
    }

    pub(crate) fn keep_service_ports(&mut self, definition: &Definition) {
        self.service_ports.extend(definition.ports.iter().map(|p| p.service));
    }

    pub(crate) fn free_service_ports(&mut self, definition: &Definition) {
        for port in &definition.ports {
            self.service_ports.remove(&port.service);
        }
    }

    /// An app that clients see.
    pub(crate) fn app(&self, id: &str) -> Result<&Arc<App>, ApiError> {
        self.apps.get(id).filter(|app| !app.gone).ok_or_else(|| ApiError::NoApp(id.to_owned()))
    }

    pub(crate) fn app_mut(&mut self, id: &str) -> Option<&mut App> {
        self.apps.get_mut(id).map(Arc::make_mut)
    }

    pub(crate) fn visible(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<App>)> {
        self.apps.iter().filter(|(_, app)| !app.gone)
    }

    /// The apps in a group and below.
    pub(crate) fn apps_below(&self, group: &str) -> impl Iterator<Item = (&Arc<str>, &Arc<App>)> {
        self.visible().filter(move |(id, _)| is_below(id, group))
    }

    pub(crate) fn group_exists(&self, id: &str) -> bool {
        id == "/" || self.groups.iter().any(|g| g == id || is_below(g, id)) || self.apps_below(id).next().is_some()
    }

    /// The groups directly in a group.
    pub(crate) fn groups_in(&self, group: &str) -> BTreeSet<String> {
        let from_apps = self.apps_below(group).map(|(id, _)| parent(id).to_owned());
        let below = self.groups.iter().filter(|g| is_below(g, group)).cloned();
        let prefix = group.trim_end_matches('/').len() + 1;
        from_apps
            .chain(below)
            .filter(|g| is_below(g, group))
            .map(|g| match g[prefix..].find('/') {
                None => g,
                Some(at) => g[..prefix + at].to_owned(),
            })
            .collect()
    }

    pub(crate) fn instance(&self, app: &str, id: &str) -> Option<&Arc<Instance>> {
        self.apps.get(app)?.instances.get(id)
    }

    /// Changes an instance if it is still there.
    pub(crate) fn change<R>(&mut self, app: &str, id: &str, change: impl FnOnce(&mut Instance) -> R) -> Option<R> {
        let instance = self.app_mut(app)?.instances.get_mut(id)?;
        Some(change(Arc::make_mut(instance)))
    }

    /// Finds an instance by its own id or its task's, in any app.
    pub(crate) fn find(&self, id: &str) -> Option<&Arc<Instance>> {
        let id = id.split("._app").next().unwrap_or(id);
        self.apps.values().find_map(|app| app.instances.get(id))
    }

    /// The ids of the deployments that touch one of the apps.
    pub(crate) fn locks<'a>(&self, apps: impl IntoIterator<Item = &'a str>) -> Vec<String> {
        let apps: BTreeSet<&str> = apps.into_iter().collect();
        let touches = |d: &&Deployment| d.affected.iter().any(|app| apps.contains(&**app));
        self.deployments.iter().filter(touches).map(|d| d.id.clone()).collect()
    }
}

/// `/a/b` and `/a/b/c` are below `/a`; everything is below `/`.
pub(crate) fn is_below(id: &str, group: &str) -> bool {
    let group = group.trim_end_matches('/');
    id.strip_prefix(group).is_some_and(|rest| rest.len() > 1 && rest.starts_with('/'))
}

impl App {
    pub(crate) fn counting(&self) -> impl Iterator<Item = &Arc<Instance>> {
        self.instances.values().filter(|i| i.counts())
    }

    /// The `n` instances that Marathon would stop first.
    pub(crate) fn victims(&self, n: usize) -> Vec<Arc<Instance>> {
        let rank = |i: &Instance| match i.condition {
            Condition::Unreachable | Condition::UnreachableInactive => 0,
            Condition::Scheduled | Condition::Provisioned => 1,
            Condition::Starting => 2,
            _ => 3,
        };
        let mut all: Vec<Arc<Instance>> = self.counting().cloned().collect();
        let age = |i: &Instance| i.started_at.unwrap_or(i.staged_at);
        all.sort_by(|a, b| {
            let by_age = age(b).cmp(&age(a));
            rank(a).cmp(&rank(b)).then(if self.definition.oldest_first { by_age.reverse() } else { by_age })
        });
        all.truncate(n);
        all
    }
}
