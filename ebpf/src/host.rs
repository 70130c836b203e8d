//! The maps and a frame in ordinary memory: the packet core on a laptop, for tests and fuzzing.

use std::{cell::RefCell, collections::HashMap};

use crate::{
    abi::{
        ACCESS_DATA, AccessKey, Address, BLOCK_SLOTS, Counters, Event, FILTER_WORDS, FilterWord, Flow, Fragment,
        FragmentKey, Frontend, Head, Hop, LAYOUT, LOCALS, Limits, Move, PORTS, Real, Reason, RecordLine, RingBlock,
        Service, ServiceKey, Settings, SourceKey, Trace, filter_bit,
    },
    balance::{HOP_FOUND, Headers, Packet, Tables},
    options::ROOM,
    parse::Seen,
    select::{self, slot_of},
    wire::{FURTHEST, Wire},
};

/// A frame with where it came from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Frame {
    // The frame begins in the middle of a word, so that the headers are aligned as the wire types want.
    words: Vec<u32>,
    length: usize,
    pub ifindex: u32,
}

impl Frame {
    #[must_use]
    pub fn new(bytes: &[u8], ifindex: u32) -> Self {
        let padded: Vec<u8> = [0; PAD].iter().chain(bytes).copied().collect();
        let word =
            |part: &[u8]| u32::from_ne_bytes(std::array::from_fn(|at| part.get(at).copied().unwrap_or_default()));
        Self { words: padded.chunks(4).map(word).collect(), length: bytes.len(), ifindex }
    }

    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.words.iter().flat_map(|word| word.to_ne_bytes()).skip(PAD).take(self.length).collect()
    }
}

/// Bytes before the frame.
const PAD: usize = 2;

impl Headers for Frame {
    fn length(&self) -> usize {
        self.length
    }

    fn at<T: Wire>(&mut self, offset: usize) -> Option<&mut T> {
        assert!(offset < FURTHEST && offset.is_multiple_of(2), "offset {offset}");
        if offset + size_of::<T>() > self.length {
            return None;
        }
        let start = self.words.as_mut_ptr().cast::<u8>().wrapping_add(PAD + offset).cast::<T>();
        assert!(start.is_aligned(), "offset {offset} of a type that is aligned to {}", align_of::<T>());
        // SAFETY: long enough and aligned (checked above), any bytes are a value of a `Wire` type, and the frame is
        // borrowed for as long as the reference lives.
        Some(unsafe { &mut *start })
    }
}

impl Packet for Frame {
    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn load(&mut self, offset: usize, to: &mut [u8; ROOM], length: usize) -> bool {
        let bytes = self.bytes();
        let Some(from) = bytes.get(offset..offset + length) else { return false };
        to[..length].copy_from_slice(from);
        true
    }

    fn store(&mut self, offset: usize, from: &[u8; ROOM], length: usize) -> bool {
        let mut bytes = self.bytes();
        let Some(to) = bytes.get_mut(offset..offset + length) else { return false };
        to.copy_from_slice(&from[..length]);
        *self = Self::new(&bytes, self.ifindex);
        true
    }

    fn grow(&mut self, bytes: i32) -> bool {
        assert!(bytes % 4 == 0 && bytes.abs() < 256, "{bytes} bytes");
        if bytes < 0 {
            let gone = bytes.unsigned_abs() as usize;
            if gone + 14 > self.length {
                return false;
            }
            self.words.drain(..gone / 4);
        } else {
            // The kernel leaves there what was there: not zeros.
            self.words.splice(..0, std::iter::repeat_n(0xa5a5_a5a5, bytes as usize / 4));
        }
        self.length = (self.length as i64 + i64::from(bytes)) as usize;
        true
    }

    fn cut(&mut self, length: usize) -> bool {
        if length > self.length || length < 14 {
            return false;
        }
        self.length = length;
        self.words.truncate((PAD + length).div_ceil(4));
        true
    }
}

