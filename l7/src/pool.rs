//! Which upstream a request goes to: of two candidates, the one with less to do for its weight.
//!
//! The first candidate walks through the weights by the golden ratio, so that requests that come one by one are spread
//! evenly and not only on average; the second is thrown. Two candidates keep a slow upstream from piling up requests
//! ("the power of two choices"), and cost two binary searches whatever the size of the pool.

/// The upstreams' shares of the number line: where each one's ends.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shares {
    ends: Vec<u64>,
}

/// 2^64 divided by the golden ratio: its multiples, wrapped, never crowd (Knuth, TAOCP 6.4).
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

impl Shares {
    pub(crate) fn new(weights: impl IntoIterator<Item = u16>) -> Self {
        let sum = |total: &mut u64, weight: u16| {
            *total += u64::from(weight);
            Some(*total)
        };
        Self { ends: weights.into_iter().scan(0, sum).collect() }
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    fn weight(&self, index: usize) -> u64 {
        self.ends[index] - if index == 0 { 0 } else { self.ends[index - 1] }
    }

    /// Whose share the point lies in; all of `u64` is the whole line. There must be shares.
    fn owner(&self, point: u64) -> usize {
        let total = self.ends[self.ends.len() - 1];
        let place = (u128::from(point) * u128::from(total)) >> 64;
        self.ends.partition_point(|end| u128::from(*end) <= place)
    }
}

/// Picks one that was not tried yet. `turn` counts up by one with every request, `dice` is any number, `load` is how
/// many requests an upstream has.
pub(crate) fn pick(
    shares: &Shares,
    load: impl Fn(usize) -> u64,
    tried: impl Fn(usize) -> bool,
    turn: u64,
    dice: u64,
) -> Option<usize> {
    if shares.len() == 0 {
        return None;
    }
    let first = shares.owner(turn.wrapping_mul(GOLDEN));
    let second = shares.owner(dice);
    match (tried(first), tried(second)) {
        (false, false) => {
            let heavier = load(first) * shares.weight(second) > load(second) * shares.weight(first);
            Some(if heavier { second } else { first })
        }
        (false, true) => Some(first),
        (true, false) => Some(second),
        // Rare, on retries only: whoever comes next.
        (true, true) => (0..shares.len()).map(|step| (first + step) % shares.len()).find(|index| !tried(*index)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_empty_pool_has_nobody() {
        assert_eq!(pick(&Shares::default(), |_| 0, |_| false, 1, 1), None);
    }

    #[test]
    fn requests_one_by_one_are_spread_by_weight_to_within_two() {
        let weights = [1, 1, 1, 5, 2];
        let shares = Shares::new(weights);
        let mut got = [0_i64; 5];
        for turn in 0..1000 {
            let index = pick(&shares, |_| 0, |_| false, turn, turn.wrapping_mul(0x1234_5678_9ABC_DEF1)).unwrap();
            got[index] += 1;
        }
        for (index, weight) in weights.iter().enumerate() {
            let due = i64::from(*weight) * 100;
            assert!((got[index] - due).abs() <= 2, "{got:?}");
        }
    }

    #[test]
    fn a_stuck_upstream_does_not_pile_up_requests() {
        let shares = Shares::new([1; 4]);
        let mut load = [0_u64; 4];
        let mut dice = 7_u64;
        for turn in 0..400 {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let index = pick(&shares, |index| load[index], |_| false, turn, dice).unwrap();
            load[index] += 1;
            // All but the first answer at once.
            load[1..].fill(0);
        }
        // It is chosen only when both candidates are the stuck one: a sixteenth of the time, not a quarter.
        assert!(load[0] < 50, "{load:?}");
    }

    proptest! {
        #[test]
        fn finds_an_untried_upstream_whenever_there_is_one(
            upstreams in prop::collection::vec((1_u16.., any::<bool>(), 0_u64..1000), 0..20),
            turn: u64,
            dice: u64,
        ) {
            let shares = Shares::new(upstreams.iter().map(|(weight, ..)| *weight));
            let picked = pick(&shares, |index| upstreams[index].2, |index| upstreams[index].1, turn, dice);
            prop_assert_eq!(picked.is_some(), upstreams.iter().any(|(_, tried, _)| !tried));
            prop_assert!(picked.is_none_or(|index| !upstreams[index].1));
        }

        #[test]
        fn every_point_has_the_owner_that_counting_finds(weights in prop::collection::vec(1_u16..50, 1..20), point: u64) {
            let shares = Shares::new(weights.iter().copied());
            let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
            let mut left = ((u128::from(point) * u128::from(total)) >> 64) as u64;
            let mut expected = 0;
            while left >= u64::from(weights[expected]) {
                left -= u64::from(weights[expected]);
                expected += 1;
            }
            prop_assert_eq!(shares.owner(point), expected);
        }
    }
}
