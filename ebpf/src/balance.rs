//! The whole decision on one screen.

use crate::{
    abi::{
        AccessKey, Address, Event, FilterWord, Flow, Fragment, FragmentKey, Frontend, Head, Hop, Limits, Move, Real,
        Reason, RecordLine, Service, ServiceKey, Settings, SourceKey, Trace, Why, filter_bit,
    },
    client, cookie, encap, flows, guard, icmp, nat, options,
    parse::{PLAIN_L3, Seen},
    quick, select,
    unusual::unusual,
    wire::{self, Ethernet, Ipv4, Ipv6, Wire},
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

/// The headers of a frame, to be read and changed in place.
pub trait Headers {
    /// Of the frame, in bytes, with the Ethernet header.
    fn length(&self) -> usize;
    /// A header, when the frame is long enough. No offset reaches beyond [`wire::FURTHEST`].
    fn at<T: Wire>(&mut self, offset: usize) -> Option<&mut T>;
}

/// The frame in hand.
pub trait Packet: Headers {
    /// The interface that it came by.
    fn ifindex(&self) -> u32;
    /// Copies so many bytes, which may begin anywhere, out of the frame. False: they are not there.
    fn load(&mut self, offset: usize, to: &mut [u8; options::ROOM], length: usize) -> bool;
    /// Copies them back.
    fn store(&mut self, offset: usize, from: &[u8; options::ROOM], length: usize) -> bool;
    /// So many bytes more at the beginning, or fewer. False: there is no room.
    fn grow(&mut self, bytes: i32) -> bool;
    /// Cuts the end off, so that so many bytes are left.
    fn cut(&mut self, length: usize) -> bool;
    /// Does a stage of the decision, as a function of its own where that matters.
    #[inline(always)]
    fn stage<T: Tables>(&mut self, tables: &T, stage: Stage, value: u64) -> u64
    where
        Self: Sized,
    {
        run(self, tables, stage, value)
    }
}

/// The maps, the clock and the route look-up.
pub trait Tables {
    /// Nothing is written: what would happen is only explained.
    const DRY: bool = false;
    /// A coarse clock, ns.
    fn now(&self) -> u64;
    fn settings(&self) -> Option<&Settings>;
    fn filter(&self, word: u32) -> FilterWord;
    fn local(&self, index: u32) -> Option<Address>;
    fn local_index(&self, address: &Address) -> Option<u32>;
    fn service(&self, key: &ServiceKey) -> Option<Service>;
    /// Whoever has the place.
    fn head(&self, place: u32) -> Option<&Head>;
    fn frontend(&self, id: u32) -> Option<Frontend>;
    fn slot(&self, block: u32, slot: u32) -> Option<u32>;
    fn moving(&self, index: u32) -> Option<Move>;
    fn real(&self, id: u32) -> Option<&Real>;
    /// Looks at a line in place.
    fn records<R>(&self, line: u32, look: impl FnOnce(&mut RecordLine) -> R) -> Option<R>;
    /// Looks at a flow in place.
    fn flow<R>(&self, index: u32, look: impl FnOnce(&mut Flow) -> R) -> Option<R>;
    /// Only looks at it.
    fn peek<R>(&self, index: u32, look: impl FnOnce(&Flow) -> R) -> Option<R> {
        self.flow(index, |flow| look(flow))
    }
    /// False: another CPU has the place. True: it is this one's until [`Tables::unlock`].
    fn lock(&self, index: u32) -> bool;
    /// `from`: [`Flow::from`] of the flow that is there now.
    fn unlock(&self, index: u32, from: u32);
    /// One flow more whose first choice the place is has gone elsewhere, or one less is there.
    fn spill(&self, index: u32, more: bool);
    /// This CPU's place for what is known of an unusual packet.
    fn scratch<R>(&self, look: impl FnOnce(&mut Seen) -> R) -> Option<R>;
    /// What was written before is written before what follows.
    fn barrier(&self);
    fn limits(&self, service: u32) -> Option<&Limits>;
    /// Looks at a token bucket of a service in place: [`guard::FLOWS`] or [`guard::SYNS`].
    fn meter<R>(&self, service: u32, which: u32, look: impl FnOnce(&mut u64) -> R) -> Option<R>;
    /// Looks at a source prefix's token bucket, which is made if it is not there.
    fn source<R>(&self, key: &SourceKey, look: impl FnOnce(&mut u64) -> R) -> Option<R>;
    fn access(&self, key: &AccessKey) -> Option<u32>;
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment>;
    fn set_fragment(&self, key: &FragmentKey, fragment: &Fragment);
    /// The way to `to`, for a packet that came by `ifindex`, as the kernel knows it; it is written to `hop`.
    /// [`HOP_FOUND`], or a [`Reason`].
    fn hop(&self, to: &Address, ifindex: u32, hop: &mut Hop) -> u32;
    fn count_service(&self, id: u32, bytes: u64, new_flow: bool, opens: bool);
    fn count_real(&self, id: u32, bytes: u64, new_flow: bool, opens: bool);
    /// The real's answer to what opens a flow, or its refusal.
    fn count_answer(&self, id: u32, answer: bool, reset: bool);
    fn count_drop(&self, reason: Reason);
    /// One of so many new flows is told; 0: none.
    fn log_every(&self) -> u32;
    fn log(&self, event: &Event);
    /// For the explanation: what was found out on the way.
    fn trace(&self, note: impl FnOnce(&mut Trace));
    /// A SYN cookie (the lower half) for a SYN with the packet's addresses and ports, this initial sequence number and
    /// this MSS. Below 0: there is none.
    fn make_cookie(&self, seen: &Seen, sequence: u32, mss: u16) -> i64;
    /// Whether a packet with these numbers acknowledges a cookie of ours.
    fn check_cookie(&self, seen: &Seen, sequence: u32, acknowledgement: u32) -> bool;
}

/// Decides about one frame and does it. A frame that passes was not changed.
pub fn balance<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    quick(packet, tables).unwrap_or_else(|| whole(packet, tables))
}

