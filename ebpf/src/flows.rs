//! FULLNAT's flows: found by the client's hash or by the local port, opened, and taken back.
//!
//! A flow's place is one of eight neighbours, or of eight others: where its hash says, or where the first free one is.
//! Most are in their first choice, so most packets touch one cache line of the table. A place is given away only when
//! its flow is over, or (where there is no other) when it is a handshake that nobody finished in three seconds: a flood
//! of SYNs can push out nothing but other SYNs.

use crate::{
    abi::{Address, FIRST_PORT, Flow, Frontend, Hop, Mac, Real, Reason, Service, Settings, TCP, UDP, Why},
    balance::{Packet, Stage, Step, Tables, log, next_hop},
    forget::forget,
    nat::{self, Rewrite},
    parse::Seen,
    select,
    wire::{ACK, Ethernet, RST, SYN},
};

/// Not a flow's index.
pub const NONE: u32 = u32::MAX;

/// What the program knows of a packet from a client before it knows the flow.
#[derive(Clone, Copy)]
pub(crate) struct Ask {
    pub(crate) hash: u64,
    pub(crate) now: u64,
    pub(crate) service: u32,
    pub(crate) ifindex: u32,
    pub(crate) first: u32,
    pub(crate) locals: u32,
    pub(crate) client_mac: Mac,
    pub(crate) own_mac: Mac,
    /// For a new flow: its real, the place that it has already or [`NONE`], and [`Flow::work`].
    pub(crate) real: u32,
    pub(crate) own: u32,
    pub(crate) work: u8,
}

/// What a flow's entry says. Not an `Option` around it: its payload would be undefined, which LLVM may read and the
/// verifier may not.
#[derive(Clone, Copy)]
pub(crate) struct Life {
    pub(crate) own: bool,
    /// Not its own, but it was the first choice of some flow that is elsewhere.
    pub(crate) spilled: bool,
    closing: bool,
    /// Silent for longer than a UDP flow lasts.
    pub(crate) idle: bool,
    pub(crate) work: u8,
    pub(crate) real: u32,
}

const LOST: Life = Life { own: false, spilled: false, closing: false, idle: false, work: 0, real: select::NOBODY };

/// A client's packet, out to its real. `flooded`: a new flow has to show a cookie first.
#[inline(always)]
pub(crate) fn out<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    seen: &Seen,
    service: &Service,
    flooded: bool,
) -> Step {
    let Some(settings) = tables.settings() else { return Step::PASS };
    let Some(ask) = ask(packet, tables, settings, seen, service) else { return Step::drop(Reason::NoLocalAddress) };
    let hash = ask.hash;
    let mut index = Flow::home(hash, ask.first, ask.locals);
    let mut life = look(tables, seen, &ask, index);
    if life.spilled {
        index = elsewhere(tables, &{ *seen }, &{ ask });
        life = look(tables, seen, &ask, index);
    }
    let mut new = false;
    if !life.own || again(tables, seen, &life) {
        // Its SYN, repeated, costs nothing more than it did.
        if !life.own && flooded && service.mask != 0 {
            return Step::CHALLENGE;
        }
        if !life.own && !starts(seen, service) {
            if service.checks & Service::COOKIES != 0 && seen.flags & (SYN | ACK | RST) == ACK {
                return Step::ACCEPT;
            }
            return Step::PASS;
        }
        let real = select::real(tables, seen, service, hash);
        if real == select::NOBODY {
            return Step::PASS;
        }
        let work = work(service, seen);
        tables.trace(|trace| (trace.why, trace.flow) = (Why::NewFlow as u32, NONE));
        let own = if life.own { index } else { NONE };
        index = open(packet, tables, &{ *seen }, &Ask { real, own, work, ..ask });
        if index == NONE {
            return Step::drop(Reason::NoPort);
        }
        tables.trace(|trace| trace.flow = index);
        (life.real, life.work) = (real, work);
        new = true;
    } else {
        tables.trace(|trace| (trace.why, trace.flow) = (Why::Flow as u32, index));
    }
    if seen.quoted {
        return Step::requote(index);
    }
    let real = match tables.real(life.real) {
        Some(real) if real.state != Real::GONE => real,
        _ => return Step::drop(Reason::NoReal),
    };
    tables.trace(|trace| trace.real = life.real);
    let Some(local) = tables.local(index >> 16) else { return Step::drop(Reason::NoLocalAddress) };
    let opens = seen.opens();
    let bytes = packet.length() as u64;
    tables.count_service(service.id, bytes, new, opens);
    tables.count_real(life.real, bytes, new, opens);
    if new {
        log(tables, seen, service.id, life.real, hash);
    }
    let hop = match next_hop(tables, real, ask.ifindex) {
        Ok(hop) => hop,
        Err(reason) => return Step::drop(reason),
    };
    if hop.mtu != 0 && seen.length > hop.mtu {
        return Step::refuse(Reason::TooBig, hop.mtu);
    }
    if life.work != 0 {
        return Step::out(index);
    }
    nat::send(packet, seen, &to_real(index, local, real), &hop)
}

