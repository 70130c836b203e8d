//! Two appliances with the same ELB behind a router that spreads flows over both.

use std::{net::SocketAddr, time::Duration};

use serde_json::json;
use tidegate_tests::{
    appliance::{self, Appliance, Settings},
    cluster::{Cluster, demo_app, joined},
    lab::Ns,
    oracle::{self, Lifetime, Load, Target},
};

use super::{APP, at, create};

const HOST: &str = "demo.example.com";
const VIPS: [&str; 2] = ["10.77.100.31", "fd77:0:100::31"];
const LONG: [&str; 2] = ["long connections", "long connections, IPv6"];
const WORKERS: usize = 16;

/// The client behind the machine that routes, which the cluster calls its client.
fn client(router: &Ns) -> anyhow::Result<Ns> {
    let client = Ns::new()?;
    router.ip(&format!(
        "link add inside type veth peer name eth0 netns {}\n\
         addr add 10.78.0.1/24 dev inside\n\
         addr add fd78::1/64 dev inside nodad\n\
         link set inside up\n",
        client.path()
    ))?;
    client.ip("addr add 10.78.0.2/24 dev eth0\n\
         addr add fd78::2/64 dev eth0 nodad\n\
         link set eth0 up\n\
         route add default via 10.78.0.1\n\
         route add default via fd78::1\n")?;
    for (name, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        // By addresses and ports.
        ("ipv4/fib_multipath_hash_policy", "1"),
        ("ipv6/fib_multipath_hash_policy", "1"),
    ] {
        router.sysctl(name, value)?;
    }
    Ok(client)
}

/// The VIPs lead to these appliances.
fn route(router: &Ns, appliances: &[&Appliance]) {
    let [v4, v6] = VIPS;
    let hops = |address: fn(&Appliance) -> String| -> String {
        appliances.iter().map(|appliance| format!(" nexthop via {} dev eth0", address(appliance))).collect()
    };
    let (hops4, hops6) =
        (hops(|appliance| appliance.host.v4.to_string()), hops(|appliance| appliance.host.v6.to_string()));
    router.ip(&format!("route replace {v4}/32{hops4}\nroute replace {v6}/128{hops6}\n")).unwrap();
}

/// Packets that an appliance has forwarded for the ELB.
fn packets(appliance: &Appliance) -> u64 {
    let elb = appliance.get_elb("ecmp").unwrap();
    elb["layer4"]["reals"].as_array().into_iter().flatten().filter_map(|real| real["packets"].as_u64()).sum()
}

/// The cable: the machine itself keeps its addresses and routes.
fn plug(cluster: &Cluster, appliance: &Appliance, state: &str) {
    cluster.fabric.switch().ip(&format!("link set {} {state}", appliance.host.port())).unwrap();
}

#[test]
fn connections_go_on_through_the_other_appliance_when_one_of_two_is_gone() {
    if !appliance::require() {
        return;
    }
    let cluster = Cluster::start().unwrap();
    let other = cluster.fabric.appliance("other", ([10, 77, 0, 4].into(), "fd77::4".parse().unwrap())).unwrap();
    let mut first = Appliance::start(&cluster.appliance, &Settings::default()).unwrap();
    let locals = vec!["10.77.101.2".to_owned(), "fd77:0:101::2".to_owned()];
    let second = Appliance::start(&other, &Settings { locals, ..Settings::default() }).unwrap();
    cluster.deploy(&joined(demo_app(APP, 4), &VIPS)).unwrap();
    let ports = json!([{"listen": 8080, "target": "http"}]);
    let spec = json!({"type": "layer4", "app": APP, "ports": ports, "forward": "direct", "vips": VIPS});
    let mut vips = Vec::new();
    for appliance in [&first, &second] {
        appliance.poll("Tidegate knows the job", |appliance| Ok(appliance.status()?["instances"] == 4)).unwrap();
        vips = create(appliance, "ecmp", &spec);
    }
    let router = &cluster.client.ns;
    let client = client(router).unwrap();
    // Instances answer what is not their neighbour by the fabric's gateway.
    cluster.fabric.switch().sysctl("ipv4/ip_forward", "1").unwrap();
    cluster.fabric.switch().sysctl("ipv6/conf/all/forwarding", "1").unwrap();
    let (v4, v6) = (cluster.client.v4, cluster.client.v6);
    cluster.fabric.switch().ip(&format!("route add 10.78.0.0/24 via {v4}\nroute add fd78::/64 via {v6}\n")).unwrap();
    route(router, &[&first, &second]);

    let on = |v6| SocketAddr::new(at(&vips, v6).ip(), 8080);
    let targets = vec![
        Target::http("new connections", on(false), HOST, Lifetime::Request),
        Target::http(LONG[0], on(false), HOST, Lifetime::Long).workers(WORKERS),
        Target::http(LONG[1], on(true), HOST, Lifetime::Long).workers(WORKERS),
    ];
    let warm = oracle::serves(&client, &targets, Duration::from_secs(20));
    warm.unwrap_or_else(|account| panic!("the ELB does not serve\n{account}\n{}", first.log_tail()));
    let load = Load::start(&client, targets);
    load.wait_for_answers(50);
    for appliance in [&first, &second] {
        appliance.poll("both forward", |appliance| Ok(packets(appliance) > 100)).unwrap();
    }
    load.mark("one is taken out");
    route(router, &[&second]);
    first.kill9();
    plug(&cluster, &first, "down");
    load.wait_for_answers(100);
    load.mark("and is back");
    plug(&cluster, &first, "up");
    first.restart().unwrap();
    first.wait_ready("ecmp").unwrap();
    route(router, &[&first, &second]);
    load.wait_for_answers(100);
    load.mark("the other one is taken out");
    route(router, &[&first]);
    plug(&cluster, &second, "down");
    load.wait_for_answers(100);
    let account = load.stop();
    account.assert_lossless();
    for label in LONG {
        assert_eq!(account.of(label).connections, WORKERS as u64, "none was made anew\n{account}");
    }
    println!("{account}");
}
