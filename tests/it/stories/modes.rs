//! Every way to forward, with servers that others wrote.

use std::{net::SocketAddr, path::Path, process::Command};

use serde_json::{Value, json};
use tidegate_tests::{
    appliance::{self, Appliance, Settings},
    cluster::{Cluster, demo_app, joined},
    http1::Connection,
    lab,
    oracle::{Lifetime, Load, Target},
};

use super::{at, create};

const APP: &str = "/nginx";
/// One that Marathon knows by an IPv4 address alone.
const OLD: &str = "/nginx-v4";
const HOST: &str = "nginx.example.com";
/// More than any window, segment or tunnel.
const LARGE: usize = 1 << 20;

/// What is forwarded how, and at which port: only full NAT translates.
const WAYS: [(&str, u16); 4] = [("fullnat", 80), ("direct", 8080), ("ipip", 8080), ("gue", 8080)];
const VIPS: [[&str; 2]; 5] = [
    ["10.77.100.11", "fd77:0:100::11"],
    ["10.77.100.12", "fd77:0:100::12"],
    ["10.77.100.13", "fd77:0:100::13"],
    ["10.77.100.14", "fd77:0:100::14"],
    ["10.77.100.15", "fd77:0:100::15"],
];

fn nginx(id: &str, instances: u32) -> Value {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("it/stories");
    let mut app = demo_app(id, instances);
    app["cmd"] = json!(format!("exec /bin/sh {0}/nginx.sh {0}/nginx.conf", here.display()));
    joined(app, VIPS.as_flattened())
}

#[test]
fn every_mode_serves_large_bodies_both_ways_with_nginx_over_both_families() {
    if !appliance::require() {
        return;
    }
    if Command::new("nginx").arg("-v").output().is_err() {
        lab::skip("nginx is not installed: apt install nginx");
        return;
    }
    let cluster = Cluster::start().unwrap();
    let appliance = Appliance::start(&cluster.appliance, &Settings::default()).unwrap();
    cluster.deploy(&nginx(APP, 2)).unwrap();
    let mut old = nginx(OLD, 1);
    old["networks"] = json!([{"mode": "host"}]);
    old["container"] = Value::Null;
    old["requirePorts"] = json!(true);
    old["portDefinitions"] = json!([{"port": 8080, "name": "http"}]);
    cluster.deploy(&old).unwrap();
    appliance.poll("Tidegate knows the jobs", |appliance| Ok(appliance.status()?["instances"] == 3)).unwrap();

    let mut fronts: Vec<(String, SocketAddr)> = Vec::new();
    let elbs = WAYS.iter().zip(VIPS).map(|(way, vips)| (*way, vips, APP)).chain([(("ipip", 8080), VIPS[4], OLD)]);
    for ((forward, port), vips, app) in elbs {
        let name = if app == APP { format!("by-{forward}") } else { format!("by-{forward}-across") };
        let ports = json!([{"listen": port, "target": "http"}]);
        let spec = json!({"type": "layer4", "app": app, "ports": ports, "forward": forward, "vips": vips});
        let given = create(&appliance, &name, &spec);
        fronts.extend([false, true].map(|v6| {
            let vip = at(&given, v6).ip();
            (format!("{name} {vip}"), SocketAddr::new(vip, port))
        }));
    }
    let targets: Vec<Target> = fronts
        .iter()
        .flat_map(|(name, at)| {
            [("new", Lifetime::Request), ("long", Lifetime::Long)]
                .map(|(kind, lifetime)| Target::http(&format!("{name} {kind}"), *at, HOST, lifetime).workers(1))
        })
        .collect();
    let warm = tidegate_tests::oracle::serves(&cluster.client.ns, &targets, std::time::Duration::from_secs(20));
    warm.unwrap_or_else(|account| panic!("not every way serves\n{account}\n{}", appliance.log_tail()));
    let load = Load::start(&cluster.client.ns, targets);
    for (name, at) in fronts {
        let client = &cluster.client.ns;
        client.block_on(async move { there_and_back(&name, at).await });
    }
    load.wait_for_answers(20);
    let account = load.stop();
    account.assert_lossless();
    assert!(account.served_by.len() == 3, "{account}");
    println!("{account}");
}

/// Puts a large file onto one server and gets it back from the same one.
async fn there_and_back(name: &str, at: SocketAddr) {
    let mut connection = Connection::open(at).await.unwrap();
    let sent: Vec<u8> = (0..LARGE).map(|i| (i * 7 + i / 251) as u8).collect();
    let path = format!("/files/{}", fastrand::u64(..));
    let limit = std::time::Duration::from_secs(20);
    let put = tokio::time::timeout(limit, connection.exchange("PUT", HOST, &path, &sent)).await;
    let put = put.unwrap_or_else(|_| panic!("{name}: the upload hangs")).unwrap();
    assert_eq!(put.status, 201, "{name}: {}", put.text());
    let got = tokio::time::timeout(limit, connection.exchange("GET", HOST, &path, b"")).await;
    let got = got.unwrap_or_else(|_| panic!("{name}: the download hangs")).unwrap();
    assert!(got.status == 200 && got.body == sent, "{name}: {} with {} bytes", got.status, got.body.len());
}
