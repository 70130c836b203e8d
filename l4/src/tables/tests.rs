//! Every write is tried on an image of the maps, and after each the image must be one that packets may see.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tidegate_ebpf::abi::{BLOCK_SLOTS, MOVING, SECOND, filter_bit};

use super::*;
use crate::input::{Forward, Protocol, Real, RealState};

mod guarded;
mod moving;
mod random;

const CAPACITY: Capacity = Capacity { services: 8, vips: 8, reals: 40, blocks: 64, moves: 64, access: 6 };

/// The maps.
#[derive(Clone, Default)]
struct Image {
    services: BTreeMap<ServiceKey, abi::Service>,
    frontends: BTreeMap<u32, abi::Frontend>,
    reals: BTreeMap<u32, abi::Real>,
    blocks: BTreeMap<u32, [u32; BLOCK_SLOTS]>,
    moves: BTreeMap<u32, abi::Move>,
    limits: BTreeMap<u32, abi::Limits>,
    access: BTreeMap<(u32, u32, abi::Address), u32>,
    vips: BTreeMap<u32, u64>,
}

impl Image {
    fn apply(&mut self, write: Write) {
        match write {
            Write::Real { id, value } => _ = self.reals.insert(id, value),
            Write::Ring { block, words } => {
                for (block, words) in (block..).zip(words.chunks(BLOCK_SLOTS)) {
                    self.blocks.insert(block, words.try_into().unwrap());
                }
            }
            Write::Slot { block, slot, word } => self.blocks.get_mut(&block).unwrap()[slot as usize] = word,
            Write::Move { index, value } => _ = self.moves.insert(index, value),
            Write::Frontend { id, value } => _ = self.frontends.insert(id, value),
            Write::Limits { id, value } => _ = self.limits.insert(id, value),
            Write::Access { network, value } => {
                let key = (u32::from_be(network.data.service), network.prefix, network.data.client);
                match value {
                    Some(value) => _ = self.access.insert(key, value),
                    None => _ = self.access.remove(&key).expect("what is removed was there"),
                }
                assert!(self.access.len() <= CAPACITY.access as usize);
            }
            Write::Service { key, value } => _ = self.services.insert(key, value),
            Write::RemoveService { key } => _ = self.services.remove(&key),
            Write::Vips { word, bits } => _ = self.vips.insert(word, bits),
            Write::ResetService { .. } | Write::ResetReal { .. } => {}
        }
    }

    fn shown(&self) -> impl Iterator<Item = (&ServiceKey, &abi::Service)> {
        self.services.iter().filter(|(key, _)| **key != ServiceKey::of_vip(key.vip))
    }

    fn blocks(service: &abi::Service) -> std::ops::Range<u32> {
        let blocks = if service.mask == 0 { 0 } else { (service.mask + 1) / BLOCK_SLOTS as u32 };
        service.block..service.block + blocks
    }

    fn slots(&self, service: &abi::Service) -> Vec<u32> {
        Self::blocks(service).flat_map(|block| self.blocks[&block]).collect()
    }

    /// What a packet may meet at any moment: each slot names reals of its service that are there, in a place of its
    /// own; what must be looked at first is written; the filter lets it in.
    fn check(&self) {
        let mut taken = BTreeSet::new();
        for (key, service) in self.shown() {
            for word in self.slots(service) {
                let real = |id: u32, who: &str| {
                    let real = self.reals.get(&id).unwrap_or_else(|| panic!("{key:?}: {who} is nobody"));
                    assert_eq!(real.service, service.id, "{key:?}: {who}");
                    real.state
                };
                if word & MOVING == 0 {
                    let draining =
                        service.mode != abi::Service::FULLNAT && real(word, "the slot's") == abi::Real::DRAINING;
                    assert!(draining || real(word, "the slot's") == abi::Real::ACTIVE, "{key:?}");
                } else {
                    assert_ne!(service.mode, abi::Service::FULLNAT, "its flows are known");
                    let entry = self.moves[&(word & !MOVING)];
                    assert_ne!(entry.phase, abi::Move::FREE);
                    assert!([abi::Real::ACTIVE, abi::Real::DRAINING].contains(&real(entry.current, "the next")));
                    assert_ne!(real(entry.previous, "the previous"), abi::Real::GONE);
                }
            }
            for block in Self::blocks(service) {
                assert!(block < CAPACITY.blocks && taken.insert(block), "block {block} is taken twice");
            }
            let frontend = self.frontends[&service.id];
            assert_eq!((frontend.vip, frontend.port, frontend.protocol), (key.vip, key.port, key.protocol));
            if service.checks & (abi::Service::SOURCE_RATE | abi::Service::SERVICE_RATE) != 0 {
                assert_ne!(self.limits[&service.id], abi::Limits::default());
            }
        }
        for (word, bits) in &self.vips {
            for bit in (0..64).filter(|bit| bits & 1 << bit != 0) {
                let known = self.services.keys().any(|key| filter_bit(&key.vip) == (*word, bit));
                assert!(known, "the filter lets in what nobody serves");
            }
        }
    }

