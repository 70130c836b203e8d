//! Any sequence of Inputs, with deaths and waits in between.

use super::*;

fn inputs() -> impl Strategy<Value = Vec<Input>> {
    let state = prop_oneof![3 => Just(RealState::Active), 1 => Just(RealState::Draining)];
    let reals = prop::collection::btree_map(0u8..8, (1u16..4, state), 0..5);
    let services = prop::collection::btree_map(0u8..7, (reals, 0u32..3), 0..7);
    type Services = BTreeMap<u8, (BTreeMap<u8, (u16, RealState)>, u32)>;
    let to_input = |services: Services| {
        let service = |number: u8, (reals, slow_start_s): (BTreeMap<u8, (u16, RealState)>, u32)| {
            let reals = reals.into_iter().map(|(number, (weight, state))| real(number, weight, state)).collect();
            // A mode that changes is another story: its flows are lost.
            let forward = if number.is_multiple_of(2) { Forward::FullNat } else { Forward::Direct };
            Arc::new(Service { reals, forward, slow_start_s, ..Service::default() })
        };
        input(services.into_iter().map(|(number, of)| (front(number), service(number, of))).collect())
    };
    prop::collection::vec(services.prop_map(to_input), 1..12)
}

/// As the maps hold it: nothing of how reals come or are protected.
fn shown(input: &Input) -> OrdMap<Frontend, Arc<Service>> {
    input
        .services
        .iter()
        .map(|(frontend, service)| (*frontend, Arc::new(Service { slow_start_s: 0, ..Service::clone(service) })))
        .collect()
}

/// Every real that must serve has its share, within a slot.
fn fair(world: &World, input: &Input) {
    for (frontend, service) in &input.services {
        let entry = world.image.services[&key(frontend)];
        let direct = service.forward == Forward::Direct;
        let none = !service.reals.iter().any(|real| real.state == RealState::Active);
        let serving = || service.reals.iter().filter(|real| real.state == RealState::Active || none && direct);
        let total: u32 = serving().map(|real| u32::from(real.weight)).sum();
        if total == 0 {
            assert_eq!(entry.mask, 0);
            continue;
        }
        let shares = world.image.shares(frontend);
        for real in serving() {
            let IpAddr::V4(address) = real.address else { panic!("only IPv4 here") };
            let exact = f64::from(real.weight) * f64::from(entry.mask + 1) / f64::from(total);
            let share = shares.get(&address.octets()[3]).copied().unwrap_or_default() as f64;
            assert!((share - exact).abs() < 1.0, "{frontend}: {share} of {exact}");
        }
        assert_eq!(shares.len(), serving().count());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// With restarts in between, at any write.
    #[test]
    fn any_way_leads_to_what_the_input_says(
        inputs in inputs(),
        deaths in prop::collection::vec(0usize..2000, 12),
        waits in prop::collection::vec(0u64..130, 12),
    ) {
        let mut world = World::new();
        for ((input, death), wait) in inputs.iter().zip(deaths).zip(waits) {
            world.wait(3);
            let mut writes = Vec::new();
            prop_assume!(world.tables.plan(input, world.now, &hop, |write| writes.push(write)).is_ok());
            let whole = death > writes.len();
            for write in writes.into_iter().take(death) {
                world.image.apply(write);
                world.image.check();
            }
            if !whole {
                // The process dies, the next one takes over.
                world.restart();
                world.wait(3);
                prop_assume!(world.tables.plan(input, world.now, &hop, |write| writes_seen(&mut world.image, write)).is_ok());
            }
            prop_assert_eq!(&world.served(), &shown(input));
            let mut adopted = Tables::adopt(&world.image.found(), CAPACITY, world.now);
            let mut ramping = false;
            adopted.plan(input, world.now, &hop, |write| {
                // Only a real that was on its way to its share jumps to it.
                ramping |= matches!(write, Write::Slot { .. } | Write::Move { .. });
                assert!(ramping, "a restart changes nothing, but wrote {write:?}");
            }).unwrap();
            world.wait(wait);
            if wait >= 3 {
                fair(&world, input);
            }
        }
        world.wait(130);
        world.wait(130);
        world.wait(130);
        prop_assert_eq!(world.tables.moved().now, 0);
        prop_assert!(world.image.shown().all(|(_, service)| world.image.slots(service).iter().all(|word| word & MOVING == 0)));
        prop_assert_eq!(world.tables.wants_census(), !world.tables.draining().is_empty());
    }
}

fn writes_seen(image: &mut Image, write: Write) {
    image.apply(write);
    image.check();
}
