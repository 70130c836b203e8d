//! Slots that change hands while flows are on them.

use tidegate_ebpf::abi::{Move, Record};

use super::*;

fn direct(reals: &[(u8, RealState)]) -> Service {
    let reals = reals.iter().map(|(number, state)| real(*number, 1, *state)).collect();
    Service { reals, forward: Forward::Direct, ..Service::default() }
}

const A: RealState = RealState::Active;
const D: RealState = RealState::Draining;

fn udp() -> Frontend {
    Frontend { protocol: Protocol::Udp, ..front(1) }
}

impl World {
    fn id(&self, frontend: &Frontend, number: u8) -> u32 {
        let placed = self.tables.get(frontend).unwrap();
        let of = |placed: &&PlacedReal| placed.real.address == real(number, 1, A).address;
        placed.reals.iter().find(of).unwrap().id
    }

    /// Flows of these reals are recorded.
    fn recorded(&self, reals: &[u32]) -> Census {
        let record = |real: &u32| Record { mark: 1, real: *real, state: Record::OPEN, age: Record::now(self.now) };
        Census::take(self.now, [].into_iter(), reals.iter().map(record))
    }

    fn moves(&self, frontend: &Frontend) -> BTreeSet<(u32, u32, u32)> {
        let slots = self.image.slots(&self.image.services[&key(frontend)]);
        let moves = slots.into_iter().filter(|word| word & MOVING != 0).map(|word| self.image.moves[&(word & !MOVING)]);
        moves.map(|entry| (entry.previous, entry.current, entry.phase)).collect()
    }
}

#[test]
fn slots_of_a_draining_real_move_until_no_flow_needs_it() {
    let mut world = World::new();
    world.give(front(1), direct(&[(1, A), (2, A), (3, A)]));
    assert_eq!(world.image.moving(&front(1)), 0);
    let [a, b, c] = [1, 2, 3].map(|number| world.id(&front(1), number));
    world.give(front(1), direct(&[(1, D), (2, A), (3, A)]));
    assert_eq!(world.moves(&front(1)), [(a, b, Move::LEARNING), (a, c, Move::LEARNING)].into());
    assert_eq!(world.image.shares(&front(1)), [(2, 256), (3, 256)].into());
    world.wait(119);
    assert_ne!(world.image.moving(&front(1)), 0, "idle connections have had no time to show themselves");
    world.now += SECOND;
    let census = world.recorded(&[a]);
    assert_eq!(world.settle(&census), []);
    // Others' records are none of its business.
    let census = world.recorded(&[b, c]);
    world.settle(&census);
    assert_eq!(world.image.moving(&front(1)), 0);
    assert_eq!(world.tables.moved(), Moved { ended: 2, ..Moved::default() });
}

#[test]
fn slots_of_a_real_that_is_gone_are_stable_at_once() {
    let mut world = World::new();
    world.give(front(1), direct(&[(1, A), (2, A)]));
    world.give(front(1), direct(&[(2, A)]));
    assert_eq!((world.image.moving(&front(1)), world.image.shares(&front(1))), (0, [(2, 256)].into()));
    world.give(front(1), direct(&[(2, A), (3, A)]));
    assert_eq!(world.image.moving(&front(1)), 128, "a real that gives slots away keeps their flows");
    world.give(front(1), direct(&[(3, A)]));
    assert_eq!((world.image.moving(&front(1)), world.image.shares(&front(1))), (0, [(3, 256)].into()));
    assert_eq!(world.tables.moved().now, 0);
}

#[test]
fn full_nat_moves_nothing_since_every_flow_is_known() {
    let mut world = World::new();
    world.give(front(1), Service { forward: Forward::FullNat, ..direct(&[(1, A), (2, A)]) });
    world.give(front(1), Service { forward: Forward::FullNat, ..direct(&[(1, D), (2, A)]) });
    assert_eq!(world.image.moving(&front(1)), 0);
}

