//! A service's ring through its changes: only the slots that must change hands do.
//!
//! A rebuilt ring moves flows between reals that have nothing to do with the change: at 100 reals 1.6 % of them instead
//! of 1 %. So a ring is built once and patched from then on. Which slots move depends on nothing but the ring as it was
//! and the shares as they are, so that whoever patches the same ring in the same way has the same.

use crate::maglev::{self, Share, hash};

/// The seat of nobody.
pub const NOBODY: u16 = u16::MAX;

/// The slots, by the seats of their reals. A real sits on the same seat as long as its service lists it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Ring {
    seats: Vec<u16>,
    /// How many slots each seat has.
    held: Vec<u32>,
}

/// A slot that changes hands; [`NOBODY`] had it if its real is not among the seats any more.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Handover {
    pub slot: u32,
    pub from: u16,
    pub to: u16,
}

impl Ring {
    /// Maglev's, of the shares by seat.
    #[must_use]
    pub fn new(shares: &[Share], slots: usize) -> Self {
        Self::of(maglev::ring(shares, slots))
    }

    /// One that is there.
    #[must_use]
    pub fn of(seats: Vec<u16>) -> Self {
        let mut ring = Self { seats, held: Vec::new() };
        for seat in ring.seats.iter().filter(|seat| **seat != NOBODY) {
            let seat = usize::from(*seat);
            if ring.held.len() <= seat {
                ring.held.resize(seat + 1, 0);
            }
            ring.held[seat] += 1;
        }
        ring
    }