/// What is known before the flow is; `None` without a local address.
#[inline(always)]
pub(crate) fn ask<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    settings: &Settings,
    seen: &Seen,
    service: &Service,
) -> Option<Ask> {
    let (first, locals) = if seen.v4 { (0, settings.locals_v4) } else { (settings.first_v6, settings.locals_v6) };
    if locals == 0 {
        return None;
    }
    let ifindex = packet.ifindex();
    let ethernet = packet.at::<Ethernet>(0)?;
    Some(Ask {
        hash: select::hash(&seen.tuple),
        now: tables.now(),
        service: service.id,
        ifindex,
        first,
        locals,
        client_mac: ethernet.source,
        own_mac: ethernet.destination,
        real: 0,
        own: NONE,
        work: 0,
    })
}

/// What the place says, with the packet noted if the flow is its own.
#[inline(always)]
fn look<T: Tables>(tables: &T, seen: &Seen, ask: &Ask, index: u32) -> Life {
    tables.flow(index, |flow| touch(flow, seen, ask, false)).unwrap_or(LOST)
}

/// The same, but a flow that was silent for long is left as it is: whether it goes on is not decided here.
#[inline(always)]
pub(crate) fn look_awake<T: Tables>(tables: &T, seen: &Seen, ask: &Ask, index: u32) -> Life {
    tables.flow(index, |flow| touch(flow, seen, ask, true)).unwrap_or(LOST)
}

/// What a client's packet says on its way to the real.
#[inline(always)]
pub(crate) fn to_real(index: u32, local: Address, real: &Real) -> Rewrite {
    Rewrite { source: local, destination: real.address, source_port: index as u16, destination_port: real.port }
}

/// What a new flow's packets need besides a translation. One that is taken up in the middle has told its client's
/// address long ago.
#[inline(always)]
pub(crate) fn work(service: &Service, seen: &Seen) -> u8 {
    match (service.client, seen.opens()) {
        _ if seen.tuple.protocol != TCP => 0,
        (Service::TOA, true) => Flow::TOA,
        (Service::PROXY, true) => Flow::PROXY,
        (Service::PROXY, false) => Flow::PROXY | Flow::TOLD,
        _ => 0,
    }
}

/// Whether a packet of no known flow makes one. One in the middle of a connection does too: state may have been lost,
/// and its place and (while the ring stands) its real are found again by its hash.
#[inline(always)]
pub(crate) fn starts(seen: &Seen, service: &Service) -> bool {
    // Nobody's reset, an answer to a question that no real asked, a piece without its head.
    let stray = seen.flags & RST != 0 || seen.flags & (SYN | ACK) == SYN | ACK || seen.headless || seen.quoted;
    !stray && (service.checks & Service::COOKIES == 0 || seen.opens() || seen.tuple.protocol == UDP)
}

/// Whether a known flow begins anew: a SYN in a port that was used before, or one whose real takes no more; a UDP flow
/// that was silent, of a real that takes no more.
#[inline(always)]
fn again<T: Tables>(tables: &T, seen: &Seen, life: &Life) -> bool {
    if seen.tuple.protocol == UDP {
        life.idle && !active(tables, life.real)
    } else {
        seen.opens() && life.work & Flow::WAITING == 0 && (life.closing || !active(tables, life.real))
    }
}

#[inline(always)]
fn active<T: Tables>(tables: &T, id: u32) -> bool {
    tables.real(id).is_some_and(|real| real.state == Real::ACTIVE)
}

#[inline(always)]
fn own(flow: &Flow, seen: &Seen, service: u32) -> bool {
    flow.client_port == seen.tuple.source_port
        && flow.protocol == seen.tuple.protocol
        && flow.service == service
        && flow.client == seen.tuple.source
}

/// Notes the packet in its flow's entry; writes only what changed, since every write costs other CPUs a cache line.
#[inline(always)]
fn touch(flow: &mut Flow, seen: &Seen, ask: &Ask, awake: bool) -> Life {
    if !own(flow, seen, ask.service) {
        return Life { spilled: flow.spilled != 0, ..LOST };
    }
    let life = Life {
        own: true,
        spilled: false,
        closing: flow.closing(),
        idle: flow.idle(ask.now) > Flow::UDP_IDLE,
        work: flow.work,
        real: flow.real(),
    };
    let left = seen.quoted || (awake && life.idle);
    if !left {
        let tick = Flow::tick(ask.now);
        if flow.seen != tick {
            flow.seen = tick;
        }
        if seen.end() > flow.client_end {
            flow.client_end = seen.end();
        }
        if flow.client_mac != ask.client_mac || flow.ifindex != ask.ifindex || flow.vlan() != seen.vlan {
            flow.client_mac = ask.client_mac;
            flow.own_mac = ask.own_mac;
            flow.ifindex = ask.ifindex;
            flow.set_real(life.real, seen.vlan);
        }
    }
    life
}

