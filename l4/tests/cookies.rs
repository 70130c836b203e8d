//! SYN cookies on the loaded program: the kernel's own cookies, and what becomes of a connection that begins with one.

#![allow(clippy::unwrap_used, reason = "a test says so by panicking")]

mod lab;

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use aya::EbpfLoader;
use imbl::{OrdMap, OrdSet};
use tidegate_ebpf::{
    abi::{Hop, Mac},
    layers,
};
use tidegate_l4::{
    ClientAddress, Forward, Frontend, Input, Protection, Protocol, Real, RealState, Service,
    maps::{self, Maps},
    tables::{Found, Tables},
    xdp,
};

/// BPF_PROG_TEST_RUN's packets come by the loopback interface.
const LOOPBACK: u32 = 1;
const LOCAL: [&str; 2] = ["10.77.101.1", "fd77:0:101::1"];

/// A balancer with one real for each family, which answers every SYN beyond the first with a cookie.
fn balancer(client_address: ClientAddress) -> Maps {
    let mut loader = EbpfLoader::new();
    for (name, entries) in maps::sizes(LOCAL.len()).unwrap() {
        loader.map_max_entries(name, entries);
    }
    let mut ebpf = loader.load(xdp::object().unwrap()).unwrap();
    xdp::load(&mut ebpf).unwrap();
    let mut maps = Maps::take(ebpf).unwrap();
    assert_eq!(maps.settle(&LOCAL.map(|local| local.parse().unwrap()), &[]).unwrap(), None);
    let clock = maps.beat(Duration::from_secs(3600)).unwrap();
    let mut services = OrdMap::new();
    for (vip, real) in [("10.77.100.1", "10.77.1.1"), ("fd77:0:100::1", "fd77:0:1::1")] {
        let real = Real { address: real.parse().unwrap(), port: 8080, weight: 1, state: RealState::Active };
        let service = Service {
            reals: vec![real],
            forward: Forward::FullNat,
            client_address,
            protection: Protection { syn_cookies_above: Some(1), ..Protection::default() },
            ..Service::default()
        };
        services.insert(Frontend { vip: vip.parse().unwrap(), port: 80, protocol: Protocol::Tcp }, Arc::new(service));
    }
    let announce: OrdSet<IpAddr> = services.keys().map(|frontend| frontend.vip).collect();
    let mut tables = Tables::adopt(&Found::default(), maps.capacity().unwrap(), clock);
    let hop = |_: IpAddr| {
        let mac = |tail: [u8; 2]| Mac::from([2, 0, 0, 0, tail[0], tail[1]]);
        Hop { ifindex: LOOPBACK, source_mac: mac([0, 1]), destination_mac: mac([1, 1]), vlan: 0, mtu: 1500 }
    };
    let input = Input { generation: 1, services, announce };
    tables.plan(&input, clock, &hop, |write| maps.apply(&write).unwrap()).unwrap();
    maps
}

/// One conversation: frames in, and what must come out. `{name}` stands for what was there before.
struct Talk {
    maps: Maps,
    names: BTreeMap<String, String>,
}

impl Talk {
    fn say(&mut self, frame: &str, expect: &str) {
        let frame = layers::fill(frame, &self.names);
        let (action, out) = self.maps.run("balance", &layers::write(&frame)).unwrap();
        let said = match action {
            1 => "drop".to_owned(),
            2 => "pass".to_owned(),
            _ => layers::read(&out),
        };
        assert!(
            layers::fits(expect, &said, &mut self.names),
            "came     {frame}\nexpected {expect}\nbut      {said}\nwith     {:?}",
            self.names
        );
    }

    fn set(&mut self, name: &str, value: u32) {
        self.names.insert(name.to_owned(), value.to_string());
    }

    fn get(&self, name: &str) -> u32 {
        self.names[name].trim_start_matches("seq=").parse().unwrap()
    }
}

struct Family {
    client: &'static str,
    vip: &'static str,
    local: &'static str,
    real: &'static str,
    ip: &'static str,
    /// Of the cookie's answer; with a PROXY header to come.
    mss: [u16; 2],
    header: u32,
}

const FAMILIES: [Family; 2] = [
    Family {
        client: "10.77.0.10",
        vip: "10.77.100.1",
        local: "10.77.101.1",
        real: "10.77.1.1",
        ip: "ip4",
        mss: [1440, 1412],
        header: 28,
    },
    Family {
        client: "fd77::10",
        vip: "fd77:0:100::1",
        local: "fd77:0:101::1",
        real: "fd77:0:1::1",
        ip: "ip6",
        mss: [1420, 1368],
        header: 52,
    },
];

