//! Maglev's ring: which slot belongs to which real, in shares of their weights.
//!
//! Eisenbud et al., "Maglev", NSDI 2016, section 3.4, with two changes. The ring's size is a power of two and every
//! skip is odd: then a real's walk still visits each slot once, and the program finds a slot with a mask instead of a
//! division. And a real takes its turns in proportion to its weight, until it has its share.

use std::{
    cmp::Reverse,
    net::{IpAddr, SocketAddr},
};

/// So many slots a real gets at least, so that shares are true to a per cent or so.
const SLOTS_PER_REAL: usize = 100;
pub const SMALLEST: usize = 256;
pub const LARGEST: usize = 65_536;

/// A real that gets new flows, and its weight relative to the others; 0: it takes no part.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Share {
    pub real: SocketAddr,
    pub weight: u32,
}

/// The ring's size for so many reals.
#[must_use]
pub fn slots(reals: usize) -> usize {
    (reals * SLOTS_PER_REAL).next_power_of_two().clamp(SMALLEST, LARGEST)
}

/// For every slot the index of its real in `shares`. Depends on the set of reals and weights alone, not on their order.
/// Every real has a slot, as long as there are enough. Empty for no reals.
#[must_use]
pub fn ring(shares: &[Share], slots: usize) -> Vec<u16> {
    debug_assert!(slots.is_power_of_two(), "a mask finds the slot");
    let Some(heaviest) = shares.iter().map(|share| u64::from(share.weight)).max().filter(|weight| *weight > 0) else {
        return Vec::new();
    };
    let mask = slots - 1;
    let mut walkers: Vec<Walker> = shares
        .iter()
        .zip(targets(shares, &vec![0; shares.len()], slots))
        .enumerate()
        .map(|(index, (share, target))| {
            let hash = hash(&share.real);
            Walker {
                real: share.real,
                index: index as u16,
                next: (hash >> 32) as usize & mask,
                skip: hash as usize & mask | 1,
                // The first round is everybody's.
                credit: heaviest,
                weight: u64::from(share.weight),
                target,
            }
        })
        .filter(|walker| walker.target > 0)
        .collect();
    walkers.sort_unstable_by_key(|walker| walker.real);
    let mut ring = vec![u16::MAX; slots];
    while !walkers.is_empty() {
        for walker in &mut walkers {
            if walker.credit < heaviest {
                walker.credit += walker.weight;
                continue;
            }
            walker.credit = walker.credit - heaviest + walker.weight;
            while ring[walker.next] != u16::MAX {
                walker.next = (walker.next + walker.skip) & mask;
            }
            ring[walker.next] = walker.index;
            walker.target -= 1;
        }
        walkers.retain(|walker| walker.target > 0);
    }
    ring
}

struct Walker {
    real: SocketAddr,
    index: u16,
    next: usize,
    skip: usize,
    credit: u64,
    weight: u64,
    target: u32,
}

/// How many slots each must have, within one of its exact share, and with the fewest changes of what it has: `held`.
/// Where nothing is held, these are the shares by largest remainder.
#[must_use]
pub fn targets(shares: &[Share], held: &[u32], slots: usize) -> Vec<u32> {
    let spans = spans(shares, slots);
    let mut targets: Vec<u32> =
        spans.iter().zip(held).map(|(span, held)| (*held).clamp(span.floor, span.ceiling)).collect();
    let given: u64 = targets.iter().map(|target| u64::from(*target)).sum();
    let missing = slots as i64 - given as i64;
    // Those that deserve the next slot most, or the one that they have least.
    let mut queue: Vec<usize> = (0..shares.len())
        .filter(|i| {
            let Span { floor, ceiling, .. } = spans[*i];
            floor < ceiling && targets[*i] == if missing > 0 { floor } else { ceiling }
        })
        .collect();
    let wanted = missing.unsigned_abs() as usize;
    if wanted == 0 {
        return targets;
    }
    let key = |i: &usize| (Reverse(spans[*i].remainder), hash(&shares[*i].real), shares[*i].real);
    queue.sort_by_cached_key(key);
    if missing > 0 {
        queue.into_iter().take(wanted).for_each(|i| targets[i] += 1);
    } else {
        queue.into_iter().rev().take(wanted).for_each(|i| targets[i] -= 1);
    }
    targets
}

/// An exact share lies between two whole numbers.
#[derive(Clone, Copy, Default)]
struct Span {
    floor: u32,
    ceiling: u32,
    /// What it has above the floor, in parts that are the same for all that have any.
    remainder: u64,
}

