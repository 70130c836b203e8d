//! What every map must hold, and the writes that lead there from what they hold.
//!
//! The order of the writes is the point: at no moment does a slot name a real that is not written, or a service a ring
//! that is not full. What a write sets free is given away again only when no packet can be on its way through it any
//! more, and no flow names it.
//!
//! `placed` is one service's part; `moves` what its slots do while they change hands; `guard` and `filter` what stands
//! before it; `ledger` and `ids` who has what; `adopt` finds all of it again after a restart.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use imbl::{OrdMap, OrdSet, ordmap, ordset};
use tidegate_ebpf::abi::{self, ServiceKey};

use crate::{
    census::Census,
    input::{Frontend, Input, Refused, Service},
};

mod adopt;
mod entries;
mod filter;
mod guard;
mod ids;
mod ledger;
mod moves;
mod placed;

pub use adopt::Found;
pub use entries::key;
pub use ids::GRACE;
pub use ledger::Moved;
pub use moves::{CAP, LEARN_UDP, SETTLE};
pub use placed::{Departed, Placed, PlacedReal, STEPS};

use entries::{VIP, name};
use filter::Filter;
use ledger::{Ledger, Left, Pen};
use placed::{pair, udp};

/// One change of one map.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Write {
    Real {
        id: u32,
        value: abi::Real,
    },
    /// A whole ring from this block on, which no service shows yet.
    Ring {
        block: u32,
        words: Vec<u32>,
    },
    /// One slot of a ring that packets see.
    Slot {
        block: u32,
        slot: u32,
        word: u32,
    },
    Move {
        index: u32,
        value: abi::Move,
    },
    Frontend {
        id: u32,
        value: abi::Frontend,
    },
    Limits {
        id: u32,
        value: abi::Limits,
    },
    /// A value of [`abi::Access`], or that there is none any more.
    Access {
        network: abi::AccessKey,
        value: Option<u32>,
    },
    Service {
        key: ServiceKey,
        value: abi::Service,
    },
    RemoveService {
        key: ServiceKey,
    },
    /// The VIPs' half of a word of the filter.
    Vips {
        word: u32,
        bits: u64,
    },
    /// Before an id is used again, its counters and buckets start over.
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
    /// Entries of `services` beyond those of the services: VIPs.
    pub vips: u32,
    pub reals: u32,
    pub blocks: u32,
    pub moves: u32,
    pub access: u32,
}

/// The image of the maps.
#[derive(Clone, Debug)]
pub struct Tables {
    services: HashMap<Frontend, Placed>,
    /// The same as the Input that led here, to find the differences by.
    applied: OrdMap<Frontend, Arc<Service>>,
    announced: OrdSet<IpAddr>,
    /// Found after a restart, and not yet compared with an Input.
    found: BTreeSet<Frontend>,
    /// Something is to be done there as time goes by.
    restless: BTreeSet<Frontend>,
    draining: BTreeSet<Frontend>,
    departed: Vec<Departed>,
    /// Networks in `access` of services that are not there.
    orphans: Vec<(u32, (u32, abi::Address))>,
    filter: Filter,
    /// The filter may hold bits of a process that died.
    unswept: bool,
    ledger: Ledger,
    capacity: Capacity,
}

impl Tables {
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

    #[must_use]
    pub fn moved(&self) -> Moved {
        Moved { now: self.ledger.moves.used() as u64, ..self.ledger.moved }
    }

    /// Whether [`Tables::settle`] would learn something from a count of what is alive.
    #[must_use]
    pub fn wants_census(&self) -> bool {
        let Ledger { left, left_services, .. } = &self.ledger;
        !(left.is_empty() && left_services.is_empty() && self.draining.is_empty() && self.restless.is_empty())
    }

    /// The services with a real that drains.
    #[must_use]
    pub fn draining(&self) -> &BTreeSet<Frontend> {
        &self.draining
    }

    /// The reals that left since this was asked last.
    pub fn take_departed(&mut self) -> Vec<Departed> {
        std::mem::take(&mut self.departed)
    }

