//! The object that the kernel runs against the packet core in ordinary memory: same maps, same frames, same answers.

#![allow(clippy::unwrap_used, reason = "a test says so by panicking")]

mod lab;

use std::{net::IpAddr, sync::Arc};

use aya::{Ebpf, EbpfLoader, TestRun, TestRunOptions, programs::Xdp};
use imbl::{OrdMap, OrdSet};
use tidegate_ebpf::{
    Hop, Verdict,
    abi::{Address, LOCALS, map},
    balance,
    frames::Build,
    host::{Frame, Memory},
};
use tidegate_l4::{
    Frontend, Input, Protocol, Real, RealState, Service,
    maps::Maps,
    tables::{Found, Tables, Write},
    xdp,
};

/// BPF_PROG_TEST_RUN's packets come by the loopback interface.
const LOOPBACK: u32 = 1;
const LOCAL: [&str; 2] = ["10.77.101.1", "fd77:0:101::1"];

struct Pair {
    ebpf: Ebpf,
    maps: Maps,
    memory: Memory,
    tables: Tables,
}

impl Pair {
    /// In the current namespace.
    fn new() -> Self {
        Self::load(
            EbpfLoader::new()
                .map_max_entries(map::FLOWS, 16_384)
                .map_max_entries(map::REVERSES, 16_384)
                .map_max_entries(map::RINGS, 1024)
                .map_max_entries(map::REALS, 1024)
                .map_max_entries(map::REAL_COUNTERS, 1024),
        )
    }

    fn load(loader: &mut EbpfLoader<'_>) -> Self {
        let mut ebpf = loader.load(xdp::object().unwrap()).unwrap();
        let program: &mut Xdp = ebpf.program_mut("balance").unwrap().try_into().unwrap();
        program.load().unwrap();
        let info = program.info().unwrap();
        println!("verified {:?} instructions, jited {} bytes", info.verified_instruction_count(), info.size_jitted());
        let mut maps = Maps::take(&mut ebpf).unwrap();
        maps.settle(&LOCAL.map(|local| local.parse().unwrap())).unwrap();
        let memory = Memory::new();
        {
            let state = &mut *memory.0.borrow_mut();
            (state.settings.locals_v4, state.settings.locals_v6) = (1, 1);
            state.locals.insert(0, address(LOCAL[0]));
            state.locals.insert(LOCALS, address(LOCAL[1]));
        }
        let tables = Tables::adopt(&Found::default(), maps.capacity().unwrap());
        Self { ebpf, maps, memory, tables }
    }

    fn give(&mut self, input: &Input) {
        let Self { maps, memory, tables, .. } = self;
        tables
            .plan(input, |write| {
                maps.apply(&write).unwrap();
                let state = &mut *memory.0.borrow_mut();
                match write {
                    Write::Real { id, value } => _ = state.reals.insert(id, value),
                    Write::Block { block, value } => _ = state.rings.insert(block, *value),
                    Write::Service { key, value } => _ = state.services.insert(key, value),
                    Write::RemoveService { key } => _ = state.services.remove(&key),
                    Write::ResetService { id } => _ = state.service_counters.remove(&id),
                    Write::ResetReal { id } => _ = state.real_counters.remove(&id),
                }
            })
            .unwrap();
    }

    /// Both sides must say and write the same.
    fn run(&mut self, input: &[u8]) -> (Verdict, Vec<u8>) {
        let mut frame = Frame::new(input, LOOPBACK);
        let verdict = balance(&mut frame, &self.memory);
        let program: &mut Xdp = self.ebpf.program_mut("balance").unwrap().try_into().unwrap();
        let mut output = vec![0; input.len()];
        let options = TestRunOptions { data_in: Some(input), data_out: Some(&mut output), ..TestRunOptions::new() };
        let result = program.test_run(options).unwrap();
        // XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT.
        let expected = match verdict {
            Verdict::Drop(_) => 1,
            Verdict::Pass => 2,
            Verdict::Transmit => 3,
            Verdict::Redirect(_) => 4,
        };
        assert_eq!(result.return_value, expected, "{verdict:?} for {:?}", Build::read(input).map(|b| b.to_string()));
        assert_eq!(output, frame.bytes(), "{verdict:?}");
        (verdict, output)
    }
}

