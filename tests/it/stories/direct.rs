//! Instances that answer their clients themselves: nothing of what the appliance promises changes.

use serde_json::json;
use tidegate_tests::{
    appliance::{self, Appliance, Settings},
    cluster::{Cluster, demo_app, joined},
    oracle::{self, Lifetime, Load, Target},
};

use super::{APP, at, create};

const HOST: &str = "demo.example.com";
const VIPS: [&str; 4] = ["10.77.100.21", "fd77:0:100::21", "10.77.100.22", "fd77:0:100::22"];
const LONG: &str = "direct, long connections";

struct Direct {
    appliance: Appliance,
    cluster: Cluster,
    targets: Vec<Target>,
}

/// One app, reached directly and by full NAT.
fn set() -> Option<Direct> {
    if !appliance::require() {
        return None;
    }
    let cluster = Cluster::start().unwrap();
    let appliance = Appliance::start(&cluster.appliance, &Settings::default()).unwrap();
    cluster.deploy(&joined(demo_app(APP, 3), &VIPS)).unwrap();
    appliance.poll("Tidegate knows the job", |appliance| Ok(appliance.status()?["instances"] == 3)).unwrap();
    let ports = json!([{"listen": 8080, "target": "http"}]);
    let spec = |forward: &str, vips: &[&str]| json!({"type": "layer4", "app": APP, "ports": ports, "forward": forward, "vips": vips});
    let direct = create(&appliance, "direct", &spec("direct", &VIPS[..2]));
    let nat = create(&appliance, "nat", &spec("fullnat", &VIPS[2..]));
    let on = |vips, v6| std::net::SocketAddr::new(at(vips, v6).ip(), 8080);
    let targets = vec![
        Target::http("direct, new connections", on(&direct, false), HOST, Lifetime::Request),
        Target::http(LONG, on(&direct, false), HOST, Lifetime::Long).workers(12),
        Target::http("direct, IPv6, keep-alive", on(&direct, true), HOST, Lifetime::KeepAlive),
        Target::http("full NAT, new connections", on(&nat, false), HOST, Lifetime::Request),
        Target::http("full NAT, IPv6, long connections", on(&nat, true), HOST, Lifetime::Long).workers(6),
    ];
    let warm = oracle::serves(&cluster.client.ns, &targets, std::time::Duration::from_secs(20));
    warm.unwrap_or_else(|account| panic!("the ELBs do not serve\n{account}\n{}", appliance.log_tail()));
    Some(Direct { appliance, cluster, targets })
}

#[test]
fn a_rolling_deployment_ends_with_the_proof_that_no_connection_was_cut() {
    let Some(Direct { appliance, cluster, targets }) = set() else { return };
    let load = Load::start(&cluster.client.ns, targets);
    load.wait_for_answers(20);
    let before: Vec<String> = cluster.standin().tasks(APP).iter().map(|task| task.task_id()).collect();
    load.mark("new version");
    let mut app = joined(demo_app(APP, 3), &VIPS);
    app["labels"]["version"] = json!("2");
    cluster.deploy(&app).unwrap();
    load.mark("deployed");
    load.wait_for_answers(50);
    // Three old instances left, on every front end of both ELBs.
    for name in ["direct", "nat"] {
        let mut drains = Vec::new();
        appliance
            .poll("the drains are told", |appliance| {
                drains = appliance.get_elb(name)?["layer4"]["drains"].as_array().cloned().unwrap_or_default();
                Ok(drains.len() >= 6)
            })
            .unwrap();
        assert!(drains.iter().all(|drain| drain["cut"] == 0), "{name}: {drains:#?}");
    }
    let account = load.stop();
    account.assert_lossless();
    assert!(before.iter().all(|task| account.served_by.contains_key(task)), "not all had served\n{account}");
    assert_eq!(account.served_by.len(), 6, "{account}");
    println!("{account}");
}

#[test]
fn another_tidegate_takes_over_after_a_stop_and_after_a_kill_and_no_packet_is_lost() {
    let Some(Direct { mut appliance, cluster, targets }) = set() else { return };
    let load = Load::start(&cluster.client.ns, targets);
    load.wait_for_answers(20);
    load.mark("SIGTERM");
    let status = appliance.stop();
    assert!(status.is_some_and(|status| status.success()), "SIGTERM ends it in good order: {status:?}");
    load.wait_for_answers(50);
    load.mark("start");
    appliance.restart().unwrap();
    for name in ["direct", "nat"] {
        appliance.wait_ready(name).unwrap();
    }
    load.wait_for_answers(50);
    load.mark("kill -9");
    appliance.kill9();
    load.wait_for_answers(50);
    load.mark("start again");
    appliance.restart().unwrap();
    for name in ["direct", "nat"] {
        appliance.wait_ready(name).unwrap();
    }
    load.wait_for_answers(50);
    let account = load.so_far();
    assert_eq!(account.of(LONG).connections, 12, "none was made anew\n{account}");
    load.mark("3 to 2");
    cluster.scale(APP, 2).unwrap();
    load.wait_for_answers(50);
    let account = load.stop();
    account.assert_lossless();
    println!("{account}");
}