    /// Sends the writes that lead to `new` to `write`, in their order. Refuses before the first one or not at all.
    /// `now` is the monotonic clock's; `hop` the way to an address as far as it is known.
    pub fn plan(
        &mut self,
        new: &Input,
        now: u64,
        hop: &dyn Fn(IpAddr) -> abi::Hop,
        mut write: impl FnMut(Write),
    ) -> Result<(), Refused> {
        let (changed, gone) = self.difference(new);
        self.room(&changed, new, now)?;
        self.found.clear();
        let pen = &mut Pen { now, hop, write: &mut write };
        let (came, went) = addresses(&self.announced, &new.announce);
        for vip in went {
            if let Some((word, bits)) = self.filter.remove(&vip.into()) {
                pen.write(Write::Vips { word, bits });
            }
            pen.write(Write::RemoveService { key: ServiceKey::of_vip(vip.into()) });
        }
        for frontend in gone {
            self.remove(&frontend, pen);
        }
        for frontend in changed {
            self.change(frontend, &new.services[&frontend], pen);
        }
        for vip in came {
            pen.write(Write::Service { key: ServiceKey::of_vip(vip.into()), value: VIP });
            if let Some((word, bits)) = self.filter.add(&vip.into()) {
                pen.write(Write::Vips { word, bits });
            }
        }
        self.ledger.access -= self.orphans.len();
        for (service, network) in std::mem::take(&mut self.orphans) {
            pen.write(Write::Access { network: placed::access(service, network), value: None });
        }
        if std::mem::take(&mut self.unswept) {
            for (word, bits) in self.filter.sweep() {
                pen.write(Write::Vips { word, bits });
            }
        }
        self.applied = new.services.clone();
        self.announced = new.announce.clone();
        Ok(())
    }

    /// Does what became due: reals take their next step, moves end, ids come back. The census must be a fresh one.
    pub fn settle(
        &mut self,
        now: u64,
        census: Option<&Census>,
        hop: &dyn Fn(IpAddr) -> abi::Hop,
        mut write: impl FnMut(Write),
    ) {
        let pen = &mut Pen { now, hop, write: &mut write };
        for frontend in std::mem::take(&mut self.restless) {
            let Some(placed) = self.services.get_mut(&frontend) else { continue };
            placed.settle(udp(&frontend), census, &mut self.ledger, pen);
            if placed.restless() {
                self.restless.insert(frontend);
            }
        }
        let Some(census) = census else { return };
        let over = |left: &Left| left.since + GRACE <= census.at;
        let ledger = &mut self.ledger;
        let reals: Vec<_> = ledger
            .left
            .iter()
            .filter(|(_, left)| over(left) && !census.names_real(left.id))
            .map(|(name, left)| (*name, left.id))
            .collect();
        for (name, id) in reals {
            ledger.left.remove(&name);
            ledger.set_real(id, abi::Real::default(), pen);
            ledger.reals.give_back(id, now);
        }
        // Reals refer to their services by id.
        let needed: BTreeSet<u32> = ledger.left.keys().map(|(service, _)| *service).collect();
        let services: Vec<_> = ledger
            .left_services
            .iter()
            .filter(|(_, left)| over(left) && !census.names_service(left.id) && !needed.contains(&left.id))
            .map(|(frontend, left)| (*frontend, left.id))
            .collect();
        for (frontend, id) in services {
            ledger.left_services.remove(&frontend);
            pen.write(Write::Frontend { id, value: abi::Frontend::default() });
            ledger.services.give_back(id, now);
        }
    }

    /// The way to an address is another one now.
    pub fn set_hop(&mut self, address: IpAddr, hop: abi::Hop, mut write: impl FnMut(Write)) {
        let pen = &mut Pen { now: 0, hop: &|_| hop, write: &mut write };
        for id in self.ledger.with_address(address) {
            let value = abi::Real { hop, ..self.ledger.real(id) };
            self.ledger.set_real(id, value, pen);
        }
    }

