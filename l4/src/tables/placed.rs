//! A service's place in the maps, and how it changes.

use std::{collections::BTreeSet, net::SocketAddr};

use tidegate_ebpf::abi::{self, AccessKeyData, BLOCK_SLOTS};

use super::{
    Write,
    entries::{client, key, mode, name, tunnel_port, write_frontend, write_real},
    guard::{self, Lists},
    ledger::{Ledger, Pen},
    moves::{Moves, Shift},
};
use crate::{
    census::Census,
    input::{Forward, Frontend, Protocol, Real, RealState, Service},
    maglev::{self, Share},
    regions::Region,
    ring::{NOBODY, Ring},
};

/// A new real gets its share in so many steps.
pub const STEPS: u32 = 10;

#[derive(Clone, Debug, Default)]
pub struct Placed {
    pub id: u32,
    /// As they stand in the maps; `None`: not yet.
    pub(super) entry: Option<abi::Service>,
    pub(super) frontend: Option<abi::Frontend>,
    pub(super) limits: Option<abi::Limits>,
    pub(super) lists: Lists,
    pub(super) region: Option<Region>,
    pub(super) ring: Ring,
    pub(super) moves: Moves,
    /// Sorted by address and port.
    pub reals: Vec<PlacedReal>,
    /// The reals' ids by seat.
    pub(super) seats: Vec<Option<u32>>,
}

#[derive(Clone, Copy, Debug)]
pub struct PlacedReal {
    pub real: Real,
    pub id: u32,
    /// Since when it drains.
    pub draining: Option<u64>,
    pub(super) seat: u16,
    pub(super) ramp: Option<Ramp>,
}

/// How a real comes to its full share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ramp {
    since: u64,
    lasts: u64,
    step: u32,
}

/// How a ring is dealt.
#[derive(Clone, Copy)]
struct Deal {
    /// Nothing but the ring knows whose a flow is.
    stateless: bool,
    /// Slots move, so that flows stay.
    moving: bool,
    /// The ring may take a larger place.
    growing: bool,
}

/// A real that no Input lists any more.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Departed {
    pub frontend: Frontend,
    pub real: SocketAddr,
    pub id: u32,
    /// Since when it had drained.
    pub draining: Option<u64>,
    /// When it left.
    pub at: u64,
}

