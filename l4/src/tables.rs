//! What every map must hold, and the writes that lead there from what they hold.
//!
//! The order of the writes is the point: at no moment does a slot name a real that is not written, or a service a ring
//! that is not full. What a write sets free is given away again only by a later plan, when no packet can be on its way
//! through it any more.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
};

use imbl::{OrdMap, ordmap::DiffItem};
use tidegate_ebpf::abi::{self, BLOCK_SLOTS, RingBlock, ServiceKey};

use crate::{
    input::{Frontend, Input, Protocol, Real, RealState, Refused, Service},
    maglev,
    regions::{Region, Regions},
};

/// One change of one map.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Write {
    Real {
        id: u32,
        value: abi::Real,
    },
    Block {
        block: u32,
        value: Box<RingBlock>,
    },
    Service {
        key: ServiceKey,
        value: abi::Service,
    },
    RemoveService {
        key: ServiceKey,
    },
    /// Before an id is used again, its counters start over.
    ResetService {
        id: u32,
    },
    ResetReal {
        id: u32,
    },
}

/// How much the maps hold.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Capacity {
    pub services: u32,
    pub reals: u32,
    pub blocks: u32,
}

/// What was read back from maps that outlived a process.
#[derive(Clone, Debug, Default)]
pub struct Found {
    pub services: Vec<(ServiceKey, abi::Service)>,
    /// By id, all of them.
    pub reals: Vec<abi::Real>,
    /// The slots by service id.
    pub rings: HashMap<u32, Vec<u32>>,
}

/// A service's place in the maps.
#[derive(Clone, Debug)]
pub struct Placed {
    pub id: u32,
    region: Option<Region>,
    /// The ring in the map is the one that the reals make; false when it was found half written.
    whole: bool,
    pub reals: Vec<PlacedReal>,
}

#[derive(Clone, Copy, Debug)]
pub struct PlacedReal {
    pub real: Real,
    pub id: u32,
    pub epoch: u32,
}

/// The image of the maps.
#[derive(Clone, Debug)]
pub struct Tables {
    services: HashMap<Frontend, Placed>,
    /// The same as the Input that led here, to find the differences by.
    applied: OrdMap<Frontend, Arc<Service>>,
    /// Half written when a process died: to be written again whatever the Input says.
    dirty: BTreeSet<Frontend>,
    /// Reals without a service, for the same reason.
    orphans: Vec<u32>,
    service_ids: Ids,
    real_ids: Ids,
    epochs: Vec<u32>,
    regions: Regions,
    retired: Vec<Region>,
    capacity: Capacity,
}

impl Tables {
    /// The image of what is there; of empty maps an empty one.
    #[must_use]
    pub fn adopt(found: &Found, capacity: Capacity) -> Self {
        let mut tables = Self {
            services: HashMap::new(),
            applied: OrdMap::new(),
            dirty: BTreeSet::new(),
            orphans: Vec::new(),
            service_ids: Ids::without(found.services.iter().map(|(_, service)| service.id), capacity.services),
            real_ids: Ids::without(
                (0..).zip(&found.reals).filter(|(_, real)| real.state != abi::Real::GONE).map(|(id, _)| id),
                capacity.reals,
            ),
            epochs: found.reals.iter().map(|real| real.epoch).collect(),
            regions: Regions::new(capacity.blocks),
            retired: Vec::new(),
            capacity,
        };
        tables.epochs.resize(capacity.reals as usize, 0);
        let mut reals: HashMap<u32, Vec<PlacedReal>> = HashMap::new();
        for (id, real) in (0..).zip(&found.reals) {
            if let Some(read) = read_real(real) {
                reals.entry(real.service).or_default().push(PlacedReal { real: read, id, epoch: real.epoch });
            }
        }
        for (key, service) in &found.services {
            let Some(frontend) = frontend(key) else { continue };
            let mut reals = reals.remove(&service.id).unwrap_or_default();
            reals.sort_unstable_by_key(|placed| (placed.real.address, placed.real.port));
            let region = (service.mask != 0)
                .then(|| Region { block: service.block, blocks: (service.mask + 1) / BLOCK_SLOTS as u32 })
                .filter(|region| tables.regions.reserve(*region));
            let expected = region.map(|region| ring(&reals, region)).unwrap_or_default();
            let ring = found.rings.get(&service.id).map_or(&[][..], Vec::as_slice);
            let whole = region.is_some() == (service.mask != 0)
                && ring == expected
                && ring.is_empty() != reals.iter().any(active);
            if !whole {
                tables.dirty.insert(frontend);
            }
            let input = Service { reals: reals.iter().map(|placed| placed.real).collect(), ..Service::default() };
            tables.applied.insert(frontend, Arc::new(input));
            tables.services.insert(frontend, Placed { id: service.id, region, whole, reals });
        }
        tables.orphans = reals.into_values().flatten().map(|placed| placed.id).collect();
        tables
    }

    /// A service's place; `None` when it is not served.
    #[must_use]
    pub fn get(&self, frontend: &Frontend) -> Option<&Placed> {
        self.services.get(frontend)
    }