#[test]
fn a_service_that_becomes_full_nat_has_no_moves_any_more() {
    let mut world = World::new();
    world.give(front(1), direct(&[(1, A), (2, A)]));
    world.give(front(1), direct(&[(1, D), (2, A)]));
    let nat = Service { forward: Forward::FullNat, ..direct(&[(1, D), (2, A)]) };
    let mut writes = Vec::new();
    world
        .tables
        .plan(&input(OrdMap::unit(front(1), Arc::new(nat))), world.now, &hop, |write| writes.push(write))
        .unwrap();
    writes.into_iter().for_each(|write| world.image.apply(write));
    world.image.check();
    assert_eq!(world.image.moving(&front(1)), 0);
}

#[test]
fn a_udp_move_learns_for_ten_seconds_and_what_it_learnt_the_next_one_knows() {
    let mut world = World::new();
    world.give(udp(), direct(&[(1, A), (2, A)]));
    let [a, b] = [1, 2].map(|number| world.id(&udp(), number));
    world.give(udp(), direct(&[(1, D), (2, A)]));
    world.wait(9);
    assert_eq!(world.moves(&udp()), [(a, b, Move::LEARNING)].into());
    world.wait(1);
    assert_eq!(world.moves(&udp()), [(a, b, Move::KEEPING)].into());
    world.give(udp(), direct(&[(1, D), (2, D), (3, A)]));
    let c = world.id(&udp(), 3);
    assert_eq!(world.moves(&udp()), [(a, c, Move::KEEPING), (b, c, Move::LEARNING)].into());
}

#[test]
fn a_slot_that_moves_again_remembers_both_reals() {
    let mut world = World::new();
    world.give(front(1), direct(&[(1, A), (2, A)]));
    let [a, b] = [1, 2].map(|number| world.id(&front(1), number));
    world.give(front(1), direct(&[(1, D), (2, A)]));
    world.give(front(1), direct(&[(1, D), (2, D), (3, A)]));
    let c = world.id(&front(1), 3);
    assert_eq!(world.moves(&front(1)), [(a, c, Move::LEARNING), (b, c, Move::LEARNING)].into());
    world.now += 200 * SECOND;
    let census = world.recorded(&[b]);
    world.settle(&census);
    assert_eq!(world.image.moving(&front(1)), 512, "flows that the second real was given before are recorded");
    world.wait(1);
    assert_eq!(world.image.moving(&front(1)), 0);
}

#[test]
fn a_slot_that_comes_back_moves_until_the_flows_in_between_are_over() {
    let mut world = World::new();
    world.give(front(1), direct(&[(1, A)]));
    let a = world.id(&front(1), 1);
    world.give(front(1), direct(&[(1, D), (2, A)]));
    let b = world.id(&front(1), 2);
    world.give(front(1), direct(&[(1, A), (2, D)]));
    assert_eq!(world.moves(&front(1)), [(a, a, Move::LEARNING)].into());
    world.now += 200 * SECOND;
    let census = world.recorded(&[a, b]);
    world.settle(&census);
    assert_eq!(world.image.moving(&front(1)), 256);
    let census = world.recorded(&[a]);
    world.settle(&census);
    assert_eq!((world.image.moving(&front(1)), world.image.shares(&front(1))), (0, [(1, 256)].into()));
}

#[test]
fn a_real_that_goes_takes_its_moves_with_it_unless_others_need_them() {
    let mut world = World::new();
    world.give(front(1), direct(&[(1, A), (2, A)]));
    world.give(front(1), direct(&[(1, D), (2, A)]));
    world.give(front(1), direct(&[(1, D), (2, D), (3, A)]));
    let [b, c] = [2, 3].map(|number| world.id(&front(1), number));
    world.give(front(1), direct(&[(2, D), (3, A)]));
    assert_eq!(world.moves(&front(1)), [(c, c, Move::LEARNING), (b, c, Move::LEARNING)].into());
    world.give(front(1), direct(&[(3, A)]));
    assert_eq!(world.image.moving(&front(1)), 0);
}