    fn found(&self) -> Found {
        let dense =
            |of: &BTreeMap<u32, abi::Frontend>| (0..8).map(|i| of.get(&i).copied().unwrap_or_default()).collect();
        Found {
            services: self.services.iter().map(|(key, service)| (*key, *service)).collect(),
            frontends: dense(&self.frontends),
            reals: (0..CAPACITY.reals).map(|id| self.reals.get(&id).copied().unwrap_or_default()).collect(),
            rings: self.shown().map(|(_, service)| (service.id, self.slots(service))).collect(),
            moves: (0..CAPACITY.moves).map(|index| self.moves.get(&index).copied().unwrap_or_default()).collect(),
            limits: self.limits.clone().into_iter().collect(),
            access: self
                .access
                .iter()
                .map(|((service, prefix, client), value)| (key_of(*service, *prefix, *client), *value))
                .collect(),
            vips: (0..1024).map(|word| self.vips.get(&word).copied().unwrap_or_default()).collect(),
        }
    }

    /// The shares of a service's reals, by the last byte of their addresses; those of moving slots are the next's.
    fn shares(&self, frontend: &Frontend) -> BTreeMap<u8, usize> {
        let mut shares = BTreeMap::new();
        for word in self.slots(&self.services[&key(frontend)]) {
            let id = if word & MOVING == 0 { word } else { self.moves[&(word & !MOVING)].current };
            let IpAddr::V4(address) = self.reals[&id].address.into() else { panic!("only IPv4 here") };
            *shares.entry(address.octets()[3]).or_default() += 1;
        }
        shares
    }

    fn moving(&self, frontend: &Frontend) -> usize {
        self.slots(&self.services[&key(frontend)]).into_iter().filter(|word| word & MOVING != 0).count()
    }
}

fn key_of(service: u32, prefix: u32, client: abi::Address) -> abi::AccessKey {
    abi::AccessKey { prefix, data: abi::AccessKeyData { service: service.to_be(), client } }
}

fn input(services: OrdMap<Frontend, Arc<Service>>) -> Input {
    let announce: OrdSet<_> = services.keys().map(|frontend| frontend.vip).collect();
    Input { generation: 1, services, announce }
}

fn front(number: u8) -> Frontend {
    Frontend { vip: [10, 77, 100, number].into(), port: 80, protocol: Protocol::Tcp }
}

fn real(number: u8, weight: u16, state: RealState) -> Real {
    Real { address: [10, 77, 1, number].into(), port: 8080, weight, state }
}

fn active(count: u8) -> Arc<Service> {
    Arc::new(Service {
        reals: (0..count).map(|number| real(number, 1, RealState::Active)).collect(),
        ..Service::default()
    })
}

fn hop(_: IpAddr) -> abi::Hop {
    abi::Hop::default()
}

/// Tables and the image of their maps, as time goes by.
struct World {
    tables: Tables,
    image: Image,
    now: u64,
}

impl World {
    fn new() -> Self {
        Self { tables: Tables::adopt(&Found::default(), CAPACITY, 0), image: Image::default(), now: 1000 * SECOND }
    }

    fn plan(&mut self, input: &Input) -> Vec<Write> {
        let mut writes = Vec::new();
        self.tables.plan(input, self.now, &hop, |write| writes.push(write)).unwrap();
        self.see(writes)
    }

    fn give(&mut self, front: Frontend, service: Service) -> Vec<Write> {
        self.plan(&input(OrdMap::unit(front, Arc::new(service))))
    }

    fn settle(&mut self, census: &Census) -> Vec<Write> {
        let mut writes = Vec::new();
        self.tables.settle(self.now, Some(census), &hop, |write| writes.push(write));
        self.see(writes)
    }

    /// Nothing is alive any more.
    fn wait(&mut self, seconds: u64) -> Vec<Write> {
        self.now += seconds * SECOND;
        self.settle(&Census::empty(self.now))
    }

    fn see(&mut self, writes: Vec<Write>) -> Vec<Write> {
        for write in &writes {
            self.image.apply(write.clone());
            self.image.check();
        }
        writes
    }

