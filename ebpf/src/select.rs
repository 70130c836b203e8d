//! Which real a client's packet goes to, and from which local address and port.
//!
//! A flow is two entries of two LRU maps, which the kernel evicts independently. So every packet of a client checks
//! that its reverse entry is there and its own, and mends what is not. Ports are chosen by the flow's hash, so a flow
//! that was forgotten altogether finds its old port again (and, while the ring stands, its old real).

use crate::{
    abi::{Address, BLOCK_SLOTS, Flow, LOCALS, Real, Reason, Reverse, RingBlock, SECOND, Service, TCP, Tuple, UDP},
    balance::{Tables, Verdict},
    parse::{ACK, RST, SYN, Seen},
};

/// FULLNAT source ports start above the well-known ones.
const FIRST_PORT: u32 = 1024;
const PORTS: u32 = 65_536 - FIRST_PORT;
/// How many ports are tried for a new flow. With half of all ports taken, one flow in 256 finds none.
const PROBES: u16 = 8;
/// How far apart the tries are: odd, so that no port is tried twice.
const PROBE_STEP: u16 = 7919;
/// A ring's slot may name a real that just went; so many neighbours are asked.
const SLOT_TRIES: u32 = 4;

/// A packet's way to its real.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    pub flow: Flow,
    /// The flow was given its real with this packet.
    pub new: bool,
    /// The real's entry still is the flow's.
    pub known: bool,
}

/// What the reverse entry says about a flow.
#[derive(Clone, Copy)]
struct Life {
    own: bool,
    closing: bool,
    idle: u64,
}

/// Not an `Option` around [`Life`]: its payload would be undefined, which LLVM may read and the verifier may not.
const LOST: Life = Life { own: false, closing: false, idle: u64::MAX };

#[inline(always)]
pub fn path<T: Tables>(tables: &T, seen: &Seen, service: &Service, ifindex: u32) -> Result<Path, Verdict> {
    let now = tables.now();
    let udp = seen.tuple.protocol == UDP;
    let mut target = None;
    if let Some(flow) = tables.flow(&seen.tuple) {
        let back = answers(&flow, seen.tuple.protocol);
        let life = tables
            .reverse(&back, |reverse| if own(reverse, &seen.tuple) { touch(reverse, seen, ifindex, now) } else { LOST })
            .unwrap_or(LOST);
        let real = tables.real(flow.real_id).filter(|real| real.epoch == flow.epoch && real.state != Real::GONE);
        let active = real.is_some_and(|real| real.state == Real::ACTIVE);
        let again = if udp {
            !active && life.idle > Reverse::UDP_IDLE
        } else {
            seen.opens() && (!life.own || life.closing || !active)
        };
        if !again {
            if life.own || tables.insert_reverse(&back, &entry(&flow, seen, ifindex, now)) {
                return Ok(Path { flow, new: false, known: real.is_some() });
            }
            // Another flow took the port meanwhile: the real stays, the port changes.
            target = Some((flow.real, flow.real_port, flow.real_id, flow.epoch, real.is_some()));
        } else if life.own {
            tables.forget_reverse(&back);
        }
    } else if seen.flags & RST != 0 || seen.flags & (SYN | ACK) == SYN | ACK {
        // Nobody's reset, or an answer to a question that no real asked.
        return Err(Verdict::Pass);
    }

    let hash = hash(&seen.tuple);
    let (real, real_port, real_id, epoch, known) = match target {
        Some(target) => target,
        None => {
            let (id, real) = pick(tables, service, hash as u32).ok_or(Verdict::Pass)?;
            (real.address, real.port, id, real.epoch, true)
        }
    };
    let mut flow = Flow {
        real,
        local: local(tables, seen.v4, hash).map_err(Verdict::Drop)?,
        real_port,
        local_port: 0,
        real_id,
        epoch,
    };
    flow.local_port = port(tables, &flow, seen, ifindex, hash, now).map_err(Verdict::Drop)?;
    if !tables.set_flow(&seen.tuple, &flow) {
        return Err(Verdict::Drop(Reason::TableFull));
    }
    Ok(Path { flow, new: true, known })
}

/// The tuple that the real's answers carry.
#[inline(always)]
fn answers(flow: &Flow, protocol: u8) -> Tuple {
    Tuple {
        source: flow.real,
        destination: flow.local,
        source_port: flow.real_port,
        destination_port: flow.local_port,
        protocol,
        pad: [0; 3],
    }
}

#[inline(always)]
fn entry(flow: &Flow, seen: &Seen, ifindex: u32, now: u64) -> Reverse {
    Reverse {
        seen: now,
        client: seen.tuple.source,
        vip: seen.tuple.destination,
        client_port: seen.tuple.source_port,
        vip_port: seen.tuple.destination_port,
        real_id: flow.real_id,
        epoch: flow.epoch,
        ifindex,
        client_mac: seen.from_mac,
        own_mac: seen.to_mac,
        client_end: seen.end(),
        real_end: 0,
        answered: 0,
        pad: 0,
    }
}

