//! Which real a packet goes to: its ring slot's, and on a slot that moves the one that its flow has.

use crate::{
    abi::{BLOCK_SLOTS, MOVING, Move, RECORDS_PER_LINE, Real, Record, RingBlock, Service, Tuple, Why, capacity},
    balance::Tables,
    forget::forget,
    parse::Seen,
    wire::RST,
};

/// Not a real's id: the service has none.
pub const NOBODY: u32 = u32::MAX;

/// The real's id, or [`NOBODY`].
#[inline(always)]
pub fn real<T: Tables>(tables: &T, seen: &Seen, service: &Service, hash: u64) -> u32 {
    if service.mask == 0 {
        return NOBODY;
    }
    let word = slot(tables, service, hash).unwrap_or(NOBODY);
    tables.trace(|trace| {
        (trace.slot, trace.word, trace.why) = (hash as u32 & service.mask, word, Why::Slot as u32);
    });
    if word & MOVING == 0 || word == NOBODY {
        return word;
    }
    // A copy: what has an address is written to the stack, and that only where the packet comes by.
    moving(tables, &{ *seen }, word & !MOVING, hash)
}

/// The word of the flow's slot.
#[inline(always)]
pub(crate) fn slot<T: Tables>(tables: &T, service: &Service, hash: u64) -> Option<u32> {
    let slot = hash as u32 & service.mask;
    tables.slot(service.block.wrapping_add(slot / BLOCK_SLOTS as u32), slot % BLOCK_SLOTS as u32)
}

/// The real of a flow that goes on and is recorded, or [`NOBODY`]. The flow's packet is noted.
#[inline(always)]
pub(crate) fn recorded<T: Tables>(tables: &T, seen: &Seen, hash: u64) -> u32 {
    if seen.opens() {
        return NOBODY;
    }
    let now = tables.now();
    tables.records(line(hash), |line| touch(line, mark(hash), seen, now)).unwrap_or(NOBODY)
}

/// The flow's record decides. Without one: what opens a flow goes to the new real, anything else comes from before and
/// goes to the previous one; either is recorded.
#[inline(never)]
fn moving<T: Tables>(tables: &T, seen: &Seen, index: u32, hash: u64) -> u32 {
    let Some(found) = tables.moving(index) else { return NOBODY };
    let now = tables.now();
    let mark = mark(hash);
    let line = line(hash);
    let opens = seen.opens();
    // Whether somebody is still behind the number: a record may outlive its real.
    let lives = |id: u32| tables.real(id).is_some_and(|real| real.state != Real::GONE);
    if !opens {
        let known = tables.records(line, |line| touch(line, mark, seen, now)).unwrap_or(NOBODY);
        if known != NOBODY && lives(known) {
            tables.trace(|trace| trace.why = Why::Recorded as u32);
            return known;
        }
    }
    let tcp = seen.tuple.protocol == crate::abi::TCP;
    let before = !opens && (tcp || found.phase == Move::LEARNING) && lives(found.previous);
    let mut id = if before { found.previous } else { found.current };
    let why = if before { Why::MovingPrevious } else { Why::MovingNew };
    tables.trace(|trace| trace.why = why as u32);
    // A reset is the last of its flow, a new UDP flow goes where it would go anyway, and a quote proves nothing.
    if seen.flags & RST == 0 && !seen.quoted && (before || opens) && !T::DRY {
        // The flow's next packet makes it an open one: what comes once, spoofed perhaps, gives way to others.
        let state = if opens { Record::OPENING } else { Record::SHOWN };
        let record = Record { mark, real: id, state, age: Record::now(now) };
        let written = tables.records(line, |line| write(line, record, now)).unwrap_or(false);
        // Its next packet would be taken for one from before: then it had better start there.
        if opens && !written && lives(found.previous) {
            id = found.previous;
        }
    }
    id
}

#[inline(always)]
fn mark(hash: u64) -> u32 {
    (hash >> 32) as u32 | 1
}

