//! Inputs on the loaded program's maps: packets go where the tables say, and all of it is found again.

#![allow(clippy::unwrap_used, reason = "a test says so by panicking")]

mod lab;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use aya::EbpfLoader;
use imbl::{OrdMap, OrdSet};
use tidegate_ebpf::{
    abi::{Hop, Mac, SECOND, map},
    layers,
};
use tidegate_l4::{
    Census, Forward, Frontend, Input, Protection, Protocol, Rate, Real, RealState, Service, SourceRate,
    maps::{self, Maps},
    tables::{Found, SETTLE, Tables, Write},
    xdp,
};

/// BPF_PROG_TEST_RUN's packets come by the loopback interface.
const LOOPBACK: u32 = 1;
const LOCAL: [&str; 2] = ["10.77.101.1", "fd77:0:101::1"];
const A: RealState = RealState::Active;
const D: RealState = RealState::Draining;

struct Loaded {
    maps: Maps,
    tables: Tables,
}

impl Loaded {
    fn new(reals: u32) -> Self {
        let mut loader = EbpfLoader::new();
        for (name, entries) in maps::sizes(LOCAL.len()).unwrap() {
            loader.map_max_entries(name, entries);
        }
        let cpus = aya::util::nr_cpus().unwrap() as u32;
        loader.map_max_entries(map::REALS, reals).map_max_entries(map::REAL_COUNTERS, reals * cpus);
        let mut ebpf = loader.load(xdp::object().unwrap()).unwrap();
        xdp::load(&mut ebpf).unwrap();
        let mut maps = Maps::take(ebpf).unwrap();
        assert_eq!(maps.settle(&LOCAL.map(|local| local.parse().unwrap()), &[]).unwrap(), None);
        maps.beat(Duration::from_secs(3600)).unwrap();
        let tables = Tables::adopt(&Found::default(), maps.capacity().unwrap(), now());
        Self { maps, tables }
    }

    fn give(&mut self, input: &Input) -> Vec<Write> {
        let Self { maps, tables, .. } = self;
        let mut writes = Vec::new();
        tables
            .plan(input, now(), &hop, |write| {
                maps.apply(&write).unwrap();
                writes.push(write);
            })
            .unwrap();
        writes
    }

    fn settle(&mut self, at: u64, census: &Census) {
        let Self { maps, tables, .. } = self;
        tables.settle(at, Some(census), &hop, |write| maps.apply(&write).unwrap());
    }

    /// What the program sends; `None`: nothing.
    fn send(&mut self, frame: &str) -> Option<String> {
        let (action, output) = self.maps.run("balance", &layers::write(frame)).unwrap();
        (action >= 3).then(|| layers::read(&output))
    }

    /// What lives at a moment.
    fn census(&self, at: u64) -> Census {
        let clock = self.maps.beat(Duration::from_secs(3600)).unwrap();
        self.maps.census(at, clock + at.saturating_sub(now()))
    }
}

fn now() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_COARSE).unwrap();
    time.tv_sec() as u64 * SECOND + time.tv_nsec() as u64
}

/// The reals .1 and .2 are the machines `r1` and `r2`.
fn hop(address: IpAddr) -> Hop {
    let last = match address {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(v6) => v6.octets()[15],
    };
    let mac = |tail: [u8; 2]| Mac::from([2, 0, 0, 0, tail[0], tail[1]]);
    Hop { ifindex: LOOPBACK, source_mac: mac([0, 1]), destination_mac: mac([1, last]), vlan: 0, mtu: 1500 }
}

fn service(family: [&str; 2], states: [RealState; 2], forward: Forward) -> Service {
    let real =
        |(address, state): (&str, RealState)| Real { address: address.parse().unwrap(), port: 8080, weight: 1, state };
    Service { reals: family.into_iter().zip(states).map(real).collect(), forward, ..Service::default() }
}

const V4: [&str; 2] = ["10.77.1.1", "10.77.1.2"];
const V6: [&str; 2] = ["fd77:0:1::1", "fd77:0:1::2"];

fn front(vip: &str, protocol: Protocol) -> Frontend {
    Frontend { vip: vip.parse().unwrap(), port: 80, protocol }
}

fn input(services: impl IntoIterator<Item = (Frontend, Service)>) -> Input {
    let services: OrdMap<Frontend, Arc<Service>> =
        services.into_iter().map(|(front, service)| (front, Arc::new(service))).collect();
    let announce: OrdSet<IpAddr> = services.keys().map(|frontend| frontend.vip).collect();
    Input { generation: 1, services, announce }
}