/// The usual packet, and what is not ours at all. `None`: it has to go the whole way.
#[inline(always)]
pub fn quick<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Option<Verdict> {
    let Some(ethernet) = packet.at::<Ethernet>(0) else { return Some(Verdict::Pass) };
    // Broadcast and multicast are no client's way to a VIP.
    if ethernet.destination.to_many() {
        return Some(Verdict::Pass);
    }
    let step = match ethernet.ethertype {
        wire::ETHERTYPE_V4 => {
            let Some(ip) = packet.at::<Ipv4>(PLAIN_L3) else { return Some(Verdict::Pass) };
            let to = Address::v4(ip.destination);
            if !maybe_ours(tables, &to) {
                return Some(Verdict::Pass);
            }
            quick::usual::<P, T, Ipv4>(packet, tables)
        }
        wire::ETHERTYPE_V6 => {
            let Some(ip) = packet.at::<Ipv6>(PLAIN_L3) else { return Some(Verdict::Pass) };
            let to = Address(ip.destination);
            if !maybe_ours(tables, &to) {
                return Some(Verdict::Pass);
            }
            quick::usual::<P, T, Ipv6>(packet, tables)
        }
        wire::ETHERTYPE_VLAN => Step::UNUSUAL,
        _ => Step::PASS,
    };
    (step != Step::UNUSUAL).then(|| step.verdict())
}

/// Any packet.
#[inline(always)]
pub fn whole<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let mut step = Step(packet.stage(tables, Stage::Unusual, 0));
    if step == Step::DECIDE {
        step = Step(packet.stage(tables, Stage::Any, 0));
    }
    if step == Step::ACCEPT {
        step = Step(packet.stage(tables, Stage::Accept, 0));
    }
    step = match step.kind() {
        Step::OUT => Step(packet.stage(tables, Stage::Out, step.0 >> 8)),
        Step::BACK => Step(packet.stage(tables, Stage::Back, step.0 >> 8)),
        Step::REQUOTE => Step(packet.stage(tables, Stage::Requote, step.0 >> 8)),
        Step::REQUOTE_BACK => Step(packet.stage(tables, Stage::RequoteBack, step.0 >> 8)),
        _ if step == Step::CHALLENGE => Step(packet.stage(tables, Stage::Challenge, 0)),
        _ => step,
    };
    if step.kind() == Step::REFUSE {
        step = Step(packet.stage(tables, Stage::Refuse, step.0 >> 8));
    }
    step.verdict()
}