/// The maps' contents; public, so that a test can look and break things.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub now: u64,
    pub settings: &'static Settings,
    pub filter: HashMap<u32, FilterWord>,
    pub locals: HashMap<u32, Address>,
    pub services: HashMap<ServiceKey, Service>,
    /// By place.
    pub heads: HashMap<u32, &'static Head>,
    pub frontends: HashMap<u32, Frontend>,
    pub reals: HashMap<u32, &'static Real>,
    pub rings: HashMap<u32, RingBlock>,
    pub moves: HashMap<u32, Move>,
    pub records: HashMap<u32, RecordLine>,
    pub flows: HashMap<u32, Flow>,
    /// What another CPU writes into the place that is given away next, just before it is.
    pub raced: Option<Flow>,
    pub limits: HashMap<u32, &'static Limits>,
    pub meters: HashMap<(u32, u32), u64>,
    pub sources: HashMap<SourceKey, u64>,
    pub access: HashMap<AccessKey, u32>,
    pub fragments: HashMap<FragmentKey, Fragment>,
    /// The route table: what leads to an address.
    pub hops: HashMap<Address, Hop>,
    pub service_counters: HashMap<u32, Counters>,
    pub real_counters: HashMap<u32, Counters>,
    pub drops: HashMap<Reason, u64>,
    /// As [`crate::abi::Watch::log_every`].
    pub log_every: u32,
    pub events: Vec<Event>,
    pub trace: Trace,
    /// What a cookie would be: tests choose it.
    pub cookie: u32,
}

impl Default for &'static Settings {
    fn default() -> Self {
        static FRESH: Settings = Settings {
            layout: LAYOUT,
            locals_v4: 0,
            locals_v6: 0,
            first_v6: 0,
            hops_until: 0,
            services: 0,
            reals: 0,
            jiffy: 0,
            pad: 0,
            tunnel_v4: Address([0; 4]),
            tunnel_v6: Address([0; 4]),
        };
        &FRESH
    }
}

/// [`Tables`] in memory.
#[derive(Clone, Debug, Default)]
pub struct Memory(pub RefCell<State>, RefCell<Seen>);

impl Memory {
    /// With the settings of a fresh start.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Changes the settings. What a packet may be looking at stays as it was, in a test for ever: few changes are made.
    pub fn set(&self, change: impl FnOnce(&mut Settings)) {
        let mut settings = *self.0.borrow().settings;
        change(&mut settings);
        self.0.borrow_mut().settings = Box::leak(Box::new(settings));
    }

    /// Writes a real, as [`Memory::set`] does.
    pub fn set_real(&self, id: u32, real: Real) {
        self.0.borrow_mut().reals.insert(id, Box::leak(Box::new(real)));
    }

    /// Changes every real.
    pub fn change_reals(&self, mut change: impl FnMut(&mut Real)) {
        let ids: Vec<u32> = self.0.borrow().reals.keys().copied().collect();
        for id in ids {
            let mut real = *self.0.borrow().reals[&id];
            change(&mut real);
            self.set_real(id, real);
        }
    }

    pub fn set_limits(&self, service: u32, limits: Limits) {
        self.0.borrow_mut().limits.insert(service, Box::leak(Box::new(limits)));
    }

    /// Makes an address a VIP that may be ours.
    pub fn add_vip(&self, vip: Address) {
        let (word, bit) = filter_bit(&vip);
        let state = &mut *self.0.borrow_mut();
        state.filter.entry(word).or_default().vips |= 1 << bit;
        state.services.insert(ServiceKey::of_vip(vip), Service::default());
    }

    /// Makes an address a FULLNAT source.
    pub fn add_local(&self, index: u32, local: Address) {
        let (word, bit) = filter_bit(&local);
        {
            let state = &mut *self.0.borrow_mut();
            state.filter.entry(word).or_default().locals |= 1 << bit;
            state.locals.insert(index, local);
        }
        let key = ServiceKey { vip: local, port: 0, protocol: Head::LOCAL, pad: 0 };
        self.set_head(key, Service { id: index, ..Service::default() });
        self.set(|settings| {
            if local.is_v4() {
                settings.locals_v4 += 1;
            } else {
                if settings.locals_v6 == 0 {
                    settings.first_v6 = index;
                }
                settings.locals_v6 += 1;
            }
        });
    }

    /// Has the usual packets find a service, as it is now in the maps; where its place is taken they do not.
    pub fn set_head(&self, key: ServiceKey, service: Service) {
        let state = &mut *self.0.borrow_mut();
        let there = state.heads.entry(Head::place(&key)).or_insert_with(|| Box::leak(Box::default()));
        if there.key == key || there.key == ServiceKey::default() {
            *there = Box::leak(Box::new(Head { key, service, pad: [0; 6] }));
        }
    }

