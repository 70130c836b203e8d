//! Good inputs -> damaged ones. The same numbers give the same bytes.

use fastrand::Rng;

/// The largest input: that of a DNS message over TCP.
const LONGEST: usize = 65_535;

/// Values at which length and range checks go wrong.
const EDGES: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_ffff,
];

/// Input `number` of the run with this seed: first the corpus as it is, then mutants of it. `words` are what the
/// format is made of.
pub(crate) fn input(corpus: &[Vec<u8>], words: &[&[u8]], seed: u64, number: u64) -> Vec<u8> {
    if let Some(good) = corpus.get(usize::try_from(number).unwrap_or(usize::MAX)) {
        return good.clone();
    }
    // Neighbouring seeds must not give neighbouring dice: fastrand mixes its seed only lightly.
    let mut dice = Rng::with_seed((seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).rotate_left(29));
    let mut bytes = dice.choice(corpus).cloned().unwrap_or_default();
    // Few changes reach deep into a decoder; many try its first checks.
    for _ in 0..1 << dice.u32(0..5) {
        change(&mut bytes, corpus, words, &mut dice);
    }
    bytes.truncate(LONGEST);
    bytes
}

fn change(bytes: &mut Vec<u8>, corpus: &[Vec<u8>], words: &[&[u8]], dice: &mut Rng) {
    let at = dice.usize(..=bytes.len());
    match dice.u8(0..10) {
        0 => flip(bytes, dice),
        1 => overwrite(bytes, at, &[dice.u8(..)]),
        2 => overwrite(bytes, at, &edge(dice)),
        3 => insert(bytes, at, &edge(dice)),
        4 => insert(bytes, at, dice.choice(words).copied().unwrap_or(b"\0")),
        5 => overwrite(bytes, at, dice.choice(words).copied().unwrap_or(b"\xff")),
        6 => bytes.truncate(at),
        7 => drop(bytes.drain(range(bytes.len(), dice))),
        8 => repeat(bytes, at, dice),
        _ => {
            let other = dice.choice(corpus).map_or(&[][..], Vec::as_slice);
            let piece = &other[range(other.len(), dice)];
            insert(bytes, at, piece);
        }
    }
}

fn flip(bytes: &mut [u8], dice: &mut Rng) {
    if !bytes.is_empty() {
        let at = dice.usize(..bytes.len());
        bytes[at] ^= 1 << dice.u8(0..8);
    }
}

/// An edge value, as binary formats write it in 1, 2, 4 or 8 bytes, or as text does.
fn edge(dice: &mut Rng) -> Vec<u8> {
    let value = EDGES[dice.usize(..EDGES.len())];
    let big_endian = value.to_be_bytes();
    match dice.u8(0..6) {
        0 => big_endian[7..].to_vec(),
        1 => big_endian[6..].to_vec(),
        2 => big_endian[4..].to_vec(),
        3 => big_endian.to_vec(),
        4 => value.to_string().into_bytes(),
        _ => format!("-{value}").into_bytes(),
    }
}

/// The same piece many times over: deep nesting, long lists, keys that stand twice.
fn repeat(bytes: &mut Vec<u8>, at: usize, dice: &mut Rng) {
    let longest = bytes.len().min(64);
    let piece = bytes[range(longest, dice)].to_vec();
    let times = 1 << dice.u32(0..12);
    let room = LONGEST.saturating_sub(bytes.len());
    let times = room.checked_div(piece.len()).map_or(0, |fits| fits.min(times));
    insert(bytes, at, &piece.repeat(times));
}

fn insert(bytes: &mut Vec<u8>, at: usize, piece: &[u8]) {
    bytes.splice(at..at, piece.iter().copied());
}

fn overwrite(bytes: &mut Vec<u8>, at: usize, piece: &[u8]) {
    let end = bytes.len().min(at + piece.len());
    bytes.splice(at..end, piece.iter().copied());
}

fn range(length: usize, dice: &mut Rng) -> std::ops::Range<usize> {
    let (a, b) = (dice.usize(..=length), dice.usize(..=length));
    a.min(b)..a.max(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corpus() -> Vec<Vec<u8>> {
        vec![b"{\"a\":[1,2]}".to_vec(), b"".to_vec()]
    }

    #[test]
    fn the_same_numbers_give_the_same_bytes_and_others_give_others() {
        let corpus = corpus();
        let run = |seed| (0..100).map(|number| input(&corpus, &[b"["], seed, number)).collect::<Vec<_>>();
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
        let mut different = run(7);
        different.sort();
        different.dedup();
        assert!(different.len() > 60, "only {} of 100 inputs differ", different.len());
    }

    #[test]
    fn the_corpus_comes_first_and_no_input_is_too_long() {
        let corpus = corpus();
        assert_eq!(input(&corpus, &[], 1, 0), corpus[0]);
        assert_eq!(input(&corpus, &[], 1, 1), corpus[1]);
        for number in 0..20_000 {
            assert!(input(&corpus, &[], 3, number).len() <= LONGEST);
        }
    }

    #[test]
    fn an_empty_corpus_still_gives_inputs() {
        assert!((0..100).any(|number| !input(&[], &[b"word"], 5, number).is_empty()));
    }
}
