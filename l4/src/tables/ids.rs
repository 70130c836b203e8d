//! Numbers that are given away, and again only when nothing can refer to them any more.

use std::collections::{BTreeSet, VecDeque};

/// What is taken out of the packets' way stays untouched for so long: no packet is under way for two seconds.
pub const GRACE: u64 = 2 * tidegate_ebpf::abi::SECOND;

/// Numbers below a capacity: those that were never used first, then those that rested longest.
#[derive(Clone, Debug)]
pub(super) struct Ids {
    next: u32,
    free: VecDeque<u32>,
    /// With the time at which they came back.
    resting: VecDeque<(u64, u32)>,
    pub(super) capacity: u32,
}

impl Ids {
    pub(super) fn without(used: impl Iterator<Item = u32>, capacity: u32) -> Self {
        let used: BTreeSet<u32> = used.collect();
        let next = used.last().map_or(0, |last| last + 1);
        let free = (0..next).filter(|id| !used.contains(id)).collect();
        Self { next, free, resting: VecDeque::new(), capacity }
    }

    /// How many can be had now.
    pub(super) fn left(&mut self, now: u64) -> usize {
        self.wake(now);
        (self.capacity - self.next) as usize + self.free.len()
    }

    /// How many are given away.
    pub(super) fn used(&self) -> usize {
        self.next as usize - self.free.len() - self.resting.len()
    }

    pub(super) fn take(&mut self, now: u64) -> Option<u32> {
        if self.next < self.capacity {
            self.next += 1;
            return Some(self.next - 1);
        }
        self.wake(now);
        self.free.pop_front()
    }

    pub(super) fn give_back(&mut self, id: u32, now: u64) {
        self.resting.push_back((now, id));
    }

    fn wake(&mut self, now: u64) {
        while let Some((since, id)) = self.resting.front()
            && since + GRACE <= now
        {
            self.free.push_back(*id);
            self.resting.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_rests_before_it_is_given_again() {
        let mut ids = Ids::without([0, 2].into_iter(), 3);
        assert_eq!((ids.take(0), ids.take(0)), (Some(1), None));
        ids.give_back(2, 10);
        assert_eq!((ids.take(GRACE), ids.left(GRACE), ids.used()), (None, 0, 2));
        assert_eq!((ids.left(10 + GRACE), ids.take(10 + GRACE)), (1, Some(2)));
    }

    #[test]
    fn what_was_never_used_comes_first() {
        let mut ids = Ids::without(std::iter::empty(), 3);
        assert_eq!(ids.take(0), Some(0));
        ids.give_back(0, 0);
        assert_eq!((ids.take(GRACE), ids.take(GRACE), ids.take(GRACE)), (Some(1), Some(2), Some(0)));
    }
}