    /// Writes a service as it is now.
    pub fn set_service(&self, key: ServiceKey, service: Service) {
        self.0.borrow_mut().services.insert(key, service);
        self.set_head(key, service);
    }

    /// Gives a service a ring of `slots` in which its reals take turns; without reals none.
    pub fn serve(&self, key: ServiceKey, service: Service, reals: &[u32], slots: u32) {
        self.add_vip(key.vip);
        let block = service.id * 1024;
        let frontend = Frontend {
            vip: key.vip,
            port: key.port,
            protocol: key.protocol,
            mode: service.mode,
            client: service.client,
            pad: [0; 3],
        };
        let mut state = self.0.borrow_mut();
        state.frontends.insert(service.id, frontend);
        for i in 0..if reals.is_empty() { 0 } else { slots.div_ceil(BLOCK_SLOTS as u32) } {
            let ids = std::array::from_fn(|slot| reals[(i as usize * BLOCK_SLOTS + slot) % reals.len()]);
            state.rings.insert(block + i, RingBlock(ids));
        }
        drop(state);
        let mask = if reals.is_empty() { 0 } else { slots - 1 };
        self.set_service(key, Service { block, mask, ..service });
    }
}

fn count(counters: &mut Counters, bytes: u64, new_flow: bool, opens: bool) {
    counters.packets += 1;
    counters.bytes += bytes;
    counters.flows += u64::from(new_flow);
    counters.opens += u64::from(opens);
}

impl Tables for Memory {
    fn now(&self) -> u64 {
        self.0.borrow().now
    }

    fn settings(&self) -> Option<&Settings> {
        Some(self.0.borrow().settings)
    }

    fn filter(&self, word: u32) -> FilterWord {
        assert!(word < FILTER_WORDS as u32, "word {word}");
        self.0.borrow().filter.get(&word).copied().unwrap_or_default()
    }

    fn local(&self, index: u32) -> Option<Address> {
        self.0.borrow().locals.get(&index).copied()
    }

    fn local_index(&self, address: &Address) -> Option<u32> {
        self.0.borrow().locals.iter().find(|(_, local)| *local == address).map(|(index, _)| *index)
    }

    fn service(&self, key: &ServiceKey) -> Option<Service> {
        self.0.borrow().services.get(key).copied()
    }

    fn head(&self, place: u32) -> Option<&Head> {
        self.0.borrow().heads.get(&place).copied()
    }

    fn frontend(&self, id: u32) -> Option<Frontend> {
        self.0.borrow().frontends.get(&id).copied()
    }

    fn slot(&self, block: u32, slot: u32) -> Option<u32> {
        self.0.borrow().rings.get(&block).and_then(|block| slot_of(block, slot))
    }

    fn moving(&self, index: u32) -> Option<Move> {
        self.0.borrow().moves.get(&index).copied()
    }

    fn real(&self, id: u32) -> Option<&Real> {
        self.0.borrow().reals.get(&id).copied()
    }

    fn records<R>(&self, line: u32, look: impl FnOnce(&mut RecordLine) -> R) -> Option<R> {
        Some(look(self.0.borrow_mut().records.entry(line).or_default()))
    }

    fn flow<R>(&self, index: u32, look: impl FnOnce(&mut Flow) -> R) -> Option<R> {
        if index >= 2 * LOCALS * PORTS {
            return None;
        }
        Some(look(self.0.borrow_mut().flows.entry(index).or_default()))
    }

    fn lock(&self, index: u32) -> bool {
        let raced = self.0.borrow_mut().raced.take();
        raced.map(|flow| self.0.borrow_mut().flows.insert(index, flow));
        self.flow(index, |flow| {
            let free = flow.lock & Flow::LOCKED == 0;
            flow.lock += 1;
            free
        })
        .unwrap_or(false)
    }

    fn unlock(&self, index: u32, from: u32) {
        self.flow(index, |flow| flow.lock = Flow::unlocked(from));
    }

