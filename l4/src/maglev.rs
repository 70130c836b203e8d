//! Maglev's ring: which slot belongs to which real, in shares of their weights.
//!
//! Eisenbud et al., "Maglev", NSDI 2016, section 3.4, with two changes. The ring's size is a power of two and every
//! skip is odd: then a real's walk still visits each slot once, and the program finds a slot with a mask instead of a
//! division. And a real takes its turns in proportion to its weight.

use std::net::SocketAddr;

/// So many slots a real gets at least, so that shares are true to a per cent or so.
const SLOTS_PER_REAL: usize = 100;
pub const SMALLEST: usize = 256;
pub const LARGEST: usize = 65_536;

/// The ring's size for so many reals.
#[must_use]
pub fn slots(reals: usize) -> usize {
    (reals * SLOTS_PER_REAL).next_power_of_two().clamp(SMALLEST, LARGEST)
}

/// For every slot the index of its real in `reals`. Depends on the set of reals and weights alone, not on their order.
/// Every real has a slot, as long as there are enough. Empty for no reals.
#[must_use]
pub fn ring(reals: &[(SocketAddr, u16)], slots: usize) -> Vec<u32> {
    debug_assert!(slots.is_power_of_two(), "a mask finds the slot");
    let Some(heaviest) = reals.iter().map(|(_, weight)| u64::from(*weight).max(1)).max() else { return Vec::new() };
    let mask = slots - 1;
    let mut walkers: Vec<Walker> = reals
        .iter()
        .enumerate()
        .map(|(index, (address, weight))| {
            let hash = hash(address);
            Walker {
                address: *address,
                index: index as u32,
                next: (hash >> 32) as usize & mask,
                skip: hash as usize & mask | 1,
                // The first round is everybody's.
                credit: heaviest,
                weight: u64::from(*weight).max(1),
            }
        })
        .collect();
    walkers.sort_unstable_by_key(|walker| walker.address);
    let mut ring = vec![u32::MAX; slots];
    let mut free = slots;
    loop {
        for walker in &mut walkers {
            if walker.credit < heaviest {
                walker.credit += walker.weight;
                continue;
            }
            walker.credit = walker.credit - heaviest + walker.weight;
            while ring[walker.next] != u32::MAX {
                walker.next = (walker.next + walker.skip) & mask;
            }
            ring[walker.next] = walker.index;
            free -= 1;
            if free == 0 {
                return ring;
            }
        }
    }
}

struct Walker {
    address: SocketAddr,
    index: u32,
    next: usize,
    skip: usize,
    credit: u64,
    weight: u64,
}

/// FNV-1a and MurmurHash3's finaliser: the same on every machine and in every version.
fn hash(address: &SocketAddr) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut eat = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    match address.ip() {
        std::net::IpAddr::V4(v4) => eat(&v4.octets()),
        std::net::IpAddr::V6(v6) => eat(&v6.octets()),
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

    fn reals(count: u16) -> Vec<(SocketAddr, u16)> {
        (0..count).map(|i| (SocketAddr::from(([10, 77, (i >> 8) as u8, i as u8], 8080)), 1)).collect()
    }

    fn shares(ring: &[u32], count: usize) -> Vec<usize> {
        let mut shares = vec![0; count];
        ring.iter().for_each(|real| shares[*real as usize] += 1);
        shares
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
            let shares = shares(&ring(&reals(count), slots(count.into())), count.into());
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            assert!(most - least <= 1, "{count} reals: {least} to {most}");
        }
    }

    #[test]
    fn shares_follow_the_weights_and_the_lightest_has_a_slot() {
        let mut three = reals(3);
        three[1].1 = 3;
        let got = shares(&ring(&three, 1000_usize.next_power_of_two()), 3);
        assert!((200..=210).contains(&got[0]) && (610..=620).contains(&got[1]), "{got:?}");
        three[1].1 = u16::MAX;
        assert!(shares(&ring(&three, 512), 3).iter().all(|share| *share > 0));
    }

    #[test]
    fn few_slots_change_hands_when_a_real_goes() {
        let all = reals(100);
        let (before, after) = (ring(&all, 16_384), ring(&all[..99], 16_384));
        let moved = before.iter().zip(&after).filter(|(b, a)| **b != 99 && b != a).count();
        // One per cent must move; the paper's figure 12 shows about as much again at a ratio of 100 slots per real.
        assert!(moved < 16_384 / 20, "{moved} slots of reals that stayed moved");
    }

    proptest! {
        #[test]
        fn a_ring_is_full_and_knows_no_order(count in 1u16..200, seed in any::<u64>()) {
            let sorted = reals(count);
            let mut shuffled = sorted.clone();
            shuffled.sort_by_key(|(address, _)| hash(address) ^ seed);
            let (a, b) = (ring(&sorted, 1024), ring(&shuffled, 1024));
            prop_assert_eq!(a.len(), 1024);
            for (a, b) in a.iter().zip(&b) {
                prop_assert_eq!(sorted[*a as usize].0, shuffled[*b as usize].0);
            }
        }
    }
}
