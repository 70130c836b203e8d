//! Full answers: the truth, but for what events said since they were asked for, and for sudden emptiness.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use imbl::OrdMap;
use jiff::{SignedDuration, Timestamp};

use super::{Turn, recent::Recent};
use crate::model::app::{App, AppId, Health, Instance, TaskState};

/// How long the event that explains a difference may take after the answer that showed it.
const LATE: SignedDuration = SignedDuration::from_secs(5);

impl Turn<'_> {
    pub(super) fn snapshot(&mut self, apps: Vec<App>, broken: Vec<(AppId, String)>, asked_at: Timestamp) {
        if self.state.links.snapshot.is_some_and(|newer| newer > asked_at) {
            return;
        }
        self.state.links.snapshot = Some(asked_at);
        self.first_look = !self.state.links.apps_known;
        self.know_apps();
        let mut doubted = BTreeSet::new();
        let listed: BTreeSet<AppId> =
            apps.iter().map(|app| &app.id).chain(broken.iter().map(|(id, _)| id)).cloned().collect();
        self.vanished(&listed, asked_at, &mut doubted);
        for app in apps {
            self.calm(&alarm_key(&app.id));
            if !self.state.recent.outdates(&app.id, asked_at) {
                let id = app.id.clone();
                if self.take(app, asked_at, self.state.links.in_step) {
                    doubted.insert(id);
                }
            }
        }
        for (id, why) in broken {
            self.broken(&id, &why);
        }
        self.believe_or_doubt(doubted);
    }

    pub(super) fn one_app(&mut self, id: &AppId, app: Option<App>, asked_at: Timestamp) {
        let older = self.state.links.snapshot.is_some_and(|newer| newer > asked_at);
        if older || self.state.recent.outdates(id, asked_at) {
            return;
        }
        self.calm(&alarm_key(id));
        match app {
            Some(app) => {
                self.state.recent.answered(id, asked_at, self.now);
                if self.take(app, asked_at, false) {
                    let doubted = self.state.doubts.keys().cloned().chain([id.clone()]).collect();
                    self.believe_or_doubt(doubted);
                } else if self.state.doubts.contains_key(id) {
                    let doubted = self.state.doubts.keys().filter(|doubted| *doubted != id).cloned().collect();
                    self.believe_or_doubt(doubted);
                }
            }
            // With something still running, one 404 is not enough: the full list decides, where emptiness is noticed.
            None if self.state.observed.apps.get(id).is_some_and(|app| lives(app)) => self.fetch_all(),
            None => {
                self.state.recent.answered(id, asked_at, self.now);
                self.remove_app(id);
            }
        }
    }

    /// An app that cannot be read keeps its last good state and holds up nobody.
    pub(super) fn broken(&mut self, id: &AppId, why: &str) {
        let text = format!(
            "the app {id} cannot be read from Marathon ({why}): it keeps the state last read; correct its definition"
        );
        self.raise(&alarm_key(id), text);
    }

    /// Apps that the list leaves out. One or a few are believed; if more than half of all vanish, the list is doubted.
    fn vanished(&mut self, listed: &BTreeSet<AppId>, asked_at: Timestamp, doubted: &mut BTreeSet<AppId>) {
        if self.state.links.disconnected {
            return;
        }
        let comparable = |id: &AppId| !self.state.recent.outdates(id, asked_at);
        let total = self.state.observed.apps.keys().filter(|id| comparable(id)).count();
        let gone: Vec<(AppId, bool)> = self
            .state
            .observed
            .apps
            .iter()
            .filter(|(id, _)| !listed.contains(*id) && comparable(id))
            .map(|(id, app)| (id.clone(), lives(app)))
            .collect();
        let suspect = gone.len() * 2 > total;
        for (id, lives) in gone {
            self.calm(&alarm_key(&id));
            if suspect && lives && !self.believed(&id) {
                doubted.insert(id);
            } else {
                if lives && self.state.links.in_step {
                    self.state.unexplained.insert(id.clone(), self.now);
                }
                self.remove_app(&id);
            }
        }
    }

    /// Takes one app of an answer in. True: it suddenly has no instance at all, and is left as it was.
    fn take(&mut self, new: App, asked_at: Timestamp, count: bool) -> bool {
        let old = self.state.observed.apps.get(&new.id).cloned();
        let keep_missing = self.state.links.disconnected;
        let merged = merge(old.as_deref(), new, asked_at, keep_missing, &mut self.state.recent);
        let old = match old {
            Some(old) if *old == merged => return false,
            old => old,
        };
        if let Some(old) = &old {
            let emptied = merged.instances.is_empty() && merged.wanted > 0 && lives(old);
            if emptied && !self.believed(&old.id) {
                return true;
            }
        }
        let before = old.as_ref().map(|old| &old.instances);
        for (id, instance) in &merged.instances {
            let known = before.and_then(|before| before.get(id));
            if count && known.is_none_or(|known| known.state != instance.state) && !self.state.recent.knows(id) {
                self.state.unexplained.insert(id.clone(), self.now);
            }
            // Whether it has just begun to run: then its event may still come, and is no sign of stopping.
            if instance.state == TaskState::Running && known.is_none_or(|known| known.state != TaskState::Running) {
                let old_news =
                    instance.started_at.is_some_and(|at| self.now.duration_since(at) > SignedDuration::from_secs(10));
                if !old_news && !self.first_look {
                    self.state.recent.runs(id, self.now);
                }
            }
        }
        if count && let Some(before) = before {
            for id in before.keys().filter(|id| !merged.instances.contains_key(*id)) {
                if !self.state.recent.knows(id) {
                    self.state.unexplained.insert(id.clone(), self.now);
                }
            }
        }
        self.put_app(merged);
        false
    }

    /// Whether the same emptiness was told for long enough.
    fn believed(&self, id: &AppId) -> bool {
        let patience = SignedDuration::try_from(self.state.policy.distrust).unwrap_or(SignedDuration::MAX);
        self.state.doubts.get(id).is_some_and(|since| self.now.duration_since(*since) >= patience)
    }

    pub(super) fn believe_or_doubt(&mut self, doubted: BTreeSet<AppId>) {
        let before = std::mem::take(&mut self.state.doubts);
        let since = |id: &AppId| before.get(id).copied().unwrap_or(self.now);
        self.state.doubts = doubted.iter().map(|id| (id.clone(), since(id))).collect();
        let Some(oldest) = self.state.doubts.values().min().copied() else {
            self.calm("empty-answer");
            if !before.is_empty() {
                self.note(format!(
                    "{} apps are no longer in doubt: Marathon lists them, or has said long enough that they are empty",
                    before.len()
                ));
            }
            return;
        };
        let apps = &self.state.observed.apps;
        let instances: usize = doubted.iter().filter_map(|id| apps.get(id)).map(|app| app.instances.len()).sum();
        let at = oldest
            .saturating_add(SignedDuration::try_from(self.state.policy.distrust).unwrap_or(LATE))
            .unwrap_or(oldest);
        let text = format!(
            "Marathon suddenly lists nothing for {} of {} apps ({}), and no event explains it: the {instances} instances \
             known before go on being served. If it still says so at {at:.0}, that is believed and they are withdrawn. \
             Check whether Marathon lost its state",
            doubted.len(),
            apps.len(),
            Self::some(&doubted.iter().collect()),
        );
        self.raise("empty-answer", text);
    }

    /// Counts the differences that no event has explained in time.
    pub(super) fn count_missed(&mut self) {
        let before = self.state.unexplained.len();
        let now = self.now;
        self.state.unexplained.retain(|_, at| now.duration_since(*at) < LATE);
        self.state.missed_events += (before - self.state.unexplained.len()) as u64;
    }
}

