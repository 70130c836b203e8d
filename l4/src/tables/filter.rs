//! The filter's bits: one may stand for several addresses, and goes with the last.

use tidegate_ebpf::abi::{Address, FILTER_WORDS, filter_bit};

#[derive(Clone, Debug)]
pub(super) struct Filter {
    /// By word and bit: how many addresses have it.
    users: Vec<u16>,
    words: Vec<u64>,
}

impl Filter {
    /// Of words as they were found, which nobody uses yet.
    pub(super) fn of(found: &[u64]) -> Self {
        let mut words = found.to_vec();
        words.resize(FILTER_WORDS, 0);
        Self { users: vec![0; FILTER_WORDS * 64], words }
    }

    /// The word and what it must hold from now on, if that is something else.
    pub(super) fn add(&mut self, address: &Address) -> Option<(u32, u64)> {
        let (word, bit) = filter_bit(address);
        self.users[word as usize * 64 + bit as usize] += 1;
        self.set(word, self.words[word as usize] | 1 << bit)
    }

    pub(super) fn remove(&mut self, address: &Address) -> Option<(u32, u64)> {
        let (word, bit) = filter_bit(address);
        let users = &mut self.users[word as usize * 64 + bit as usize];
        *users = users.saturating_sub(1);
        if *users > 0 {
            return None;
        }
        self.set(word, self.words[word as usize] & !(1 << bit))
    }

    /// The words in which bits stand that nobody uses: left by a process that died.
    pub(super) fn sweep(&mut self) -> Vec<(u32, u64)> {
        let used = |word: u32| {
            let users = &self.users[word as usize * 64..][..64];
            users.iter().enumerate().filter(|(_, users)| **users > 0).fold(0, |bits, (bit, _)| bits | 1_u64 << bit)
        };
        let wanted: Vec<u64> = (0..FILTER_WORDS as u32).map(used).collect();
        (0..).zip(wanted).filter_map(|(word, bits)| self.set(word, bits)).collect()
    }

    fn set(&mut self, word: u32, bits: u64) -> Option<(u32, u64)> {
        let before = std::mem::replace(&mut self.words[word as usize], bits);
        (before != bits).then_some((word, bits))
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn a_bit_that_two_addresses_share_goes_with_the_second() {
        let address = |number: u32| Address::from(IpAddr::from(number.to_be_bytes()));
        let first = address(0x0a4d_6401);
        let twin =
            (1..).map(|i| address(0x0a4d_6401 + i)).find(|other| filter_bit(other) == filter_bit(&first)).unwrap();
        let mut filter = Filter::of(&[]);
        let set = filter.add(&first).unwrap();
        assert_eq!((set.0, set.1.count_ones()), (filter_bit(&first).0, 1));
        assert_eq!(filter.add(&twin), None);
        assert_eq!(filter.remove(&first), None);
        assert_eq!(filter.remove(&twin), Some((set.0, 0)));
    }

    #[test]
    fn bits_of_nobody_are_swept_away() {
        let mut filter = Filter::of(&[0, 6]);
        assert_eq!(filter.sweep(), [(1, 0)]);
        assert_eq!(filter.sweep(), []);
    }
}
