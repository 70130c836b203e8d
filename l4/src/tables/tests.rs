//! Every write is tried on an image of the maps, and after each the image must be one that packets may see.

use std::collections::BTreeMap;

use imbl::OrdSet;
use proptest::prelude::*;

use super::*;

const CAPACITY: Capacity = Capacity { services: 8, reals: 40, blocks: 64 };

/// The maps.
#[derive(Clone, Default)]
struct Image {
    services: BTreeMap<ServiceKey, abi::Service>,
    reals: BTreeMap<u32, abi::Real>,
    blocks: BTreeMap<u32, RingBlock>,
}

impl Image {
    fn apply(&mut self, write: Write) {
        match write {
            Write::Real { id, value } => _ = self.reals.insert(id, value),
            Write::Block { block, value } => _ = self.blocks.insert(block, *value),
            Write::Service { key, value } => _ = self.services.insert(key, value),
            Write::RemoveService { key } => _ = self.services.remove(&key),
            Write::ResetService { .. } | Write::ResetReal { .. } => {}
        }
    }

    fn slots(&self, service: &abi::Service) -> Vec<u32> {
        let blocks = if service.mask == 0 { 0 } else { (service.mask + 1) / BLOCK_SLOTS as u32 };
        (service.block..service.block + blocks).flat_map(|block| self.blocks[&block].0).collect()
    }

    /// What a packet may meet at any moment: each slot names an active real of its service, in a place of its own.
    fn check(&self) {
        let mut taken = BTreeSet::new();
        for (key, service) in &self.services {
            for slot in self.slots(service) {
                let real = self.reals.get(&slot).unwrap_or_else(|| panic!("{key:?} points at nothing"));
                assert_eq!((real.service, real.state), (service.id, abi::Real::ACTIVE), "{key:?}");
            }
            let blocks = if service.mask == 0 { 0 } else { (service.mask + 1) / BLOCK_SLOTS as u32 };
            for block in service.block..service.block + blocks {
                assert!(block < CAPACITY.blocks && taken.insert(block), "block {block} is taken twice");
            }
        }
    }

    fn found(&self) -> Found {
        Found {
            services: self.services.iter().map(|(key, service)| (*key, *service)).collect(),
            reals: (0..CAPACITY.reals).map(|id| self.reals.get(&id).copied().unwrap_or_default()).collect(),
            rings: self.services.values().map(|service| (service.id, self.slots(service))).collect(),
        }
    }