fn spans(shares: &[Share], slots: usize) -> Vec<Span> {
    let mut spans = vec![Span::default(); shares.len()];
    let mut order: Vec<usize> = (0..shares.len()).filter(|i| shares[*i].weight > 0).collect();
    order.sort_unstable_by_key(|i| shares[*i].weight);
    let mut weights: u64 = order.iter().map(|i| u64::from(shares[*i].weight)).sum();
    let mut left = slots as u64;
    let enough = order.len() <= slots;
    for i in order {
        let weight = u64::from(shares[i].weight);
        // The lightest get one slot although it is more than their share; the others share the rest.
        if enough && weight * left < weights {
            spans[i] = Span { floor: 1, ceiling: 1, remainder: 0 };
            left -= 1;
            weights -= weight;
        } else {
            let remainder = weight * left % weights;
            let floor = (weight * left / weights) as u32;
            spans[i] = Span { floor, ceiling: floor + u32::from(remainder > 0), remainder };
        }
    }
    spans
}

/// FNV-1a and MurmurHash3's finaliser: the same on every machine and in every version.
pub(crate) fn hash(address: &SocketAddr) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut eat = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    match address.ip() {
        IpAddr::V4(v4) => eat(&v4.octets()),
        IpAddr::V6(v6) => eat(&v6.octets()),
    }
    eat(&address.port().to_be_bytes());
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ hash >> 33
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reals(count: u16) -> Vec<Share> {
        let real = |i: u16| SocketAddr::from(([10, 77, (i >> 8) as u8, i as u8], 8080));
        (0..count).map(|i| Share { real: real(i), weight: 1 }).collect()
    }

    fn counts(ring: &[u16], reals: usize) -> Vec<usize> {
        let mut counts = vec![0; reals];
        ring.iter().for_each(|real| counts[usize::from(*real)] += 1);
        counts
    }

    #[test]
    fn sizes_grow_with_the_reals_and_stay_in_bounds() {
        for (count, expect) in [(0, 256), (1, 256), (2, 256), (3, 512), (10, 1024), (100, 16_384), (5000, 65_536)] {
            assert_eq!(slots(count), expect, "{count} reals");
        }
    }

    #[test]
    fn equal_weights_get_equal_shares() {
        for count in [1, 2, 3, 10, 77] {
            let counts = counts(&ring(&reals(count), slots(count.into())), count.into());
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert!(most - least <= 1, "{count} reals: {least} to {most}");
        }
    }

    #[test]
    fn shares_follow_the_weights_and_the_lightest_has_a_slot() {
        let mut three = reals(3);
        three[1].weight = 3;
        assert_eq!(counts(&ring(&three, 1024), 3), [205, 614, 205]);
        three[1].weight = u32::from(u16::MAX) * 10;
        assert_eq!(counts(&ring(&three, 512), 3), [1, 510, 1]);
        three[1].weight = 0;
        assert_eq!(counts(&ring(&three, 512), 3), [256, 0, 256], "who weighs nothing takes no part");
    }

    #[test]
    fn more_reals_than_slots_get_one_or_none() {
        let counts = counts(&ring(&reals(300), 256), 300);
        assert!(counts.iter().all(|count| *count <= 1) && counts.iter().sum::<usize>() == 256);
    }

    #[test]
    fn nobody_gets_nothing() {
        assert!(ring(&[], 256).is_empty());
        let weightless = reals(2).into_iter().map(|share| Share { weight: 0, ..share }).collect::<Vec<_>>();
        assert!(ring(&weightless, 256).is_empty());
    }

    proptest! {
        #[test]
        fn a_ring_is_full_and_knows_no_order(count in 1u16..200, seed in any::<u64>()) {
            let sorted = reals(count);
            let mut shuffled = sorted.clone();
            shuffled.sort_by_key(|share| hash(&share.real) ^ seed);
            let (a, b) = (ring(&sorted, 1024), ring(&shuffled, 1024));
            prop_assert_eq!(a.len(), 1024);
            for (a, b) in a.iter().zip(&b) {
                prop_assert_eq!(sorted[usize::from(*a)].real, shuffled[usize::from(*b)].real);
            }
        }

        #[test]
        fn everybody_is_within_one_slot_of_its_share(weights in prop::collection::vec(0u32..500, 1..100)) {
            let shares: Vec<_> =
                reals(100).into_iter().zip(&weights).map(|(share, weight)| Share { weight: *weight, ..share }).collect();
            let total: u32 = weights.iter().sum();
            prop_assume!(total > 0);
            let counts = counts(&ring(&shares, 16_384), weights.len());
            // With so many slots nobody's share is below one, or it is the one that everybody has.
            let light = weights.iter().filter(|weight| **weight * 16_384 < total).count() as f64;
            for (count, weight) in counts.iter().zip(&weights) {
                let exact = f64::from(*weight) * 16_384.0 / f64::from(total);
                prop_assert!((*count as f64 - exact).abs() <= 1.0 + light, "{} for {}", count, exact);
            }
        }
    }
}
