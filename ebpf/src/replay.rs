//! One frame that comes again and again from another client, for measurements: what `bin/bench.rs` lays and user space
//! asks for.
//!
//! The client is a counter's: its lowest bits go into the source address, the rest into the source port. Fields that
//! nobody reads (IPv4's identification, TCP's sequence number, UDP's first four bytes of payload) take the complement,
//! so that the checksums of the first frame are those of all.

/// 64 bytes, the smallest frame of Ethernet, is what IPv4 takes; IPv6 with TCP takes 74.
pub const WORDS: usize = 10;
/// The frame begins so many bytes within the first word, so that words begin where headers do (14 bytes of Ethernet): a
/// load of a field that two stores wrote waits for both to reach the cache, which on a frame from a card never happens.
pub const PAD: usize = 2;

/// How many addresses clients have: a power of two.
pub const HOSTS: u32 = 1024;
/// Client ports start above the well-known ones.
pub const FIRST_PORT: u32 = 1024;
/// How many clients there can be.
pub const CLIENTS: u32 = HOSTS * (65_536 - FIRST_PORT);

/// How often a measurement of what a helper's call costs calls one.
pub const CALLS: u32 = 16;

/// How many lines of 64 bytes there are for a measurement of what a look at one costs: as many as ports of 32 local
/// addresses, 128 MB. A power of two.
pub const FAR_LINES: u32 = 1 << 21;

/// The frame, and who sends it next.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Replay {
    /// After [`PAD`] bytes, and with zeros where the client is written.
    pub template: [u64; WORDS],
    /// In bytes: at least 64, at most [`WORDS`] words less [`PAD`].
    pub length: u32,
    /// One of [`Replay::V4_TCP`] and so on.
    pub shape: u32,
    /// How many clients take turns.
    pub clients: u32,
    /// From one client to the next. Without a common divisor with `clients`, so that each has its turn.
    pub stride: u32,
    /// The next one.
    pub client: u32,
    /// What `grow` makes the frame grow by.
    pub growth: u32,
}

impl Replay {
    pub const V4_TCP: u32 = 0;
    pub const V4_UDP: u32 = 1;
    pub const V6_TCP: u32 = 2;
    pub const V6_UDP: u32 = 3;
    /// A frame that is the same for all.
    pub const FIXED: u32 = 4;

    /// The next frame, [`PAD`] and all, by words as a little-endian processor reads them.
    #[inline(always)]
    pub fn lay(&mut self) -> [u64; WORDS] {
        let client = self.client;
        let next = client.wrapping_add(self.stride);
        self.client = if next >= self.clients { next.wrapping_sub(self.clients) } else { next };

        let host = (client % HOSTS) as u16;
        let port = (FIRST_PORT + client / HOSTS) as u16;
        let put = |half: u16, place: u32| u64::from(half.to_be()) << (16 * place);
        let mut words = self.template;
        match self.shape {
            Self::V4_TCP => {
                words[2] |= put(!host, 2);
                words[3] |= put(host, 3);
                words[4] |= put(port, 2);
                words[5] |= put(!host, 0) | put(!port, 1);
            }
            Self::V4_UDP => {
                words[2] |= put(!host, 2);
                words[3] |= put(host, 3);
                words[4] |= put(port, 2);
                words[5] |= put(!host, 2) | put(!port, 3);
            }
            Self::V6_TCP => {
                words[4] |= put(host, 3);
                words[7] |= put(port, 0) | put(!host, 2) | put(!port, 3);
            }
            Self::V6_UDP => {
                words[4] |= put(host, 3);
                words[7] |= put(port, 0);
                words[8] |= put(!host, 0) | put(!port, 1);
            }
            _ => {}
        }
        words
    }
}

const _: () = assert!(size_of::<Replay>() == 8 * WORDS + 24 && HOSTS.is_power_of_two());

#[cfg(feature = "user")]
mod user {
    // SAFETY: `repr(C)`, Copy, made of integers alone, and without padding (the size above adds up).
    unsafe impl aya::Pod for super::Replay {}
}

#[cfg(any(test, feature = "host"))]
mod host {
    use super::{PAD, Replay, WORDS};
    use crate::{
        abi::UDP,
        frames::{Build, checksum_offset},
    };

    impl Replay {
        /// `frame` from `clients` clients in turn, instead of from its own port and the last half of its own address.
        ///
        /// # Panics
        /// On a frame that has no room for a client, or that is too long.
        #[must_use]
        pub fn of(frame: &Build, clients: u32) -> Self {
            let v4 = frame.source.is_ipv4();
            let udp = frame.protocol == UDP;
            let (host, ports) = if v4 { (28, 34) } else { (36, 54) };
            // The sequence number, or the beginning of the payload.
            let free = ports + if udp { 8 } else { 4 };
            let mut bytes = frame.bytes();
            let sum = ports + checksum_offset(frame.protocol);
            if v4 {
                clear(&mut bytes, 18, &[24]);
                clear(&mut bytes, host, &[24, sum]);
            } else {
                clear(&mut bytes, host, &[sum]);
            }
            for at in [ports, free, free + 2] {
                clear(&mut bytes, at, &[sum]);
            }
            let shape = match (v4, udp) {
                (true, false) => Self::V4_TCP,
                (true, true) => Self::V4_UDP,
                (false, false) => Self::V6_TCP,
                (false, true) => Self::V6_UDP,
            };
            Self { shape, clients, stride: stride(clients), ..Self::fixed(&bytes) }
        }