/// Everything that an Input can say.
fn everything(states: [RealState; 2]) -> Input {
    let mut guarded = service(V6, states, Forward::FullNat);
    guarded.protection = Protection {
        allow: vec!["fd77::/16".parse().unwrap()],
        deny: vec!["fd77::bad/128".parse().unwrap()],
        per_source: Some(SourceRate { rate: Rate { per_second: 1000, burst: 1000 }, prefix_v4: 24, prefix_v6: 64 }),
        per_vip: Some(Rate { per_second: 1000, burst: 2 }),
        syn_cookies_above: Some(500),
    };
    input([
        (front("10.77.100.1", Protocol::Tcp), service(V4, states, Forward::FullNat)),
        (front("10.77.100.2", Protocol::Tcp), service(V4, states, Forward::Direct)),
        (front("10.77.100.2", Protocol::Udp), service(V6, states, Forward::Gue { port: 6080 })),
        (front("fd77:0:100::1", Protocol::Tcp), guarded),
    ])
}

fn counts(loaded: &Loaded, front: Frontend) -> (u64, BTreeMap<IpAddr, u64>) {
    let placed = loaded.tables.get(&front).unwrap();
    let reals = placed.reals.iter().map(|placed| (placed.real.address, loaded.maps.real_counters(placed.id).packets));
    (loaded.maps.service_counters(placed.id).packets, reals.collect())
}

#[test]
fn packets_go_where_the_tables_say_and_are_counted() {
    if lab::skip() {
        return;
    }
    let mut loaded = Loaded::new(1024);
    loaded.give(&everything([A, A]));
    assert_eq!(loaded.send("eth c>b / ip4 10.77.0.10 > 10.77.100.9 / tcp 4000 > 80 S"), None, "not ours");
    for (frame, frontend) in [
        ("ip4 10.77.0.10 > 10.77.100.1 / tcp {} > 80 S", front("10.77.100.1", Protocol::Tcp)),
        ("ip4 10.77.0.10 > 10.77.100.2 / tcp {} > 80 S", front("10.77.100.2", Protocol::Tcp)),
        ("ip4 10.77.0.10 > 10.77.100.2 / udp {} > 80 +9", front("10.77.100.2", Protocol::Udp)),
    ] {
        for port in 4000..4100 {
            let frame = format!("eth c>b / {}", frame.replace("{}", &port.to_string()));
            let sent = loaded.send(&frame).unwrap_or_else(|| panic!("{frame} was not sent on"));
            assert!(sent.starts_with("eth b>r1") || sent.starts_with("eth b>r2"), "{sent}");
        }
        let (all, reals) = counts(&loaded, frontend);
        assert_eq!((all, reals.values().sum::<u64>()), (100, 100), "{frontend}");
        assert!(reals.values().all(|count| *count > 20), "{reals:?}");
    }
    let echo = "eth c>b / ip4 10.77.0.10 > 10.77.100.2 / icmp type=8 +8";
    assert!(loaded.send(echo).is_some_and(|sent| sent.contains("10.77.100.2 > 10.77.0.10")), "a VIP answers ping");
}

#[test]
fn lists_and_limits_hold() {
    if lab::skip() {
        return;
    }
    let mut loaded = Loaded::new(1024);
    loaded.give(&everything([A, A]));
    let open = |loaded: &mut Loaded, from: &str, port: u16| {
        loaded.send(&format!("eth c>b / ip6 {from} > fd77:0:100::1 / tcp {port} > 80 S")).is_some()
    };
    assert!(!open(&mut loaded, "fd77::bad", 4000), "denied");
    assert!(!open(&mut loaded, "fd99::1", 4000), "not allowed");
    assert!(open(&mut loaded, "fd77::1", 4000));
    let sent = (0..50).filter(|port| open(&mut loaded, "fd77::1", 5000 + port)).count();
    assert!((1..50).contains(&sent), "a burst of two, but {sent}");
    let dropped: BTreeMap<_, _> = loaded.maps.drops().unwrap().into_iter().collect();
    assert_eq!((dropped["denied"], dropped["service-rate"]), (2, 50 - sent as u64));
}