/// A part of the decision.
///
/// The kernel gives all functions that are on the way together 512 bytes of stack, and its verifier follows every way
/// through them. So the parts do not call one another (but for what two of them need): each says which one is next, and [`whole`]
/// calls it, in the kernel as a global function, which is verified once and by itself.
#[derive(Clone, Copy, Debug)]
pub enum Stage {
    /// What is not usual is read.
    Unusual,
    /// What was read is decided about.
    Any,
    /// A packet is dropped and its sender told why.
    Refuse,
    /// A client's packet of a flow needs more than a translation.
    Out,
    /// A real's.
    Back,
    /// An ICMP error goes to a flow's real.
    Requote,
    /// To its client.
    RequoteBack,
    /// A SYN is answered with a cookie.
    Challenge,
    /// Perhaps a cookie comes back.
    Accept,
    /// A part of stages: the options of a SYN, or of its answer.
    Options,
    /// How well a place suits a new flow.
    Rank,
}

/// Does one stage; `value` is what the one before found out.
#[inline(always)]
pub fn run<P: Packet, T: Tables>(packet: &mut P, tables: &T, stage: Stage, value: u64) -> u64 {
    let index = value as u32;
    let step = match stage {
        Stage::Unusual => tables.scratch(|seen| unusual(packet, tables, seen)).unwrap_or(Step::PASS),
        Stage::Any => tables.scratch(|seen| decide(packet, tables, seen)).unwrap_or(Step::PASS),
        Stage::Refuse => icmp::refuse(packet, tables, Reason::from_number(index), (value >> 32) as u16),
        Stage::Out => client::out(packet, tables, index),
        Stage::Back => client::back(packet, tables, index),
        Stage::Requote => tables.scratch(|seen| icmp::to_real(packet, tables, seen, index)).unwrap_or(Step::PASS),
        Stage::RequoteBack => tables.scratch(|seen| icmp::to_client(packet, tables, seen, index)).unwrap_or(Step::PASS),
        Stage::Challenge => cookie::challenge(packet, tables),
        Stage::Accept => cookie::accept(packet, tables),
        Stage::Options => return options::edit(packet, value),
        Stage::Rank => return flows::suits(tables, value),
    };
    step.0
}

/// One look that tells nearly all of the host's own traffic.
#[inline(always)]
fn maybe_ours<T: Tables>(tables: &T, address: &Address) -> bool {
    let (word, bit) = filter_bit(address);
    let word = tables.filter(word);
    (word.vips | word.locals) >> bit & 1 != 0
}

/// What an address may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ours {
    pub(crate) vip: bool,
    pub(crate) local: bool,
}

#[inline(always)]
pub(crate) fn ours<T: Tables>(tables: &T, address: &Address) -> Ours {
    let (word, bit) = filter_bit(address);
    let word = tables.filter(word);
    Ours { vip: word.vips >> bit & 1 != 0, local: word.locals >> bit & 1 != 0 }
}

/// A TCP or UDP packet, or an error about one, to an address that may be ours.
#[inline(always)]
fn decide<P: Packet, T: Tables>(packet: &mut P, tables: &T, seen: &Seen) -> Step {
    let ours = ours(tables, &seen.tuple.destination);
    let mut step = Step::PASS;
    if ours.vip {
        let key = ServiceKey {
            vip: seen.tuple.destination,
            port: seen.tuple.destination_port,
            protocol: seen.tuple.protocol,
            pad: 0,
        };
        if let Some(service) = tables.service(&key) {
            step = from_client(packet, tables, seen, &service);
        } else if ours.local {
            step = from_real(tables, packet, seen);
        }
    } else if ours.local {
        step = from_real(tables, packet, seen);
    }
    noted(tables, seen, step)
}

/// If the packet is dropped, this is counted and told.
#[inline(always)]
pub(crate) fn noted<T: Tables>(tables: &T, seen: &Seen, step: Step) -> Step {
    if step.kind() == Step::DROP {
        dropped(tables, &{ *seen }, step.value());
    }
    step
}