/// Finds a flow that is not in its first choice.
#[inline(never)]
pub(crate) fn elsewhere<T: Tables>(tables: &T, seen: &Seen, ask: &Ask) -> u32 {
    let mut step = 1;
    while step <= LAST {
        let place = place(ask, step);
        if tables.flow(place, |flow| own(flow, seen, ask.service)).unwrap_or(false) {
            return place;
        }
        step += 1;
    }
    NONE
}

/// The last place that is tried.
const LAST: u32 = 2 * Flow::GROUP - 1;

/// The place that is tried as the `step`th: the first choice, its neighbours, and those elsewhere.
#[inline(always)]
fn place(ask: &Ask, step: u32) -> u32 {
    let Ask { hash, first, locals, .. } = *ask;
    let of = if step < Flow::GROUP { Flow::home(hash, first, locals) } else { Flow::second(hash, first, locals) };
    Flow::neighbour(of, step)
}

/// [`rank`] of a place that nobody has, or may have, a claim on.
const FREE: u32 = 4;

/// What [`suits`] is asked with.
#[inline(always)]
fn rank_of(ask: &Ask, place: u32) -> u64 {
    u64::from(place) | u64::from(ask.real) << 32
}

/// [`rank`] of a place for a flow of a real.
#[inline(always)]
pub(crate) fn suits<T: Tables>(tables: &T, value: u64) -> u64 {
    let now = tables.now();
    u64::from(tables.flow(value as u32, |flow| rank(flow, now, (value >> 32) as u32)).unwrap_or(0))
}

/// How well a place suits a new flow: the higher, the better; 0: it is taken.
#[inline(always)]
fn rank(flow: &Flow, now: u64, real: u32) -> u32 {
    let idle = flow.idle(now);
    if flow.over(now) {
        // A real that the same local port was closed with may hold it in TIME_WAIT.
        if flow.protocol == 0 || flow.real() != real || idle > Flow::TIME_WAIT { FREE } else { FREE - 1 }
    } else if flow.answered < Flow::HEARD && flow.protocol == TCP && idle > Flow::TCP_OPENING_PRESSED {
        2
    } else {
        0
    }
}

/// The first of the first few choices that is free, for a flow that is new for sure. Where none is, [`open`] looks further.
#[inline(always)]
pub(crate) fn free<T: Tables>(tables: &T, ask: &Ask, home: u32, few: u32) -> u32 {
    let mut step = 0;
    while step <= few {
        let place = Flow::neighbour(home, step);
        if is_free(tables, ask, place) {
            return place;
        }
        step += 1;
    }
    NONE
}

#[inline(always)]
fn is_free<T: Tables>(tables: &T, ask: &Ask, place: u32) -> bool {
    // Written and not returned, as with [`Life`].
    let mut free = false;
    tables.peek(place, |flow| free = rank(flow, ask.now, ask.real) == FREE);
    free
}

/// Gives the flow that free place. False: another CPU has just given it away.
#[inline(always)]
pub(crate) fn open_at<T: Tables>(tables: &T, seen: &Seen, ask: &Ask, place: u32) -> bool {
    take(tables, seen, ask, place, || is_free(tables, ask, place))
}

/// Gives the flow a place and writes it. [`NONE`]: there is none.
#[inline(never)]
pub(crate) fn open<P: Packet, T: Tables>(packet: &mut P, tables: &T, seen: &Seen, ask: &Ask) -> u32 {
    if ask.own != NONE {
        return if take(tables, seen, ask, ask.own, || true) { ask.own } else { NONE };
    }
    // How well the best so far suits, and which it was: one number, in which the first is the best of equals.
    let mut best = 0;
    let mut step = 0;
    while step <= LAST {
        let found = (packet.stage(tables, Stage::Rank, rank_of(ask, place(ask, step))) as u32) << 8 | (LAST - step);
        best = forget(if found > best { found } else { best });
        // The first that is good enough: the table is not read further than need be.
        if best >= FREE << 8 {
            break;
        }
        step += 1;
    }
    if best < 1 << 8 {
        return NONE;
    }
    let best = place(ask, LAST - (best & LAST));
    if !take(tables, seen, ask, best, || packet.stage(tables, Stage::Rank, rank_of(ask, best)) != 0) {
        return NONE;
    }
    best
}

