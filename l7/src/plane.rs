//! The plane's state, and how an Input becomes it: only what changed is touched.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use imbl::ordmap::DiffItem;
use tokio_util::task::TaskTracker;

use crate::{
    config::Config,
    input::{Input, Listener, Refused},
    listen::{self, Listening, Routes, Server},
    proxy::Proxy,
    report::Report,
    table::Table,
    traffic::PoolTraffic,
};

pub(crate) struct Plane {
    server: Server,
    applied: Arc<Input>,
    pools: HashMap<Arc<str>, Arc<PoolTraffic>>,
    listening: BTreeMap<SocketAddr, Listening>,
    /// Listeners that could not be opened, with the reason.
    waiting: BTreeMap<SocketAddr, String>,
    report: Report,
}

impl Plane {
    pub(crate) fn new(config: Config) -> Self {
        let grace = Duration::from_millis(config.grace_ms);
        Self {
            server: Server { proxy: Proxy::start(config), connections: TaskTracker::new(), grace },
            applied: Arc::default(),
            pools: HashMap::new(),
            listening: BTreeMap::new(),
            waiting: BTreeMap::new(),
            report: Report::default(),
        }
    }

    pub(crate) fn report(&self) -> &Report {
        &self.report
    }

    /// Makes the Input what the plane does, or leaves everything as it is and reports why.
    pub(crate) async fn apply(&mut self, input: Arc<Input>) {
        let generation = input.generation;
        match input.validate_change(&self.applied) {
            Err(refused) => self.refuse(generation, refused),
            Ok(()) => {
                self.change(&input).await;
                self.applied = input;
                self.report.generation = generation;
                self.report.refused = None;
            }
        }
    }

    fn refuse(&mut self, generation: u64, refused: Refused) {
        tracing::warn!(generation, %refused, "the input was refused; the one before goes on");
        self.report.refused = Some((generation, refused));
    }

    /// New pools before the routes to them, old pools after: no request meets a half-done change.
    async fn change(&mut self, input: &Input) {
        let old = self.applied.clone();
        let mut gone = Vec::new();
        for change in old.pools.diff(&input.pools) {
            match change {
                DiffItem::Add(name, pool) => {
                    let pool = PoolTraffic::new(name.clone(), pool);
                    self.report.pools.insert(name.clone(), Arc::new(pool.counters()));
                    self.pools.insert(name.clone(), pool);
                }
                DiffItem::Update { new: (name, pool), .. } => {
                    let traffic = &self.pools[name];
                    traffic.set(pool);
                    self.report.pools.insert(name.clone(), Arc::new(traffic.counters()));
                }
                DiffItem::Remove(name, _) => gone.push(name),
            }
        }
        // Closed before others open: one may take the other's port, on another address.
        let mut opening = Vec::new();
        for change in old.listeners.diff(&input.listeners) {
            match change {
                DiffItem::Remove(address, _) => self.close(*address).await,
                DiffItem::Add(address, listener) | DiffItem::Update { new: (address, listener), .. } => {
                    opening.push((*address, listener));
                }
            }
        }
        for (address, listener) in opening {
            self.open_or_set(address, listener);
        }
        for name in gone {
            self.pools.remove(name);
            self.report.pools.remove(name);
        }
        self.report.problems = self.waiting.values().cloned().collect();
        self.report.unopened = self.waiting.keys().copied().collect();
    }

    fn open_or_set(&mut self, address: SocketAddr, listener: &Listener) {
        let routes = self.routes(listener);
        if let Some(listening) = self.listening.get(&address) {
            listening.set(routes);
            return;
        }
        match Listening::open(address, routes, &self.server) {
            Ok(listening) => {
                tracing::info!(%address, "listening");
                self.waiting.remove(&address);
                self.listening.insert(address, listening);
            }
            Err(error) => {
                let problem = listen::problem(address, &error);
                // Once, not each second.
                if self.waiting.get(&address) != Some(&problem) {
                    tracing::warn!("{problem}");
                    self.waiting.insert(address, problem);
                }
            }
        }
    }

    fn routes(&self, listener: &Listener) -> Routes {
        let target = |pool: &Arc<str>| self.pools.get(pool).expect("validation saw that routes have pools").clone();
        Table::new(listener.routes.iter().map(|route| (route.clone(), target(&route.pool))))
    }

    async fn close(&mut self, address: SocketAddr) {
        self.waiting.remove(&address);
        if let Some(listening) = self.listening.remove(&address) {
            tracing::info!(%address, "closing");
            listening.close().await;
        }
    }

    /// Each second: tries again what could not be opened, and counts. True if the report changed.
    pub(crate) fn tick(&mut self) -> bool {
        let applied = self.applied.clone();
        let retry: Vec<_> =
            self.waiting.keys().filter_map(|address| applied.listeners.get_key_value(address)).collect();
        for (address, listener) in retry {
            self.open_or_set(*address, listener);
        }
        let problems: Vec<_> = self.waiting.values().cloned().collect();
        let mut changed = self.report.problems != problems;
        self.report.problems = problems;
        self.report.unopened = self.waiting.keys().copied().collect();
        for (name, pool) in &self.pools {
            let counters = pool.counters();
            if self.report.pools.get(name).is_none_or(|old| **old != counters) {
                self.report.pools.insert(name.clone(), Arc::new(counters));
                changed = true;
            }
        }
        changed
    }

    /// Stops to accept, and waits for the requests in flight as long as the grace period allows.
    pub(crate) async fn stop(&mut self) {
        while let Some((_, listening)) = self.listening.pop_first() {
            listening.close().await;
        }
        self.server.connections.close();
        self.server.connections.wait().await;
        self.tick();
    }
}
