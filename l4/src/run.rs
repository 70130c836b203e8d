//! The only place of the plane that spawns.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use imbl::{OrdMap, OrdSet, ordmap::DiffItem, ordset};
use tidegate_ebpf::abi;
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    announce::Announcer,
    census::Census,
    config::{Config, Mode},
    drains::Drains,
    health::{self, Health, Passive},
    hops::{Changes, Hop, Hops},
    input::{Frontend, Input, Refused, Service},
    links::Links,
    maps::Maps,
    network::{Link, Network},
    report::{DrainTotals, Drained, Report, ServiceCounters},
    stats::{Counted, Stats, monotonic},
    tables::{Moved, Tables, Write},
    xdp,
};

const TICK: Duration = Duration::from_secs(1);
/// Next hops hold for so long after the last tick of a process that watched them.
const BELIEVE: Duration = Duration::from_secs(30);
/// Counting takes a while, and changes wait meanwhile: at most so small a part of the time.
const REST: u32 = 50;
/// How often what is alive is counted: while that decides something, and otherwise.
const CENSUS: Duration = Duration::from_secs(2);
const CENSUS_IDLE: Duration = Duration::from_secs(10);

/// Runs the plane until `stop`. Fails only at start (no such interface, no right to load BPF ...); a bad Input is
/// refused in the report. On return the pinned program goes on serving.
pub async fn run(
    config: Config,
    mut inputs: watch::Receiver<Arc<Input>>,
    reports: watch::Sender<Arc<Report>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let (mut plane, mut changes) = Plane::start(&config).await?;
    let health = Arc::clone(&plane.health);
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // What is there already counts as a change: nothing of it was seen yet.
    inputs.mark_changed();
    let mut open = true;
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = inputs.changed(), if open => match changed {
                Ok(()) => {
                    let input = inputs.borrow_and_update().clone();
                    plane.take(input).await;
                }
                // Whoever gave the Inputs is gone: the last one stays.
                Err(_) => open = false,
            },
            () = health.changed() => plane.refit().await,
            Some(changes) = changes.next() => plane.set_hops(changes).await,
            _ = tick.tick() => {
                // Before they are believed for another while.
                plane.set_hops(changes.take()).await;
                plane.tick().await;
            }
        }
        reports.send_replace(Arc::new(plane.report()));
    }
}

/// Takes everything away that the plane leaves behind: the program, its maps (and with them every connection), and the
/// addresses. For when no `run` runs.
pub async fn remove(config: &Config) -> anyhow::Result<()> {
    let network = Network::open()?;
    // Addresses first: clients are sent elsewhere before they get resets from here. All links are looked at, since the
    // configuration may have changed since.
    for link in network.links().await? {
        let ours = network.ours(link.index).await?;
        network.remove_addresses(link.index, &ours).await?;
    }
    xdp::remove(&config.pin_dir)
}

/// What system calls are made on, one thread at a time.
struct Core {
    maps: Maps,
    hops: Hops,
    tables: Tables,
    stats: Stats,
    drains: Drains,
    census: Option<Census>,
    counted: Option<Instant>,
    /// The tables say more than was written.
    ahead: bool,
}

impl Core {
    /// After a write that failed the image is ahead of the maps: what there really is is read back.
    fn with_writes<T>(&mut self, plan: impl FnOnce(&mut Tables, &mut dyn FnMut(Write)) -> T) -> anyhow::Result<T> {
        if self.ahead {
            self.tables = Tables::adopt(&self.maps.found()?, self.maps.capacity()?, monotonic());
            self.ahead = false;
        }
        let mut failed = None;
        let Self { maps, tables, .. } = self;
        let planned = plan(tables, &mut |write| {
            if failed.is_none() {
                failed = maps.apply(&write).err();
            }
        });
        self.drains.departed(self.tables.take_departed());
        self.ahead = failed.is_some();
        failed.map_or(Ok(planned), Err)
    }

    /// The ways to reals changed.
    fn set_hops(&mut self, hops: impl Iterator<Item = (IpAddr, Option<Hop>)>) -> anyhow::Result<()> {
        self.with_writes(|tables, mut write| {
            hops.for_each(|(address, way)| tables.set_hop(address, hop(way), &mut write))
        })
    }

    /// Keeps the next hops believed as long as somebody watches them. The program's clock.
    fn beat(&mut self) -> anyhow::Result<u64> {
        self.maps.beat(if self.hops.watched() { BELIEVE } else { Duration::ZERO })
    }