/// Writes the flow into a place. False: another CPU gives it away, or has since it was found to suit.
#[inline(always)]
fn take<T: Tables>(tables: &T, seen: &Seen, ask: &Ask, place: u32, suits: impl FnOnce() -> bool) -> bool {
    if T::DRY {
        return true;
    }
    if !tables.lock(place) {
        return false;
    }
    let suits = suits();
    // Only now: over the call there is no room on the stack for it (Linux 6.1).
    let home = self::place(ask, 0);
    let from = if place == home { 0 } else { home };
    let mut most = false;
    if from != 0 {
        tables.peek(from, |flow| most = flow.spilled >= Flow::MOST_SPILLED);
    }
    if !suits || most {
        tables.unlock(place, tables.peek(place, Flow::from).unwrap_or(0));
        return false;
    }
    // Nobody finds a half-written flow: the protocol comes last. Nor is one looked for that may not be found yet.
    let mut before = 0;
    tables.flow(place, |flow| {
        flow.protocol = 0;
        before = flow.from();
    });
    if before != 0 {
        tables.spill(before, false);
    }
    if from != 0 {
        tables.spill(from, true);
    }
    tables.barrier();
    tables.flow(place, |flow| {
        flow.client = seen.tuple.source;
        flow.client_port = seen.tuple.source_port;
        flow.work = ask.work;
        flow.service = ask.service;
        flow.set_real(ask.real, seen.vlan);
        flow.seen = Flow::tick(ask.now);
        flow.ifindex = ask.ifindex;
        flow.client_mac = ask.client_mac;
        flow.own_mac = ask.own_mac;
        flow.client_end = seen.end();
        flow.real_end = 0;
        flow.answered = 0;
        flow.start = 0;
        flow.ahead = 0;
    });
    tables.barrier();
    tables.flow(place, |flow| flow.protocol = seen.tuple.protocol);
    tables.unlock(place, from);
    true
}

/// The index of a local address and port, if both may be.
#[inline(always)]
pub(crate) fn index_of<T: Tables>(tables: &T, local: &Address, port: u16) -> Option<u32> {
    if u32::from(port) < FIRST_PORT {
        return None;
    }
    // A copy: a key has to lie on the stack, and all that it is a part of with it.
    tables.local_index(&{ *local }).map(|local| Flow::index(local, port))
}

/// Whether the packet is of the real that the flow at `index` has.
#[inline(always)]
pub(crate) fn answers<T: Tables>(tables: &T, seen: &Seen, index: u32) -> bool {
    let protocol = seen.tuple.protocol;
    let id = tables.flow(index, |flow| if flow.protocol == protocol { flow.real() } else { select::NOBODY });
    let Some(real) = tables.real(id.unwrap_or(select::NOBODY)) else { return false };
    real.address == seen.tuple.source && real.port == seen.tuple.source_port && real.state != Real::GONE
}

/// A packet's way back to the client.
pub(crate) struct Back {
    pub(crate) to: Rewrite,
    pub(crate) hop: Hop,
    pub(crate) work: u8,
}

/// Notes a real's packet in its flow, and says where it goes. `None`: the service is gone.
#[inline(always)]
pub(crate) fn back<T: Tables>(tables: &T, seen: &Seen, index: u32) -> Option<Back> {
    let tick = Flow::tick(tables.now());
    let (mut answer, mut reset, mut real, mut service) = (false, false, 0, 0);
    let mut back = Back {
        to: Rewrite {
            source: Address::default(),
            destination: Address::default(),
            source_port: 0,
            destination_port: 0,
        },
        hop: Hop::default(),
        work: 0,
    };
    tables.flow(index, |flow| {
        if !seen.quoted {
            if flow.seen != tick {
                flow.seen = tick;
            }
            let end = seen.end();
            // A refusal is no answer: the handshake was not finished.
            if flow.answered == 0 {
                reset = end == Flow::RST;
                answer = !reset;
                flow.answered = u8::from(answer);
            } else if seen.flags & SYN != 0 {
                answer = true;
            } else if flow.answered == 1 {
                flow.answered = Flow::HEARD;
            }
            if end > flow.real_end {
                flow.real_end = end;
            }
        }
        back.to.destination = flow.client;
        back.to.destination_port = flow.client_port;
        back.hop.ifindex = flow.ifindex;
        back.hop.source_mac = flow.own_mac;
        back.hop.destination_mac = flow.client_mac;
        back.hop.vlan = flow.vlan();
        back.work = flow.work;
        real = flow.real();
        service = flow.service;
    });
    if answer || reset {
        tables.count_answer(real, answer, reset);
    }
    let Frontend { vip, port, .. } = tables.frontend(service)?;
    (back.to.source, back.to.source_port) = (vip, port);
    Some(back)
}
