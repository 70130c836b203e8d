//! Which blocks of the rings' map are whose: a buddy allocator, since rings are powers of two.

use std::collections::BTreeSet;

/// The largest ring is 65,536 slots: 2^10 blocks of 64.
const ORDERS: usize = 11;

/// A run of blocks, as many as a power of two, that starts at a multiple of its length.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Region {
    pub(crate) block: u32,
    pub(crate) blocks: u32,
}

#[derive(Clone, Debug)]
pub(crate) struct Regions {
    /// The first blocks of what is free, by order.
    free: [BTreeSet<u32>; ORDERS],
}

impl Regions {
    #[must_use]
    pub(crate) fn new(capacity: u32) -> Self {
        let mut regions = Self { free: Default::default() };
        let mut block = 0;
        while block < capacity {
            let order =
                (0..ORDERS).rev().find(|order| block.is_multiple_of(1 << order) && block + (1 << order) <= capacity);
            let order = order.expect("a single block always fits below the capacity");
            regions.free[order].insert(block);
            block += 1 << order;
        }
        regions
    }

    /// `blocks` is a power of two. The lowest place that fits, so that the map's end stays untouched.
    pub(crate) fn take(&mut self, blocks: u32) -> Option<Region> {
        let order = order(blocks)?;
        let from = (order..ORDERS).find(|from| !self.free[*from].is_empty())?;
        let block = self.free[from].pop_first()?;
        for half in order..from {
            self.free[half].insert(block + (1 << half));
        }
        Some(Region { block, blocks })
    }

    /// Takes a place that is known to be in use. False: it is not free, or no proper region.
    pub(crate) fn reserve(&mut self, region: Region) -> bool {
        let Some(order) = order(region.blocks) else { return false };
        if !region.block.is_multiple_of(region.blocks) {
            return false;
        }
        let holder = (order..ORDERS)
            .map(|from| (from, region.block & !((1 << from) - 1)))
            .find(|(from, block)| self.free[*from].contains(block));
        let Some((from, holder)) = holder else { return false };
        self.free[from].remove(&holder);
        let mut start = holder;
        for half in (order..from).rev() {
            let middle = start + (1 << half);
            let other = if region.block >= middle { std::mem::replace(&mut start, middle) } else { middle };
            self.free[half].insert(other);
        }
        true
    }

    pub(crate) fn give_back(&mut self, region: Region) {
        let mut order = order(region.blocks).expect("only regions that were taken come back");
        let mut block = region.block;
        while order + 1 < ORDERS && self.free[order].remove(&(block ^ (1 << order))) {
            block &= !(1 << order);
            order += 1;
        }
        self.free[order].insert(block);
    }
}

fn order(blocks: u32) -> Option<usize> {
    let order = blocks.trailing_zeros() as usize;
    (blocks.is_power_of_two() && order < ORDERS).then_some(order)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn free(regions: &Regions) -> u32 {
        regions.free.iter().enumerate().map(|(order, starts)| (starts.len() as u32) << order).sum()
    }

    #[test]
    fn what_is_reserved_is_not_given_away() {
        let mut regions = Regions::new(64);
        assert!(regions.reserve(Region { block: 20, blocks: 4 }));
        assert!(!regions.reserve(Region { block: 16, blocks: 8 }));
        assert!(!regions.reserve(Region { block: 22, blocks: 4 }), "not at a multiple of its length");
        assert!(!regions.reserve(Region { block: 64, blocks: 4 }), "past the end");
        assert_eq!(free(&regions), 60);
        regions.give_back(Region { block: 20, blocks: 4 });
        assert_eq!(regions.take(64), Some(Region { block: 0, blocks: 64 }));
        assert_eq!(regions.take(1), None);
    }

    proptest! {
        #[test]
        fn regions_never_overlap_and_all_come_back(capacity in 1u32..3000, wishes in prop::collection::vec((0u32..11, any::<bool>()), 1..200)) {
            let mut regions = Regions::new(capacity);
            let mut taken: Vec<Region> = Vec::new();
            for (order, release) in wishes {
                if release && !taken.is_empty() {
                    regions.give_back(taken.swap_remove(order as usize % taken.len()));
                } else if let Some(region) = regions.take(1 << order) {
                    prop_assert!(region.block + region.blocks <= capacity);
                    prop_assert!(taken.iter().all(|t| t.block + t.blocks <= region.block || region.block + region.blocks <= t.block));
                    taken.push(region);
                }
                prop_assert_eq!(free(&regions) + taken.iter().map(|t| t.blocks).sum::<u32>(), capacity);
            }
            let mut again = Regions::new(capacity);
            prop_assert!(taken.iter().all(|region| again.reserve(*region)));
            taken.into_iter().for_each(|region| regions.give_back(region));
            prop_assert_eq!(&regions.free, &Regions::new(capacity).free);
        }
    }
}