    /// What the maps say is served, the shares of the rings too.
    fn served(&self) -> Input {
        let tables = Tables::adopt(&self.found(), CAPACITY);
        assert!(tables.dirty.is_empty() && tables.orphans.is_empty());
        input(tables.applied.clone())
    }
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

fn plan(tables: &mut Tables, image: &mut Image, input: &Input) -> Vec<Write> {
    let mut writes = Vec::new();
    tables.plan(input, |write| writes.push(write)).unwrap();
    for write in &writes {
        image.apply(write.clone());
        image.check();
    }
    writes
}

fn fresh() -> (Tables, Image) {
    (Tables::adopt(&Found::default(), CAPACITY), Image::default())
}

#[test]
fn a_service_is_shown_when_its_reals_and_ring_are_there() {
    let (mut tables, mut image) = fresh();
    let writes = plan(&mut tables, &mut image, &input(OrdMap::unit(front(1), active(2))));
    let kind = |write: &Write| match write {
        Write::ResetService { .. } => 's',
        Write::ResetReal { .. } => 'r',
        Write::Real { .. } => 'R',
        Write::Block { .. } => 'B',
        Write::Service { .. } => 'S',
        Write::RemoveService { .. } => 'X',
    };
    assert_eq!(writes.iter().map(kind).collect::<String>(), "srRrRBBBBS");
}

#[test]
fn the_cost_follows_the_change() {
    let (mut tables, mut image) = fresh();
    let all: OrdMap<_, _> = (1..=5).map(|number| (front(number), active(2))).collect();
    plan(&mut tables, &mut image, &input(all.clone()));
    assert_eq!(plan(&mut tables, &mut image, &input(all.clone())), [], "the same again");
    let mut drained = Service::clone(&all[&front(3)]);
    drained.reals[0].state = RealState::Draining;
    let writes = plan(&mut tables, &mut image, &input(all.update(front(3), Arc::new(drained))));
    assert!(writes.len() <= 5, "one ring of four blocks and one real: {}", writes.len());
    assert!(matches!(writes.last(), Some(Write::Real { .. })), "a real drains when no slot names it any more");
}

#[test]
fn a_service_that_loses_its_last_active_real_keeps_its_place_without_a_ring() {
    let (mut tables, mut image) = fresh();
    plan(&mut tables, &mut image, &input(OrdMap::unit(front(1), active(1))));
    let id = tables.get(&front(1)).unwrap().id;
    plan(&mut tables, &mut image, &input(OrdMap::unit(front(1), active(0))));
    let expect = abi::Service { id, block: 0, mask: 0 };
    assert_eq!(image.services[&key(&front(1))], expect);
}

#[test]
fn an_id_that_is_used_again_has_a_new_epoch_and_no_old_counters() {
    let (mut tables, mut image) = fresh();
    let mut seen = BTreeSet::new();
    for round in 0..200_u8 {
        let one = Service { reals: vec![real(round, 1, RealState::Active)], ..Service::default() };
        let writes = plan(&mut tables, &mut image, &input(OrdMap::unit(front(1), Arc::new(one))));
        let placed = tables.get(&front(1)).unwrap().reals[0];
        assert!(writes.contains(&Write::ResetReal { id: placed.id }));
        assert!(seen.insert((placed.id, placed.epoch)), "round {round}");
    }
}

#[test]
fn too_much_is_refused_before_the_first_write() {
    let (mut tables, mut image) = fresh();
    plan(&mut tables, &mut image, &input(OrdMap::unit(front(1), active(2))));
    let many_services: OrdMap<_, _> = (1..=9).map(|number| (front(number), active(1))).collect();
    let many_reals: OrdMap<_, _> = (1..=2).map(|number| (front(number), active(30))).collect();
    for (services, what, capacity) in [(many_services, "services", 8), (many_reals, "reals", 40)] {
        let refused = tables.plan(&input(services), |write| panic!("wrote {write:?}"));
        assert_eq!(refused, Err(Refused::Full { what, capacity }));
    }
    assert_eq!(image.served(), input(tables.applied.clone()));
}

#[test]
fn a_full_rings_map_makes_rings_coarser_and_not_absent() {
    let (mut tables, mut image) = fresh();
    // Eight services of four reals want 512 slots, eight blocks, each: exactly what there is.
    let all: OrdMap<_, _> = (1..=8).map(|number| (front(number), active(4))).collect();
    plan(&mut tables, &mut image, &input(all.clone()));
    let grown = input(all.update(front(1), active(12)));
    plan(&mut tables, &mut image, &grown);
    assert!(image.services.values().all(|service| service.mask != 0));
    assert_eq!(image.served(), grown);
}

#[test]
fn a_half_written_ring_is_written_again_and_a_real_without_a_service_goes() {
    let (mut tables, mut image) = fresh();
    let all = input(OrdMap::unit(front(1), active(3)));
    plan(&mut tables, &mut image, &all);
    let first = *image.blocks.keys().next().unwrap();
    image.blocks.insert(first, RingBlock([image.blocks[&first].0[0]; BLOCK_SLOTS]));
    image.reals.insert(17, abi::Real { service: 5, state: abi::Real::ACTIVE, epoch: 4, ..abi::Real::default() });
    let mut tables = Tables::adopt(&image.found(), CAPACITY);
    plan(&mut tables, &mut image, &all);
    assert_eq!(image.served(), all);
    assert_eq!(image.reals[&17], abi::Real { epoch: 4, ..abi::Real::default() });
}

fn inputs() -> impl Strategy<Value = Vec<Input>> {
    let state = prop_oneof![3 => Just(RealState::Active), 1 => Just(RealState::Draining)];
    let reals = prop::collection::btree_map(0u8..8, (1u16..4, state), 0..5);
    let services = prop::collection::btree_map(0u8..7, reals, 0..7);
    let to_input = |services: BTreeMap<u8, BTreeMap<u8, (u16, RealState)>>| {
        let service = |reals: BTreeMap<u8, (u16, RealState)>| {
            let reals = reals.into_iter().map(|(number, (weight, state))| real(number, weight, state)).collect();
            Arc::new(Service { reals, ..Service::default() })
        };
        input(services.into_iter().map(|(number, reals)| (front(number), service(reals))).collect())
    };
    prop::collection::vec(services.prop_map(to_input), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// With restarts in between, at any write.
    #[test]
    fn any_way_leads_to_what_the_input_says(inputs in inputs(), deaths in prop::collection::vec(0usize..400, 12)) {
        let (mut tables, mut image) = fresh();
        for (input, death) in inputs.iter().zip(deaths) {
            let mut writes = Vec::new();
            prop_assume!(tables.plan(input, |write| writes.push(write)).is_ok());
            let whole = death > writes.len();
            for write in writes.into_iter().take(death) {
                image.apply(write);
                image.check();
            }
            if !whole {
                // The process dies, the next one takes over.
                tables = Tables::adopt(&image.found(), CAPACITY);
                plan(&mut tables, &mut image, input);
            }
            prop_assert_eq!(&image.served(), input);
            let mut adopted = Tables::adopt(&image.found(), CAPACITY);
            adopted.plan(input, |write| panic!("a restart changes nothing, but wrote {write:?}")).unwrap();
        }
    }
}