#[test]
fn a_draining_real_keeps_its_flows_until_they_are_over() {
    if lab::skip() {
        return;
    }
    let mut loaded = Loaded::new(1024);
    let vip = front("10.77.100.2", Protocol::Tcp);
    let direct = |states| input([(vip, service(V4, states, Forward::Direct))]);
    let began = now();
    loaded.give(&direct([A, A]));
    let segment = |port: u16, flags: &str| format!("eth c>b / ip4 10.77.0.10 > 10.77.100.2 / tcp {port} > 80 {flags}");
    let at = |loaded: &mut Loaded, port, flags: &str| loaded.send(&segment(port, flags)).unwrap()[4..8].to_owned();
    let before: Vec<(u16, String)> = (4000..4200).map(|port| (port, at(&mut loaded, port, "S"))).collect();
    let first = before.iter().filter(|(_, real)| real == "b>r1").count() as u64;
    assert!((60..140).contains(&first), "{first}");

    loaded.give(&direct([D, A]));
    for (port, real) in &before {
        // What shows itself twice is open.
        assert_eq!([(); 2].map(|()| at(&mut loaded, *port, "A")), [real.clone(), real.clone()], "{port} goes on");
    }
    for port in 5000..5200 {
        assert_eq!(at(&mut loaded, port, "S"), "b>r2", "{port} is new");
        assert_eq!(at(&mut loaded, port, "A"), "b>r2", "{port} stays");
    }
    let draining = loaded.tables.get(&vip).unwrap().reals[0].id;
    let census = loaded.census(began + SETTLE + 10 * SECOND);
    assert_eq!(census.live(draining), first);
    loaded.settle(began + SETTLE + 10 * SECOND, &census);
    assert_eq!((loaded.tables.moved().now, loaded.tables.moved().ended), (1, 0), "its flows are alive");

    for (port, _) in &before {
        at(&mut loaded, *port, "AF");
    }
    let later = began + SETTLE + 100 * SECOND;
    let census = loaded.census(later);
    assert_eq!(census.live(draining), 0);
    loaded.settle(later, &census);
    assert_eq!((loaded.tables.moved().now, loaded.tables.moved().ended), (0, 1));
    assert_eq!(at(&mut loaded, 5001, "A"), "b>r2", "the slot is stable");
}

#[test]
fn full_nat_flows_are_counted_by_real_and_survive_a_drain() {
    if lab::skip() {
        return;
    }
    let mut loaded = Loaded::new(1024);
    let vip = front("10.77.100.1", Protocol::Tcp);
    let nat = |states| input([(vip, service(V4, states, Forward::FullNat))]);
    loaded.give(&nat([A, A]));
    let segment = |port: u16, flags: &str| format!("eth c>b / ip4 10.77.0.10 > 10.77.100.1 / tcp {port} > 80 {flags}");
    let at = |loaded: &mut Loaded, port, flags: &str| loaded.send(&segment(port, flags)).unwrap()[4..8].to_owned();
    let before: Vec<(u16, String)> = (4000..4200).map(|port| (port, at(&mut loaded, port, "S"))).collect();
    let first = before.iter().filter(|(_, real)| real == "b>r1").count() as u64;
    loaded.give(&nat([D, A]));
    for (port, real) in &before {
        assert_eq!(at(&mut loaded, *port, "A"), *real);
    }
    let census = loaded.census(now());
    let ids: Vec<u32> = loaded.tables.get(&vip).unwrap().reals.iter().map(|placed| placed.id).collect();
    assert_eq!((census.live(ids[0]), census.live(ids[1])), (first, 200 - first));
    assert!(census.names_service(loaded.tables.get(&vip).unwrap().id));
}

#[test]
fn what_was_written_is_read_back() {
    if lab::skip() {
        return;
    }
    let mut loaded = Loaded::new(1024);
    loaded.give(&everything([A, A]));
    let input = everything([D, A]);
    loaded.give(&input);
    assert!(loaded.tables.moved().now > 0);
    let found = loaded.maps.found().unwrap();
    let mut adopted = Tables::adopt(&found, loaded.maps.capacity().unwrap(), now());
    assert_eq!(adopted.moved().now, loaded.tables.moved().now);
    adopted.plan(&input, now(), &hop, |write| panic!("nothing differs, but {write:?}")).unwrap();
    loaded.tables = adopted;
    let writes = loaded.give(&Input::default());
    assert!(!writes.is_empty());
    let found = loaded.maps.found().unwrap();
    assert!(found.services.is_empty() && found.access.is_empty() && found.vips.iter().all(|bits| *bits == 0));
}