fn alarm_key(app: &AppId) -> String {
    format!("app-{app}")
}

/// Whether an app has an instance that nothing has announced the end of.
fn lives(app: &App) -> bool {
    app.instances.values().any(|instance| instance.stopping.is_none() && instance.state != TaskState::Killing)
}

/// The answer, with what is newer than it kept.
fn merge(old: Option<&App>, new: App, asked_at: Timestamp, keep_missing: bool, recent: &mut Recent) -> App {
    let none = OrdMap::new();
    let known = old.map_or(&none, |old| &old.instances);
    let mut instances = BTreeMap::new();
    for (id, told) in &new.instances {
        if recent.died_since(id, asked_at) {
            continue;
        }
        let instance = match known.get(id) {
            Some(known) if recent.touched_since(id, asked_at) => known.clone(),
            Some(known) => {
                let merged = succeed(known, told);
                if merged == **known { known.clone() } else { Arc::new(merged) }
            }
            None => {
                if recent.is_dead(id) {
                    recent.revive(id);
                }
                match recent.stop_sign(id) {
                    Some(sign) => Arc::new(Instance { stopping: Some(sign), ..(**told).clone() }),
                    None => told.clone(),
                }
            }
        };
        instances.insert(id.clone(), instance);
    }
    for (id, known) in known {
        if !new.instances.contains_key(id) && (keep_missing || recent.touched_since(id, asked_at)) {
            instances.insert(id.clone(), known.clone());
        }
    }
    let mut definitions = OrdMap::new();
    for version in instances.values().map(|instance| &instance.version).chain([&new.version]) {
        let before = old.and_then(|old| old.definitions.get(version));
        let told = new.definitions.get(version);
        // An equal one keeps its place in memory.
        if let Some(definition) = told.filter(|told| before != Some(told)).or(before) {
            definitions.insert(version.clone(), definition.clone());
        }
    }
    App { instances: instances.into_iter().collect(), definitions, ..new }
}

/// The newer word on an instance. No result is no news, and a sign of stopping stays.
fn succeed(known: &Instance, told: &Instance) -> Instance {
    Instance {
        admitted: known.admitted || told.admitted,
        stopping: known.stopping.or(told.stopping),
        agent: told.agent.clone().or_else(|| known.agent.clone()),
        health: if told.health == Health::Unknown { known.health } else { told.health },
        ..told.clone()
    }
}