    #[must_use]
    pub fn seats(&self) -> &[u16] {
        &self.seats
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    #[must_use]
    pub fn held(&self, seat: u16) -> u32 {
        self.held.get(usize::from(seat)).copied().unwrap_or_default()
    }

    /// More slots, each of which has the real that its hashes had before: a slot is a hash's last bits.
    pub fn grow(&mut self, slots: usize) {
        let before = self.seats.len();
        debug_assert!(slots.is_multiple_of(before), "both are powers of two");
        self.seats = self.seats.repeat(slots / before);
        self.held.iter_mut().for_each(|held| *held *= (slots / before) as u32);
    }

    /// Gives everybody its share, with as few handovers as can be. `shares` are by seat; who weighs nothing, or has no
    /// seat any more, gives all of its slots away. Somebody must weigh something.
    pub fn patch(&mut self, shares: &[Share]) -> Vec<Handover> {
        let slots = self.seats.len();
        self.held.resize(self.held.len().max(shares.len()), 0);
        let mut targets = maglev::targets(shares, &self.held[..shares.len()], slots);
        targets.resize(self.held.len(), 0);
        let mut gainers: Vec<(u16, u32)> = (0..)
            .zip(targets.iter().zip(&self.held))
            .filter(|(_, (target, held))| target > held)
            .map(|(seat, (target, held))| (seat, target - held))
            .collect();
        gainers.sort_by_cached_key(|(seat, _)| {
            let real = &shares[usize::from(*seat)].real;
            (hash(real), *real)
        });
        let salt =
            gainers.iter().fold(0, |salt: u64, (seat, _)| salt.wrapping_add(hash(&shares[usize::from(*seat)].real)));
        let slots = self.free(&targets, salt);

        let receivers = gainers.into_iter().flat_map(|(seat, gain)| std::iter::repeat_n(seat, gain as usize));
        let mut handovers = Vec::with_capacity(slots.len());
        for (slot, to) in slots.into_iter().zip(receivers) {
            let from = std::mem::replace(&mut self.seats[slot as usize], to);
            if from != NOBODY {
                self.held[usize::from(from)] -= 1;
            }
            self.held[usize::from(to)] += 1;
            handovers.push(Handover { slot, from, to });
        }
        handovers
    }

    /// The slots that their reals must give away.
    fn free(&self, targets: &[u32], salt: u64) -> Vec<u32> {
        let mut surplus: Vec<u32> =
            self.held.iter().zip(targets).map(|(held, target)| held.saturating_sub(*target)).collect();
        let mut free = Vec::new();
        // Of some, everything.
        let nobodys = self.held.iter().map(|held| *held as usize).sum::<usize>() < self.seats.len();
        let gone: Vec<bool> = targets.iter().map(|target| *target == 0).collect();
        if nobodys || gone.iter().zip(&surplus).any(|(gone, surplus)| *gone && *surplus > 0) {
            let is_free = |seat: u16| gone.get(usize::from(seat)).copied().unwrap_or(true);
            free.extend((0..).zip(&self.seats).filter(|(_, seat)| is_free(**seat)).map(|(slot, _)| slot));
        }
        // Of the others, what a walk meets first.
        let mut left: usize = surplus.iter().zip(&gone).filter(|(_, gone)| !**gone).map(|(s, _)| *s as usize).sum();
        let mask = self.seats.len() - 1;
        let (mut slot, skip) = ((salt >> 32) as usize & mask, salt as usize & mask | 1);
        while left > 0 {
            let seat = usize::from(self.seats[slot]);
            if let Some(surplus) = surplus.get_mut(seat)
                && *surplus > 0
                && !gone[seat]
            {
                *surplus -= 1;
                left -= 1;
                free.push(slot as u32);
            }
            slot = (slot + skip) & mask;
        }
        free
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use proptest::prelude::*;

    use super::*;

    fn share(number: u16, weight: u32) -> Share {
        Share { real: SocketAddr::from(([10, 77, (number >> 8) as u8, number as u8], 8080)), weight }
    }

    fn equal(count: u16) -> Vec<Share> {
        (0..count).map(|number| share(number, 1)).collect()
    }

    #[test]
    fn a_real_of_a_hundred_takes_one_per_cent_with_it_and_gets_one_when_it_comes_back() {
        let mut shares = equal(100);
        let mut ring = Ring::new(&shares, 16_384);
        let held = ring.held(99) as usize;
        shares[99].weight = 0;
        let gone = ring.patch(&shares);
        assert_eq!(gone.len(), held);
        assert!(gone.iter().all(|handover| handover.from == 99));
        shares[99].weight = 1;
        let back = ring.patch(&shares);
        assert!(back.len() == 163 || back.len() == 164, "{}", back.len());
        assert!(back.iter().all(|handover| handover.to == 99));
    }

    #[test]
    fn a_ring_that_grows_moves_nothing() {
        let shares = equal(10);
        let small = Ring::new(&shares, 1024);
        let mut large = small.clone();
        large.grow(4096);
        assert_eq!(large, Ring::of(large.seats().to_vec()));
        for (slot, seat) in large.seats().iter().enumerate() {
            assert_eq!(*seat, small.seats()[slot & 1023], "the last bits of a hash are the same as before");
        }
    }

    #[test]
    fn slots_of_nobody_are_shared_out() {
        let mut ring = Ring::of(vec![NOBODY; 256]);
        let handovers = ring.patch(&equal(2));
        assert_eq!((handovers.len(), ring.held(0), ring.held(1)), (256, 128, 128));
    }

    /// Weights by number; most stay as they were.
    fn steps() -> impl Strategy<Value = Vec<Vec<u32>>> {
        let weights = prop::collection::vec(prop_oneof![1 => Just(0u32), 3 => Just(10), 2 => 1u32..40], 12);
        prop::collection::vec(weights, 1..6)
            .prop_filter("somebody", |steps| steps.iter().all(|w| w.iter().any(|w| *w > 0)))
    }

    proptest! {
        #[test]
        fn every_patch_is_fair_and_the_smallest_possible(steps in steps()) {
            let shares = |weights: &[u32]| -> Vec<_> { (0..).zip(weights).map(|(number, weight)| share(number, *weight)).collect() };
            let mut ring = Ring::new(&shares(&steps[0]), 1024);
            for weights in &steps {
                let before = ring.clone();
                let handovers = ring.patch(&shares(weights));
                let total: u32 = weights.iter().sum();
                let (mut losses, mut gains) = (0, 0);
                for (seat, weight) in (0..).zip(weights) {
                    // Of 1,024 slots everybody deserves one at least.
                    let exact = f64::from(*weight) * 1024.0 / f64::from(total);
                    let (floor, ceiling) = (exact.floor() as u32, exact.ceil() as u32);
                    prop_assert!((floor..=ceiling).contains(&ring.held(seat)), "{} for {}", ring.held(seat), exact);
                    losses += before.held(seat).saturating_sub(ceiling);
                    gains += floor.saturating_sub(before.held(seat));
                }
                prop_assert_eq!(handovers.len() as u32, losses.max(gains));
                let mut after = before.seats().to_vec();
                for handover in &handovers {
                    prop_assert_eq!(std::mem::replace(&mut after[handover.slot as usize], handover.to), handover.from);
                }
                prop_assert_eq!(&Ring::of(after).seats, &ring.seats);
                prop_assert_eq!(ring.clone().patch(&shares(weights)), [], "nothing is left to do");
            }
        }

        /// On another machine, or after a restart, the same reals may sit on other seats.
        #[test]
        fn which_slots_move_depends_on_the_reals_and_not_on_their_seats(steps in steps(), turn in 0usize..12) {
            let shares = |weights: &[u32]| -> Vec<_> { (0..).zip(weights).map(|(number, weight)| share(number, *weight)).collect() };
            let turned = |weights: &[u32]| { let mut shares = shares(weights); shares.rotate_left(turn); shares };
            let (mut a, mut b) = (Ring::new(&shares(&steps[0]), 1024), Ring::new(&turned(&steps[0]), 1024));
            for weights in &steps {
                a.patch(&shares(weights));
                b.patch(&turned(weights));
                for (a, b) in a.seats().iter().zip(b.seats()) {
                    prop_assert_eq!(usize::from(*a), (usize::from(*b) + turn) % 12);
                }
            }
        }
    }
}
