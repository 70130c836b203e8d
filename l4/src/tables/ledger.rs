//! Who has what of the maps' entries, and what is left to give.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
};

use tidegate_ebpf::abi;

use super::{
    Capacity, Write,
    entries::name_of,
    ids::{GRACE, Ids},
};
use crate::{
    input::Frontend,
    regions::{Region, Regions},
};

/// How a plan is written down: when, the way to an address as far as it is known, and where the writes go.
pub(super) struct Pen<'a> {
    pub(super) now: u64,
    pub(super) hop: &'a dyn Fn(IpAddr) -> abi::Hop,
    pub(super) write: &'a mut dyn FnMut(Write),
}

impl Pen<'_> {
    pub(super) fn write(&mut self, write: Write) {
        (self.write)(write);
    }
}

/// An entry that nobody gets new flows by, kept for those that still name it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Left {
    pub(super) id: u32,
    pub(super) since: u64,
}

/// What moves came to, since the process began.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Moved {
    /// Moves under way.
    pub now: u64,
    /// Moves that ended when no flow needed them any more.
    pub ended: u64,
    /// Moves that ended because they had lasted too long, and the flows that lost their real with them.
    pub forced: u64,
    pub lost: u64,
    /// Slots that changed hands at once because the moves' map was full; their flows lost their reals.
    pub at_once: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Ledger {
    pub(super) services: Ids,
    pub(super) reals: Ids,
    pub(super) moves: Ids,
    pub(super) moved: Moved,
    /// How many entries `access` has.
    pub(super) access: usize,
    regions: Regions,
    resting: VecDeque<(u64, Region)>,
    /// The image of the reals' map, as far as it was ever used.
    entries: Vec<abi::Real>,
    by_address: HashMap<IpAddr, Vec<u32>>,
    /// Reals that no Input lists, by their service's id and their names.
    pub(super) left: HashMap<(u32, SocketAddr), Left>,
    pub(super) left_services: HashMap<Frontend, Left>,
}

impl Ledger {
    /// With the reals that were found.
    pub(super) fn new(capacity: Capacity, services: Ids, moves: Ids, reals: &[abi::Real]) -> Self {
        let used = || (0..).zip(reals).filter(|(_, real)| real.state != abi::Real::GONE);
        let mut by_address: HashMap<IpAddr, Vec<u32>> = HashMap::new();
        for (id, real) in used() {
            by_address.entry(real.address.into()).or_default().push(id);
        }
        let ids = Ids::without(used().map(|(id, _)| id), capacity.reals);
        let entries = reals[..used().last().map_or(0, |(id, _)| id as usize + 1)].to_vec();
        Self {
            services,
            reals: ids,
            moves,
            moved: Moved::default(),
            access: 0,
            regions: Regions::new(capacity.blocks),
            resting: VecDeque::new(),
            entries,
            by_address,
            left: HashMap::new(),
            left_services: HashMap::new(),
        }
    }

    pub(super) fn reserve(&mut self, region: Region) -> bool {
        self.regions.reserve(region)
    }

    pub(super) fn take_region(&mut self, blocks: u32, now: u64) -> Option<Region> {
        while let Some((since, region)) = self.resting.front()
            && since + GRACE <= now
        {
            self.regions.give_back(*region);
            self.resting.pop_front();
        }
        self.regions.take(blocks)
    }

    pub(super) fn retire(&mut self, region: Region, now: u64) {
        self.resting.push_back((now, region));
    }

    pub(super) fn real(&self, id: u32) -> abi::Real {
        self.entries.get(id as usize).copied().unwrap_or_default()
    }

    /// Writes an entry if it is another one.
    pub(super) fn set_real(&mut self, id: u32, value: abi::Real, pen: &mut Pen<'_>) {
        let index = id as usize;
        if self.entries.len() <= index {
            self.entries.resize(index + 1, abi::Real::default());
        }
        let before = std::mem::replace(&mut self.entries[index], value);
        if before == value {
            return;
        }
        let gone = |real: &abi::Real| real.state == abi::Real::GONE;
        if !gone(&before) && (gone(&value) || before.address != value.address) {
            let address = IpAddr::from(before.address);
            if let Some(ids) = self.by_address.get_mut(&address) {
                ids.retain(|other| *other != id);
                if ids.is_empty() {
                    self.by_address.remove(&address);
                }
            }
        }
        if !gone(&value) && (gone(&before) || before.address != value.address) {
            self.by_address.entry(value.address.into()).or_default().push(id);
        }
        pen.write(Write::Real { id, value });
    }

    /// The real is not listed any more; its entry stays for the flows that name it.
    pub(super) fn leave(&mut self, id: u32, pen: &mut Pen<'_>) {
        let value = abi::Real { state: abi::Real::LEFT, ..self.real(id) };
        self.left.insert((value.service, name_of(&value)), Left { id, since: pen.now });
        self.set_real(id, value, pen);
    }

    pub(super) fn with_address(&self, address: IpAddr) -> Vec<u32> {
        self.by_address.get(&address).cloned().unwrap_or_default()
    }
}