    /// Moves what became due, and counts.
    fn tick(&mut self, health: health::Report) -> anyhow::Result<Seen> {
        let now = Instant::now();
        let clock = self.beat()?;
        let wanted = self.drains.waiting()
            || self.counted.is_none_or(|counted| {
                now.duration_since(counted) >= if self.tables.wants_census() { CENSUS } else { CENSUS_IDLE }
            });
        if wanted {
            let ns = monotonic();
            let census = self.maps.census(ns, clock);
            self.drains.count(&census, now, ns);
            self.counted = Some(now);
            self.census = Some(census);
        }
        let census = self.census.take();
        let fresh = census.as_ref().filter(|_| wanted);
        let hops = self.hops.clone();
        let way = |address| hop(hops.get(&address));
        self.maps.settle_heads();
        let settled = self.with_writes(|tables, write| tables.settle(monotonic(), fresh, &way, write));
        let Counted { services, passives } = self.stats.read(&self.maps, &self.tables, census.as_ref(), health);
        self.census = census;
        settled?;
        Ok(Seen {
            counters: services,
            passive: passives,
            drops: self.maps.drops()?,
            moves: self.tables.moved(),
            drains: self.drains.ended(),
            drained: self.drains.totals(),
        })
    }
}

/// What was counted.
#[derive(Default)]
struct Seen {
    counters: OrdMap<Frontend, Arc<ServiceCounters>>,
    passive: Vec<(Frontend, (IpAddr, u16), Passive)>,
    drops: Vec<(&'static str, u64)>,
    moves: Moved,
    drains: Vec<Drained>,
    drained: DrainTotals,
}

/// As the program reads it. No interface: the kernel is asked for the way.
fn hop(hop: Option<Hop>) -> abi::Hop {
    hop.map_or_else(abi::Hop::default, |hop| abi::Hop {
        ifindex: hop.ifindex,
        source_mac: hop.source_mac.into(),
        destination_mac: hop.destination_mac.into(),
        vlan: hop.vlan,
        mtu: hop.mtu,
    })
}

struct Plane {
    /// `None` only while a blocking thread has it.
    core: Option<Core>,
    announcer: Announcer,
    /// What the announcer was told last; `None`: it is not known how far it came.
    announced: Option<OrdSet<IpAddr>>,
    hops: Hops,
    links: Links,
    health: Arc<Health>,
    /// The Input that is applied, as it came.
    input: Arc<Input>,
    generation: u64,
    /// The Input that is applied in part: an apply failed on the way, and is tried again.
    pending: Option<Arc<Input>>,
    refused: Option<(u64, Refused)>,
    seen: Seen,
    count_next: Instant,
    /// What stays wrong until the process starts again.
    standing: Vec<String>,
    /// What may be right again at the next attempt.
    passing: Vec<String>,
}

impl Plane {
    async fn start(config: &Config) -> anyhow::Result<(Self, Changes)> {
        let object = xdp::object()?;
        let network = Network::open()?;
        let links = interfaces(&network, &config.interfaces).await?;
        let first = links.first().cloned().context("no interface to announce on")?;
        let (mut maps, attached) = xdp::start(object, config, &links)?;
        let mut standing = Vec::new();
        standing.extend(maps.settle(&config.local_addresses, &network.addresses(first.index).await?)?);
        if config.mode == Mode::Auto {
            for attached in attached.iter().filter(|attached| attached.mode == "generic") {
                standing.push(format!(
                    "{} runs the balancer in generic mode, at about half the speed: its driver takes no XDP program",
                    attached.interface
                ));
            }
        }
        let tables = Tables::adopt(&maps.found()?, maps.capacity()?, monotonic());
        info!(services = tables.applied().len(), "layer 4 is up");
        let (hops, changes) = Hops::start()?;
        let (add, remove) = reals(&OrdMap::new(), tables.applied());
        hops.change(add.clone(), remove).await;
        let mut core = Core {
            maps,
            hops: hops.clone(),
            tables,
            stats: Stats::default(),
            drains: Drains::default(),
            census: None,
            counted: None,
            ahead: false,
        };
        // What an earlier process knew of the way to them may be long past.
        core.set_hops(add.into_iter().map(|address| (address, hops.get(&address))))?;
        core.beat()?;
        let interfaces: Vec<String> = links.iter().map(|link| link.name.clone()).collect();
        let health = Health::start(&config.local_addresses, &interfaces);
        health.adopt(core.tables.applied());
        let announcer = Announcer::start(network, first, &config.local_addresses).await?;
        let plane = Self {
            core: Some(core),
            announcer,
            announced: None,
            hops,
            links: Links::new(config, links, attached),
            health: Arc::new(health),
            input: Arc::default(),
            generation: 0,
            pending: None,
            refused: None,
            seen: Seen::default(),
            count_next: Instant::now(),
            standing,
            passing: Vec::new(),
        };
        Ok((plane, changes))
    }

