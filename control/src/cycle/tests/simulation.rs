//! A Marathon that tells the truth but for what the wire does to it: events are lost, late, twice and out of order,
//! answers are old, and sometimes a list is empty. What must hold at every step is asserted at every step.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use super::support::*;
use crate::{
    cycle::{Effect, Event, Fetch, Marathon, Policy, State, step},
    model::{
        app::{App, Health, TaskState},
        desired::Desired,
    },
};

const SEEDS: u64 = 150;
const STEPS: usize = 300;
const APPS: usize = 6;

/// What is so.
#[derive(Default)]
struct Truth {
    apps: BTreeMap<String, BTreeMap<u32, (TaskState, Health, Timestamp)>>,
    /// Apps without health checks.
    bare: BTreeSet<String>,
    next: u32,
}

impl Truth {
    fn list(&self) -> Vec<App> {
        self.apps.keys().map(|id| self.one(id).expect("it is in the table")).collect()
    }

    fn one(&self, id: &str) -> Option<App> {
        let tasks = self.apps.get(id)?.iter().map(|(&n, &(state, health, at))| crate::model::app::Instance {
            state,
            health,
            started_at: Some(at),
            ..instance(n)
        });
        let app = app(id, tasks);
        Some(if self.bare.contains(id) { unchecked(app) } else { app })
    }
}