/// The same of what is known in a place that stays: it is not copied.
#[inline(always)]
pub(crate) fn noted_in_place<T: Tables>(tables: &T, seen: &Seen, step: Step) -> Step {
    if step.kind() == Step::DROP {
        dropped(tables, seen, step.value());
    }
    step
}

#[inline(always)]
fn from_client<P: Packet, T: Tables>(packet: &mut P, tables: &T, seen: &Seen, service: &Service) -> Step {
    tables.trace(|trace| trace.service = service.id);
    if seen.absurd() {
        return Step::drop(Reason::TcpFlags);
    }
    if seen.ttl <= 1 {
        return Step::refuse(Reason::Ttl, 0);
    }
    let mut flooded = false;
    if service.checks != 0 {
        match guard::check(tables, &{ *seen }, &{ *service }) {
            guard::WELCOME => {}
            guard::COOKIE => flooded = true,
            refused => return Step::drop(guard::reason(refused)),
        }
    }
    if service.mode == Service::FULLNAT {
        return flows::out(packet, tables, seen, service, flooded);
    }
    let hash = select::hash(&seen.tuple);
    let id = select::real(tables, seen, service, hash);
    if id == select::NOBODY {
        return Step::PASS;
    }
    let real = match tables.real(id) {
        Some(real) if real.state != Real::GONE => real,
        _ => return Step::drop(Reason::NoReal),
    };
    tables.trace(|trace| trace.real = id);
    let opens = seen.opens();
    let bytes = packet.length() as u64;
    tables.count_service(service.id, bytes, opens, opens);
    tables.count_real(id, bytes, opens, opens);
    if opens {
        log(tables, seen, service.id, id, hash);
    }
    match next_hop(tables, real, packet.ifindex()) {
        Ok(hop) => encap::forward(packet, tables, seen, service, real, &hop, hash as u32),
        Err(reason) => Step::drop(reason),
    }
}

#[inline(always)]
fn from_real<P: Packet, T: Tables>(tables: &T, packet: &mut P, seen: &Seen) -> Step {
    let Some(index) = flows::index_of(tables, &seen.tuple.destination, seen.tuple.destination_port) else {
        return Step::PASS;
    };
    if !flows::answers(tables, seen, index) {
        return Step::PASS;
    }
    tables.trace(|trace| (trace.why, trace.flow) = (Why::Answer as u32, index));
    if seen.ttl <= 1 {
        return Step::drop(Reason::Ttl);
    }
    if seen.quoted {
        return Step::requote_back(index);
    }
    let Some(back) = flows::back(tables, seen, index) else { return Step::PASS };
    if back.work != 0 {
        return Step::back(index);
    }
    nat::send(packet, seen, &back.to, &back.hop)
}

/// The hop that user space wrote beside the real, or the kernel's.
#[inline(always)]
pub(crate) fn next_hop<T: Tables>(tables: &T, real: &Real, ifindex: u32) -> Result<Hop, Reason> {
    let Some(settings) = tables.settings() else { return Err(Reason::NoRoute) };
    if real.hop.ifindex != 0 && tables.now() < settings.hops_until {
        tables.trace(|trace| trace.hop = 1);
        return Ok(real.hop);
    }
    tables.trace(|trace| trace.hop = 2);
    let mut hop = Hop::default();
    match tables.hop(&real.address, ifindex, &mut hop) {
        HOP_FOUND => Ok(hop),
        reason => Err(Reason::from_number(reason)),
    }
}

/// What [`Tables::hop`] says when there is a way.
pub const HOP_FOUND: u32 = u32::MAX;

#[inline(always)]
pub(crate) fn log<T: Tables>(tables: &T, seen: &Seen, service: u32, real: u32, hash: u64) {
    let every = tables.log_every();
    // Not the bits that choose the slot: the flows that are told would all be on the same ones.
    if every != 0 && (hash >> 24) as u32 & every.wrapping_sub(1) == 0 {
        tell(tables, &{ *seen }, service, real);
    }
}

