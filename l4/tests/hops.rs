//! The ways to the reals, in a small network of real machines whose addresses, routes and links change.

#![allow(clippy::unwrap_used, reason = "a test says so by panicking")]

mod lab;

use std::{
    net::IpAddr,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use lab::Namespace;
use tidegate_l4::hops::{Changes, Hop, Hops};
use tokio::{runtime::Runtime, time::timeout};

const PATIENCE: Duration = Duration::from_secs(5);
const OWN: [[u8; 6]; 2] = [[2, 0, 0, 0, 1, 1], [2, 0, 0, 0, 2, 1]];
const NEAR: [[u8; 6]; 2] = [[2, 0, 0, 0, 1, 2], [2, 0, 0, 0, 2, 2]];

/// An appliance with two interfaces and a machine at each, which also is a gateway to 10.9.0.0/16 and fd09::/32.
struct Net {
    appliance: Namespace,
    machines: [Namespace; 2],
    links: [u32; 2],
    runtime: Runtime,
    hops: Hops,
    changes: Changes,
}

impl Net {
    fn new() -> Self {
        let appliance = Namespace::new();
        let machines = [1, 2].map(|nic| {
            let machine = Namespace::new();
            appliance.ip(&format!(
                "link add eth{nic} address 02:00:00:00:0{nic}:01 type veth peer name eth0 address 02:00:00:00:0{nic}:02 netns {}
                 link set eth{nic} up
                 addr add 10.{nic}.0.1/16 dev eth{nic}
                 addr add fd0{nic}::1/32 dev eth{nic} nodad",
                machine.path()
            ));
            machine.ip(&format!(
                "link set eth0 up
                 addr add 10.{nic}.0.2/16 dev eth0
                 addr add fd0{nic}::2/32 dev eth0 nodad"
            ));
            machine
        });
        appliance.ip("route add 10.9.0.0/16 via 10.1.0.2
                      route add fd09::/32 via fd01::2
                      route add blackhole 10.8.0.0/16
                      route add unreachable 10.7.0.0/16");
        let links = appliance.run(|| ["eth1", "eth2"].map(|name| nix::net::if_::if_nametoindex(name).unwrap()));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        let (hops, changes) = appliance.run(move || {
            let _inside = handle.enter();
            Hops::start().unwrap()
        });
        Self { appliance, machines, links, runtime, hops, changes }
    }

    fn add(&self, addresses: &[&str]) {
        self.change(addresses, &[]);
    }

    fn change(&self, add: &[&str], remove: &[&str]) {
        let parse = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
        self.runtime.block_on(self.hops.change(parse(add), parse(remove)));
    }

    fn get(&self, address: &str) -> Option<Hop> {
        self.hops.get(&ip(address))
    }

    fn hop(&self, nic: usize) -> Hop {
        Hop { ifindex: self.links[nic], source_mac: OWN[nic], destination_mac: NEAR[nic], vlan: 0, mtu: 1500 }
    }

    /// Takes what is told until it is this of that address.
    fn told(&mut self, address: &str, expected: Option<Hop>) {
        let address = ip(address);
        let mut last = None;
        let heard = async {
            loop {
                let changes = self.changes.next().await.expect("the room is gone");
                for (about, hop) in changes {
                    if about == address {
                        last = Some(hop);
                    }
                }
                if last == Some(expected) {
                    return;
                }
            }
        };
        let heard = self.runtime.block_on(async { timeout(PATIENCE, heard).await });
        assert!(heard.is_ok(), "{address}: told {last:?} at last, expected {expected:?}");
        assert_eq!(self.hops.get(&address), expected);
    }

    fn until(&self, address: &str, expected: Option<Hop>) {
        let deadline = Instant::now() + PATIENCE;
        while self.get(address) != expected {
            assert!(Instant::now() < deadline, "{address}: {:?}, expected {expected:?}", self.get(address));
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn nothing_told(&mut self) {
        assert_eq!(self.changes.take(), []);
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_real_on_the_link_and_one_behind_a_gateway_have_a_hop_and_one_that_cannot_be_reached_has_none() {
    if lab::skip_without_root() {
        return;
    }
    let mut net = Net::new();
    let all = [("10.1.0.2", 0), ("10.9.1.1", 0), ("fd02::2", 1), ("fd09::1", 0)];
    net.add(&all.map(|(real, _)| real));
    for (real, nic) in all {
        // IPv6 takes a moment on a link that just came up.
        net.until(real, Some(net.hop(nic)));
    }
    assert!(net.hops.watched());

    // What is resolved needs no patience.
    net.changes.take();
    let began = Instant::now();
    net.add(&["10.9.1.2"]);
    let took = began.elapsed();
    println!("a second real behind the gateway: {took:?}");
    if took < Duration::from_millis(20) {
        assert_eq!(net.get("10.9.1.2"), Some(net.hop(0)));
        net.nothing_told();
    }

    // The kernel keeps it when nobody of ours is there.
    let kept = net.appliance.run(|| Command::new("ip").args(["neigh", "show", "dev", "eth1"]).output().unwrap().stdout);
    let kept = String::from_utf8(kept).unwrap();
    assert!(kept.lines().any(|line| line.starts_with("10.1.0.2 ") && line.contains("managed")), "{kept}");

    for real in ["10.8.0.1", "10.7.0.1", "10.99.0.1", "10.1.0.1", "127.0.0.1"] {
        net.add(&[real]);
        assert_eq!(net.get(real), None, "{real}");
    }
    // Nobody is there.
    net.add(&["10.1.0.99"]);
    assert_eq!(net.get("10.1.0.99"), None);
}

#[test]
fn a_real_that_comes_to_life_late_is_told() {
    if lab::skip_without_root() {
        return;
    }
    let mut net = Net::new();
    net.add(&["10.1.0.7"]);
    assert_eq!(net.get("10.1.0.7"), None);
    net.machines[0].ip("addr add 10.1.0.7/16 dev eth0");
    net.told("10.1.0.7", Some(net.hop(0)));
}

#[test]
fn another_mac_of_a_gateway_is_told_for_all_behind_it_and_nobody_else() {
    if lab::skip_without_root() {
        return;
    }
    let mut net = Net::new();
    net.add(&["10.9.1.1", "10.9.1.2", "10.2.0.2"]);
    net.until("10.9.1.2", Some(net.hop(0)));
    net.until("10.2.0.2", Some(net.hop(1)));
    net.changes.take();
    net.appliance.ip("neigh replace 10.1.0.2 lladdr 02:00:00:00:00:77 dev eth1 nud reachable");
    let moved = Hop { destination_mac: [2, 0, 0, 0, 0, 0x77], ..net.hop(0) };
    let told = net.runtime.block_on(async { timeout(PATIENCE, net.changes.next()).await.unwrap().unwrap() });
    let mut told: Vec<_> = told.into_iter().map(|(real, hop)| (real.to_string(), hop)).collect();
    told.sort_by(|one, other| one.0.cmp(&other.0));
    assert_eq!(told, [("10.9.1.1".into(), Some(moved)), ("10.9.1.2".into(), Some(moved))]);
    assert_eq!(net.get("10.2.0.2"), Some(net.hop(1)));

    net.appliance.ip("neigh del 10.1.0.2 dev eth1");
    // It is asked for again by itself.
    net.told("10.9.1.1", Some(net.hop(0)));
}

#[test]
fn a_route_that_moves_to_another_interface_is_followed_and_one_that_goes_is_missed() {
    if lab::skip_without_root() {
        return;
    }
    let mut net = Net::new();
    net.add(&["10.9.1.1", "fd09::1", "10.1.0.2"]);
    let began = Instant::now();
    net.appliance.ip("route replace 10.9.0.0/16 via 10.2.0.2");
    net.told("10.9.1.1", Some(net.hop(1)));
    println!("a moved route is told after {:?}, ip's own time included", began.elapsed());
    net.appliance.ip("route replace fd09::/32 via fd02::2 mtu 1400");
    net.told("fd09::1", Some(Hop { mtu: 1400, ..net.hop(1) }));
    net.appliance.ip("route add 10.9.1.0/24 via 10.1.0.2");
    net.told("10.9.1.1", Some(net.hop(0)));
    net.appliance.ip("route replace blackhole 10.9.1.0/24");
    net.told("10.9.1.1", None);
    net.appliance.ip("route del blackhole 10.9.1.0/24");
    net.told("10.9.1.1", Some(net.hop(1)));
    net.appliance.ip("rule add to 10.9.1.0/24 unreachable");
    net.told("10.9.1.1", None);
    assert_eq!(net.get("10.1.0.2"), Some(net.hop(0)));
}

#[test]
fn a_link_that_goes_down_has_no_hop_and_gets_it_back_when_it_is_up() {
    if lab::skip_without_root() {
        return;
    }
    let mut net = Net::new();
    net.add(&["10.1.0.2", "10.2.0.2"]);
    net.until("10.1.0.2", Some(net.hop(0)));
    net.appliance.ip("link set eth1 down");
    net.told("10.1.0.2", None);
    net.appliance.ip("link set eth1 up");
    net.told("10.1.0.2", Some(net.hop(0)));
    // The carrier alone.
    net.machines[0].ip("link set eth0 down");
    net.told("10.1.0.2", None);
    net.machines[0].ip("link set eth0 up");
    net.told("10.1.0.2", Some(net.hop(0)));
    net.appliance.ip("link set eth1 mtu 1400");
    net.told("10.1.0.2", Some(Hop { mtu: 1400, ..net.hop(0) }));
    net.appliance.ip("link set eth1 address 02:00:00:00:00:55");
    net.told("10.1.0.2", Some(Hop { mtu: 1400, source_mac: [2, 0, 0, 0, 0, 0x55], ..net.hop(0) }));
    net.until("10.2.0.2", Some(net.hop(1)));
    net.appliance.ip("link del eth1");
    net.told("10.1.0.2", None);
}

#[test]
fn several_ways_share_the_reals_and_the_one_that_is_left_takes_all() {
    if lab::skip_without_root() {
        return;
    }
    let mut net = Net::new();
    net.appliance.ip("route replace 10.9.0.0/16 nexthop via 10.1.0.2 nexthop via 10.2.0.2
                      nexthop add id 1 via 10.1.0.2 dev eth1
                      nexthop add id 2 via 10.2.0.2 dev eth2
                      nexthop add id 3 group 1/2
                      route add 10.6.0.0/16 nhid 3");
    for network in ["10.9", "10.6"] {
        let reals: Vec<String> = (0..64).map(|at| format!("{network}.1.{at}")).collect();
        let reals: Vec<&str> = reals.iter().map(String::as_str).collect();
        net.add(&reals);
        let deadline = Instant::now() + PATIENCE;
        let first = loop {
            let first = reals.iter().filter(|real| net.get(real) == Some(net.hop(0))).count();
            let second = reals.iter().filter(|real| net.get(real) == Some(net.hop(1))).count();
            // Both gateways must have answered.
            if first + second == 64 && second > 0 && first > 0 {
                break first;
            }
            assert!(Instant::now() < deadline, "{network}: {first} and {second}");
            thread::sleep(Duration::from_millis(5));
        };
        assert!((16..=48).contains(&first), "{network}: {first}");
    }
    let on_first: Vec<String> =
        (0..64).map(|at| format!("10.9.1.{at}")).filter(|real| net.get(real) == Some(net.hop(0))).collect();
    net.machines[0].ip("link set eth0 down");
    net.told(&on_first[0], Some(net.hop(1)));
    assert!(on_first.iter().all(|real| net.get(real) == Some(net.hop(1))));
}

#[test]
fn a_storm_of_events_that_overflows_the_queue_leaves_what_is_known_right() {
    if lab::skip_without_root() {
        return;
    }
    let mut net = Net::new();
    net.add(&["10.9.1.1"]);
    let deadline = Instant::now() + PATIENCE;
    let storm: String = (0..30_000)
        .map(|at| {
            let (low, mac) = (at % 200 + 10, at % 250);
            format!("neigh replace 10.2.7.{low} lladdr 02:00:00:00:07:{mac:02x} dev eth2 nud reachable\n")
        })
        .collect();
    let file = std::env::temp_dir().join(format!("tidegate-hops-{}", std::process::id()));
    std::fs::write(&file, storm).unwrap();
    net.appliance.command("ip", &format!("-batch {}", file.display()));
    std::fs::remove_file(&file).unwrap();
    net.appliance.ip("neigh replace 10.1.0.2 lladdr 02:00:00:00:00:77 dev eth1 nud reachable");
    net.told("10.9.1.1", Some(Hop { destination_mac: [2, 0, 0, 0, 0, 0x77], ..net.hop(0) }));
    while !net.hops.watched() {
        assert!(Instant::now() < deadline);
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_hundred_thousand_reals_are_looked_up_quickly() {
    if lab::skip_without_root() {
        return;
    }
    let mut net = Net::new();
    net.add(&["10.9.0.1"]);
    net.until("10.9.0.1", Some(net.hop(0)));
    net.changes.take();
    let reals: Vec<IpAddr> =
        (0..100_000_u32).map(|at| IpAddr::V4((0x0a09_0000 + 0x100 + at % 60_000).into())).collect();
    let began = Instant::now();
    net.runtime.block_on(net.hops.change(reals.clone(), Vec::new()));
    let mut known = 0;
    net.runtime.block_on(async {
        timeout(PATIENCE, async {
            while known < 60_000 {
                known += net.changes.next().await.unwrap().iter().filter(|(_, hop)| hop.is_some()).count();
            }
        })
        .await
        .unwrap();
    });
    println!("60,000 addresses after {:?}", began.elapsed());
    assert!(reals.iter().all(|real| net.hops.get(real) == Some(net.hop(0))));
    // One that comes meanwhile does not wait for them.
    net.appliance.ip("route replace 10.9.0.0/16 via 10.2.0.2");
    net.add(&["10.1.0.2"]);
    net.until("10.1.0.2", Some(net.hop(0)));
    net.told("10.9.0.1", Some(net.hop(1)));
}
