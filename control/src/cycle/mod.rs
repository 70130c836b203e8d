//! The heart: one event in, the effects out. Start reading here, at [`step`].
//!
//! `step` is pure. Whoever calls it holds the [`State`], gives the time, and carries out the [`Effect`]s.
//!
//! ```text
//! Event ─► stream    what an event says is applied at once, or asked about
//!          snapshot  a full answer is the truth, but for what is newer or suspect
//!          settle    admit, ask, remember, compile what was touched, publish
//! ```

mod event;
mod links;
mod recent;
mod settle;
mod snapshot;
mod status;
mod stream;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use imbl::OrdMap;
use jiff::Timestamp;

pub use event::{Effect, Event, Fetch, Marathon, StreamEvent};
use links::Links;
use recent::Recent;
pub use status::{ElbStatus, Generations, InstanceStatus, PortStatus, explain};

use crate::{
    compile::{Compiled, index::Index},
    model::{
        app::{App, AppId, InstanceId},
        desired::Desired,
        elb::{Elb, ElbName},
        observed::Observed,
    },
};

/// Rules that hold for the whole run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Policy {
    /// The zone of every name, without a trailing dot.
    pub domain: Arc<str>,
    /// Seconds that clients may keep an answer.
    pub ttl: u32,
    /// How long an unexplained "nothing runs" must be repeated before it is believed.
    pub distrust: Duration,
    /// How often the full list is read although no event asks for it.
    pub resync: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self { domain: "mesos".into(), ttl: 5, distrust: Duration::from_secs(300), resync: Duration::from_secs(30) }
    }
}

/// Everything that the next decision depends on. Cloning is cheap: what grows with the table is shared.
#[derive(Clone, Debug)]
pub struct State {
    pub policy: Policy,
    pub desired: Desired,
    pub observed: Observed,
    pub compiled: Compiled,
    /// What is wrong now, by a stable key (`marathon-unreachable`, `empty-answer` ...).
    pub alarms: BTreeMap<String, Alarm>,
    /// Differences that a full answer showed and no event had announced.
    pub missed_events: u64,
    /// By ELB, the generations in which its parts changed last.
    pub generations: OrdMap<ElbName, Generations>,
    index: Index,
    links: Links,
    recent: Recent,
    /// Apps whose sudden emptiness is not believed yet, and since when.
    doubts: BTreeMap<AppId, Timestamp>,
    /// Differences that an event may still explain, by instance.
    unexplained: BTreeMap<InstanceId, Timestamp>,
}

/// Something that an operator should look at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Alarm {
    pub since: Timestamp,
    /// What is wrong, what Tidegate does meanwhile, what to do.
    pub text: String,
}

impl State {
    /// Knows nothing. Generations count up from the time of the start in milliseconds, which is above all that an
    /// earlier run gave to planes that outlived it (pinned maps).
    pub fn new(policy: Policy, started_at: Timestamp) -> Self {
        let generation = u64::try_from(started_at.as_millisecond()).unwrap_or(0);
        Self {
            compiled: Compiled::empty(&policy.domain, generation),
            policy,
            desired: Desired::default(),
            observed: Observed::default(),
            alarms: BTreeMap::new(),
            missed_events: 0,
            generations: OrdMap::new(),
            index: Index::default(),
            links: Links::default(),
            recent: Recent::default(),
            doubts: BTreeMap::new(),
            unexplained: BTreeMap::new(),
        }
    }

    /// Whether the planes were given Inputs. Before the ELBs and the apps are known there is nothing to give: an empty
    /// Input would take away what planes still serve from before a restart.
    pub fn published(&self) -> bool {
        self.links.published
    }
}

/// One event, its effects.
pub fn step(state: &mut State, event: Event, now: Timestamp) -> Vec<Effect> {
    let mut turn = Turn::new(state, now);
    match event {
        Event::Desired(desired) => turn.desired(desired),
        Event::Remembered(apps) => turn.remembered(apps),
        Event::Marathon(Marathon::Stream(event)) => turn.stream(event),
        Event::Marathon(told) => turn.told(told),
        Event::Probed { app, instance, open } => turn.probed(&app, &instance, open),
        Event::Resolved { host, addresses } => turn.resolved(host, addresses),
        Event::Tick => turn.tick(),
    }
    turn.settle();
    turn.effects
}

/// The work on one event.
struct Turn<'a> {
    state: &'a mut State,
    now: Timestamp,
    effects: Vec<Effect>,
    /// Apps to look at again, and whether they changed.
    apps: BTreeMap<AppId, bool>,
    /// ELBs to compile again, as they were before.
    elbs: BTreeMap<ElbName, Option<Arc<Elb>>>,
    /// What runs when Tidegate looks for the first time was serving before, and needs no admission.
    first_look: bool,
}