    /// Applies an Input, or says why not.
    async fn take(&mut self, input: Arc<Input>) {
        // Nothing is known yet: what survived goes on.
        if input.generation == 0 {
            return;
        }
        let newest = self.pending.as_ref().map_or(self.generation, |pending| pending.generation.max(self.generation));
        let before = self.core.as_ref().map(|core| core.tables.applied().clone()).unwrap_or_default();
        let verdict = if input.generation < newest {
            Err(Refused::Older { got: input.generation, applied: newest })
        } else {
            input.validate(&before)
        };
        if let Err(refused) = verdict {
            self.refuse(&input, refused);
            return;
        }
        self.passing.clear();
        let fit = Input { services: self.health.input(&input.services), ..Input::clone(&input) };
        match self.apply(&Arc::new(fit), &before).await {
            Ok(None) => {
                self.input = Arc::clone(&input);
                self.generation = input.generation;
                self.pending = None;
                self.refused = None;
            }
            Ok(Some(refused)) => {
                // Room comes back as flows end.
                self.pending = matches!(refused, Refused::Full { .. }).then(|| Arc::clone(&input));
                self.health.input(&self.input.services);
                self.refuse(&input, refused);
            }
            Err(error) => {
                error!(generation = input.generation, "not applied, tried again in a second: {error:#}");
                self.passing.push(format!("generation {} is not applied yet: {error:#}", input.generation));
                self.pending = Some(input);
            }
        }
    }

    /// Other reals are fit than before.
    async fn refit(&mut self) {
        // One that is not applied yet is tried again soon, and asks health then.
        if self.pending.is_none() {
            let fit = Input { services: self.health.effective(), ..Input::clone(&self.input) };
            match self.fill(Arc::new(fit)).await {
                Ok(None) => {}
                Ok(Some(refused)) => warn!("what is fit was refused: {refused}"),
                Err(error) => {
                    error!("not applied, tried again in a second: {error:#}");
                    self.pending = Some(Arc::clone(&self.input));
                }
            }
        }
    }

    fn refuse(&mut self, input: &Input, refused: Refused) {
        let refused = Some((input.generation, refused));
        if self.refused != refused
            && let Some((generation, reason)) = &refused
        {
            warn!(generation, "input refused: {reason}");
        }
        self.refused = refused;
    }

    /// Withdraw, fill, announce.
    async fn apply(
        &mut self,
        input: &Arc<Input>,
        before: &OrdMap<Frontend, Arc<Service>>,
    ) -> anyhow::Result<Option<Refused>> {
        // Compared only with what changed: there may be ten thousand VIPs, and most Inputs change none.
        let (new, gone) = match self.announced.take() {
            Some(announced) => difference(&announced, &input.announce),
            None => self.announcer.difference(&input.announce),
        };
        let (add, remove) = reals(before, &input.services);
        if !add.is_empty() || !remove.is_empty() {
            self.hops.change(add.clone(), remove.clone()).await;
        }
        self.announcer.withdraw(gone).await?;
        let result = self.fill(Arc::clone(input)).await;
        if !matches!(result, Ok(None)) {
            self.hops.change(remove, add).await;
            return result;
        }
        self.announcer.announce(new).await?;
        self.announced = Some(input.announce.clone());
        Ok(None)
    }

    async fn fill(&mut self, input: Arc<Input>) -> anyhow::Result<Option<Refused>> {
        self.with_core(move |core| {
            let hops = core.hops.clone();
            let way = |address| hop(hops.get(&address));
            let planned = core.with_writes(|tables, write| tables.plan(&input, monotonic(), &way, write))?;
            Ok(planned.err())
        })
        .await
    }

    async fn set_hops(&mut self, changes: Vec<(IpAddr, Option<Hop>)>) {
        if changes.is_empty() {
            return;
        }
        if let Err(error) = self.with_core(move |core| core.set_hops(changes.into_iter())).await {
            warn!("ways to reals changed, and could not be written: {error:#}");
        }
    }

    /// What came back gets the program again, and the first interface its addresses.
    async fn reattach(&mut self) {
        for (place, name) in self.links.returned(|name| nix::net::if_::if_nametoindex(name).ok()) {
            if let Err(error) = self.attach(place, &name).await {
                warn!(interface = name, "the interface is back, but not of use yet: {error:#}");
            }
        }
    }