#[test]
fn no_move_lasts_longer_than_an_hour() {
    let mut world = World::new();
    world.give(front(1), direct(&[(1, A), (2, A)]));
    let a = world.id(&front(1), 1);
    world.give(front(1), direct(&[(1, D), (2, A)]));
    for _ in 0..59 {
        world.now += 60 * SECOND;
        let census = world.recorded(&[a, a, a]);
        assert_eq!(world.settle(&census), []);
    }
    world.now += 60 * SECOND;
    let census = world.recorded(&[a, a, a]);
    world.settle(&census);
    assert_eq!(world.image.moving(&front(1)), 0);
    assert_eq!(world.tables.moved(), Moved { forced: 1, lost: 3, ..Moved::default() });
}

#[test]
fn an_old_census_ends_nothing() {
    let mut world = World::new();
    world.give(front(1), direct(&[(1, A), (2, A)]));
    world.give(front(1), direct(&[(1, D), (2, A)]));
    let census = Census::empty(world.now);
    world.now += 500 * SECOND;
    world.settle(&census);
    assert_eq!(world.image.moving(&front(1)), 128);
}

#[test]
fn where_the_moves_are_used_up_slots_change_hands_at_once() {
    let mut world = World::new();
    let reals =
        |first: RealState| (1..=36).map(|number| (number, if number == 1 { first } else { A })).collect::<Vec<_>>();
    world.give(front(1), direct(&reals(A)));
    world.give(front(1), direct(&reals(D)));
    let moving = world.image.moving(&front(1));
    assert!(moving > 100, "{moving}");
    let mut all = reals(D);
    all[1].1 = D;
    world.give(front(1), direct(&all));
    let Moved { now, at_once, .. } = world.tables.moved();
    assert!(now > 60 && at_once > 0, "{now} {at_once}");
    assert_eq!(world.image.shares(&front(1)).len(), 34);
}

#[test]
fn a_ring_that_grows_takes_its_moves_along() {
    let mut world = World::new();
    world.give(front(1), direct(&[(1, A), (2, A)]));
    let a = world.id(&front(1), 1);
    world.give(front(1), direct(&[(1, D), (2, A)]));
    assert_eq!(world.image.moving(&front(1)), 128);
    world.give(front(1), direct(&[(1, D), (2, A), (3, A)]));
    let from_a = world
        .image
        .slots(&world.image.services[&key(&front(1))])
        .into_iter()
        .filter(|word| word & MOVING != 0 && world.image.moves[&(word & !MOVING)].previous == a);
    assert_eq!(from_a.count(), 256, "twice as many slots, half of them as before");
}

#[test]
fn draining_reals_go_on_where_nobody_else_is_and_nobody_can_be_told() {
    let mut world = World::new();
    world.give(front(1), direct(&[(1, A), (2, A)]));
    let before = world.image.shares(&front(1));
    world.give(front(1), direct(&[(1, D), (2, D)]));
    assert_eq!((world.image.shares(&front(1)), world.image.moving(&front(1))), (before, 0));
}

#[test]
fn moves_survive_a_restart() {
    let mut world = World::new();
    let all = direct(&[(1, D), (2, A), (3, A)]);
    world.give(front(1), direct(&[(1, A), (2, A), (3, A)]));
    world.give(front(1), all.clone());
    let before = world.moves(&front(1));
    world.restart();
    assert_eq!(world.give(front(1), all), [], "nothing differs");
    assert_eq!(world.moves(&front(1)), before);
    assert_eq!(world.tables.moved().now, 2);
    world.wait(119);
    assert_eq!(world.moves(&front(1)), before, "they begin anew");
    world.wait(1);
    assert_eq!(world.image.moving(&front(1)), 0);
}