struct Simulation {
    dice: fastrand::Rng,
    seed: u64,
    world: World,
    truth: Truth,
    desired: Desired,
    wire: Vec<Event>,
    /// Requests; for some the answer is written at once and comes late.
    asked: Vec<(Fetch, Timestamp, Option<Event>)>,
    /// Whose end was heard of.
    dead: BTreeSet<u32>,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut simulation = Self {
            dice: fastrand::Rng::with_seed(seed),
            seed,
            world: World::new(),
            truth: Truth::default(),
            desired: Desired::default(),
            wire: Vec::new(),
            asked: Vec::new(),
            dead: BTreeSet::new(),
        };
        simulation.world.state.policy.distrust = std::time::Duration::from_secs(3600);
        for n in 0..APPS {
            let id = format!("/app-{n}");
            if n % 3 == 0 {
                simulation.truth.bare.insert(id.clone());
            }
            simulation.truth.apps.insert(id.clone(), BTreeMap::new());
            (0..3).for_each(|_| simulation.start(&id));
        }
        simulation.wire.clear();
        put_layer4(&mut simulation.desired, "first", "10.77.100.1", "/app-0");
        put(&mut simulation.desired, "site", "10.77.100.2", layer7("/app-1"));
        let desired = simulation.desired.clone();
        simulation.tell(Event::Desired(desired));
        simulation.tell(attached());
        simulation
    }

    fn tell(&mut self, event: Event) {
        let before = self.world.state.compiled.clone();
        let text = format!("seed {}: {event:?}", self.seed);
        let effects = self.world.tell(event);
        let after = &self.world.state.compiled;
        for (old, new, same) in [
            (before.l4.generation, after.l4.generation, before.l4 == after.l4),
            (before.l7.generation, after.l7.generation, before.l7 == after.l7),
            (before.dns.generation, after.dns.generation, before.dns == after.dns),
        ] {
            assert_eq!(old == new, same, "{text}: a generation stands for one content");
            assert!(new >= old, "{text}: a generation never goes back");
        }
        for service in after.l4.services.values() {
            for real in &service.reals {
                assert!(!self.dead.contains(&number(real.address)), "{text}: {real:?} was reported dead");
            }
        }
        for pool in after.l7.pools.values() {
            for upstream in &pool.upstreams {
                assert!(!self.dead.contains(&number(upstream.address.ip())), "{text}: {upstream:?} was reported dead");
            }
        }
        for effect in effects {
            self.obey(effect);
        }
    }

    fn obey(&mut self, effect: Effect) {
        if let Some(fetch) = effect.fetch() {
            let early = self.dice.bool().then(|| self.truthful(&fetch, self.world.now));
            self.asked.push((fetch, self.world.now, early));
        } else if let Effect::Probe { app, instance, .. } = effect {
            self.wire.push(Event::Probed { app, instance, open: self.dice.u8(..) < 200 });
        }
    }

    fn start(&mut self, app: &str) {
        self.truth.next += 1;
        let (n, now) = (self.truth.next, self.world.now);
        let health = if self.truth.bare.contains(app) { Health::Unknown } else { Health::Healthy };
        if let Some(tasks) = self.truth.apps.get_mut(app) {
            tasks.insert(n, (TaskState::Running, health, now));
            self.wire.push(status(app, n, "TASK_RUNNING"));
            self.wire.push(changed(app, n, "Running", now));
            if health == Health::Healthy {
                self.wire.push(super::support::health(app, n, true));
            }
        }
    }

    fn pick(&mut self) -> Option<(String, u32)> {
        let all: Vec<(String, u32)> =
            self.truth.apps.iter().flat_map(|(id, tasks)| tasks.keys().map(move |&n| (id.clone(), n))).collect();
        (!all.is_empty()).then(|| all[self.dice.usize(..all.len())].clone())
    }

    fn any_app(&mut self) -> String {
        format!("/app-{}", self.dice.usize(..APPS))
    }

    /// Something happens in the cluster.
    fn live(&mut self) {
        let app = self.any_app();
        match self.dice.u8(..10) {
            0..=2 => self.start(&app),
            3..=4 => {
                if let Some((app, n)) = self.pick() {
                    self.wire.push(changed(&app, n, "Running", self.world.now + SignedDuration::from_secs(10)));
                    self.wire.push(status(&app, n, "TASK_KILLING"));
                    self.wire.push(status(&app, n, "TASK_KILLED"));
                    self.truth.apps.entry(app).or_default().remove(&n);
                }
            }
            5..=6 => {
                if let Some((app, n)) = self.pick().filter(|(app, _)| !self.truth.bare.contains(app)) {
                    let healthy = self.dice.bool();
                    let state = if healthy { Health::Healthy } else { Health::Unhealthy };
                    self.wire.push(health(&app, n, healthy));
                    self.truth.apps.entry(app).or_default().entry(n).and_modify(|task| task.1 = state);
                }
            }
            7 => {
                if let Some(tasks) = self.truth.apps.remove(&app) {
                    for n in tasks.into_keys() {
                        self.wire.push(status(&app, n, "TASK_KILLED"));
                    }
                    self.wire.push(stream(crate::cycle::StreamEvent::AppTerminated { app: app.as_str().into() }));
                }
            }
            8 => {
                self.truth.apps.entry(app.clone()).or_default();
                let apps = vec![app.as_str().into()];
                self.wire.push(stream(crate::cycle::StreamEvent::AppsChanged { apps }));
                self.start(&app);
            }
            _ => {
                let (name, vip) = [("first", "10.77.100.1"), ("second", "10.77.100.3")][self.dice.usize(..2)];
                if self.dice.bool() {
                    put_layer4(&mut self.desired, name, vip, &app);
                } else {
                    put(&mut self.desired, name, vip, layer7(&app));
                }
                if self.dice.u8(..4) == 0 {
                    self.desired.elbs.remove("second");
                }
                let desired = self.desired.clone();
                self.tell(Event::Desired(desired));
            }
        }
    }

    /// Something comes over the wire.
    fn deliver(&mut self) {
        if self.wire.is_empty() {
            return;
        }
        let late = self.dice.u8(..5) == 0;
        let event = self.wire.remove(if late { self.dice.usize(..self.wire.len()) } else { 0 });
        match self.dice.u8(..20) {
            0..=2 => return, // lost
            3..=4 => self.wire.push(event.clone()),
            _ => {}
        }
        self.hear(event);
    }

    fn hear(&mut self, event: Event) {
        if let Event::Marathon(Marathon::Stream(crate::cycle::StreamEvent::Status { state, addresses, .. })) = &event
            && state == "TASK_KILLED"
        {
            self.dead.insert(number(addresses[0]));
        }
        self.tell(event);
    }

    fn answer(&mut self, honest: bool) {
        if self.asked.is_empty() {
            return;
        }
        let (fetch, asked_at, early) = self.asked.remove(self.dice.usize(..self.asked.len()));
        match fetch {
            Fetch::All if !honest => self.lie(asked_at),
            _ => {
                let answer = early.unwrap_or_else(|| self.truthful(&fetch, asked_at));
                self.tell(answer);
            }
        }
    }

    fn truthful(&self, fetch: &Fetch, asked_at: Timestamp) -> Event {
        match fetch {
            Fetch::All => snapshot(self.truth.list(), asked_at),
            Fetch::App(id) => Event::Marathon(Marathon::App { id: id.clone(), app: self.truth.one(id), asked_at }),
            Fetch::Definition { .. } => panic!("seed {}: all run one version", self.seed),
        }
    }

    fn lie(&mut self, asked_at: Timestamp) {
        let serving = |world: &World| {
            let pools = world.state.compiled.l7.pools.values().flat_map(|pool| pool.upstreams.clone());
            let active = |upstream: &tidegate_l7::Upstream| upstream.state == tidegate_l7::UpstreamState::Active;
            (world.active(), pools.filter(active).collect::<Vec<_>>())
        };
        let before = serving(&self.world);
        self.tell(snapshot(Vec::new(), asked_at));
        assert_eq!(serving(&self.world), before, "seed {}: an empty answer withdraws nothing", self.seed);
    }

    /// The wire is mended, time passes, and the truth is told.
    fn end(&mut self) {
        for event in std::mem::take(&mut self.wire) {
            self.hear(event);
        }
        self.asked.clear();
        self.world.pass(2);
        for _ in 0..3 {
            self.world.pass(7200);
            self.tell(attached());
            self.tell(snapshot(self.truth.list(), self.world.now));
            self.tell(Event::Tick);
            for _ in 0..3 {
                for event in std::mem::take(&mut self.wire) {
                    match event {
                        Event::Probed { app, instance, .. } => self.tell(Event::Probed { app, instance, open: true }),
                        other => self.tell(other),
                    }
                }
                self.world.pass(1);
                self.tell(Event::Tick);
            }
        }
        let mut fresh = State::new(Policy::default(), start());
        for event in [Event::Desired(self.desired.clone()), attached(), snapshot(self.truth.list(), self.world.now)] {
            step(&mut fresh, event, self.world.now);
        }
        let (ours, theirs) = (&self.world.state.compiled, &fresh.compiled);
        assert!(ours.same_work(theirs), "seed {}:\n{ours:#?}\nfrom nothing:\n{theirs:#?}", self.seed);
        assert!(self.world.state.alarms.is_empty(), "seed {}: {:?}", self.seed, self.world.state.alarms);
    }
}

#[test]
fn whatever_the_wire_does_the_truth_comes_out() {
    for seed in 0..SEEDS {
        let mut simulation = Simulation::new(seed);
        for _ in 0..STEPS {
            match simulation.dice.u8(..20) {
                0..=4 => simulation.live(),
                5..=12 => simulation.deliver(),
                13..=15 => simulation.answer(true),
                16 => simulation.answer(false),
                17 => simulation.tell(attached()),
                _ => {
                    simulation.world.pass(1);
                    simulation.tell(Event::Tick);
                }
            }
        }
        simulation.end();
    }
}