#[inline(always)]
fn own(reverse: &Reverse, tuple: &Tuple) -> bool {
    reverse.client == tuple.source
        && reverse.client_port == tuple.source_port
        && reverse.vip == tuple.destination
        && reverse.vip_port == tuple.destination_port
}

/// Notes the packet in its flow's entry; writes only what changed, since every write costs other CPUs a cache line.
#[inline(always)]
fn touch(reverse: &mut Reverse, seen: &Seen, ifindex: u32, now: u64) -> Life {
    let life = Life { own: true, closing: reverse.closing(), idle: now.saturating_sub(reverse.seen) };
    if life.idle > SECOND {
        reverse.seen = now;
    }
    if seen.end() > reverse.client_end {
        reverse.client_end = seen.end();
    }
    if reverse.client_mac != seen.from_mac || reverse.ifindex != ifindex {
        reverse.client_mac = seen.from_mac;
        reverse.own_mac = seen.to_mac;
        reverse.ifindex = ifindex;
    }
    life
}

/// The ring's real for this hash.
#[inline(always)]
fn pick<T: Tables>(tables: &T, service: &Service, hash: u32) -> Option<(u32, Real)> {
    if service.mask == 0 {
        return None;
    }
    let mut attempt = 0;
    while attempt < SLOT_TRIES {
        let slot = hash.wrapping_add(attempt) & service.mask;
        let id = tables.slot(service.block.wrapping_add(slot / BLOCK_SLOTS as u32), slot % BLOCK_SLOTS as u32);
        if let Some(id) = id
            && let Some(real) = tables.real(id)
            && real.service == service.id
            && real.state == Real::ACTIVE
        {
            return Some((id, real));
        }
        attempt += 1;
    }
    None
}

#[inline(always)]
fn local<T: Tables>(tables: &T, v4: bool, hash: u64) -> Result<Address, Reason> {
    let settings = tables.settings();
    let (first, count) = if v4 { (0, settings.locals_v4) } else { (LOCALS, settings.locals_v6) };
    // A share of the hash's top bits, instead of a division.
    let index = ((hash >> 48) as u32).wrapping_mul(count) >> 16;
    if index >= count {
        return Err(Reason::NoLocalAddress);
    }
    tables.local(first + index).ok_or(Reason::NoLocalAddress)
}

/// Takes a port for the flow by making its reverse entry.
#[inline(always)]
fn port<T: Tables>(tables: &T, flow: &Flow, seen: &Seen, ifindex: u32, hash: u64, now: u64) -> Result<u16, Reason> {
    let mut key = answers(flow, seen.tuple.protocol);
    let value = entry(flow, seen, ifindex, now);
    let mut spare = 0;
    let mut probe = 0;
    while probe < PROBES {
        let step = ((hash >> 32) as u16).wrapping_add(probe.wrapping_mul(PROBE_STEP));
        key.destination_port = (FIRST_PORT + (u32::from(step).wrapping_mul(PORTS) >> 16)) as u16;
        if tables.insert_reverse(&key, &value) {
            return Ok(key.destination_port);
        }
        let taken = tables.reverse(&key, |reverse| {
            if own(reverse, &seen.tuple) {
                // The flow's own, whose other half was evicted: it goes on. A SYN begins anew in the same place.
                if seen.opens() {
                    reverse.client_end = 0;
                    reverse.real_end = 0;
                    reverse.answered = 0;
                }
                reverse.real_id = flow.real_id;
                reverse.epoch = flow.epoch;
                touch(reverse, seen, ifindex, now);
                return Taken::Own;
            }
            if reverse.over(key.protocol, now) { Taken::Over } else { Taken::Busy }
        });
        match taken {
            Some(Taken::Own) => return Ok(key.destination_port),
            Some(Taken::Over) if spare == 0 => spare = key.destination_port,
            _ => {}
        }
        probe += 1;
    }
    // No port is free. One whose flow is over is second best: the real may still hold it in TIME_WAIT.
    if spare != 0 {
        key.destination_port = spare;
        tables.forget_reverse(&key);
        if tables.insert_reverse(&key, &value) {
            return Ok(spare);
        }
    }
    Err(Reason::NoPort)
}

enum Taken {
    Own,
    Over,
    Busy,
}

/// Spreads flows over slots (the low bits), ports (bits 32 to 47) and local addresses (the top bits).
#[inline(always)]
#[must_use]
pub fn hash(tuple: &Tuple) -> u64 {
    let s = &tuple.source.0;
    let d = &tuple.destination.0;
    let mut hash = mix(0, pair(s[0], s[1]));
    hash = mix(hash, pair(s[2], s[3]));
    hash = mix(hash, pair(d[0], d[1]));
    hash = mix(hash, pair(d[2], d[3]));
    hash = mix(hash, pair(pack(tuple.source_port, tuple.destination_port), u32::from(tuple.protocol)));
    // The finaliser of MurmurHash3: every bit of the input reaches every bit of the output.
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ hash >> 33
}

#[inline(always)]
fn mix(hash: u64, word: u64) -> u64 {
    // 2^64 divided by the golden ratio: odd, and its bits look like noise.
    let hash = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ hash >> 29
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

const _: () = assert!(TCP != UDP && BLOCK_SLOTS.is_power_of_two());