impl Placed {
    /// How many slots its ring has.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.ring.seats().len()
    }

    /// How many slots a real has.
    #[must_use]
    pub fn held(&self, real: &PlacedReal) -> u32 {
        self.ring.held(real.seat)
    }

    /// Something is to be done as time goes by.
    pub(super) fn restless(&self) -> bool {
        !self.moves.is_empty() || self.reals.iter().any(|placed| placed.ramp.is_some())
    }

    pub(super) fn drains(&self) -> bool {
        self.reals.iter().any(|placed| placed.draining.is_some())
    }

    /// Leads to what `service` says.
    pub(super) fn change(
        &mut self,
        frontend: &Frontend,
        service: &Service,
        ledger: &mut Ledger,
        pen: &mut Pen<'_>,
        departed: &mut Vec<Departed>,
    ) {
        let old = std::mem::take(&mut self.reals);
        let ramp = service.slow_start_s > 0 && old.iter().any(|placed| placed.real.state == RealState::Active);
        let ramp = ramp.then(|| Ramp { since: pen.now, lasts: u64::from(service.slow_start_s) * abi::SECOND, step: 1 });
        let (pairs, gone) = pair(&old, &service.reals);

        // Reals that a slot may name from now on come first, those that no slot names any more come last.
        let mut later = Vec::new();
        let mut free =
            (0..).zip(&self.seats).filter(|(_, seat)| seat.is_none()).map(|(seat, _)| seat).collect::<Vec<u16>>();
        free.reverse();
        for (real, was) in service.reals.iter().zip(pairs) {
            let was = was.map(|index| old[index]);
            let mut placed = match was {
                Some(placed) => PlacedReal { real: *real, ..placed },
                None => {
                    let id = new_real(self.id, real, ledger, pen);
                    let seat = free.pop().unwrap_or_else(|| {
                        self.seats.push(None);
                        (self.seats.len() - 1) as u16
                    });
                    self.seats[usize::from(seat)] = Some(id);
                    PlacedReal { real: *real, id, draining: None, seat, ramp: ramp.filter(|_| active(real)) }
                }
            };
            placed.draining = match real.state {
                RealState::Active => None,
                RealState::Draining => placed.draining.or(Some(pen.now)),
            };
            placed.ramp = placed.ramp.filter(|_| active(real) && service.slow_start_s > 0);
            let value = write_real(real, self.id, (pen.hop)(real.address));
            if active(real) {
                ledger.set_real(placed.id, value, pen);
            } else if was.is_none() {
                // Not named yet, and a slot of a service without an active real will.
                ledger.set_real(placed.id, value, pen);
            } else {
                later.push((placed.id, value));
            }
            self.reals.push(placed);
        }
        for index in &gone {
            self.seats[usize::from(old[*index].seat)] = None;
        }

        let stateless = service.forward != Forward::FullNat;
        let region = self.region;
        // A service that was translated so far has no flows that another mode could keep.
        let moving = stateless && self.entry.is_none_or(|entry| entry.mode != abi::Service::FULLNAT);
        self.deal(Deal { stateless, moving, growing: true }, ledger, pen);

        self.show(frontend, service, ledger, pen);
        if let Some(old) = region
            && self.region != region
        {
            ledger.retire(old, pen.now);
        }

        for (id, value) in later {
            ledger.set_real(id, value, pen);
        }
        for index in gone {
            let PlacedReal { real, id, draining, .. } = old[index];
            departed.push(Departed { frontend: *frontend, real: name(&real), id, draining, at: pen.now });
            ledger.leave(id, pen);
        }
    }

    /// The service goes: its entry first, then all that it alone used.
    pub(super) fn leave(
        mut self,
        frontend: &Frontend,
        ledger: &mut Ledger,
        pen: &mut Pen<'_>,
        departed: &mut Vec<Departed>,
    ) {
        pen.write(Write::RemoveService { key: key(frontend) });
        self.moves.clear(ledger, pen, &mut Vec::new());
        if let Some(region) = self.region {
            ledger.retire(region, pen.now);
        }
        for PlacedReal { real, id, draining, .. } in self.reals {
            departed.push(Departed { frontend: *frontend, real: name(&real), id, draining, at: pen.now });
            ledger.leave(id, pen);
        }
        ledger.access -= self.lists.len();
        for (network, _) in std::mem::take(&mut self.lists) {
            pen.write(Write::Access { network: access(self.id, network), value: None });
        }
    }

    /// Gives every real its share of the ring, and writes what differs: in place, or a larger ring elsewhere, which
    /// nobody sees yet.
    fn deal(&mut self, deal: Deal, ledger: &mut Ledger, pen: &mut Pen<'_>) {
        let shares = self.shares(deal.stateless);
        let mut changed = Vec::new();
        if shares.iter().all(|share| share.weight == 0) {
            self.moves.clear(ledger, pen, &mut changed);
            (self.ring, self.region) = (Ring::default(), None);
            return;
        }
        let wanted = (maglev::slots(self.reals.len()) / BLOCK_SLOTS) as u32;
        let present = self.region.map_or(0, |region| region.blocks);
        // Where the rings' map is full, a coarser ring is better than none. A ring never shrinks: that would move flows.
        let mut sizes =
            (0..u32::BITS).map(|halving| wanted >> halving).take_while(|blocks| deal.growing && *blocks > present);
        let larger = sizes.find_map(|blocks| ledger.take_region(blocks, pen.now));
        let Some(region) = larger.or(self.region) else { return };
        let slots = region.blocks as usize * BLOCK_SLOTS;
        let mut shifts = Vec::new();
        if self.ring.is_empty() {
            self.ring = Ring::new(&shares, slots);
        } else {
            if larger.is_some() {
                self.moves.grow(self.ring.seats().len() as u32, slots as u32);
                self.ring.grow(slots);
            }
            for handover in self.ring.patch(&shares) {
                let to = self.seats[usize::from(handover.to)].expect("who sits nowhere gains nothing");
                let from = self.seats.get(usize::from(handover.from)).copied().flatten();
                shifts.push(Shift { slot: handover.slot, from: from.filter(|_| deal.moving), to });
            }
        }
        changed.extend(shifts.iter().map(|shift| shift.slot));
        if !deal.moving {
            self.moves.clear(ledger, pen, &mut changed);
        } else {
            let kept: BTreeSet<u32> = self.seats.iter().flatten().copied().collect();
            self.moves.shift(&shifts, |real| kept.contains(&real), ledger, pen);
            self.moves.forget(|real| kept.contains(&real), ledger, pen, &mut changed);
        }
        if larger.is_some() {
            let words = (0..slots as u32).map(|slot| self.word(slot)).collect();
            pen.write(Write::Ring { block: region.block, words });
        } else {
            self.write_slots(changed, pen);
        }
        self.region = Some(region);
    }

    /// In place, one word each.
    pub(super) fn write_slots(&self, mut slots: Vec<u32>, pen: &mut Pen<'_>) {
        let Some(region) = self.region else { return };
        slots.sort_unstable();
        slots.dedup();
        for slot in slots {
            let (block, within) = (slot / BLOCK_SLOTS as u32, slot % BLOCK_SLOTS as u32);
            pen.write(Write::Slot { block: region.block + block, slot: within, word: self.word(slot) });
        }
    }

    /// Reals take their next step, moves go on or end.
    pub(super) fn settle(&mut self, udp: bool, census: Option<&Census>, ledger: &mut Ledger, pen: &mut Pen<'_>) {
        let mut stepped = false;
        for placed in &mut self.reals {
            if let Some(ramp) = &mut placed.ramp {
                let step = (1 + pen.now.saturating_sub(ramp.since) * u64::from(STEPS) / ramp.lasts).min(STEPS.into());
                stepped |= step as u32 != ramp.step;
                ramp.step = step as u32;
                placed.ramp = placed.ramp.filter(|ramp| ramp.step < STEPS);
            }
        }
        let stateless = self.entry.is_some_and(|entry| entry.mode != abi::Service::FULLNAT);
        if stepped {
            self.deal(Deal { stateless, moving: stateless, growing: false }, ledger, pen);
        }
        let mut stable = Vec::new();
        self.moves.settle(udp, census, ledger, pen, &mut stable);
        self.write_slots(stable, pen);
    }

    fn word(&self, slot: u32) -> u32 {
        let seat = self.ring.seats()[slot as usize];
        debug_assert!(seat != NOBODY, "a ring that was dealt has no empty slot");
        let real = self.seats.get(usize::from(seat)).copied().flatten().unwrap_or_default();
        self.moves.word(slot, real)
    }

    /// By seat. Where nobody is active, draining reals of the modes without state go on: without a ring their flows
    /// would end.
    fn shares(&self, stateless: bool) -> Vec<Share> {
        let nobody = Share { real: SocketAddr::from(([0, 0, 0, 0], 0)), weight: 0 };
        let mut shares = vec![nobody; self.seats.len()];
        let all = stateless && !self.reals.iter().any(|placed| active(&placed.real));
        for placed in self.reals.iter().filter(|placed| all || active(&placed.real)) {
            let step = placed.ramp.map_or(STEPS, |ramp| ramp.step);
            let weight = u32::from(placed.real.weight) * step;
            shares[usize::from(placed.seat)] = Share { real: name(&placed.real), weight };
        }
        shares
    }

    /// What the program reads of the service, last the entry by which it is found.
    fn show(&mut self, frontend: &Frontend, service: &Service, ledger: &mut Ledger, pen: &mut Pen<'_>) {
        let id = self.id;
        let seen = write_frontend(frontend, service);
        if self.frontend.replace(seen) != Some(seen) {
            pen.write(Write::Frontend { id, value: seen });
        }
        let limits = guard::limits(&service.protection);
        if self.limits.replace(limits) != Some(limits) {
            pen.write(Write::Limits { id, value: limits });
        }
        let lists = guard::lists(&service.protection, frontend.vip.is_ipv4());
        for (network, value) in &lists {
            if self.lists.get(network) != Some(value) {
                pen.write(Write::Access { network: access(id, *network), value: Some(*value) });
            }
        }
        let entry = abi::Service {
            id,
            block: self.region.map_or(0, |region| region.block),
            mask: self.region.map_or(0, |region| region.blocks * BLOCK_SLOTS as u32 - 1),
            mode: mode(service.forward),
            client: client(service.client_address),
            checks: guard::checks(&service.protection),
            tunnel_port: tunnel_port(service.forward),
            ..abi::Service::default()
        };
        if self.entry.replace(entry) != Some(entry) {
            pen.write(Write::Service { key: key(frontend), value: entry });
        }
        let before = std::mem::replace(&mut self.lists, lists);
        for network in before.keys().filter(|network| !self.lists.contains_key(network)) {
            pen.write(Write::Access { network: access(id, *network), value: None });
        }
        ledger.access = ledger.access + self.lists.len() - before.len();
    }
}

