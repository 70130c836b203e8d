//! Many flows whose first choices are the same few places.

use std::{collections::HashMap, sync::LazyLock};

use proptest::prelude::*;

use super::run;
use crate::{
    abi::{Flow, SECOND, TCP, Tuple},
    balance::Verdict,
    host::Memory,
    layers, scripts, select,
};

const VIP: &str = "10.77.100.1";
const GROUP: usize = Flow::GROUP as usize;

/// The last byte of the address, and the port.
type Client = (u8, u16);

/// Clients whose flows all begin in one group of places: twice as many as have room in it, and others, one for each of
/// its places.
static CROWD: LazyLock<([Client; 2 * GROUP], [Client; GROUP])> = LazyLock::new(|| {
    let home = |(host, port): Client| {
        let tuple = Tuple {
            source: scripts::ip(&format!("10.77.0.{host}")),
            destination: scripts::ip(VIP),
            source_port: port,
            destination_port: 80,
            protocol: TCP,
            pad: [0; 3],
        };
        Flow::home(select::hash(&tuple), 0, 1)
    };
    let all = (10..60).flat_map(|host| (1024..=u16::MAX).map(move |port| (host, port)));
    let group = home((10, 1024)) / Flow::GROUP;
    let near: Vec<Client> = all.filter(|client| home(*client) / Flow::GROUP == group).collect();
    let (many, rest) = near.split_first_chunk().expect("the hash spreads flows evenly");
    let at = |place: usize| rest.iter().find(|client| home(**client) as usize % GROUP == place).copied();
    (*many, std::array::from_fn(|place| at(place).expect("the hash spreads flows evenly")))
});

fn send(memory: &Memory, (host, port): Client, flags: &str) -> Verdict {
    run(memory, &layers::write(&format!("eth c>b / ip4 10.77.0.{host} > {VIP} / tcp {port} > 80 {flags}"))).0
}

fn all(memory: &Memory, clients: &[Client], flags: &str) {
    for client in clients {
        send(memory, *client, flags);
    }
}

/// The flows that are not in their first choice: in its group, and in others.
fn elsewhere(memory: &Memory) -> (usize, usize) {
    let flows = &memory.0.borrow().flows;
    let groups = flows.iter().filter(|(_, flow)| flow.from() != 0);
    let (near, far): (Vec<_>, Vec<_>) =
        groups.partition(|(place, flow)| flow.from() / Flow::GROUP == **place / Flow::GROUP);
    (near.len(), far.len())
}

fn counted(memory: &Memory) -> usize {
    memory.0.borrow().flows.values().map(|flow| usize::from(flow.spilled)).sum()
}

fn check(memory: &Memory) {
    let flows = &memory.0.borrow().flows;
    let mut from: HashMap<u32, u8> = HashMap::new();
    let mut known = HashMap::new();
    for (place, flow) in flows {
        assert_eq!(flow.lock & Flow::LOCKED, 0, "{place} is free to be taken");
        if flow.from() != 0 {
            assert_ne!(flow.from(), *place);
            *from.entry(flow.from()).or_default() += 1;
        }
        if flow.protocol != 0 {
            let twin = known.insert((flow.client, flow.client_port, flow.service), place);
            assert_eq!(twin, None, "a flow that was at {twin:?} already has begun again at {place}");
        }
    }
    for (place, flow) in flows {
        assert_eq!(flow.spilled, from.remove(place).unwrap_or_default(), "flows of {place} that are elsewhere");
    }
    assert!(from.is_empty());
}

proptest! {
    #[test]
    fn a_place_knows_how_many_of_its_flows_are_elsewhere_and_no_flow_begins_twice(
        packets in prop::collection::vec((0..2 * GROUP, 0..4_usize, 0..90_u64), 1..300)
    ) {
        let (clients, _) = *CROWD;
        let memory = scripts::world(1000 * SECOND);
        for (client, flags, pause) in packets {
            // Long enough at times for a real to forget a port, or for a handshake to be over.
            memory.0.borrow_mut().now += if pause > 80 { pause * SECOND } else { 0 };
            send(&memory, clients[client], ["S", "A", "FA", "R"][flags]);
            check(&memory);
        }
    }
}

#[test]
fn a_place_whose_neighbours_were_busy_is_as_quick_as_before_when_they_are_free_again() {
    let memory = scripts::world(1000 * SECOND);
    let (clients, residents) = *CROWD;
    all(&memory, &clients, "S");
    let (near, far) = elsewhere(&memory);
    assert!(near > 0 && far == GROUP, "{near} in their group, {far} in others");
    all(&memory, &clients, "R");
    memory.0.borrow_mut().now += 100 * SECOND;
    all(&memory, &residents, "S");
    assert_eq!(elsewhere(&memory), (0, far), "each resident is at home");
    assert_eq!(counted(&memory), far, "what is in no neighbour any more is not looked for there");
    check(&memory);
}

#[test]
fn more_than_a_byte_can_count_are_not_sent_elsewhere() {
    let memory = scripts::world(1000 * SECOND);
    let (clients, _) = *CROWD;
    send(&memory, clients[0], "S");
    let lively = |memory: &Memory| {
        let mut flows: Vec<(u32, Flow)> = memory.0.borrow().flows.clone().into_iter().collect();
        flows.retain(|(_, flow)| flow.protocol != 0);
        flows.sort_by_key(|(place, _)| *place);
        flows
    };
    let (place, flow) = lively(&memory)[0];
    let group = place / Flow::GROUP * Flow::GROUP;
    for place in group..group + Flow::GROUP {
        let other = Flow { client_port: 9, spilled: Flow::MOST_SPILLED, ..flow };
        memory.0.borrow_mut().flows.insert(place, other);
    }
    let before = lively(&memory);
    let sent = send(&memory, clients[1], "S");
    assert!(matches!(sent, Verdict::Drop(_)), "{sent:?}");
    assert_eq!(lively(&memory), before);
}