    fn restart(&mut self) {
        self.tables = Tables::adopt(&self.image.found(), CAPACITY, self.now);
    }

    /// What the maps say is served.
    fn served(&self) -> OrdMap<Frontend, Arc<Service>> {
        Tables::adopt(&self.image.found(), CAPACITY, self.now).applied
    }
}

#[test]
fn a_service_is_shown_when_all_that_it_needs_is_there() {
    let writes = World::new().plan(&input(OrdMap::unit(front(1), active(2))));
    let kind = |write: &Write| match write {
        Write::ResetService { .. } => 's',
        Write::ResetReal { .. } => 'r',
        Write::Real { .. } => 'R',
        Write::Ring { .. } => 'B',
        Write::Slot { .. } => '.',
        Write::Move { .. } => 'M',
        Write::Frontend { .. } => 'F',
        Write::Limits { .. } => 'L',
        Write::Access { .. } => 'A',
        Write::Service { .. } => 'S',
        Write::RemoveService { .. } => 'X',
        Write::Vips { .. } => 'V',
    };
    assert_eq!(writes.iter().map(kind).collect::<String>(), "srRrRBFLSSV");
    assert!(matches!(writes[9], Write::Service { key, .. } if key == ServiceKey::of_vip(front(1).vip.into())));
}

#[test]
fn a_vip_without_a_service_is_known_and_one_that_goes_is_not_let_in_first() {
    let mut world = World::new();
    let vip = front(9).vip;
    let mut both = input(OrdMap::unit(front(1), active(1)));
    both.announce.insert(vip);
    world.plan(&both);
    assert!(world.image.services.contains_key(&ServiceKey::of_vip(vip.into())));
    let writes = world.plan(&Input::default());
    assert!(matches!(writes[0], Write::Vips { bits: 0, .. }), "{:?}", writes[0]);
    assert!(world.image.services.is_empty() && world.image.vips.values().all(|bits| *bits == 0));
}

#[test]
fn the_cost_follows_the_change() {
    let mut world = World::new();
    let all: OrdMap<_, _> = (1..=5).map(|number| (front(number), active(2))).collect();
    world.plan(&input(all.clone()));
    assert_eq!(world.plan(&input(all.clone())), [], "the same again");
    let mut drained = Service::clone(&all[&front(3)]);
    drained.reals[0].state = RealState::Draining;
    let writes = world.plan(&input(all.update(front(3), Arc::new(drained))));
    assert_eq!(writes.len(), 129, "half of 256 slots, and one real");
    assert!(matches!(writes.last(), Some(Write::Real { .. })), "a real drains when no slot names it any more");
}

#[test]
fn a_service_that_loses_its_last_real_keeps_its_place_without_a_ring() {
    let mut world = World::new();
    world.plan(&input(OrdMap::unit(front(1), active(1))));
    let id = world.tables.get(&front(1)).unwrap().id;
    world.plan(&input(OrdMap::unit(front(1), active(0))));
    assert_eq!(world.image.services[&key(&front(1))], abi::Service { id, ..abi::Service::default() });
    let used: BTreeSet<u32> = (0..64).collect();
    assert_eq!(used.len(), CAPACITY.blocks as usize);
}

#[test]
fn only_the_slots_of_the_real_that_goes_change_hands() {
    let mut world = World::new();
    world.plan(&input(OrdMap::unit(front(1), active(4))));
    let before = world.image.shares(&front(1));
    assert_eq!(before, (0..4).map(|number| (number, 128)).collect());
    let slots = |world: &World| world.image.slots(&world.image.services[&key(&front(1))]);
    let (was, gone) = (slots(&world), world.tables.get(&front(1)).unwrap().reals[3].id);
    world.plan(&input(OrdMap::unit(front(1), active(3))));
    let moved = was.iter().zip(slots(&world)).filter(|(was, is)| *was != is);
    assert!(moved.clone().all(|(was, _)| *was == gone));
    assert_eq!(moved.count(), 128);
    assert_eq!(world.image.shares(&front(1)).values().max(), Some(&171));
}