/// An id, or the one that it had when it left.
fn new_real(service: u32, real: &Real, ledger: &mut Ledger, pen: &mut Pen<'_>) -> u32 {
    if let Some(left) = ledger.left.remove(&(service, name(real))) {
        return left.id;
    }
    let id = ledger.reals.take(pen.now).expect("room was made sure of");
    pen.write(Write::ResetReal { id });
    id
}

pub(super) fn access(service: u32, (prefix, client): (u32, abi::Address)) -> abi::AccessKey {
    abi::AccessKey { prefix: 32 + prefix, data: AccessKeyData { service: service.to_be(), client } }
}

fn active(real: &Real) -> bool {
    real.state == RealState::Active
}

pub(super) fn udp(frontend: &Frontend) -> bool {
    frontend.protocol == Protocol::Udp
}

/// For each of the new reals the place among the old ones, and the old ones that are not among the new. Both are sorted.
pub(super) fn pair(old: &[PlacedReal], new: &[Real]) -> (Vec<Option<usize>>, Vec<usize>) {
    let key = |real: &Real| (real.address, real.port);
    let (mut pairs, mut gone) = (Vec::with_capacity(new.len()), Vec::new());
    let mut at = 0;
    for real in new {
        while at < old.len() && key(&old[at].real) < key(real) {
            gone.push(at);
            at += 1;
        }
        let found = old.get(at).is_some_and(|placed| key(&placed.real) == key(real));
        pairs.push(found.then_some(at));
        at += usize::from(found);
    }
    gone.extend(at..old.len());
    (pairs, gone)
}
