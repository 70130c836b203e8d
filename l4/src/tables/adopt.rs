//! The image of maps that outlived a process, which may have died between any two writes.
//!
//! What is there is taken as it is, and compared with the first Input in every part: then nothing is written that is
//! right already. When slots began to move is not known: their moves begin anew.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
};

use imbl::{OrdMap, OrdSet};
use tidegate_ebpf::abi::{self, BLOCK_SLOTS, MOVING, ServiceKey};

use super::{
    Capacity, Tables,
    entries::{frontend, name, name_of, read_client, read_forward, read_real},
    filter::Filter,
    guard::Lists,
    ids::Ids,
    ledger::{Ledger, Left},
    moves::Moves,
    placed::{Placed, PlacedReal},
};
use crate::{
    input::{RealState, Service},
    regions::Region,
    ring::{NOBODY, Ring},
};

/// What was read back.
#[derive(Clone, Debug, Default)]
pub struct Found {
    pub services: Vec<(ServiceKey, abi::Service)>,
    /// By id.
    pub frontends: Vec<abi::Frontend>,
    pub reals: Vec<abi::Real>,
    /// The slots by service id.
    pub rings: HashMap<u32, Vec<u32>>,
    /// By index.
    pub moves: Vec<abi::Move>,
    /// By service id.
    pub limits: HashMap<u32, abi::Limits>,
    pub access: Vec<(abi::AccessKey, u32)>,
    /// The VIPs' half of the filter.
    pub vips: Vec<u64>,
}

impl Tables {
    /// The image of what is there; of empty maps an empty one.
    #[must_use]
    pub fn adopt(found: &Found, capacity: Capacity, now: u64) -> Self {
        let shown: BTreeSet<u32> = services(found).map(|(_, service)| service.id).collect();
        let named = (0..).zip(&found.frontends).filter(|(_, frontend)| frontend.protocol != 0).map(|(id, _)| id);
        let moving = found.rings.values().flatten().filter(|word| **word & MOVING != 0).map(|word| word & !MOVING);
        let mut tables = Self {
            services: HashMap::new(),
            applied: OrdMap::new(),
            announced: OrdSet::new(),
            found: BTreeSet::new(),
            restless: BTreeSet::new(),
            draining: BTreeSet::new(),
            orphans: Vec::new(),
            departed: Vec::new(),
            filter: Filter::of(&found.vips),
            unswept: true,
            ledger: Ledger::new(
                capacity,
                Ids::without(shown.iter().copied().chain(named), capacity.services),
                Ids::without(moving.filter(|index| *index < capacity.moves), capacity.moves),
                &found.reals,
            ),
            capacity,
        };
        let mut reals: HashMap<u32, Vec<PlacedReal>> = HashMap::new();
        for (id, real) in (0..).zip(&found.reals).filter(|(_, real)| real.state != abi::Real::GONE) {
            match read_real(real).filter(|_| shown.contains(&real.service)) {
                Some(read) => {
                    let draining = (read.state == RealState::Draining).then_some(now);
                    let placed = PlacedReal { real: read, id, draining, seat: 0, ramp: None };
                    reals.entry(real.service).or_default().push(placed);
                }
                None => _ = tables.ledger.left.insert((real.service, name_of(real)), Left { id, since: now }),
            }
        }
        let mut lists: HashMap<u32, Lists> = HashMap::new();
        for (key, value) in &found.access {
            let place = (key.prefix.saturating_sub(32), key.data.client);
            lists.entry(u32::from_be(key.data.service)).or_default().insert(place, *value);
        }
        tables.ledger.access = found.access.len();
        for (key, service) in &found.services {
            if *key == ServiceKey::of_vip(key.vip) {
                tables.announced.insert(key.vip.into());
                let _ = tables.filter.add(&key.vip);
                continue;
            }
            let Some(frontend) = frontend(key.vip, key.port, key.protocol) else { continue };
            let placed = Placed {
                id: service.id,
                entry: Some(*service),
                frontend: found.frontends.get(service.id as usize).copied(),
                limits: found.limits.get(&service.id).copied(),
                lists: lists.remove(&service.id).unwrap_or_default(),
                ..Placed::default()
            };
            let placed =
                placed.adopt(reals.remove(&service.id).unwrap_or_default(), service, found, &mut tables.ledger, now);
            let input = Service {
                reals: placed.reals.iter().map(|placed| placed.real).collect(),
                forward: read_forward(service),
                client_address: read_client(service),
                ..Service::default()
            };
            if placed.restless() {
                tables.restless.insert(frontend);
            }
            if placed.drains() {
                tables.draining.insert(frontend);
            }
            tables.found.insert(frontend);
            tables.applied.insert(frontend, Arc::new(input));
            tables.services.insert(frontend, placed);
        }
        for (id, entry) in (0..).zip(&found.frontends).filter(|(id, _)| !shown.contains(id)) {
            if let Some(frontend) = frontend(entry.vip, entry.port, entry.protocol) {
                tables.ledger.left_services.insert(frontend, Left { id, since: now });
            }
        }
        let of = |(id, networks): (u32, Lists)| networks.into_keys().map(move |network| (id, network));
        tables.orphans = lists.into_iter().flat_map(of).collect();
        tables
    }
}