#[test]
fn an_id_is_given_to_another_real_only_when_nothing_names_it() {
    let mut world = World::new();
    world.plan(&input(OrdMap::unit(front(1), active(40))));
    let id = |world: &World, at: usize| world.tables.get(&front(1)).unwrap().reals[at].id;
    let gone = id(&world, 39);
    world.plan(&input(OrdMap::unit(front(1), active(39))));
    assert_eq!(world.image.reals[&gone].state, abi::Real::LEFT);
    let other = {
        let mut service = Service::clone(&active(39));
        service.reals.push(real(77, 1, RealState::Active));
        input(OrdMap::unit(front(1), Arc::new(service)))
    };
    let refused = |world: &mut World| world.tables.plan(&other, world.now, &hop, |write| panic!("wrote {write:?}"));
    assert_eq!(refused(&mut world), Err(Refused::Full { what: "reals", capacity: 40 }));

    let mut flow = abi::Flow { protocol: abi::TCP, answered: abi::Flow::HEARD, ..abi::Flow::default() };
    flow.set_real(gone, 0);
    for _ in 0..5 {
        world.now += 10 * SECOND;
        flow.seen = abi::Flow::tick(world.now);
        world.settle(&Census::take(world.now, [flow].into_iter(), [].into_iter()));
        assert!(refused(&mut world).is_err(), "a flow names it");
    }
    world.wait(10);
    assert_eq!(world.image.reals[&gone], abi::Real::default());
    assert!(refused(&mut world).is_err(), "it rests");
    world.wait(2);
    let writes = world.plan(&other);
    assert!(writes.contains(&Write::ResetReal { id: gone }));
    assert_eq!(id(&world, 39), gone);
}

#[test]
fn a_real_and_a_service_that_come_back_in_time_find_their_ids() {
    let mut world = World::new();
    let two = input([(front(1), active(2)), (front(2), active(1))].into_iter().collect());
    world.plan(&two);
    let ids = |world: &World| {
        let placed = world.tables.get(&front(1)).unwrap();
        (placed.id, placed.reals.iter().map(|placed| placed.id).collect::<Vec<_>>())
    };
    let before = ids(&world);
    world.plan(&input([(front(1), active(1)), (front(2), active(1))].into_iter().collect()));
    world.plan(&two);
    assert_eq!(ids(&world), before);
    world.plan(&input(OrdMap::unit(front(2), active(1))));
    world.restart();
    let writes = world.plan(&two);
    assert_eq!(ids(&world), before);
    assert!(!writes.iter().any(|write| matches!(write, Write::ResetReal { .. } | Write::ResetService { .. })));
}

#[test]
fn a_service_that_left_is_forgotten_when_no_flow_names_it() {
    let mut world = World::new();
    world.plan(&input(OrdMap::unit(front(1), active(1))));
    world.plan(&Input::default());
    let flow = |world: &World| abi::Flow {
        protocol: abi::UDP,
        seen: abi::Flow::tick(world.now),
        real_vlan: 30,
        ..abi::Flow::default()
    };
    world.now += 3 * SECOND;
    world.settle(&Census::take(world.now, [flow(&world)].into_iter(), [].into_iter()));
    assert_ne!(world.image.frontends[&0], abi::Frontend::default());
    assert_eq!(world.image.reals[&0], abi::Real::default());
    world.wait(3);
    assert_eq!(world.image.frontends[&0], abi::Frontend::default());
    assert!(!world.tables.wants_census());
}

#[test]
fn too_much_is_refused_before_the_first_write() {
    let mut world = World::new();
    world.plan(&input(OrdMap::unit(front(1), active(2))));
    let mut many_vips = input(OrdMap::unit(front(1), active(2)));
    many_vips.announce.extend((20..28).map(|number| front(number).vip));
    let many_services = (1..=9).map(|number| (Frontend { port: number, ..front(1) }, active(1))).collect();
    let many_reals = (1..=2).map(|number| (front(number), active(30))).collect();
    let cases = [
        (input(many_services), "services", 8),
        (input(many_reals), "reals", 40),
        (many_vips, "addresses", 8),
        (input(OrdMap::unit(front(1), guarded::closed(7))), "networks in allow and deny lists", 6),
    ];
    for (input, what, capacity) in cases {
        let refused = world.tables.plan(&input, world.now, &hop, |write| panic!("wrote {write:?}"));
        assert_eq!(refused, Err(Refused::Full { what, capacity }));
    }
    assert_eq!(world.served(), world.tables.applied);
}

#[test]
fn a_full_rings_map_makes_rings_coarser_and_not_absent() {
    let mut world = World::new();
    // Eight services of four reals want 512 slots, eight blocks, each: exactly what there is.
    let all: OrdMap<_, _> = (1..=8).map(|number| (front(number), active(4))).collect();
    world.plan(&input(all.clone()));
    let grown = all.update(front(1), active(12));
    world.plan(&input(grown.clone()));
    assert!(world.image.shown().all(|(_, service)| service.mask == 511));
    assert_eq!(world.image.shares(&front(1)).len(), 12);
    assert_eq!(world.served(), grown);
}

