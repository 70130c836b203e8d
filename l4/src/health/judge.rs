//! Which reals get new flows: what the Input says, less those that probes or traffic speak against, unless nearly
//! nobody would be left. Pure: the time is an argument. What a call costs follows what it changes.

use std::{
    collections::{BTreeSet, HashMap},
    mem,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use imbl::{OrdMap, ordmap::DiffItem};

use super::standing::{Passive, Standing};
use crate::{
    input::{Frontend, Real, RealState, Service},
    report::{Health, Verdict},
};

/// Fail-open: when at most one active real in so many would be left, all stay. So few could not carry the load of all,
/// and so many do not die at once as often as the way between here and them does.
const LEFT_ONE_IN: usize = 10;
/// What traffic alone looks like takes at most half of the active reals away, and so never the only one: clients (a
/// flood, or one who plays) have a hand in it.
const EJECTED_ONE_IN: usize = 2;

/// A real's name within its service.
pub type Name = (IpAddr, u16);

#[derive(Debug, Default)]
pub struct Judge {
    /// As the Input says.
    asked: OrdMap<Frontend, Arc<Service>>,
    /// As it shall be; what nothing speaks against is shared with `asked`.
    effective: OrdMap<Frontend, Arc<Service>>,
    /// One for each real, in the service's order; only of services about which there is something to say.
    healths: OrdMap<Frontend, Arc<[Health]>>,
    /// Services whose bad reals stay in, and why.
    open: OrdMap<Frontend, Arc<str>>,
    /// One for each real, in the service's order; only of services of which something was heard.
    standings: HashMap<Frontend, Vec<Standing>>,
    /// When ejections end.
    releases: BTreeSet<(Duration, Frontend)>,
    /// To be decided anew.
    touched: BTreeSet<Frontend>,
    /// Decisions since they were last asked for.
    said: Vec<String>,
    traffic_at: Duration,
    /// The services of an earlier process, until the first Input.
    adopted: OrdMap<Frontend, Arc<Service>>,
}

impl Judge {
    /// What an earlier process did: its probed reals that drained and are active in the first Input were out.
    pub fn adopt(&mut self, applied: &OrdMap<Frontend, Arc<Service>>) {
        self.adopted = applied.clone();
    }

    /// The services as an Input says; answers, as all calls here, whether `effective` is another now.
    pub fn input(&mut self, services: &OrdMap<Frontend, Arc<Service>>) -> bool {
        let before = mem::replace(&mut self.asked, services.clone());
        for (frontend, applied) in mem::take(&mut self.adopted) {
            let Some(service) = services.get(&frontend).filter(|service| service.probe.is_some()) else { continue };
            let drained = |real: &Real| {
                let index = position(&applied, (real.address, real.port));
                real.state == RealState::Active
                    && index.is_some_and(|index| applied.reals[index].state == RealState::Draining)
            };
            if service.reals.iter().any(drained) {
                let standing = |real| if drained(real) { Standing::out() } else { Standing::default() };
                self.standings.insert(frontend, service.reals.iter().map(standing).collect());
            }
        }
        for item in before.diff(services) {
            match item {
                DiffItem::Add(frontend, _) => {
                    self.touched.insert(*frontend);
                }
                DiffItem::Remove(frontend, _) => {
                    self.standings.remove(frontend);
                    self.touched.insert(*frontend);
                }
                DiffItem::Update { old: (frontend, old), new: (_, new) } => {
                    if let Some(standings) = self.standings.get_mut(frontend) {
                        *standings = carry(old, new, mem::take(standings));
                    }
                    self.touched.insert(*frontend);
                }
            }
        }
        self.settle()
    }

    /// A probe of a real came back; `Err` says how it failed. One of a real that is gone is nothing.
    pub fn probed(&mut self, frontend: Frontend, real: Name, result: Result<(), &str>, now: Duration) -> bool {
        let Some(service) = self.asked.get(&frontend) else { return false };
        let (Some(probe), Some(index)) = (&service.probe, position(service, real)) else { return false };
        let standings =
            self.standings.entry(frontend).or_insert_with(|| vec![Standing::default(); service.reals.len()]);
        if !standings[index].probe(probe, result, now) {
            return false;
        }
        self.touched.insert(frontend);
        self.settle()
    }

    /// What the packet path counted since the call before, of the reals that it counted anything of. To be called
    /// about once a second.
    pub fn passive(&mut self, counted: impl IntoIterator<Item = (Frontend, Name, Passive)>, now: Duration) -> bool {
        let since = mem::replace(&mut self.traffic_at, now);
        for (frontend, real, passive) in counted {
            let Some(service) = self.asked.get(&frontend) else { continue };
            let Some(index) = position(service, real) else { continue };
            let standings =
                self.standings.entry(frontend).or_insert_with(|| vec![Standing::default(); service.reals.len()]);
            if let Some(until) = standings[index].traffic(&frontend, service, passive, since, now) {
                self.releases.insert((until, frontend));
                self.touched.insert(frontend);
            }
        }
        self.tick(now)
    }

    /// Ends what has had its time.
    pub fn tick(&mut self, now: Duration) -> bool {
        while self.releases.first().is_some_and(|(until, _)| *until <= now)
            && let Some((_, frontend)) = self.releases.pop_first()
        {
            if let Some(standings) = self.standings.get_mut(&frontend) {
                standings.iter_mut().for_each(|standing| standing.tick(now));
                self.touched.insert(frontend);
            }
        }
        self.settle()
    }

    /// The services as they shall be.
    #[must_use]
    pub fn effective(&self) -> &OrdMap<Frontend, Arc<Service>> {
        &self.effective
    }

    /// What is thought of the reals, in the order of each service's; a service that is not there has nobody that
    /// anything was heard of.
    #[must_use]
    pub fn healths(&self) -> &OrdMap<Frontend, Arc<[Health]>> {
        &self.healths
    }

    /// The services whose bad reals stay in, and why.
    #[must_use]
    pub fn open(&self) -> &OrdMap<Frontend, Arc<str>> {
        &self.open
    }

    /// The decisions since the last call, in words.
    pub fn said(&mut self) -> Vec<String> {
        mem::take(&mut self.said)
    }

    fn settle(&mut self) -> bool {
        let mut changed = false;
        for frontend in mem::take(&mut self.touched) {
            changed |= self.decide(&frontend);
        }
        changed
    }

    fn decide(&mut self, frontend: &Frontend) -> bool {
        let Some(asked) = self.asked.get(frontend) else {
            self.healths.remove(frontend);
            self.open.remove(frontend);
            return self.effective.remove(frontend).is_some();
        };
        let standings = self.standings.get(frontend).map_or(&[][..], Vec::as_slice);
        let healths: Arc<[Health]> = standings.iter().map(Standing::health).collect();
        let Decided { reals, open } = decide(&asked.reals, standings);
        let service = match reals {
            None => Arc::clone(asked),
            Some(reals) => Arc::new(Service { reals, ..Service::clone(asked) }),
        };
        for (real, health) in asked.reals.iter().zip(healths.iter()) {
            let before = self.healths.get(frontend).and_then(|before| {
                // The order may be another than it was: only the effective service of then knows.
                before.get(position(self.effective.get(frontend)?, (real.address, real.port))?)
            });
            let before = before.map_or(Verdict::Unknown, |before| before.verdict);
            if let Some(line) = line(before, health) {
                self.said.push(format!("{frontend}: {}:{} {line}", real.address, real.port));
            }
        }
        match (&open, self.open.get(frontend)) {
            (Some(why), None) => self.said.push(format!("{frontend}: {why}")),
            (None, Some(_)) => self.said.push(format!("{frontend}: no longer open to reals that look bad")),
            _ => {}
        }
        match open {
            Some(why) => self.open.insert(*frontend, why.into()),
            None => self.open.remove(frontend),
        };
        if healths.iter().all(|health| health.verdict == Verdict::Unknown) {
            self.healths.remove(frontend);
        } else if self.healths.get(frontend) != Some(&healths) {
            self.healths.insert(*frontend, healths);
        }
        match self.effective.get(frontend) {
            Some(before) if *before == service => false,
            _ => {
                self.effective.insert(*frontend, service);
                true
            }
        }
    }
}

fn position(service: &Service, real: Name) -> Option<usize> {
    service.reals.binary_search_by_key(&real, |real| (real.address, real.port)).ok()
}

/// What was known of the reals that stay.
fn carry(old: &Service, new: &Service, mut standings: Vec<Standing>) -> Vec<Standing> {
    let mut carried = |real: &Real| {
        let before = position(old, (real.address, real.port)).and_then(|index| standings.get_mut(index));
        let mut standing = before.map(mem::take).unwrap_or_default();
        if new.probe.is_none() {
            standing.forget_probes();
        }
        if new.forward != old.forward {
            standing.forget_traffic();
        }
        standing
    };
    new.reals.iter().map(&mut carried).collect()
}

fn line(before: Verdict, now: &Health) -> Option<String> {
    let why = now.why.as_deref().unwrap_or_default();
    match (before, now.verdict) {
        (before, now) if before == now => None,
        (_, Verdict::Down) => Some(format!("is down: {why}")),
        (_, Verdict::Ejected) => Some(format!("is taken out: {why}")),
        (Verdict::Down | Verdict::Ejected, _) => Some("is back".into()),
        _ => None,
    }
}

struct Decided {
    /// `None`: as the Input says.
    reals: Option<Vec<Real>>,
    /// Why some stay in though they look bad.
    open: Option<String>,
}

/// The rule itself. Of the reals only the active ones can be bad: one that drains goes on draining.
fn decide(reals: &[Real], standings: &[Standing]) -> Decided {
    let is = |verdict: Verdict| {
        move |(real, standing): &(&Real, &Standing)| real.state == RealState::Active && standing.verdict() == verdict
    };
    let count = |verdict| reals.iter().zip(standings).filter(is(verdict)).count();
    let active = reals.iter().filter(|real| real.state == RealState::Active).count();
    let (down, ejected) = (count(Verdict::Down), count(Verdict::Ejected));
    if down + ejected == 0 {
        return Decided { reals: None, open: None };
    }
    let left = active - down;
    if down > 0 && left * LEFT_ONE_IN <= active {
        let open = match active {
            1 => "fail-open: its only active real looks down, and nobody else could serve".into(),
            _ => format!(
                "fail-open: {down} of {active} reals look down, which is more likely a fault between here and there"
            ),
        };
        return Decided { reals: None, open: Some(open) };
    }
    let keep = ejected * EJECTED_ONE_IN > left;
    let open = keep.then(|| {
        format!(
            "fail-open: {ejected} of {left} reals look bad by their traffic alone, which takes at most half of them out"
        )
    });
    let state = |real: &Real, standing: &Standing| match standing.verdict() {
        Verdict::Down => RealState::Draining,
        Verdict::Ejected if !keep => RealState::Draining,
        _ => real.state,
    };
    let decided: Vec<Real> =
        reals.iter().zip(standings).map(|(real, standing)| Real { state: state(real, standing), ..*real }).collect();
    Decided { reals: (decided != reals).then_some(decided), open }
}

#[cfg(test)]
mod tests;