fn services(found: &Found) -> impl Iterator<Item = &(ServiceKey, abi::Service)> {
    found.services.iter().filter(|(key, _)| *key != ServiceKey::of_vip(key.vip))
}

impl Placed {
    /// Seats the reals, and reads the ring by them.
    fn adopt(
        mut self,
        mut reals: Vec<PlacedReal>,
        service: &abi::Service,
        found: &Found,
        ledger: &mut Ledger,
        now: u64,
    ) -> Self {
        reals.sort_unstable_by_key(|placed| (name(&placed.real), placed.id));
        // The same real twice: the process died between writing a new entry and the end of the old one.
        let mut names: BTreeSet<SocketAddr> = BTreeSet::new();
        reals.retain(|placed| {
            let new = names.insert(name(&placed.real));
            if !new {
                ledger.left.insert((self.id, name(&placed.real)), Left { id: placed.id, since: now });
            }
            new
        });
        for (seat, placed) in (0..).zip(&mut reals) {
            placed.seat = seat;
            self.seats.push(Some(placed.id));
        }
        self.reals = reals;
        self.region = (service.mask != 0)
            .then(|| Region { block: service.block, blocks: (service.mask + 1) / BLOCK_SLOTS as u32 })
            .filter(|region| ledger.reserve(*region));
        let Some(region) = self.region else { return self };
        let words = found.rings.get(&self.id).map_or(&[][..], Vec::as_slice);
        let seats: HashMap<u32, u16> = self.reals.iter().map(|placed| (placed.id, placed.seat)).collect();
        let drains: Vec<u32> =
            self.reals.iter().filter(|placed| placed.draining.is_some()).map(|placed| placed.id).collect();
        let mut moves = Moves::default();
        let mut read = |slot: u32| {
            let word = *words.get(slot as usize)?;
            if word & MOVING == 0 {
                return seats.get(&word).copied();
            }
            let index = word & !MOVING;
            let entry = *found.moves.get(index as usize)?;
            let seat = *seats.get(&entry.current)?;
            // A move that was never written: the slot is nobody's, and will be given to somebody.
            if ![abi::Move::LEARNING, abi::Move::KEEPING].contains(&entry.phase) {
                return None;
            }
            // Which reals were there in between is not known: those that drain may be.
            let mut others: Vec<u32> = match entry.previous == entry.current {
                true => self.reals.iter().map(|placed| placed.id).collect(),
                false => drains.iter().copied().chain([entry.previous]).collect(),
            };
            others.retain(|real| *real != entry.current && seats.contains_key(real));
            others.sort_unstable();
            others.dedup();
            moves.adopt(slot, index, entry, &others, now);
            Some(seat)
        };
        let slots = region.blocks * BLOCK_SLOTS as u32;
        let ring = Ring::of((0..slots).map(|slot| read(slot).unwrap_or(NOBODY)).collect());
        (self.ring, self.moves) = (ring, moves);
        self
    }
}