#[inline(never)]
fn tell<T: Tables>(tables: &T, seen: &Seen, service: u32, real: u32) {
    tables.log(&event(tables, seen, service, real, 0));
}

/// Rare enough to be told one by one.
#[inline(never)]
pub(crate) fn dropped<T: Tables>(tables: &T, seen: &Seen, reason: u32) -> u32 {
    let reason = Reason::from_number(reason);
    tables.count_drop(reason);
    tables.trace(|trace| trace.reason = reason as u32);
    tables.log(&event(tables, seen, u32::MAX, reason as u32, 1));
    0
}

#[inline(always)]
fn event<T: Tables>(tables: &T, seen: &Seen, service: u32, detail: u32, dropped: u8) -> Event {
    Event {
        at: tables.now(),
        client: seen.tuple.source,
        vip: seen.tuple.destination,
        client_port: seen.tuple.source_port,
        vip_port: seen.tuple.destination_port,
        protocol: seen.tuple.protocol,
        dropped,
        pad: 0,
        service,
        detail,
    }
}

/// What a [`Stage`] found out, or which one is next, in one register: what a function that
/// is not inlined returns. Not an enum: of one whose variant holds nothing the rest is undefined, which LLVM may read
/// and the verifier may not.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Step(pub(crate) u64);

impl Step {
    pub(crate) const PASS: Self = Self(0);
    pub(crate) const TRANSMIT: Self = Self(1);
    pub(crate) const UNUSUAL: Self = Self(4);
    pub(crate) const DECIDE: Self = Self(5);
    /// A SYN to answer with a cookie.
    pub(crate) const CHALLENGE: Self = Self(11);
    /// An acknowledgement of no known flow: perhaps of a cookie.
    pub(crate) const ACCEPT: Self = Self(12);

    const DROP: u8 = 2;
    const REDIRECT: u8 = 3;
    const REFUSE: u8 = 6;
    const OUT: u8 = 7;
    const BACK: u8 = 8;
    const REQUOTE: u8 = 9;
    const REQUOTE_BACK: u8 = 10;

    #[inline(always)]
    fn with(kind: u8, value: u32) -> Self {
        Self(u64::from(kind) | u64::from(value) << 8)
    }

    #[inline(always)]
    pub(crate) fn drop(reason: Reason) -> Self {
        Self::with(Self::DROP, reason as u32)
    }

    /// To be dropped, and its sender told why, with an MTU.
    #[inline(always)]
    pub(crate) fn refuse(reason: Reason, mtu: u16) -> Self {
        Self(Self::with(Self::REFUSE, reason as u32).0 | u64::from(mtu) << 40)
    }

    /// A client's packet of the flow at an index that needs more than a translation.
    #[inline(always)]
    pub(crate) fn out(index: u32) -> Self {
        Self::with(Self::OUT, index)
    }

    /// A real's.
    #[inline(always)]
    pub(crate) fn back(index: u32) -> Self {
        Self::with(Self::BACK, index)
    }

    /// An ICMP error about a flow, for its real.
    #[inline(always)]
    pub(crate) fn requote(index: u32) -> Self {
        Self::with(Self::REQUOTE, index)
    }

    /// For its client.
    #[inline(always)]
    pub(crate) fn requote_back(index: u32) -> Self {
        Self::with(Self::REQUOTE_BACK, index)
    }

    /// Out of `hop`'s interface.
    #[inline(always)]
    pub(crate) fn leave(ifindex: u32, hop: &Hop) -> Self {
        if hop.ifindex == ifindex { Self::TRANSMIT } else { Self::with(Self::REDIRECT, hop.ifindex) }
    }

    #[inline(always)]
    fn verdict(self) -> Verdict {
        match self.kind() {
            Self::DROP => Verdict::Drop(Reason::from_number(self.value())),
            Self::REDIRECT => Verdict::Redirect(self.value()),
            _ if self == Self::TRANSMIT => Verdict::Transmit,
            _ => Verdict::Pass,
        }
    }

    #[inline(always)]
    fn kind(self) -> u8 {
        self.0 as u8
    }

    #[inline(always)]
    fn value(self) -> u32 {
        (self.0 >> 8) as u32
    }
}
