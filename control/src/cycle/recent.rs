//! What events said lately: it is newer than any answer to a request that was sent before.

use std::collections::{BTreeMap, VecDeque};

use jiff::{SignedDuration, Timestamp};

use crate::model::app::{AppId, InstanceId, StopSign};

/// Longer than any request may take.
const KEPT: SignedDuration = SignedDuration::from_secs(120);
/// How long after an instance became Running its own `instance_changed_event` may come in.
const FRESH: SignedDuration = SignedDuration::from_secs(5);

#[derive(Clone, Debug, Default)]
pub(super) struct Recent {
    instances: BTreeMap<InstanceId, Seen>,
    apps: BTreeMap<AppId, SeenApp>,
    order: VecDeque<(Timestamp, Key)>,
}

#[derive(Clone, Debug)]
enum Key {
    Instance(InstanceId),
    App(AppId),
}

#[derive(Clone, Debug)]
struct Seen {
    at: Timestamp,
    dead: Option<Timestamp>,
    stop: Option<StopSign>,
    /// When it became Running in memory, and the stamp of the event that told so.
    running: Option<Timestamp>,
    announced: Option<Option<Timestamp>>,
}

#[derive(Clone, Debug)]
struct SeenApp {
    at: Timestamp,
    gone: Option<Timestamp>,
    /// When the newest answer that was taken was asked for.
    answered: Option<Timestamp>,
}

impl Recent {
    fn instance(&mut self, id: &InstanceId, now: Timestamp) -> &mut Seen {
        self.order.push_back((now, Key::Instance(id.clone())));
        let fresh = Seen { at: now, dead: None, stop: None, running: None, announced: None };
        let seen = self.instances.entry(id.clone()).or_insert(fresh);
        seen.at = now;
        seen
    }

    fn app(&mut self, id: &AppId, now: Timestamp) -> &mut SeenApp {
        self.order.push_back((now, Key::App(id.clone())));
        let seen = self.apps.entry(id.clone()).or_insert(SeenApp { at: now, gone: None, answered: None });
        seen.at = now;
        seen
    }

    pub(super) fn touch(&mut self, id: &InstanceId, now: Timestamp) {
        self.instance(id, now);
    }

    pub(super) fn bury(&mut self, id: &InstanceId, now: Timestamp) {
        self.instance(id, now).dead = Some(now);
    }

    /// A later answer lists it again: its id is reused (resident tasks).
    pub(super) fn revive(&mut self, id: &InstanceId) {
        if let Some(seen) = self.instances.get_mut(id) {
            seen.dead = None;
            seen.stop = None;
        }
    }

    pub(super) fn stops(&mut self, id: &InstanceId, sign: StopSign, now: Timestamp) {
        self.instance(id, now).stop.get_or_insert(sign);
    }

    pub(super) fn bury_app(&mut self, id: &AppId, now: Timestamp) {
        self.app(id, now).gone = Some(now);
    }

    pub(super) fn answered(&mut self, id: &AppId, asked_at: Timestamp, now: Timestamp) {
        self.app(id, now).answered = Some(asked_at);
    }

    pub(super) fn knows(&self, id: &InstanceId) -> bool {
        self.instances.contains_key(id)
    }

    pub(super) fn is_dead(&self, id: &InstanceId) -> bool {
        self.instances.get(id).is_some_and(|seen| seen.dead.is_some())
    }

    /// Whether the instance ended after the request was sent.
    pub(super) fn died_since(&self, id: &InstanceId, asked_at: Timestamp) -> bool {
        self.instances.get(id).and_then(|seen| seen.dead).is_some_and(|dead| dead >= asked_at)
    }

    pub(super) fn touched_since(&self, id: &InstanceId, asked_at: Timestamp) -> bool {
        self.instances.get(id).is_some_and(|seen| seen.at >= asked_at)
    }

    pub(super) fn stop_sign(&self, id: &InstanceId) -> Option<StopSign> {
        self.instances.get(id).and_then(|seen| seen.stop)
    }

    /// Whether what is known of the app is newer than an answer to a request sent then.
    pub(super) fn outdates(&self, id: &AppId, asked_at: Timestamp) -> bool {
        self.apps.get(id).is_some_and(|seen| {
            seen.gone.is_some_and(|gone| gone >= asked_at) || seen.answered.is_some_and(|newer| newer > asked_at)
        })
    }

    /// It became Running in memory: its `instance_changed_event` may still come.
    pub(super) fn runs(&mut self, id: &InstanceId, now: Timestamp) {
        self.instance(id, now).running = Some(now);
    }

    /// An `instance_changed_event` says Running of an instance that was not Running in memory.
    pub(super) fn announces(&mut self, id: &InstanceId, stamp: Option<Timestamp>, now: Timestamp) {
        let seen = self.instance(id, now);
        seen.running = Some(now);
        seen.announced = Some(stamp);
    }

    /// An `instance_changed_event` says Running of an instance that is Running in memory. Either it is the news of its
    /// start, late or repeated, or its goal has changed: Marathon is about to stop it.
    pub(super) fn is_goal_change(
        &mut self,
        id: &InstanceId,
        stamp: Option<Timestamp>,
        started_at: Option<Timestamp>,
        now: Timestamp,
    ) -> bool {
        let near = SignedDuration::from_secs(2);
        let seen = self.instance(id, now);
        let first = seen.announced.is_none();
        let start = match (stamp, started_at) {
            // Not newer than what was heard: repeated, or out of order.
            (Some(stamp), _) if seen.announced.flatten().is_some_and(|heard| heard >= stamp) => true,
            (Some(stamp), Some(start)) if stamp.duration_since(start) <= near => true,
            // Taken in by an event, which does not say when it started: the answer that was asked for will.
            (Some(_), None) if first => true,
            _ => first && seen.running.is_some_and(|since| now.duration_since(since) < FRESH),
        };
        if start {
            seen.announced = Some(stamp.max(seen.announced.flatten()));
        }
        !start
    }

    /// Forgets what no answer can contradict any more.
    pub(super) fn prune(&mut self, now: Timestamp) {
        while let Some((at, _)) = self.order.front()
            && now.duration_since(*at) > KEPT
        {
            match self.order.pop_front() {
                Some((at, Key::Instance(id))) if self.instances.get(&id).is_some_and(|seen| seen.at <= at) => {
                    self.instances.remove(&id);
                }
                Some((at, Key::App(id))) if self.apps.get(&id).is_some_and(|seen| seen.at <= at) => {
                    self.apps.remove(&id);
                }
                // Seen again since: a later entry stands for it.
                _ => {}
            }
        }
    }
}