fn many(services: u32, reals: u32, forward: Forward) -> Input {
    let service = |number: u32| {
        let real = |i: u32| Real {
            address: IpAddr::from((0x0a80_0000 + number * reals + i).to_be_bytes()),
            port: 8080,
            weight: 1,
            state: A,
        };
        Service { reals: (0..reals).map(real).collect(), forward, ..Service::default() }
    };
    let vip = |number: u32| IpAddr::from((0x0a4d_0000 + number).to_be_bytes());
    let front = |number| Frontend { vip: vip(number), port: 80, protocol: Protocol::Tcp };
    input((0..services).map(|number| (front(number), service(number))))
}

/// Times are printed for people; only counts are asserted.
#[test]
fn ten_thousand_services_of_ten_reals_fit_and_one_change_costs_one_change() {
    if lab::skip() {
        return;
    }
    let mut loaded = Loaded::new(131_072);
    let input = many(10_000, 10, Forward::Direct);
    let started = Instant::now();
    loaded.tables.plan(&input, now(), &hop, |write| loaded.maps.apply(&write).unwrap()).unwrap();
    println!("10,000 services of 10 reals: {:?}", started.elapsed());

    let started = Instant::now();
    let found = loaded.maps.found().unwrap();
    let read = started.elapsed();
    loaded.tables = Tables::adopt(&found, loaded.maps.capacity().unwrap(), now());
    println!("read back: {read:?}, adopted: {:?}", started.elapsed() - read);
    let started = Instant::now();
    loaded.tables.plan(&input, now(), &hop, |write| panic!("nothing differs, but {write:?}")).unwrap();
    println!("compared: {:?}", started.elapsed());

    let started = Instant::now();
    let census = loaded.census(now());
    println!("census of 131,072 flows and 524,288 records: {:?}", started.elapsed());
    assert_eq!(census.live(0), 0);
    let started = Instant::now();
    let sum: u64 = (0..10_000).map(|id| loaded.maps.service_counters(id).packets).sum();
    let reals: u64 = (0..100_000).map(|id| loaded.maps.real_counters(id).packets).sum();
    println!("all counters: {:?}", started.elapsed());
    assert_eq!((sum, reals), (0, 0));

    let mut changed = input;
    for number in 70..75 {
        let frontend = *changed.services.keys().nth(number).unwrap();
        let mut fewer = Service::clone(&changed.services[&frontend]);
        fewer.reals.pop();
        changed.services.insert(frontend, Arc::new(fewer));
        let started = Instant::now();
        let writes = loaded.give(&changed);
        println!("one real less: {} writes in {:?}", writes.len(), started.elapsed());
        assert!((102..=105).contains(&writes.len()), "a tenth of 1,024 slots, and one real: {}", writes.len());
    }
}

#[test]
fn a_real_of_a_thousand_comes_and_goes_by_a_thousandth_of_the_ring() {
    if lab::skip() {
        return;
    }
    for forward in [Forward::FullNat, Forward::Direct] {
        let mut loaded = Loaded::new(16_384);
        let mut all = many(1000, 1, forward);
        let frontend = *all.services.keys().next().unwrap();
        let mut thousand = Service::clone(&many(1, 1000, forward).services[&frontend]);
        all.services.insert(frontend, Arc::new(thousand.clone()));
        let started = Instant::now();
        loaded.tables.plan(&all, now(), &hop, |write| loaded.maps.apply(&write).unwrap()).unwrap();
        println!("{forward:?}: 1,000 services, one of them of 1,000 reals: {:?}", started.elapsed());
        for round in 0..3 {
            let real = thousand.reals.remove(500 + round);
            for (what, service) in [
                ("less", thousand.clone()),
                ("more", {
                    thousand.reals.insert(500 + round, real);
                    thousand.clone()
                }),
            ] {
                let changed = Input { services: all.services.update(frontend, Arc::new(service)), ..all.clone() };
                let started = Instant::now();
                let writes = loaded.give(&changed);
                println!("{forward:?}: one real {what}: {} writes in {:?}", writes.len(), started.elapsed());
                let slots = writes.iter().filter(|write| matches!(write, Write::Slot { .. })).count();
                // And a few that were on the move from the real that goes.
                assert!((65..=70).contains(&slots), "{slots} of 65,536 slots");
            }
        }
    }
}
