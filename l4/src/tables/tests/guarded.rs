//! What protects a service is written before it is looked for, and goes after it.

use super::*;
use crate::input::{Protection, Rate};

/// Closed but for so many networks.
pub(super) fn closed(count: u8) -> Arc<Service> {
    let allow = (0..count).map(|number| format!("192.0.{number}.0/24").parse().unwrap()).collect();
    let protection = Protection { allow, ..Protection::default() };
    Arc::new(Service { protection, ..Service::clone(&active(1)) })
}

fn at(writes: &[Write], of: impl Fn(&Write) -> bool) -> usize {
    writes.iter().position(of).expect("it is among the writes")
}

fn is_service(write: &Write) -> bool {
    matches!(write, Write::Service { key, .. } if key.protocol != 0)
}

#[test]
fn lists_are_there_before_they_are_looked_at_and_only_what_differs_is_written() {
    let mut world = World::new();
    let one = |service: Arc<Service>| input(OrdMap::unit(front(1), service));
    world.plan(&one(active(1)));
    let writes = world.plan(&one(closed(2)));
    assert!(at(&writes, |write| matches!(write, Write::Access { .. })) < at(&writes, is_service));
    assert_eq!((writes.len(), world.image.access.len()), (3, 2));
    let prefixes: BTreeSet<u32> = world.image.access.keys().map(|(_, prefix, _)| *prefix).collect();
    assert_eq!(prefixes, [32 + 96 + 24].into());
    assert_eq!(world.plan(&one(closed(3))).len(), 1, "one network more");
    let writes = world.plan(&one(active(1)));
    assert!(at(&writes, |write| matches!(write, Write::Access { .. })) > at(&writes, is_service));
    assert!(world.image.access.is_empty());
    world.plan(&one(closed(6)));
    world.plan(&Input::default());
    assert!(world.image.access.is_empty());
    world.plan(&one(closed(6)));
}

#[test]
fn limits_come_first_too() {
    let mut world = World::new();
    let protection = Protection { per_vip: Some(Rate { per_second: 10, burst: 5 }), ..Protection::default() };
    let writes = world.give(front(1), Service { protection, ..Service::clone(&active(1)) });
    assert!(at(&writes, |write| matches!(write, Write::Limits { .. })) < at(&writes, is_service));
    assert_eq!(world.image.services[&key(&front(1))].checks, abi::Service::SERVICE_RATE);
}

#[test]
fn after_a_restart_what_protects_is_as_the_input_says() {
    let mut world = World::new();
    let protected = |service: Arc<Service>| input(OrdMap::unit(front(1), service));
    world.plan(&protected(closed(4)));
    world.restart();
    assert_eq!(world.plan(&protected(closed(4))), []);
    world.restart();
    assert_eq!(world.plan(&protected(closed(3))).len(), 1);
    let orphan = (7, 32 + 96 + 8, abi::Address::from(IpAddr::from([10, 0, 0, 0])));
    world.image.access.insert(orphan, 0);
    world.restart();
    world.plan(&protected(closed(3)));
    assert_eq!(world.image.access.len(), 3, "what belongs to nobody goes");
}

#[test]
fn a_mode_that_changes_is_told_to_the_services_packets_and_to_its_flows() {
    let mut world = World::new();
    world.plan(&input(OrdMap::unit(front(1), active(2))));
    let gue = Service { forward: Forward::Gue { port: 6080 }, ..Service::clone(&active(2)) };
    let writes = world.give(front(1), gue);
    assert_eq!(writes.len(), 2);
    let service = world.image.services[&key(&front(1))];
    assert_eq!((service.mode, service.tunnel_port), (abi::Service::GUE, 6080));
    assert_eq!(world.image.frontends[&service.id].mode, abi::Service::GUE);
    world.restart();
    assert_eq!(world.tables.applied[&front(1)].forward, Forward::Gue { port: 6080 });
}