#[test]
fn a_connection_that_proved_itself_by_a_cookie_goes_on_with_a_real() {
    if lab::skip() {
        return;
    }
    for Family { client, vip, local, real, ip, mss, .. } in FAMILIES {
        let mut talk = Talk { maps: balancer(ClientAddress::Hidden), names: BTreeMap::new() };
        let from_client = |rest: &str| format!("eth c>b / {ip} {client} > {vip} / tcp {rest}");
        let from_real = |rest: &str| format!("eth r1>b / {ip} {real} > {local} / tcp {rest}");
        let df = if ip == "ip4" { " df" } else { "" };
        // The first goes through as it is; those beyond are answered.
        talk.say(
            &from_client("3999 > 80 S seq=1 mss=1460"),
            &format!("eth b>r1 / {ip} {local} > {real} ttl=63 / tcp * > 8080 S seq=1 mss=1460"),
        );
        talk.say(
            &from_client("4000 > 80 S seq=999 mss=1460 sackok"),
            &format!("eth b>c / {ip} {vip} > {client}{df} / tcp 80 > 4000 SA seq={{cookie}} ack=1000 mss={}", mss[0]),
        );
        let cookie = talk.get("cookie");
        // Nothing was remembered, and a wrong answer is nobody's.
        talk.say(&from_client(&format!("4000 > 80 A seq=1000 ack={}", cookie.wrapping_add(77))), "drop");
        talk.set("next", cookie.wrapping_add(1));
        talk.say(
            &from_client("4000 > 80 A seq=1000 ack={next}"),
            &format!("eth b>r1 / {ip} {local} > {real}{df} / tcp {{port}} > 8080 S seq=999 {{mss}}"),
        );
        // What comes before the real is there comes again.
        talk.say(
            &from_client("4000 > 80 PA seq=1000 ack={next} +10"),
            &format!("eth b>r1 / {ip} {local} > {real}{df} / tcp {{port}} > 8080 S seq=999 {{mss}}"),
        );
        talk.say(
            &from_real("8080 > {port} SA seq=5000 ack=1000 mss=1460"),
            &format!("eth b>r1 / {ip} {local} > {real}{df} / tcp {{port}} > 8080 A seq=1000 ack=5001 {{_}}"),
        );
        talk.say(
            &from_client("4000 > 80 PA seq=1000 ack={next} +10"),
            &format!("eth b>r1 / {ip} {local} > {real} ttl=63 / tcp {{port}} > 8080 PA seq=1000 ack=5001 +10"),
        );
        talk.say(
            &from_real("8080 > {port} PA seq=5001 ack=1010 +20"),
            &format!("eth b>c / {ip} {vip} > {client} ttl=63 / tcp 80 > 4000 PA seq={{next}} ack=1010 +20"),
        );
        talk.set("later", cookie.wrapping_add(21));
        talk.say(
            &from_client("4000 > 80 FA seq=1010 ack={later}"),
            &format!("eth b>r1 / {ip} {local} > {real} ttl=63 / tcp {{port}} > 8080 FA seq=1010 ack=5021"),
        );
    }
}

#[test]
fn behind_a_cookie_the_real_is_told_who_its_client_is() {
    if lab::skip() {
        return;
    }
    for Family { client, vip, local, real, ip, mss, header } in FAMILIES {
        let mut talk = Talk { maps: balancer(ClientAddress::Proxy), names: BTreeMap::new() };
        let from_client = |rest: &str| format!("eth c>b / {ip} {client} > {vip} / tcp {rest}");
        let from_real = |rest: &str| format!("eth r1>b / {ip} {real} > {local} / tcp {rest}");
        let df = if ip == "ip4" { " df" } else { "" };
        let (_, _) = talk.maps.run("balance", &layers::write(&from_client("3999 > 80 S seq=1 mss=1460"))).unwrap();
        talk.say(
            &from_client("4000 > 80 S seq=999 mss=1460"),
            &format!("eth b>c / {ip} {vip} > {client}{df} / tcp 80 > 4000 SA seq={{cookie}} ack=1000 mss={}", mss[1]),
        );
        let cookie = talk.get("cookie");
        talk.set("next", cookie.wrapping_add(1));
        talk.say(
            &from_client("4000 > 80 A seq=1000 ack={next}"),
            &format!("eth b>r1 / {ip} {local} > {real}{df} / tcp {{port}} > 8080 S seq=999 {{_}}"),
        );
        // The header goes with the handshake's last segment: the server may speak first.
        talk.say(
            &from_real("8080 > {port} SA seq=5000 ack=1000 mss=1460"),
            &format!(
                "eth b>r1 / {ip} {local} > {real}{df} / tcp {{port}} > 8080 A seq=1000 ack=5001 {{_}} +{header} other"
            ),
        );
        talk.say(
            &from_real(&format!("8080 > {{port}} A seq=5001 ack={}", 1000 + header)),
            &format!("eth b>c / {ip} {vip} > {client} ttl=63 / tcp 80 > 4000 A seq={{next}} ack=1000"),
        );
        talk.say(
            &from_client("4000 > 80 PA seq=1000 ack={next} +10"),
            &format!(
                "eth b>r1 / {ip} {local} > {real} ttl=63 / tcp {{port}} > 8080 PA seq={} ack=5001 +10",
                1000 + header
            ),
        );
    }
}