impl<'a> Turn<'a> {
    fn new(state: &'a mut State, now: Timestamp) -> Self {
        Self { state, now, effects: Vec::new(), apps: BTreeMap::new(), elbs: BTreeMap::new(), first_look: false }
    }

    fn desired(&mut self, desired: Desired) {
        let before = std::mem::replace(&mut self.state.desired, desired);
        self.state.links.desired_known = true;
        let after = self.state.desired.elbs.clone();
        for difference in before.elbs.diff(&after) {
            let (name, old, new) = match difference {
                imbl::ordmap::DiffItem::Add(name, new) => (name, None, Some(new)),
                imbl::ordmap::DiffItem::Remove(name, old) => (name, Some(old), None),
                imbl::ordmap::DiffItem::Update { old, new } => (new.0, Some(old.1), Some(new.1)),
            };
            if let Some(old) = old {
                self.state.index.remove_elb(name, old);
            }
            if let Some(new) = new {
                self.state.index.add_elb(name, new);
            }
            self.elbs.insert(name.clone(), old.cloned());
        }
    }

    fn remembered(&mut self, apps: Vec<App>) {
        for app in apps {
            if !self.state.links.apps_known && !self.state.observed.apps.contains_key(&app.id) {
                self.apps.insert(app.id.clone(), false);
                self.state.observed.apps.insert(app.id.clone(), Arc::new(app));
            }
        }
        // Whoever remembers nothing waits for Marathon.
        if !self.state.observed.apps.is_empty() {
            self.know_apps();
        }
    }

    fn know_apps(&mut self) {
        if !self.state.links.apps_known {
            self.state.links.apps_known = true;
            self.state.links.known_since = Some(self.now);
        }
    }

    fn probed(&mut self, app: &AppId, instance: &InstanceId, open: bool) {
        if open {
            self.state.links.probes.remove(instance);
            self.change(app, instance, |instance| instance.admitted = true);
        } else {
            // Asked again at the next tick.
            self.state.links.probes.insert(instance.clone(), (app.clone(), None));
        }
    }

    fn resolved(&mut self, host: Arc<str>, addresses: Vec<IpAddr>) {
        if addresses.is_empty() {
            return; // the last answer stays
        }
        let known = self.state.observed.hosts.0.get(&host);
        if known.is_some_and(|known| **known == *addresses) {
            return;
        }
        for app in self.state.index.apps_on(&host) {
            self.apps.entry(app).or_insert(false);
        }
        self.state.observed.hosts.0.insert(host, addresses.into());
    }

    /// Changes an instance in memory, if it is there and that makes a difference.
    fn change(
        &mut self,
        app: &AppId,
        instance: &InstanceId,
        with: impl FnOnce(&mut crate::model::app::Instance),
    ) -> bool {
        let Some(old) = self.state.observed.apps.get(app).and_then(|app| app.instances.get(instance)) else {
            return false;
        };
        let mut new = (**old).clone();
        with(&mut new);
        if new != **old {
            self.app_mut(app, |app| {
                app.instances.insert(instance.clone(), Arc::new(new));
            });
        }
        true
    }

    fn app_mut(&mut self, id: &AppId, with: impl FnOnce(&mut App)) {
        if let Some(app) = self.state.observed.apps.get_mut(id) {
            with(Arc::make_mut(app));
            self.apps.insert(id.clone(), true);
        }
    }

    fn put_app(&mut self, app: App) {
        self.apps.insert(app.id.clone(), true);
        self.state.observed.apps.insert(app.id.clone(), Arc::new(app));
    }

    fn remove_app(&mut self, id: &AppId) {
        if self.state.observed.apps.remove(id).is_some() {
            self.apps.insert(id.clone(), true);
        }
    }

    fn raise(&mut self, key: &str, text: String) {
        let known = self.state.alarms.get(key);
        if known.is_some_and(|alarm| alarm.text == text) {
            return;
        }
        let alarm = Alarm { since: known.map_or(self.now, |alarm| alarm.since), text };
        self.state.alarms.insert(key.to_owned(), alarm.clone());
        self.effects.push(Effect::Alarm { key: key.to_owned(), alarm: Some(alarm) });
    }

    fn calm(&mut self, key: &str) {
        if self.state.alarms.remove(key).is_some() {
            self.effects.push(Effect::Alarm { key: key.to_owned(), alarm: None });
        }
    }

    fn note(&mut self, text: String) {
        self.effects.push(Effect::Note(text));
    }

    /// The first few of a list, for a sentence.
    fn some(ids: &BTreeSet<&AppId>) -> String {
        let mut text = ids.iter().take(3).map(|id| &***id).collect::<Vec<_>>().join(", ");
        if ids.len() > 3 {
            text.push_str(" ...");
        }
        text
    }
}
