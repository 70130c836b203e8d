//! The whole decision on one screen.

use crate::{
    abi::{Address, Flow, Real, Reason, Reverse, Service, ServiceKey, Settings, Tuple},
    nat::{self, Rewrite},
    parse::{Seen, Wire, parse},
    select::{self, Path},
};

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// To the host, untouched.
    Pass,
    Drop(Reason),
    /// Back out of the interface that it came by.
    Transmit,
    /// Out of another interface.
    Redirect(u32),
}

/// The frame in hand.
pub trait Packet {
    /// In bytes, with the Ethernet header.
    fn length(&self) -> usize;
    /// The interface that it came by.
    fn ifindex(&self) -> u32;
    /// Its beginning, when it is long enough.
    fn head<T: Wire>(&mut self) -> Option<&mut T>;
}

/// The way to the next machine.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Hop {
    pub ifindex: u32,
    pub source_mac: [u8; 6],
    pub destination_mac: [u8; 6],
}

/// The maps, the clock and the route look-up.
pub trait Tables {
    /// The coarse monotonic clock, ns.
    fn now(&self) -> u64;
    fn settings(&self) -> Settings;
    fn local(&self, index: u32) -> Option<Address>;
    fn service(&self, key: &ServiceKey) -> Option<Service>;
    fn slot(&self, block: u32, slot: u32) -> Option<u32>;
    fn real(&self, id: u32) -> Option<Real>;
    fn flow(&self, tuple: &Tuple) -> Option<Flow>;
    /// False: the map refused it.
    fn set_flow(&self, tuple: &Tuple, flow: &Flow) -> bool;
    /// Looks at an entry in place.
    fn reverse<R>(&self, tuple: &Tuple, look: impl FnOnce(&mut Reverse) -> R) -> Option<R>;
    /// False: there is one already.
    fn insert_reverse(&self, tuple: &Tuple, reverse: &Reverse) -> bool;
    fn forget_reverse(&self, tuple: &Tuple);
    /// The way from `source` to `destination` for a packet that came by `ifindex`.
    fn hop(&self, v4: bool, source: &Address, destination: &Address, ifindex: u32) -> Result<Hop, Reason>;
    fn count_service(&self, id: u32, bytes: u64, new_flow: bool);
    fn count_real(&self, id: u32, bytes: u64, new_flow: bool);
    fn count_drop(&self, reason: Reason);
}

/// Decides about one frame and does it. A frame is changed only when the verdict sends it on.
#[inline(always)]
pub fn balance<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let Some(seen) = parse(packet) else { return Verdict::Pass };
    let key = ServiceKey {
        vip: seen.tuple.destination,
        port: seen.tuple.destination_port,
        protocol: seen.tuple.protocol,
        pad: 0,
    };
    let verdict = match tables.service(&key) {
        Some(service) => from_client(packet, tables, &seen, &service),
        None => from_real(packet, tables, &seen),
    };
    if let Verdict::Drop(reason) = verdict {
        tables.count_drop(reason);
    }
    verdict
}

#[inline(always)]
fn from_client<P: Packet, T: Tables>(packet: &mut P, tables: &T, seen: &Seen, service: &Service) -> Verdict {
    if seen.absurd() {
        return Verdict::Drop(Reason::TcpFlags);
    }
    if seen.ttl <= 1 {
        return Verdict::Drop(Reason::Ttl);
    }
    let ifindex = packet.ifindex();
    let Path { flow, new, known } = match select::path(tables, seen, service, ifindex) {
        Ok(path) => path,
        Err(verdict) => return verdict,
    };
    let bytes = packet.length() as u64;
    tables.count_service(service.id, bytes, new);
    if known {
        tables.count_real(flow.real_id, bytes, new);
    }
    let hop = match tables.hop(seen.v4, &flow.local, &flow.real, ifindex) {
        Ok(hop) => hop,
        Err(reason) => return Verdict::Drop(reason),
    };
    let to = Rewrite {
        source: flow.local,
        destination: flow.real,
        source_port: flow.local_port,
        destination_port: flow.real_port,
    };
    send(packet, seen, &to, &hop)
}

#[inline(always)]
fn from_real<P: Packet, T: Tables>(packet: &mut P, tables: &T, seen: &Seen) -> Verdict {
    let now = tables.now();
    let back = tables.reverse(&seen.tuple, |reverse| {
        // A packet that dies here leaves no trace in its flow.
        if seen.ttl > 1 {
            if now.saturating_sub(reverse.seen) > crate::abi::SECOND {
                reverse.seen = now;
            }
            if seen.end() > reverse.real_end {
                reverse.real_end = seen.end();
            }
            if reverse.answered == 0 {
                reverse.answered = 1;
            }
        }
        let to = Rewrite {
            source: reverse.vip,
            destination: reverse.client,
            source_port: reverse.vip_port,
            destination_port: reverse.client_port,
        };
        let hop = Hop { ifindex: reverse.ifindex, source_mac: reverse.own_mac, destination_mac: reverse.client_mac };
        (to, hop)
    });
    let Some((to, hop)) = back else { return Verdict::Pass };
    if seen.ttl <= 1 {
        return Verdict::Drop(Reason::Ttl);
    }
    send(packet, seen, &to, &hop)
}

#[inline(always)]
fn send<P: Packet>(packet: &mut P, seen: &Seen, to: &Rewrite, hop: &Hop) -> Verdict {
    let ifindex = packet.ifindex();
    match nat::rewrite(packet, seen, to, hop) {
        Some(()) if hop.ifindex == ifindex => Verdict::Transmit,
        Some(()) => Verdict::Redirect(hop.ifindex),
        // Cannot be: the same headers were read before.
        None => Verdict::Pass,
    }
}
