//! What was asked of whom, and what the answer to it (or its absence) means for the link.

use std::{collections::BTreeMap, sync::Arc};

use jiff::{SignedDuration, Timestamp};

use super::{Effect, Fetch, Marathon, Turn};
use crate::model::app::{AppId, InstanceId, Version};

/// A request without an answer is forgotten after this, and asked again if still needed.
const LOST: SignedDuration = SignedDuration::from_secs(60);
/// How soon to ask again for what was not found out.
const AGAIN: SignedDuration = SignedDuration::from_secs(10);
/// How old a name's answer may grow.
const RESOLVED: SignedDuration = SignedDuration::from_secs(60);
/// How often to read the full list while something is wrong with the stream or the answers.
const WORRIED: SignedDuration = SignedDuration::from_secs(5);
/// How soon after a failed request to try again.
const RETRY: SignedDuration = SignedDuration::from_secs(1);
/// More refetches than this at once are done by one full list.
const MANY: usize = 20;
/// How long the first Inputs wait for names and definitions that were asked for.
const PATIENCE: SignedDuration = SignedDuration::from_secs(3);

#[derive(Clone, Debug, Default)]
pub(super) struct Links {
    pub(super) attached: bool,
    /// A full answer was taken since the stream attached: from then on every difference should come as an event.
    pub(super) in_step: bool,
    pub(super) disconnected: bool,
    pub(super) desired_known: bool,
    pub(super) apps_known: bool,
    pub(super) known_since: Option<Timestamp>,
    pub(super) published: bool,
    pub(super) unpublished: bool,
    /// When the newest full answer that was taken was asked for.
    pub(super) snapshot: Option<Timestamp>,
    all: Option<Asked>,
    apps: BTreeMap<AppId, Asked>,
    definitions: BTreeMap<(AppId, Version), Timestamp>,
    /// The agents that are given by name, and when each was asked for last.
    lookups: BTreeMap<Arc<str>, Timestamp>,
    /// `None`: to be asked again.
    pub(super) probes: BTreeMap<InstanceId, (AppId, Option<Timestamp>)>,
    next: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    at: Timestamp,
    /// Something happened meanwhile: the answer will be old.
    again: bool,
}