    /// The services by their front ends.
    #[must_use]
    pub fn applied(&self) -> &OrdMap<Frontend, Arc<Service>> {
        &self.applied
    }

    /// Sends the writes that lead to `new` to `write`, in their order. Refuses before the first one or not at all.
    pub fn plan(&mut self, new: &Input, mut write: impl FnMut(Write)) -> Result<(), Refused> {
        let old = self.applied.clone();
        let mut gone = Vec::new();
        let mut changed = std::mem::take(&mut self.dirty);
        for item in old.diff(&new.services) {
            match item {
                DiffItem::Add(frontend, _) => _ = changed.insert(*frontend),
                DiffItem::Update { new: (frontend, _), .. } => _ = changed.insert(*frontend),
                DiffItem::Remove(frontend, _) => gone.push(*frontend),
            }
        }
        changed.retain(|frontend| new.services.contains_key(frontend));
        for region in std::mem::take(&mut self.retired) {
            self.regions.give_back(region);
        }
        self.service_ids.settle();
        self.real_ids.settle();
        if let Err(refused) = self.room(&changed, new) {
            self.dirty = changed;
            return Err(refused);
        }

        for id in std::mem::take(&mut self.orphans) {
            self.forget(id, &mut write);
        }
        for frontend in gone {
            self.remove(&frontend, &mut write);
        }
        for frontend in changed {
            self.change(frontend, &new.services[&frontend], &mut write);
        }
        self.applied = new.services.clone();
        Ok(())
    }

    /// Whether all new ids are to be had.
    fn room(&self, changed: &BTreeSet<Frontend>, new: &Input) -> Result<(), Refused> {
        let services = changed.iter().filter(|frontend| !self.services.contains_key(frontend)).count();
        let reals: usize = changed
            .iter()
            .map(|frontend| {
                let placed = self.services.get(frontend).map_or(&[][..], |placed| &placed.reals);
                new.services[frontend].reals.iter().filter(|real| find(placed, real).is_none()).count()
            })
            .sum();
        let full = |what, capacity| Err(Refused::Full { what, capacity });
        match (services > self.service_ids.left(), reals > self.real_ids.left()) {
            (true, _) => full("services", self.capacity.services),
            (_, true) => full("reals", self.capacity.reals),
            _ => Ok(()),
        }
    }

    fn remove(&mut self, frontend: &Frontend, write: &mut impl FnMut(Write)) {
        let Some(placed) = self.services.remove(frontend) else { return };
        write(Write::RemoveService { key: key(frontend) });
        self.retired.extend(placed.region);
        self.service_ids.give_back(placed.id);
        for real in placed.reals {
            self.forget(real.id, write);
        }
    }

    fn forget(&mut self, id: u32, write: &mut impl FnMut(Write)) {
        // The epoch stays: the entry's next tenant gets the one after it.
        let value = abi::Real { epoch: self.epochs[id as usize], ..abi::Real::default() };
        write(Write::Real { id, value });
        self.real_ids.give_back(id);
    }

    fn change(&mut self, frontend: Frontend, service: &Service, write: &mut impl FnMut(Write)) {
        let before = self.services.remove(&frontend);
        let id = before.as_ref().map_or_else(
            || {
                let id = self.service_ids.take().expect("room was made sure of");
                write(Write::ResetService { id });
                id
            },
            |placed| placed.id,
        );
        let old = before.as_ref().map_or(&[][..], |placed| &placed.reals);

        // Reals that a slot may name from now on come first.
        let mut reals = Vec::with_capacity(service.reals.len());
        let mut later = Vec::new();
        for real in &service.reals {
            let placed = match find(old, real) {
                Some(placed) => PlacedReal { real: *real, ..*placed },
                None => {
                    let id = self.real_ids.take().expect("room was made sure of");
                    let epoch = &mut self.epochs[id as usize];
                    *epoch = epoch.wrapping_add(1);
                    write(Write::ResetReal { id });
                    PlacedReal { real: *real, id, epoch: *epoch }
                }
            };
            let value = Write::Real { id: placed.id, value: write_real(&placed, id) };
            match find(old, real) {
                Some(was) if was.real == *real => {}
                _ if active(&placed) => write(value),
                _ => later.push(value),
            }
            reals.push(placed);
        }

        let region = self.fill(frontend, id, before.as_ref(), &reals, write);

        // Reals that no slot names any more come last.
        later.into_iter().for_each(&mut *write);
        let left: Vec<u32> =
            old.iter().filter(|placed| find(&reals, &placed.real).is_none()).map(|placed| placed.id).collect();
        for id in left {
            self.forget(id, write);
        }
        self.services.insert(frontend, Placed { id, region, whole: true, reals });
    }

