//! TCP's options: found in a header, and the largest segment made smaller.

/// TCP's header without options.
const BASE: usize = 20;
/// The most that the header's length field can say.
pub const LONGEST: usize = 60;
/// The byte that says how long the header is.
pub const OFFSET: usize = 12;
const END: u8 = 0;
const NOTHING: u8 = 1;
const MSS: u8 = 2;
const MSS_LENGTH: u8 = 4;

/// How long a TCP header is, by the byte that says so.
#[inline(always)]
#[must_use]
pub fn header_length(offset: u8) -> usize {
    (offset >> 4) as usize * 4
}

/// Where the first wanted option begins. The header is given byte by byte, as each of its readers has other bounds.
///
/// Place by place and not option by option, and the header's end is looked at last: so the verifier has two cases at
/// each place, begun or not, instead of all the ways to get there (a tenth of the work). A bit for each place from here
/// on says where an option begins, and is shifted out: the compiler sees through a place that is compared with, and the
/// verifier would remember every bit that it has seen.
#[inline(always)]
pub fn find(header: usize, wanted: impl Fn(u8, u8) -> bool, byte: impl Fn(usize) -> Option<u8>) -> Option<usize> {
    let mut begins = 1_u64;
    for at in BASE..LONGEST {
        let here = begins & 1;
        begins >>= 1;
        if here == 0 {
            continue;
        }
        let kind = byte(at)?;
        if kind == END {
            return None;
        }
        let length = if kind == NOTHING { 1 } else { byte(at + 1)? };
        if wanted(kind, length) {
            // What was found behind the header's end is payload.
            return if at + length as usize <= header { Some(at) } else { None };
        }
        if kind != NOTHING && length < 2 {
            return None;
        }
        begins |= 1_u64.checked_shl(u32::from(length) - 1)?;
    }
    None
}

/// Where the value of the option for the largest segment stands.
#[inline(always)]
pub fn mss(header: usize, byte: impl Fn(usize) -> Option<u8>) -> Option<usize> {
    find(header, |kind, length| kind == MSS && length == MSS_LENGTH, byte).map(|at| at + 2)
}

/// The change of two bytes at `position` as the checksum sees it: at an odd one they lie in two words, the other way
/// around.
#[inline(always)]
#[must_use]
pub fn for_checksum(position: usize, value: u16) -> u16 {
    if position & 1 == 0 { value } else { value.swap_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(options: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; BASE];
        bytes.extend(options);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes[12] = ((bytes.len() / 4) << 4) as u8;
        bytes
    }

    fn mss_in(bytes: &[u8]) -> Option<usize> {
        mss(header_length(bytes[12]), |i| bytes.get(i).copied())
    }

    #[test]
    fn the_largest_segment_is_found_wherever_it_stands() {
        let cases: [(&[u8], Option<usize>); 9] = [
            (&[2, 4, 5, 180], Some(22)),
            (&[1, 2, 4, 5, 180], Some(23)),
            (&[1, 1, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 2, 4, 5, 180], Some(34)),
            (&[3, 3, 7], None),
            (&[0, 2, 4, 5, 180], None),
            (&[], None),
            // Lengths that do not fit: no end without a length, no step of nothing, nothing beyond the header.
            (&[8, 0, 2, 4], None),
            (&[8, 1, 2, 4], None),
            (&[2, 4, 5, 180, 8, 40, 0, 0], Some(22)),
        ];
        for (options, expected) in cases {
            assert_eq!(mss_in(&header(options)), expected, "{options:?}");
        }
        assert_eq!(mss_in(&header(&[1; 40])), None);
        let mut last = vec![1; 36];
        last.extend([2, 4, 5, 180]);
        assert_eq!(mss_in(&header(&last)), Some(58));
    }

    #[test]
    fn a_header_that_ends_early_has_no_option() {
        let bytes = header(&[8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 2, 4, 5, 180]);
        for length in 20..32 {
            assert_eq!(mss(header_length(bytes[12]), |i| bytes[..length].get(i).copied()), None, "{length}");
        }
    }

    #[test]
    fn two_bytes_count_as_their_place_has_them() {
        assert_eq!(for_checksum(22, 0x1234), 0x1234);
        assert_eq!(for_checksum(23, 0x1234), 0x3412);
    }
}
