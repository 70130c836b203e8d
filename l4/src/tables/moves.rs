//! Slots that change hands while flows are on them.
//!
//! A stable slot is stateless: its flows go where it points. While it moves, new flows go to its next real and are
//! recorded, and flows from before are recorded as they show themselves, so that they keep theirs. A move ends when no
//! record needs it any more.
//!
//! A slot that moves again before its move has ended keeps its first real for the flows that nobody recorded: those of
//! the reals in between were recorded when they opened. If it comes back to its first real, it still moves, from that
//! real to itself, since its records name others.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_ebpf::abi::{self, MOVING, SECOND};

use super::{
    Write,
    ids::GRACE,
    ledger::{Ledger, Pen},
};
use crate::census::Census;

/// After so long a UDP flow from before that did not show itself is over: a DNS client has given up, a stream sends
/// several times a second.
pub const LEARN_UDP: u64 = 10 * SECOND;
/// An idle connection from before must show itself within so long: keep-alives of databases, brokers and browsers
/// come every 15 to 60 s.
pub const SETTLE: u64 = 120 * SECOND;
/// No move lasts longer: its slots are wanted.
pub const CAP: u64 = 3600 * SECOND;
/// Slots that begin to move so much later get a move of their own.
const YOUNG: u64 = 60 * SECOND;

const _: () = assert!(GRACE < LEARN_UDP);

#[derive(Clone, Debug)]
struct Moving {
    /// As it stands in the map.
    entry: abi::Move,
    /// The reals, other than the current one, whose flows on these slots were recorded.
    others: Vec<u32>,
    /// When the first slot began to move, and when the last did.
    since: u64,
    last: u64,
    slots: BTreeSet<u32>,
}

/// A slot that changes hands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shift {
    pub(super) slot: u32,
    /// The real that had it, if it keeps its flows.
    pub(super) from: Option<u32>,
    pub(super) to: u32,
}

/// The moves of one service.
#[derive(Clone, Debug, Default)]
pub(super) struct Moves {
    by_index: BTreeMap<u32, Moving>,
    /// By slot.
    moving: BTreeMap<u32, u32>,
}

impl Moves {
    pub(super) fn is_empty(&self) -> bool {
        self.by_index.is_empty()
    }

    /// The slot's word; `real` is whose it is.
    pub(super) fn word(&self, slot: u32, real: u32) -> u32 {
        self.moving.get(&slot).map_or(real, |index| MOVING | index)
    }

    /// A slot that was found moving. How long it did is not known: the move begins anew.
    pub(super) fn adopt(&mut self, slot: u32, index: u32, entry: abi::Move, others: &[u32], now: u64) {
        let moving = self.by_index.entry(index).or_insert_with(|| Moving {
            entry,
            others: others.to_vec(),
            since: now,
            last: now,
            slots: BTreeSet::new(),
        });
        moving.slots.insert(slot);
        self.moving.insert(slot, index);
    }

    /// The ring grew from `before` slots to `after`, each of which is what it was repeated from.
    pub(super) fn grow(&mut self, before: u32, after: u32) {
        for (index, moving) in &mut self.by_index {
            let first = moving.slots.clone();
            for slot in (1..after / before).flat_map(|turn| first.iter().map(move |slot| slot + turn * before)) {
                moving.slots.insert(slot);
                self.moving.insert(slot, *index);
            }
        }
    }