#[test]
fn a_ring_grows_elsewhere_and_its_old_place_is_used_again_later() {
    let mut world = World::new();
    world.plan(&input(OrdMap::unit(front(1), active(2))));
    let first = world.image.services[&key(&front(1))];
    world.plan(&input(OrdMap::unit(front(1), active(5))));
    let second = world.image.services[&key(&front(1))];
    assert_eq!((first.mask, second.mask, second.block), (255, 511, 8));
    let also = |number| input([(front(1), active(5)), (front(number), active(1))].into_iter().collect());
    world.plan(&also(2));
    assert_ne!(world.image.services[&key(&front(2))].block, first.block, "packets may be on their way through it");
    world.wait(2);
    world.plan(&also(3));
    assert_eq!(world.image.services[&key(&front(3))].block, first.block);
}

#[test]
fn a_hop_is_written_to_every_real_with_its_address() {
    let mut world = World::new();
    world.plan(&input((1..=2).map(|number| (front(number), active(2))).collect()));
    let hop = abi::Hop { ifindex: 3, ..abi::Hop::default() };
    let mut writes = Vec::new();
    world.tables.set_hop([10, 77, 1, 1].into(), hop, |write| writes.push(write));
    world.tables.set_hop([10, 77, 1, 1].into(), hop, |write| panic!("it is known: {write:?}"));
    world.tables.set_hop([10, 77, 1, 9].into(), hop, |write| panic!("nobody has it: {write:?}"));
    assert_eq!(writes.len(), 2);
    world.see(writes);
    assert_eq!(world.image.reals.values().filter(|real| real.hop == hop).count(), 2);
}

#[test]
fn a_half_written_ring_is_mended_and_a_real_without_a_service_goes() {
    let mut world = World::new();
    let all = input(OrdMap::unit(front(1), active(3)));
    world.plan(&all);
    let whole = world.image.shares(&front(1));
    let first = *world.image.blocks.keys().next().unwrap();
    world.image.blocks.insert(first, [999; BLOCK_SLOTS]);
    world.image.reals.insert(17, abi::Real { service: 5, state: abi::Real::ACTIVE, ..abi::Real::default() });
    world.image.vips.insert(1000, 1 << 40);
    world.restart();
    let mut writes = Vec::new();
    world.tables.plan(&all, world.now, &hop, |write| writes.push(write)).unwrap();
    writes.into_iter().for_each(|write| world.image.apply(write));
    world.image.check();
    let mended = world.image.shares(&front(1));
    assert!(whole.iter().zip(&mended).all(|((_, a), (_, b))| a.abs_diff(*b) <= 1), "{whole:?} {mended:?}");
    world.wait(3);
    assert_eq!(world.image.reals[&17], abi::Real::default());
}

#[test]
fn a_new_real_gets_its_share_step_by_step() {
    let mut world = World::new();
    let slow = |count| Service { slow_start_s: 20, ..Service::clone(&active(count)) };
    world.give(front(1), slow(1));
    assert_eq!(world.image.shares(&front(1)), [(0, 256)].into(), "the first has nobody to wait for");
    world.give(front(1), slow(2));
    assert_eq!(world.image.shares(&front(1))[&1], 23, "a tenth against one");
    let mut shares = vec![23];
    for _ in 0..10 {
        world.wait(2);
        shares.push(world.image.shares(&front(1))[&1]);
    }
    assert!(shares.is_sorted() && shares.last() == Some(&128), "{shares:?}");
    assert!(!world.tables.wants_census());
    world.give(front(1), Service { reals: vec![real(1, 1, RealState::Active)], ..slow(2) });
    assert_eq!(world.image.shares(&front(1)), [(1, 256)].into(), "leaving needs no steps");
}

#[test]
fn reals_that_leave_are_told_with_how_long_they_drained() {
    let mut world = World::new();
    world.give(front(1), Service::clone(&active(2)));
    let mut drained = Service::clone(&active(2));
    drained.reals[1].state = RealState::Draining;
    world.give(front(1), drained);
    assert!(world.tables.draining().contains(&front(1)));
    let since = world.now;
    world.wait(5);
    world.give(front(1), Service::clone(&active(1)));
    let departed = world.tables.take_departed();
    let expect = Departed {
        frontend: front(1),
        real: "10.77.1.1:8080".parse().unwrap(),
        id: 1,
        draining: Some(since),
        at: world.now,
    };
    assert_eq!(departed, [expect]);
    assert!(world.tables.draining().is_empty() && world.tables.take_departed().is_empty());
}