fn address(text: &str) -> Address {
    text.parse::<IpAddr>().unwrap().into()
}

/// A world with a link that leads to four reals, two of either family.
fn world() -> (lab::Namespace, [(&'static str, [u8; 6]); 4]) {
    let namespace = lab::Namespace::new();
    namespace.ip("link add v0 type veth peer name v1
         link set v0 address 02:00:00:00:00:01
         link set v0 up
         link set v1 up
         addr add 10.77.0.1/16 dev v0
         addr add fd77::1/32 dev v0 nodad
         neigh replace 10.77.1.1 lladdr 02:00:00:00:01:01 dev v0 nud permanent
         neigh replace 10.77.1.2 lladdr 02:00:00:00:01:02 dev v0 nud permanent
         neigh replace fd77:0:1::1 lladdr 02:00:00:00:01:01 dev v0 nud permanent
         neigh replace fd77:0:1::2 lladdr 02:00:00:00:01:02 dev v0 nud permanent");
    namespace.run(|| {
        for family in ["ipv4", "ipv6"] {
            std::fs::write(format!("/proc/sys/net/{family}/conf/lo/forwarding"), "1").unwrap();
        }
    });
    let mac = |last| [2, 0, 0, 0, 1, last];
    (namespace, [("10.77.1.1", mac(1)), ("10.77.1.2", mac(2)), ("fd77:0:1::1", mac(1)), ("fd77:0:1::2", mac(2))])
}

fn services(state: RealState) -> Input {
    let real = |address: &str, state| Real { address: address.parse().unwrap(), port: 8080, weight: 1, state };
    let mut services = OrdMap::new();
    for (vip, reals) in [("10.77.100.1", ["10.77.1.1", "10.77.1.2"]), ("fd77:0:100::1", ["fd77:0:1::1", "fd77:0:1::2"])]
    {
        let reals = vec![real(reals[0], state), real(reals[1], RealState::Active)];
        let service = Arc::new(Service { reals, ..Service::default() });
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            services.insert(Frontend { vip: vip.parse().unwrap(), port: 80, protocol }, Arc::clone(&service));
        }
    }
    let announce: OrdSet<IpAddr> = services.keys().map(|frontend| frontend.vip).collect();
    Input { generation: 1, services, announce }
}

/// A small generator: the same numbers every time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

#[test]
fn the_kernel_and_the_laptop_decide_alike() {
    if lab::skip() {
        return;
    }
    let (namespace, reals) = world();
    namespace.run(move || {
        let mut pair = Pair::new();
        let index = nix::net::if_::if_nametoindex("v0").unwrap();
        for (real, mac) in reals {
            let hop = Hop { ifindex: index, source_mac: [2, 0, 0, 0, 0, 1], destination_mac: mac };
            pair.memory.0.borrow_mut().hops.insert(address(real), hop);
        }
        // The laptop's clock stands; nothing here takes seconds.
        pair.memory.0.borrow_mut().now = 1;
        let mut dice = Dice(77);
        let mut sent = 0;
        for state in [RealState::Active, RealState::Draining, RealState::Active] {
            pair.give(&services(state));
            for _ in 0..3000 {
                let (client, vip) =
                    if dice.roll(2) == 0 { ("10.77.0.10", "10.77.100.1") } else { ("[fd77::10]", "[fd77:0:100::1]") };
                let protocol = if dice.roll(2) == 0 { "tcp" } else { "udp" };
                let flags = ["S", "A", "AF", "R", "SA", "SF", "AP"][dice.roll(7) as usize];
                let text = format!(
                    "{protocol} {client}:{} > {vip}:{} {} ttl={} +{}",
                    1000 + dice.roll(300),
                    80 + dice.roll(20) / 19,
                    if protocol == "tcp" { flags } else { "" },
                    1 + dice.roll(255),
                    dice.roll(1200),
                );
                let mut bytes = text.parse::<Build>().unwrap().bytes();
                if dice.roll(5) == 0 {
                    let at = dice.roll(bytes.len().min(80) as u64) as usize;
                    bytes[at] = dice.roll(256) as u8;
                }
                if dice.roll(50) == 0 {
                    bytes.truncate(14 + dice.roll(70) as usize);
                }
                let (verdict, out) = pair.run(&bytes);
                if let (Verdict::Redirect(_), Some(out)) = (verdict, Build::read(&out)) {
                    sent += 1;
                    let (source, destination) = (out.destination, out.source);
                    let (source_mac, destination_mac) = (out.destination_mac, out.source_mac);
                    let answer = Build { source, destination, source_mac, destination_mac, ttl: 64, ..out };
                    let (verdict, _) = pair.run(&answer.bytes());
                    assert_eq!(verdict, Verdict::Transmit);
                }
            }
        }
        assert!(sent > 3000, "only {sent} packets reached a real");
        for (frontend, _) in pair.tables.applied().clone() {
            let placed = pair.tables.get(&frontend).unwrap();
            let expected = pair.memory.0.borrow().service_counters[&placed.id];
            assert_eq!(pair.maps.service_counters(placed.id).unwrap(), expected, "{frontend:?}");
            for real in &placed.reals {
                let expected = pair.memory.0.borrow().real_counters.get(&real.id).copied().unwrap_or_default();
                assert_eq!(pair.maps.real_counters(real.id).unwrap(), expected, "{real:?}");
            }
        }
        let drops: u64 = pair.memory.0.borrow().drops.values().sum();
        assert_eq!(pair.maps.drops().unwrap().iter().map(|(_, count)| count).sum::<u64>(), drops);
    });
}

#[test]
fn what_was_written_is_read_back() {
    if lab::skip() {
        return;
    }
    let (namespace, _) = world();
    namespace.run(|| {
        let mut pair = Pair::new();
        let input = services(RealState::Draining);
        pair.give(&input);
        let found = pair.maps.found().unwrap();
        let mut adopted = Tables::adopt(&found, pair.maps.capacity().unwrap());
        assert_eq!(adopted.applied(), &input.services);
        adopted.plan(&input, |write| panic!("nothing differs, but {write:?}")).unwrap();
    });
}

#[test]
fn ten_thousand_services_of_ten_reals_fit_and_one_change_costs_one_change() {
    if lab::skip() {
        return;
    }
    let mut pair = Pair::load(EbpfLoader::new().map_max_entries(map::FLOWS, 1024).map_max_entries(map::REVERSES, 1024));
    let service = |number: u32, reals: u32| {
        let real = |i: u32| Real {
            address: IpAddr::from((0x0a80_0000 + number * 16 + i).to_be_bytes()),
            port: 8080,
            weight: 1,
            state: RealState::Active,
        };
        Arc::new(Service { reals: (0..reals).map(real).collect(), ..Service::default() })
    };
    let frontend = |number: u32| {
        let vip = IpAddr::from((0x0a4d_0000 + number).to_be_bytes());
        Frontend { vip, port: 80, protocol: Protocol::Tcp }
    };
    let services: OrdMap<Frontend, Arc<Service>> =
        (0..10_000).map(|number| (frontend(number), service(number, 10))).collect();
    let announce: OrdSet<IpAddr> = services.keys().map(|frontend| frontend.vip).collect();
    let input = Input { generation: 1, services, announce };
    let started = std::time::Instant::now();
    pair.tables.plan(&input, |write| pair.maps.apply(&write).unwrap()).unwrap();
    println!("10,000 services of 10 reals: {:?}", started.elapsed());

    let started = std::time::Instant::now();
    let found = pair.maps.found().unwrap();
    let mut adopted = Tables::adopt(&found, pair.maps.capacity().unwrap());
    println!("read back: {:?}", started.elapsed());
    adopted.plan(&input, |write| panic!("nothing differs, but {write:?}")).unwrap();

    let changed = Input { services: input.services.update(frontend(77), service(77, 9)), ..input };
    let started = std::time::Instant::now();
    let mut writes = 0;
    adopted
        .plan(&changed, |write| {
            writes += 1;
            pair.maps.apply(&write).unwrap();
        })
        .unwrap();
    println!("one real less: {writes} writes in {:?}", started.elapsed());
    assert!(writes <= 17, "one ring of 16 blocks and one real, but {writes} writes");
}