/// Of other bits than the mark and the slot take.
#[inline(always)]
fn line(hash: u64) -> u32 {
    (hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u32 & (capacity::RECORD_LINES as u32 - 1)
}

/// The real of a recorded flow; notes how the flow does.
#[inline(always)]
fn touch(line: &mut crate::abi::RecordLine, mark: u32, seen: &Seen, now: u64) -> u32 {
    let mut place = 0;
    while place < RECORDS_PER_LINE {
        if let Some(word) = line.0.get_mut(place)
            && *word as u32 == mark
        {
            let record = Record::unpack(*word);
            if seen.quoted {
                return record.real;
            }
            // UDP does not say when a flow ends: silence does.
            let state = if seen.end() != 0 || seen.tuple.protocol == crate::abi::UDP {
                Record::CLOSING
            } else if record.once() {
                Record::OPEN
            } else {
                record.state
            };
            let next = Record { state, age: Record::now(now), ..record }.pack();
            if next != *word {
                *word = next;
            }
            return record.real;
        }
        place += 1;
    }
    NOBODY
}

/// The last record of a line.
const LAST: u32 = RECORDS_PER_LINE as u32 - 1;

/// Writes a record over its own flow's, over one that is over, or over that of a SYN, in this order. No other flow's
/// record gives way: what is open cannot be pushed out by a flood. False: there is no place.
#[inline(always)]
fn write(line: &mut crate::abi::RecordLine, record: Record, now: u64) -> bool {
    // How well the best so far fits, and which it was: one number, in which the first is the best of equals.
    let mut best = 0;
    let mut place = 0;
    while place < RECORDS_PER_LINE {
        if let Some(word) = line.0.get(place) {
            let there = Record::unpack(*word);
            let fits = if there.mark == record.mark {
                3
            } else if there.over(now) {
                2
            } else if there.once() {
                1
            } else {
                0
            };
            let found = fits << 8 | (LAST - place as u32);
            best = forget(if found > best { found } else { best });
        }
        place += 1;
    }
    if best < 1 << 8 {
        return false;
    }
    match line.0.get_mut((LAST - (best & LAST)) as usize) {
        Some(word) => *word = record.pack(),
        None => return false,
    }
    true
}

/// Spreads flows over slots (the low bits), ports (bits 32 to 47) and local addresses (the top bits). Multiplications
/// and shifts in turn: a bit of the input reaches every bit of the output after three.
#[inline(always)]
#[must_use]
pub fn hash(tuple: &Tuple) -> u64 {
    let s = &tuple.source.0;
    let d = &tuple.destination.0;
    let ports = pair(u32::from(tuple.protocol), pack(tuple.source_port, tuple.destination_port));
    let mut hash = mix(pair(s[3], d[3]), 0x9e37_79b9_7f4a_7c15);
    if !tuple.source.is_v4() {
        hash = mix(hash ^ pair(s[0], s[1]), 0xff51_afd7_ed55_8ccd);
        hash = mix(hash ^ pair(s[2], d[2]), 0xc4ce_b9fe_1a85_ec53);
        hash = mix(hash ^ pair(d[0], d[1]), 0x9e37_79b9_7f4a_7c15);
    }
    hash = mix(hash ^ ports, 0xff51_afd7_ed55_8ccd);
    mix(hash, 0xc4ce_b9fe_1a85_ec53)
}

#[inline(always)]
fn mix(word: u64, odd: u64) -> u64 {
    let hash = word.wrapping_mul(odd);
    hash ^ hash >> 32
}

#[inline(always)]
fn pair(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

#[inline(always)]
fn pack(high: u16, low: u16) -> u32 {
    u32::from(high) << 16 | u32::from(low)
}

/// One slot of a block, for the two sides of [`Tables::slot`].
#[inline(always)]
#[must_use]
pub fn slot_of(block: &RingBlock, slot: u32) -> Option<u32> {
    block.0.get(slot as usize & (BLOCK_SLOTS - 1)).copied()
}

const _: () = assert!(BLOCK_SLOTS.is_power_of_two() && RECORDS_PER_LINE.is_power_of_two());

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::abi::Address;

    /// Neighbouring clients and ports, as they come, in every use that is made of the hash's bits.
    #[test]
    fn flows_spread_evenly() {
        let address = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
        for (client, vip) in [("10.77.0.", "10.77.100.1"), ("fd77::", "fd77:0:100::1")] {
            let mut uses = [[0_u32; 256]; 6];
            for host in 1..=64 {
                for port in 0..1024 {
                    let tuple = Tuple {
                        source: address(&format!("{client}{host}")),
                        destination: address(vip),
                        source_port: 30_000 + port,
                        destination_port: 80,
                        protocol: crate::abi::TCP,
                        pad: [0; 3],
                    };
                    let hash = hash(&tuple);
                    let bits = [hash, hash >> 8, hash >> 32, hash >> 40, hash >> 56, u64::from(line(hash))];
                    uses.iter_mut().zip(bits).for_each(|(counts, bits)| counts[bits as usize & 255] += 1);
                }
            }
            for counts in uses {
                // 256 expected; six standard deviations either way.
                assert!(counts.iter().all(|count| (160..=352).contains(count)), "{client} {counts:?}");
            }
        }
    }
}