    /// Writes the ring, then shows it.
    fn fill(
        &mut self,
        frontend: Frontend,
        id: u32,
        before: Option<&Placed>,
        reals: &[PlacedReal],
        write: &mut impl FnMut(Write),
    ) -> Option<Region> {
        let old = before.and_then(|placed| placed.region);
        let blocks = reals.iter().any(active).then(|| (maglev::slots(reals.len()) / BLOCK_SLOTS) as u32);
        let region = match (old, blocks) {
            (_, None) => None,
            (Some(old), Some(blocks)) if old.blocks == blocks => Some(old),
            // Where the rings' map is full, a coarser ring is better than none.
            (_, Some(blocks)) => {
                let sizes = (0..).map(|halving| blocks >> halving).take_while(|blocks| *blocks > 0);
                sizes.into_iter().find_map(|blocks| self.regions.take(blocks)).or(old)
            }
        };
        let slots = region.map(|region| ring(reals, region)).unwrap_or_default();
        let whole = before.is_some_and(|placed| placed.whole);
        // In place only what differs.
        let known = region.filter(|region| whole && old == Some(*region));
        let known = known.and_then(|region| before.map(|placed| ring(&placed.reals, region))).unwrap_or_default();
        let mut known = known.chunks(BLOCK_SLOTS);
        for (block, slots) in (region.map_or(0, |region| region.block)..).zip(slots.chunks(BLOCK_SLOTS)) {
            if known.next() != Some(slots) {
                let value = RingBlock(slots.try_into().expect("rings are whole blocks"));
                write(Write::Block { block, value: Box::new(value) });
            }
        }
        if !whole || old != region {
            let value = region.map_or(abi::Service { id, block: 0, mask: 0 }, |region| abi::Service {
                id,
                block: region.block,
                mask: region.blocks * BLOCK_SLOTS as u32 - 1,
            });
            write(Write::Service { key: key(&frontend), value });
            self.retired.extend(old.filter(|old| Some(*old) != region));
        }
        region
    }
}

fn active(placed: &PlacedReal) -> bool {
    placed.real.state == RealState::Active
}

fn find<'a>(reals: &'a [PlacedReal], real: &Real) -> Option<&'a PlacedReal> {
    reals.iter().find(|placed| placed.real.address == real.address && placed.real.port == real.port)
}

/// The real ids in the ring's slots.
fn ring(reals: &[PlacedReal], region: Region) -> Vec<u32> {
    let active: Vec<&PlacedReal> = reals.iter().filter(|placed| active(placed)).collect();
    let named: Vec<(SocketAddr, u16)> = active
        .iter()
        .map(|placed| (SocketAddr::new(placed.real.address, placed.real.port), placed.real.weight))
        .collect();
    let ring = maglev::ring(&named, region.blocks as usize * BLOCK_SLOTS);
    ring.into_iter().map(|index| active[index as usize].id).collect()
}

#[must_use]
pub fn key(frontend: &Frontend) -> ServiceKey {
    let protocol = match frontend.protocol {
        Protocol::Tcp => abi::TCP,
        Protocol::Udp => abi::UDP,
    };
    ServiceKey { vip: frontend.vip.into(), port: frontend.port, protocol, pad: 0 }
}

fn frontend(key: &ServiceKey) -> Option<Frontend> {
    let protocol = match key.protocol {
        abi::TCP => Protocol::Tcp,
        abi::UDP => Protocol::Udp,
        _ => return None,
    };
    Some(Frontend { vip: key.vip.into(), port: key.port, protocol })
}

fn read_real(real: &abi::Real) -> Option<Real> {
    let state = match real.state {
        abi::Real::ACTIVE => RealState::Active,
        abi::Real::DRAINING => RealState::Draining,
        _ => return None,
    };
    Some(Real { address: real.address.into(), port: real.port, weight: real.weight, state })
}

fn write_real(placed: &PlacedReal, service: u32) -> abi::Real {
    abi::Real {
        address: placed.real.address.into(),
        service,
        epoch: placed.epoch,
        port: placed.real.port,
        weight: placed.real.weight,
        state: if active(placed) { abi::Real::ACTIVE } else { abi::Real::DRAINING },
    }
}

/// Numbers below a capacity. What comes back is given away again after everything else, and never in the same plan.
#[derive(Clone, Debug)]
struct Ids {
    next: u32,
    free: VecDeque<u32>,
    returned: Vec<u32>,
    capacity: u32,
}

impl Ids {
    fn without(used: impl Iterator<Item = u32>, capacity: u32) -> Self {
        let used: BTreeSet<u32> = used.collect();
        let next = used.last().map_or(0, |last| last + 1);
        let free = (0..next).filter(|id| !used.contains(id)).collect();
        Self { next, free, returned: Vec::new(), capacity }
    }

    fn left(&self) -> usize {
        (self.capacity - self.next) as usize + self.free.len()
    }

    fn take(&mut self) -> Option<u32> {
        if self.next < self.capacity {
            self.next += 1;
            return Some(self.next - 1);
        }
        self.free.pop_front()
    }

    fn give_back(&mut self, id: u32) {
        self.returned.push(id);
    }

    /// A new plan begins: what the one before gave back may be had.
    fn settle(&mut self) {
        self.free.extend(self.returned.drain(..));
    }
}

#[cfg(test)]
mod tests;