    async fn attach(&mut self, place: usize, name: &str) -> anyhow::Result<()> {
        let link = self.announcer.network().links().await?.into_iter().find(|link| link.name == name);
        let link = link.context("it went again")?;
        let (config, to) = (self.links.config.clone(), link.clone());
        let mode = self.with_core(move |core| xdp::attach_to(core.maps.program("balance")?, &to, &config)).await?;
        if place == 0 {
            self.announced = None;
            self.announcer.move_to(link.clone()).await?;
            self.announcer.announce(self.input.announce.iter().copied().collect()).await?;
            self.announced = Some(self.input.announce.clone());
        }
        self.links.set(place, link, mode);
        Ok(())
    }

    async fn tick(&mut self) {
        self.reattach().await;
        if let Some(pending) = self.pending.take() {
            self.take(pending).await;
        }
        if Instant::now() < self.count_next {
            if let Err(error) = self.with_core(Core::beat).await {
                warn!("{error:#}");
            }
            return;
        }
        let began = Instant::now();
        let health = self.health.report();
        match self.with_core(move |core| core.tick(health)).await {
            Ok(seen) => {
                self.health.passive(seen.passive.iter().cloned());
                self.seen = seen;
            }
            Err(error) => warn!("what goes on could not be counted or settled: {error:#}"),
        }
        self.count_next = Instant::now() + began.elapsed() * REST;
    }

    /// System calls by the ten thousand must not hold the runtime's threads up.
    async fn with_core<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Core) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let mut core = self.core.take().context("the maps are lost: an earlier use of them panicked")?;
        let (core, result) = spawn_blocking(move || {
            let result = work(&mut core);
            (core, result)
        })
        .await
        .context("working on the maps")?;
        self.core = Some(core);
        result
    }

    fn report(&self) -> Report {
        let health = self.health.report();
        Report {
            generation: self.generation,
            refused: self.refused.clone(),
            attached: self.links.attached(),
            services: self.seen.counters.clone(),
            drops: self.seen.drops.clone(),
            moves: self.seen.moves,
            drains: self.seen.drains.clone(),
            drained: self.seen.drained,
            fail_open: health.fail_open,
            probes: health.probes,
            problems: self
                .standing
                .iter()
                .chain(&self.passing)
                .chain(&health.problems)
                .cloned()
                .chain(self.links.problems())
                .collect(),
        }
    }
}

/// The VIPs that came and that went.
fn difference(old: &OrdSet<IpAddr>, new: &OrdSet<IpAddr>) -> (Vec<IpAddr>, BTreeSet<IpAddr>) {
    let (mut add, mut remove) = (Vec::new(), BTreeSet::new());
    for item in old.diff(new) {
        match item {
            ordset::DiffItem::Add(address) => add.push(*address),
            ordset::DiffItem::Remove(address) => {
                remove.insert(*address);
            }
        }
    }
    (add, remove)
}

/// The addresses of reals that came and that went.
fn reals(old: &OrdMap<Frontend, Arc<Service>>, new: &OrdMap<Frontend, Arc<Service>>) -> (Vec<IpAddr>, Vec<IpAddr>) {
    let (mut add, mut remove) = (Vec::new(), Vec::new());
    let addresses = |service: &Arc<Service>| service.reals.iter().map(|real| real.address).collect::<Vec<_>>();
    for item in old.diff(new) {
        match item {
            DiffItem::Add(_, service) => add.extend(addresses(service)),
            DiffItem::Remove(_, service) => remove.extend(addresses(service)),
            DiffItem::Update { old: (_, old), new: (_, new) } => {
                add.extend(addresses(new));
                remove.extend(addresses(old));
            }
        }
    }
    (add, remove)
}

/// The configured interfaces, or the one that most likely is meant.
async fn interfaces(network: &Network, names: &[String]) -> anyhow::Result<Vec<Link>> {
    let links = network.links().await?;
    let list = || links.iter().map(|link| link.name.as_str()).collect::<Vec<_>>().join(", ");
    if !names.is_empty() {
        let find = |name: &String| {
            let found = links.iter().find(|link| link.name == *name).cloned();
            found.with_context(|| {
                format!("l4.interfaces names {name:?}, which does not exist here; there are: {}", list())
            })
        };
        return names.iter().map(find).collect();
    }
    if let Some(index) = network.default_interface().await?
        && let Some(link) = links.iter().find(|link| link.index == index)
    {
        return Ok(vec![link.clone()]);
    }
    let up: Vec<&Link> = links.iter().filter(|link| link.up && !link.loopback).collect();
    match up.as_slice() {
        [link] => Ok(vec![(*link).clone()]),
        [] => bail!("no interface is up: set l4.interfaces (there are: {})", list()),
        _ => bail!("no default route tells which interface to use: set l4.interfaces to some of: {}", list()),
    }
}
