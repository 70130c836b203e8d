//! The maps and a frame in ordinary memory: the packet core on a laptop, for tests and fuzzing.

use std::{cell::RefCell, collections::HashMap};

use crate::{
    abi::{
        Address, BLOCK_SLOTS, Counters, Flow, LAYOUT, Real, Reason, Reverse, RingBlock, Service, ServiceKey, Settings,
        Tuple,
    },
    balance::{Hop, Packet, Tables},
    parse::Wire,
    select::slot_of,
};

/// A frame with where it came from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Frame {
    // Of 16-bit words, so that the headers are aligned as the wire types want.
    words: Vec<u16>,
    length: usize,
    pub ifindex: u32,
}

impl Frame {
    #[must_use]
    pub fn new(bytes: &[u8], ifindex: u32) -> Self {
        let words = bytes.chunks(2).map(|pair| u16::from_ne_bytes([pair[0], *pair.get(1).unwrap_or(&0)])).collect();
        Self { words, length: bytes.len(), ifindex }
    }

    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.words.iter().flat_map(|word| word.to_ne_bytes()).take(self.length).collect()
    }
}

impl Packet for Frame {
    fn length(&self) -> usize {
        self.length
    }

    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn head<T: Wire>(&mut self) -> Option<&mut T> {
        if size_of::<T>() > self.length {
            return None;
        }
        // SAFETY: long enough (checked above), aligned to 2 as `Wire` demands at most, any bytes are a value of a
        // `Wire` type, and the frame is borrowed for as long as the reference lives.
        Some(unsafe { &mut *self.words.as_mut_ptr().cast() })
    }
}

/// The maps' contents; public, so that a test can look and break things.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub now: u64,
    pub settings: Settings,
    pub locals: HashMap<u32, Address>,
    pub services: HashMap<ServiceKey, Service>,
    pub reals: HashMap<u32, Real>,
    pub rings: HashMap<u32, RingBlock>,
    pub flows: HashMap<Tuple, Flow>,
    pub reverses: HashMap<Tuple, Reverse>,
    /// The route table: what leads to an address.
    pub hops: HashMap<Address, Hop>,
    pub service_counters: HashMap<u32, Counters>,
    pub real_counters: HashMap<u32, Counters>,
    pub drops: HashMap<Reason, u64>,
}

/// [`Tables`] in memory.
#[derive(Debug, Default)]
pub struct Memory(pub RefCell<State>);

impl Memory {
    /// With the settings of a fresh start.
    #[must_use]
    pub fn new() -> Self {
        let settings = Settings { layout: LAYOUT, ..Settings::default() };
        Self(RefCell::new(State { settings, ..State::default() }))
    }

    /// Gives a service a ring of `slots` in which its reals take turns.
    pub fn serve(&self, key: ServiceKey, service: u32, reals: &[u32], slots: u32) {
        let state = &mut *self.0.borrow_mut();
        let block = service * 1024;
        if reals.is_empty() {
            state.services.insert(key, Service { id: service, block, mask: 0 });
            return;
        }
        for i in 0..slots.div_ceil(BLOCK_SLOTS as u32) {
            let ids = std::array::from_fn(|slot| reals[(i as usize * BLOCK_SLOTS + slot) % reals.len()]);
            state.rings.insert(block + i, RingBlock(ids));
        }
        state.services.insert(key, Service { id: service, block, mask: slots - 1 });
    }
}

fn count(counters: &mut Counters, bytes: u64, new_flow: bool) {
    counters.packets += 1;
    counters.bytes += bytes;
    counters.flows += u64::from(new_flow);
}

impl Tables for Memory {
    fn now(&self) -> u64 {
        self.0.borrow().now
    }

    fn settings(&self) -> Settings {
        self.0.borrow().settings
    }

    fn local(&self, index: u32) -> Option<Address> {
        self.0.borrow().locals.get(&index).copied()
    }

    fn service(&self, key: &ServiceKey) -> Option<Service> {
        self.0.borrow().services.get(key).copied()
    }

    fn slot(&self, block: u32, slot: u32) -> Option<u32> {
        self.0.borrow().rings.get(&block).and_then(|block| slot_of(block, slot))
    }

    fn real(&self, id: u32) -> Option<Real> {
        self.0.borrow().reals.get(&id).copied()
    }

    fn flow(&self, tuple: &Tuple) -> Option<Flow> {
        self.0.borrow().flows.get(tuple).copied()
    }

    fn set_flow(&self, tuple: &Tuple, flow: &Flow) -> bool {
        self.0.borrow_mut().flows.insert(*tuple, *flow);
        true
    }

    fn reverse<R>(&self, tuple: &Tuple, look: impl FnOnce(&mut Reverse) -> R) -> Option<R> {
        self.0.borrow_mut().reverses.get_mut(tuple).map(look)
    }

    fn insert_reverse(&self, tuple: &Tuple, reverse: &Reverse) -> bool {
        let state = &mut *self.0.borrow_mut();
        let free = !state.reverses.contains_key(tuple);
        if free {
            state.reverses.insert(*tuple, *reverse);
        }
        free
    }

    fn forget_reverse(&self, tuple: &Tuple) {
        self.0.borrow_mut().reverses.remove(tuple);
    }

    fn hop(&self, _v4: bool, _source: &Address, destination: &Address, _ifindex: u32) -> Result<Hop, Reason> {
        self.0.borrow().hops.get(destination).copied().ok_or(Reason::NoNeighbour)
    }

    fn count_service(&self, id: u32, bytes: u64, new_flow: bool) {
        count(self.0.borrow_mut().service_counters.entry(id).or_default(), bytes, new_flow);
    }

    fn count_real(&self, id: u32, bytes: u64, new_flow: bool) {
        count(self.0.borrow_mut().real_counters.entry(id).or_default(), bytes, new_flow);
    }

    fn count_drop(&self, reason: Reason) {
        *self.0.borrow_mut().drops.entry(reason).or_default() += 1;
    }
}