impl Turn<'_> {
    pub(super) fn told(&mut self, told: Marathon) {
        match told {
            Marathon::Attached => {
                self.state.links.attached = true;
                self.state.links.in_step = false;
                self.fetch_all();
            }
            Marathon::Unreachable(why) => {
                self.state.links.attached = false;
                self.state.links.in_step = false;
                self.unreachable(&why);
                self.retry_at(self.now + WORRIED);
            }
            Marathon::FetchFailed { fetch, why } => {
                match fetch {
                    Fetch::All => self.state.links.all = None,
                    Fetch::App(app) => {
                        self.state.links.apps.remove(&app);
                    }
                    // Asked again by the tick, when it is still needed.
                    Fetch::Definition { .. } => return,
                }
                self.unreachable(&why);
                self.retry_at(self.now + RETRY);
            }
            Marathon::Snapshot { apps, broken, asked_at } => {
                let again = self.state.links.all.take().is_some_and(|asked| asked.again);
                self.snapshot(apps, broken, asked_at);
                if self.state.links.attached {
                    self.state.links.in_step |= !again;
                    self.calm("marathon-unreachable");
                }
                let worried = !self.state.links.attached || !self.state.doubts.is_empty();
                let resync = SignedDuration::try_from(self.state.policy.resync).unwrap_or(LOST);
                self.state.links.next = Some(self.now + if worried { resync.min(WORRIED) } else { resync });
                if again {
                    self.fetch_all();
                }
            }
            Marathon::App { id, app, asked_at } => {
                let again = self.state.links.apps.remove(&id).is_some_and(|asked| asked.again);
                self.one_app(&id, app, asked_at);
                if again {
                    self.fetch_app(&id);
                }
            }
            Marathon::Broken { id, why } => {
                self.state.links.apps.remove(&id);
                self.broken(&id, &why);
            }
            Marathon::Definition { app, version, definition } => {
                self.state.links.definitions.remove(&(app.clone(), version.clone()));
                let needed = self.state.observed.apps.get(&app).is_some_and(|known| {
                    !known.definitions.contains_key(&version)
                        && known.instances.values().any(|instance| instance.version == version)
                });
                if needed {
                    self.app_mut(&app, |app| {
                        app.definitions.insert(version, Arc::new(definition));
                    });
                }
            }
            Marathon::Stream(event) => self.stream(event),
        }
    }

    fn unreachable(&mut self, why: &str) {
        let text = format!(
            "Marathon cannot be followed ({why}): all that was known goes on being served. Check [marathon] urls, its \
             process and the network between"
        );
        self.raise("marathon-unreachable", text);
    }

    fn retry_at(&mut self, at: Timestamp) {
        let next = &mut self.state.links.next;
        *next = Some(next.map_or(at, |next| next.min(at)));
    }

    pub(super) fn fetch_all(&mut self) {
        match &mut self.state.links.all {
            Some(asked) => asked.again = true,
            None => {
                self.state.links.all = Some(Asked { at: self.now, again: false });
                self.effects.push(Effect::FetchAll);
            }
        }
    }

    pub(super) fn fetch_app(&mut self, app: &AppId) {
        let links = &mut self.state.links;
        if let Some(asked) = links.apps.get_mut(app) {
            asked.again = true;
        } else if links.apps.len() >= MANY.max(self.state.observed.apps.len() / 5) {
            self.fetch_all();
        } else {
            links.apps.insert(app.clone(), Asked { at: self.now, again: false });
            self.effects.push(Effect::FetchApp(app.clone()));
        }
    }

    pub(super) fn fetch_definition(&mut self, app: &AppId, version: &Version) {
        let key = (app.clone(), version.clone());
        if !self.state.links.definitions.contains_key(&key) {
            self.state.links.definitions.insert(key, self.now);
            self.effects.push(Effect::FetchDefinition { app: app.clone(), version: version.clone() });
        }
    }

    pub(super) fn look_up(&mut self, host: &Arc<str>) {
        if !self.state.links.lookups.contains_key(host) {
            self.state.links.lookups.insert(host.clone(), self.now);
            self.effects.push(Effect::Resolve { host: host.clone() });
        }
    }

    /// Whether the first Inputs can be given: both sides are known, and nothing that they need is about to come.
    pub(super) fn may_publish(&self) -> bool {
        let links = &self.state.links;
        let waited = links.known_since.is_some_and(|since| self.now.duration_since(since) >= PATIENCE);
        let hosts = &self.state.observed.hosts;
        let complete = || links.definitions.is_empty() && !links.lookups.keys().any(|host| hosts.lacks(host));
        links.published || (links.desired_known && links.apps_known && (waited || complete()))
    }

    pub(super) fn tick(&mut self) {
        self.state.recent.prune(self.now);
        self.count_missed();
        let now = self.now;
        let links = &mut self.state.links;
        let lost = |asked: &Asked| now.duration_since(asked.at) >= LOST;
        if links.all.as_ref().is_some_and(lost) {
            links.all = None;
            links.next = Some(now);
        }
        let lost: Vec<AppId> = links.apps.iter().filter(|(_, asked)| lost(asked)).map(|(id, _)| id.clone()).collect();
        let unknown = |at: &Timestamp| now.duration_since(*at) >= AGAIN;
        let mut wake: Vec<AppId> = Vec::new();
        links.definitions.retain(|(app, _), at| {
            let again = unknown(at);
            if again {
                wake.push(app.clone());
            }
            !again
        });
        links.probes.retain(|_, (app, at)| {
            let again = at.as_ref().is_none_or(unknown);
            if again {
                wake.push(app.clone());
            }
            !again
        });
        self.look_up_again();
        for app in lost {
            self.state.links.apps.remove(&app);
            self.fetch_app(&app);
        }
        for app in wake {
            self.apps.entry(app).or_insert(false);
        }
        if self.state.links.next.is_some_and(|next| next <= self.now) && self.state.links.all.is_none() {
            self.state.links.next = None;
            self.fetch_all();
        }
    }

    /// Names that have no answer yet soon, the others when their answer is old; those that no app needs no more.
    fn look_up_again(&mut self) {
        let (now, hosts) = (self.now, &self.state.observed.hosts);
        let due = |(host, at): (&Arc<str>, &Timestamp)| {
            let patience = if hosts.lacks(host) { AGAIN } else { RESOLVED };
            (now.duration_since(*at) >= patience).then(|| host.clone())
        };
        let due: Vec<Arc<str>> = self.state.links.lookups.iter().filter_map(due).collect();
        for host in due {
            self.state.links.lookups.remove(&host);
            let apps = &self.state.observed.apps;
            let on_it = |app: &AppId| apps.get(app).is_some_and(|app| app.instances.values().any(|i| i.host == host));
            if self.state.index.apps_on(&host).iter().any(on_it) {
                self.look_up(&host);
            }
        }
    }
}