        /// Always this frame.
        ///
        /// # Panics
        /// On one that is too long or too short.
        #[must_use]
        pub fn fixed(bytes: &[u8]) -> Self {
            assert!((64..=8 * WORDS - PAD).contains(&bytes.len()), "a frame of {} bytes", bytes.len());
            let mut padded = [0; 8 * WORDS];
            padded[PAD..PAD + bytes.len()].copy_from_slice(bytes);
            let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| padded[8 * at + byte]));
            let template = std::array::from_fn(word);
            Self { template, length: bytes.len() as u32, shape: Self::FIXED, clients: 1, ..Self::default() }
        }
    }

    /// Makes a field zero, and mends the checksums at `sums` (RFC 1624, equation 3).
    fn clear(bytes: &mut [u8], at: usize, sums: &[usize]) {
        let half = |bytes: &[u8], at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let old = half(bytes, at);
        bytes[at..at + 2].fill(0);
        for &sum in sums {
            let new = u32::from(!half(bytes, sum)) + u32::from(!old);
            let new = !((new & 0xffff) + (new >> 16)) as u16;
            bytes[sum..sum + 2].copy_from_slice(&new.to_be_bytes());
        }
    }

    /// About the golden section, without a common divisor: neighbours in time are far from each other in every table.
    fn stride(clients: u32) -> u32 {
        let divisor = |mut a: u32, mut b: u32| {
            while b != 0 {
                (a, b) = (b, a % b);
            }
            a
        };
        let start = (u64::from(clients) * 618 / 1000) as u32;
        (start..clients).find(|stride| divisor(*stride, clients) == 1).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::Build;

    fn bytes(words: &[u64], length: u32) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).skip(PAD).take(length as usize).collect()
    }

    fn half(bytes: &[u8], at: usize) -> u16 {
        u16::from_be_bytes([bytes[at], bytes[at + 1]])
    }

    /// Whether a checksum over the halves at these places and `more` is right.
    fn sums_up(bytes: &[u8], places: impl Iterator<Item = usize>, more: u32) -> bool {
        let sum = places.map(|at| u32::from(half(bytes, at))).sum::<u32>() + more;
        (sum & 0xffff) + (sum >> 16) == 0xffff
    }

    #[test]
    fn every_client_sends_a_frame_with_right_checksums() {
        for (text, length) in [
            ("tcp 198.18.0.0:0 > 10.77.100.1:80 A +10", 64),
            ("udp 198.18.0.0:0 > 10.77.100.1:80 +22", 64),
            ("tcp [fd77:5::0]:0 > [fd77:0:100::1]:80 S", 74),
            ("udp [fd77:5::0]:0 > [fd77:0:100::1]:80 +10", 72),
        ] {
            let frame = text.parse::<Build>().unwrap();
            let mut replay = Replay::of(&frame, CLIENTS);
            assert_eq!(replay.length, length);
            for client in [0, 1, HOSTS - 1, HOSTS, 77_777, CLIENTS - 1] {
                replay.client = client;
                let bytes = bytes(&replay.lay(), length);
                let (v4, protocol) = (frame.source.is_ipv4(), u32::from(frame.protocol));
                let (host, ports, addresses) = if v4 { (28, 34, 26..34) } else { (36, 54, 22..54) };
                assert_eq!(u32::from(half(&bytes, host)), client % HOSTS, "{text}");
                assert_eq!(u32::from(half(&bytes, ports)), FIRST_PORT + client / HOSTS, "{text}");
                assert!(!v4 || sums_up(&bytes, (14..34).step_by(2), 0), "{text}: IP, client {client}");
                let pseudo = protocol + length - ports as u32;
                let summed = addresses.chain(ports..length as usize).step_by(2);
                assert!(sums_up(&bytes, summed, pseudo), "{text}, client {client}");
            }
        }
    }

    #[test]
    fn every_client_has_its_turn() {
        let frame = "udp 198.18.0.0:0 > 10.77.100.1:80 +22".parse::<Build>().unwrap();
        for clients in [1, 2, 1000, 1024, 100_000] {
            let mut replay = Replay::of(&frame, clients);
            let mut seen = vec![false; clients as usize];
            for _ in 0..clients {
                seen[replay.client as usize] = true;
                replay.lay();
            }
            assert!(seen.iter().all(|seen| *seen), "of {clients} clients some never came");
        }
    }
}