    /// Makes moves of the shifts. `kept` says whether a real keeps its flows.
    pub(super) fn shift(
        &mut self,
        shifts: &[Shift],
        kept: impl Fn(u32) -> bool,
        ledger: &mut Ledger,
        pen: &mut Pen<'_>,
    ) {
        let mut young: BTreeMap<(u32, u32, u32), u32> = BTreeMap::new();
        for (index, Moving { entry, since, .. }) in &self.by_index {
            if since + YOUNG > pen.now {
                young.insert((entry.previous, entry.current, entry.phase), *index);
            }
        }
        for Shift { slot, from, to } in shifts.iter().copied() {
            let before = self.moving.get(&slot).map(|index| &self.by_index[index]);
            let mut others = before.map_or(Vec::new(), |moving| moving.others.clone());
            others.extend(from);
            others.retain(|real| *real != to && kept(*real));
            others.sort_unstable();
            others.dedup();
            // Flows that nobody recorded are of the first real. If that is gone, so are they.
            let previous = before.map_or(from, |moving| Some(moving.entry.previous)).filter(|real| kept(*real));
            // What a move has learnt, the next one knows.
            let phase = before.map_or(abi::Move::LEARNING, |moving| moving.entry.phase);
            self.stop(slot, ledger, pen);
            if others.is_empty() {
                continue;
            }
            let entry = abi::Move { current: to, previous: previous.unwrap_or(to), phase, pad: 0 };
            let index = match young.get(&(entry.previous, entry.current, entry.phase)) {
                Some(index) if self.by_index.contains_key(index) => *index,
                _ => {
                    let Some(index) = ledger.moves.take(pen.now) else {
                        ledger.moved.at_once += 1;
                        continue;
                    };
                    pen.write(Write::Move { index, value: entry });
                    young.insert((entry.previous, entry.current, entry.phase), index);
                    let moving = Moving { entry, others: Vec::new(), since: pen.now, last: 0, slots: BTreeSet::new() };
                    self.by_index.insert(index, moving);
                    index
                }
            };
            let moving = self.by_index.get_mut(&index).expect("it was found or made above");
            moving.last = pen.now;
            moving.slots.insert(slot);
            moving.others.extend(others);
            moving.others.sort_unstable();
            moving.others.dedup();
            self.moving.insert(slot, index);
        }
    }

    /// Reals went: what kept slots moving for them alone ends. The slots that are stable now go to `stable`.
    pub(super) fn forget(
        &mut self,
        kept: impl Fn(u32) -> bool,
        ledger: &mut Ledger,
        pen: &mut Pen<'_>,
        stable: &mut Vec<u32>,
    ) {
        let mut over = Vec::new();
        for (index, moving) in &mut self.by_index {
            moving.others.retain(|real| kept(*real));
            if moving.others.is_empty() {
                over.push(*index);
            } else if !kept(moving.entry.previous) {
                moving.entry.previous = moving.entry.current;
                pen.write(Write::Move { index: *index, value: moving.entry });
            }
        }
        for index in over {
            self.end(index, ledger, pen, stable);
        }
    }

    /// Ends all moves.
    pub(super) fn clear(&mut self, ledger: &mut Ledger, pen: &mut Pen<'_>, stable: &mut Vec<u32>) {
        self.forget(|_| false, ledger, pen, stable);
    }

    /// What time has done.
    pub(super) fn settle(
        &mut self,
        udp: bool,
        census: Option<&Census>,
        ledger: &mut Ledger,
        pen: &mut Pen<'_>,
        stable: &mut Vec<u32>,
    ) {
        let mut over = Vec::new();
        for (index, moving) in &mut self.by_index {
            if udp && moving.entry.phase == abi::Move::LEARNING && moving.last + LEARN_UDP <= pen.now {
                moving.entry.phase = abi::Move::KEEPING;
                pen.write(Write::Move { index: *index, value: moving.entry });
            }
            // Only a count of after that time proves anything.
            let Some(census) = census.filter(|census| moving.last + SETTLE <= census.at) else { continue };
            let needed: u64 = moving.others.iter().map(|real| census.recorded(*real)).sum();
            if needed == 0 {
                ledger.moved.ended += 1;
                over.push(*index);
            } else if moving.since + CAP <= pen.now {
                ledger.moved.forced += 1;
                ledger.moved.lost += needed;
                over.push(*index);
            }
        }
        for index in over {
            self.end(index, ledger, pen, stable);
        }
    }

    fn end(&mut self, index: u32, ledger: &mut Ledger, pen: &mut Pen<'_>, stable: &mut Vec<u32>) {
        let Some(moving) = self.by_index.remove(&index) else { return };
        for slot in &moving.slots {
            self.moving.remove(slot);
        }
        stable.extend(moving.slots);
        // Its entry stays as it is while packets that saw it in a slot are on their way.
        ledger.moves.give_back(index, pen.now);
    }

    fn stop(&mut self, slot: u32, ledger: &mut Ledger, pen: &Pen<'_>) {
        let Some(index) = self.moving.remove(&slot) else { return };
        let Some(moving) = self.by_index.get_mut(&index) else { return };
        moving.slots.remove(&slot);
        if moving.slots.is_empty() {
            self.by_index.remove(&index);
            ledger.moves.give_back(index, pen.now);
        }
    }
}
