//! The usual packet: a plain one of a flow that is known, or that begins where nothing stands in its way.
//!
//! A call costs 5 to 15 ns where the processor must be kept from guessing returns, which is half of what a whole packet
//! may cost. So there is none here: no function of ours, and no helper of the kernel's but the one that makes room for a
//! tunnel. Whatever would need one is not usual; it goes the whole way of [`crate::balance`], where the same is decided.

use crate::{
    abi::{Address, Flow, Head, Hop, MOVING, Real, Service, ServiceKey, Settings, TCP},
    balance::{Packet, Step, Tables},
    encap,
    flows::{self, Ask},
    nat,
    parse::{self, Network, Seen},
    select,
};

/// Of the flows that are not in their first choice, nearly all are in one of so many places right after it.
const BESIDE: u32 = 2;

/// [`Step::UNUSUAL`]: nothing was done, or nothing that harms to be done again.
#[inline(always)]
pub(crate) fn usual<P: Packet, T: Tables, N: Network>(packet: &mut P, tables: &T) -> Step {
    // An explanation shows the whole way.
    if T::DRY {
        return Step::UNUSUAL;
    }
    let Some(mut seen) = parse::plain::<P, N>(packet) else { return Step::UNUSUAL };
    if parse::transport(packet, &mut seen).is_none() {
        return Step::PASS;
    }
    if seen.ttl <= 1 || seen.absurd() {
        return Step::UNUSUAL;
    }
    let Some(settings) = tables.settings() else { return Step::PASS };
    let mut key = ServiceKey {
        vip: seen.tuple.destination,
        port: seen.tuple.destination_port,
        protocol: seen.tuple.protocol,
        pad: 0,
    };
    if let Some(head) = find(tables, &key) {
        let service = &head.service;
        return if service.checks != 0 {
            Step::UNUSUAL
        } else if service.mode == Service::FULLNAT {
            out(packet, tables, settings, &seen, service)
        } else {
            forward(packet, tables, settings, &seen, service)
        };
    }
    (key.port, key.protocol) = (0, Head::LOCAL);
    match find(tables, &key) {
        Some(head) => back(packet, tables, &seen, head.service.id),
        None => Step::UNUSUAL,
    }
}

#[inline(always)]
fn find<'a, T: Tables>(tables: &'a T, key: &ServiceKey) -> Option<&'a Head> {
    let head = tables.head(Head::place(key))?;
    let same = head.key.vip == key.vip && head.key.port == key.port && head.key.protocol == key.protocol;
    same.then_some(head)
}

/// The hop beside a real, if it may be believed and the packet fits it untagged.
#[inline(always)]
fn hop<'a, T: Tables>(tables: &T, settings: &Settings, real: &'a Real, length: usize) -> Option<&'a Hop> {
    let hop = &real.hop;
    let known = hop.ifindex != 0 && tables.now() < settings.hops_until;
    (known && hop.vlan == 0 && (hop.mtu == 0 || length <= hop.mtu as usize)).then_some(hop)
}

/// A real that is there and the service's own: its head may be half old and half new, and the ring then another's.
#[inline(always)]
fn real<'a, T: Tables>(tables: &'a T, service: &Service, id: u32) -> Option<&'a Real> {
    tables.real(id).filter(|real| real.state != Real::GONE && real.service == service.id)
}

/// To a real that answers by itself.
#[inline(always)]
fn forward<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    settings: &Settings,
    seen: &Seen,
    service: &Service,
) -> Step {
    let hash = select::hash(&seen.tuple);
    let opens = seen.opens();
    if service.mask == 0 || (opens && tables.log_every() != 0) {
        return Step::UNUSUAL;
    }
    let mut id = select::slot(tables, service, hash).unwrap_or(select::NOBODY);
    if id & MOVING != 0 {
        id = select::recorded(tables, seen, hash);
    }
    let Some(real) = real(tables, service, id) else { return Step::UNUSUAL };
    let mut around = 0;
    if service.mode != Service::DIRECT {
        if service.mode != Service::IPIP || real.address.is_v4() != seen.v4 {
            return Step::UNUSUAL;
        }
        around = encap::overhead(Service::IPIP, seen.v4);
    }
    let Some(hop) = hop(tables, settings, real, seen.length as usize + around) else { return Step::UNUSUAL };
    let bytes = packet.length() as u64;
    tables.count_service(service.id, bytes, opens, opens);
    tables.count_real(id, bytes, opens, opens);
    encap::send(packet, settings, seen, service, real, hop, hash as u32)
}

/// From a client to the real of its flow, which may begin.
#[inline(always)]
fn out<P: Packet, T: Tables>(packet: &mut P, tables: &T, settings: &Settings, seen: &Seen, service: &Service) -> Step {
    let Some(mut ask) = flows::ask(packet, tables, settings, seen, service) else { return Step::UNUSUAL };
    let home = Flow::home(ask.hash, ask.first, ask.locals);
    let (mut index, mut life) = (home, flows::look_awake(tables, seen, &ask, home));
    let spilled = life.spilled;
    let mut step = 1;
    while spilled && !life.own && step <= BESIDE {
        index = Flow::neighbour(home, step);
        life = flows::look_awake(tables, seen, &ask, index);
        step += 1;
    }
    let (opens, new) = (seen.opens(), !life.own);
    if new {
        // Where a flow had to go elsewhere, this one may be further away.
        if spilled {
            return Step::UNUSUAL;
        }
        ask.real = first(tables, seen, service, &ask);
        index = flows::free(tables, &ask, home, BESIDE);
    } else {
        // A SYN may begin anew.
        if opens || life.work != 0 || life.idle {
            return Step::UNUSUAL;
        }
        ask.real = life.real;
    }
    let (Some(real), Some(local)) = (real(tables, service, ask.real), tables.local(index >> 16)) else {
        return Step::UNUSUAL;
    };
    let Some(hop) = hop(tables, settings, real, seen.length as usize) else { return Step::UNUSUAL };
    if new && !flows::open_at(tables, seen, &ask, index) {
        return Step::UNUSUAL;
    }
    let bytes = packet.length() as u64;
    tables.count_service(service.id, bytes, new, opens);
    tables.count_real(ask.real, bytes, new, opens);
    nat::send(packet, seen, &flows::to_real(index, local, real), hop)
}

/// The real of a flow that begins, on a stable slot and with nothing to be done but translate, or [`select::NOBODY`].
#[inline(always)]
fn first<T: Tables>(tables: &T, seen: &Seen, service: &Service, ask: &Ask) -> u32 {
    let plain = service.client == Service::HIDDEN && service.mask != 0 && tables.log_every() == 0;
    if !plain || !flows::starts(seen, service) {
        return select::NOBODY;
    }
    select::slot(tables, service, ask.hash).filter(|word| word & MOVING == 0).unwrap_or(select::NOBODY)
}

/// From a real to the client of its flow.
#[inline(always)]
fn back<P: Packet, T: Tables>(packet: &mut P, tables: &T, seen: &Seen, local: u32) -> Step {
    let index = Flow::index(local, seen.tuple.destination_port);
    if !flows::answers(tables, seen, index) {
        return Step::UNUSUAL;
    }
    // Before it is noted: answers are counted, once.
    if !tables.peek(index, |flow| flow.work == 0 && flow.vlan() == 0).unwrap_or(false) {
        return Step::UNUSUAL;
    }
    match flows::back(tables, seen, index) {
        Some(back) => nat::send(packet, seen, &back.to, &back.hop),
        None => Step::PASS,
    }
}

const _: () = assert!(TCP != Head::LOCAL && size_of::<Address>() == 16);