    /// The front ends that changed, and those that went.
    fn difference(&self, new: &Input) -> (BTreeSet<Frontend>, Vec<Frontend>) {
        let (mut changed, mut gone) = (self.found.clone(), Vec::new());
        for item in self.applied.diff(&new.services) {
            match item {
                ordmap::DiffItem::Add(frontend, _) => _ = changed.insert(*frontend),
                ordmap::DiffItem::Update { new: (frontend, _), .. } => _ = changed.insert(*frontend),
                ordmap::DiffItem::Remove(frontend, _) => gone.push(*frontend),
            }
        }
        changed.retain(|frontend| new.services.contains_key(frontend));
        (changed, gone)
    }

    /// Whether all new entries are to be had.
    fn room(&mut self, changed: &BTreeSet<Frontend>, new: &Input, now: u64) -> Result<(), Refused> {
        let (mut services, mut reals, mut access) = (0, 0, self.ledger.access);
        for frontend in changed {
            let service = &new.services[frontend];
            let placed = self.services.get(frontend);
            let left = self.ledger.left_services.get(frontend).map(|left| left.id);
            let id = placed.map(|placed| placed.id).or(left);
            services += usize::from(id.is_none());
            let (pairs, _) = pair(placed.map_or(&[], |placed| &placed.reals), &service.reals);
            let stays = |real| id.is_some_and(|id| self.ledger.left.contains_key(&(id, name(real))));
            let new = service.reals.iter().zip(pairs).filter(|(real, pair)| pair.is_none() && !stays(real));
            reals += new.count();
            if service.protection.allow.len() + service.protection.deny.len() > 0 {
                let lists = guard::lists(&service.protection, frontend.vip.is_ipv4());
                let known = |network| placed.is_some_and(|placed| placed.lists.contains_key(network));
                access += lists.keys().filter(|network| !known(network)).count();
            }
        }
        let Capacity { vips, access: lists, .. } = self.capacity;
        let wants = [
            ("services", services, self.ledger.services.left(now), self.capacity.services),
            ("reals", reals, self.ledger.reals.left(now), self.capacity.reals),
            ("addresses", new.announce.len(), vips as usize, vips),
            ("networks in allow and deny lists", access, lists as usize, lists),
        ];
        match wants.into_iter().find(|(_, wanted, left, _)| wanted > left) {
            Some((what, _, _, capacity)) => Err(Refused::Full { what, capacity }),
            None => Ok(()),
        }
    }

    fn remove(&mut self, frontend: &Frontend, pen: &mut Pen<'_>) {
        let Some(placed) = self.services.remove(frontend) else { return };
        self.ledger.left_services.insert(*frontend, Left { id: placed.id, since: pen.now });
        placed.leave(frontend, &mut self.ledger, pen, &mut self.departed);
        self.restless.remove(frontend);
        self.draining.remove(frontend);
    }

    fn change(&mut self, frontend: Frontend, service: &Service, pen: &mut Pen<'_>) {
        let mut placed = self.services.remove(&frontend).unwrap_or_else(|| {
            let left = self.ledger.left_services.remove(&frontend);
            let id = left.map_or_else(
                || {
                    let id = self.ledger.services.take(pen.now).expect("room was made sure of");
                    pen.write(Write::ResetService { id });
                    id
                },
                |left| left.id,
            );
            Placed { id, ..Placed::default() }
        });
        placed.change(&frontend, service, &mut self.ledger, pen, &mut self.departed);
        let mark = |set: &mut BTreeSet<Frontend>, marked| match marked {
            true => set.insert(frontend),
            false => set.remove(&frontend),
        };
        mark(&mut self.restless, placed.restless());
        mark(&mut self.draining, placed.drains());
        self.services.insert(frontend, placed);
    }
}

/// The VIPs that came and that went.
fn addresses(old: &OrdSet<IpAddr>, new: &OrdSet<IpAddr>) -> (Vec<IpAddr>, Vec<IpAddr>) {
    let (mut came, mut went) = (Vec::new(), Vec::new());
    for item in old.diff(new) {
        match item {
            ordset::DiffItem::Add(address) => came.push(*address),
            ordset::DiffItem::Remove(address) => went.push(*address),
        }
    }
    (came, went)
}

#[cfg(test)]
mod tests;