    fn spill(&self, index: u32, more: bool) {
        self.flow(index, |flow| if more { flow.spilled += 1 } else { flow.spilled -= 1 });
    }

    fn scratch<R>(&self, look: impl FnOnce(&mut Seen) -> R) -> Option<R> {
        Some(look(&mut self.1.borrow_mut()))
    }

    fn barrier(&self) {
        std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
    }

    fn limits(&self, service: u32) -> Option<&Limits> {
        self.0.borrow().limits.get(&service).copied()
    }

    fn meter<R>(&self, service: u32, which: u32, look: impl FnOnce(&mut u64) -> R) -> Option<R> {
        Some(look(self.0.borrow_mut().meters.entry((service, which)).or_default()))
    }

    fn source<R>(&self, key: &SourceKey, look: impl FnOnce(&mut u64) -> R) -> Option<R> {
        Some(look(self.0.borrow_mut().sources.entry(*key).or_default()))
    }

    /// The longest prefix, as the kernel's trie finds it.
    fn access(&self, key: &AccessKey) -> Option<u32> {
        let bits = |key: &AccessKey| {
            let words = key.data.client.0.map(|word| u128::from(u32::from_be(word)));
            let client = words[0] << 96 | words[1] << 64 | words[2] << 32 | words[3];
            (u32::from_be(key.data.service), client)
        };
        let (service, client) = bits(key);
        let matches = |entry: &AccessKey| {
            let (of, network) = bits(entry);
            let length = entry.prefix - 32;
            of == service && (length == 0 || network >> (128 - length) == client >> (128 - length))
        };
        assert_eq!(key.prefix, ACCESS_DATA);
        let state = self.0.borrow();
        state.access.iter().filter(|(entry, _)| matches(entry)).max_by_key(|(entry, _)| entry.prefix).map(|(_, v)| *v)
    }

    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        self.0.borrow().fragments.get(key).copied()
    }

    fn set_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        self.0.borrow_mut().fragments.insert(*key, *fragment);
    }

    fn hop(&self, to: &Address, _ifindex: u32, hop: &mut Hop) -> u32 {
        match self.0.borrow().hops.get(to) {
            Some(found) => {
                *hop = *found;
                HOP_FOUND
            }
            None => Reason::NoNeighbour as u32,
        }
    }

    fn count_service(&self, id: u32, bytes: u64, new_flow: bool, opens: bool) {
        count(self.0.borrow_mut().service_counters.entry(id).or_default(), bytes, new_flow, opens);
    }

    fn count_real(&self, id: u32, bytes: u64, new_flow: bool, opens: bool) {
        count(self.0.borrow_mut().real_counters.entry(id).or_default(), bytes, new_flow, opens);
    }

    fn count_answer(&self, id: u32, answer: bool, reset: bool) {
        let state = &mut *self.0.borrow_mut();
        let counters = state.real_counters.entry(id).or_default();
        counters.answers += u64::from(answer);
        counters.resets += u64::from(reset);
    }

    fn count_drop(&self, reason: Reason) {
        *self.0.borrow_mut().drops.entry(reason).or_default() += 1;
    }

    fn log_every(&self) -> u32 {
        self.0.borrow().log_every
    }

    fn log(&self, event: &Event) {
        self.0.borrow_mut().events.push(*event);
    }

    fn trace(&self, note: impl FnOnce(&mut Trace)) {
        note(&mut self.0.borrow_mut().trace);
    }

    /// As the kernel's: of the connection, and with what is left of the MSS.
    fn make_cookie(&self, seen: &Seen, sequence: u32, mss: u16) -> i64 {
        let told = if seen.v4 { [536, 1300, 1440, 1460] } else { [1220, 1420, 1440, 8940] };
        let told = told.iter().rposition(|least| mss >= *least).unwrap_or(0) as u32;
        let cookie = self.0.borrow().cookie ^ select::hash(&seen.tuple) as u32;
        i64::from(cookie.wrapping_add(sequence).wrapping_add(told))
    }

    fn check_cookie(&self, seen: &Seen, sequence: u32, acknowledgement: u32) -> bool {
        let made = |mss| self.make_cookie(seen, sequence.wrapping_sub(1), mss) as u32;
        [0, 1300, 1440, 9000].map(made).contains(&acknowledgement.wrapping_sub(1))
    }
}
