//! What operators see of layer 4, from a plane's report to the API, the pages and the metrics.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use reqwest::StatusCode;
use serde_json::{Value, json};
use tidegate_control::{
    cycle::{Event, Marathon},
    model::app::{App, Definition, Health, Instance, Network, Port, StopSign, TaskState},
};
use tidegate_l4::{
    Frontend, Protocol, Report,
    report::{Attached, DrainTotals, Drained, Health as RealHealth, Probes, RealCounters, ServiceCounters, Verdict},
    tables::Moved,
};

use crate::node::{Node, app, until};

const FRONTEND: Frontend =
    Frontend { vip: std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 77, 100, 1)), port: 80, protocol: Protocol::Tcp };

fn instance(id: &str, last: u8, stopping: Option<StopSign>) -> (Arc<str>, Arc<Instance>) {
    let instance = Instance {
        id: id.into(),
        task: id.into(),
        state: TaskState::Running,
        version: "1".into(),
        host: "10.77.1.1".into(),
        agent: None,
        addresses: vec![[10, 77, 2, last].into()],
        ports: vec![],
        health: Health::Healthy,
        ready: None,
        started_at: None,
        stopping,
        admitted: true,
    };
    (id.into(), Arc::new(instance))
}

/// `/demo` with two instances in container mode at 10.77.2.1 and 10.77.2.2; the second is being stopped.
fn demo() -> App {
    let port = Port { name: Some("http".into()), tcp: true, container: 8080, ..Port::default() };
    let definition = Definition { network: Network::Container, ports: vec![port], ..Definition::default() };
    App {
        version: "1".into(),
        wanted: 2,
        definitions: [(Arc::from("1"), Arc::new(definition))].into_iter().collect(),
        instances: [instance("demo.1", 1, None), instance("demo.2", 2, Some(StopSign::Killing))].into_iter().collect(),
        ..app("/demo")
    }
}

fn real(last: u8, live: u64, health: RealHealth) -> RealCounters {
    let address = [10, 77, 2, last].into();
    let (packets, bytes, flows, opens, answers, resets) = (70, 7000, 5, 6, 4, u64::from(last));
    RealCounters { address, port: 8080, packets, bytes, flows, opens, answers, resets, live: Some(live), health }
}

/// As the plane reports: one instance well, one that drains and looks down, and one drain that is over.
fn report() -> Report {
    let up = RealHealth { verdict: Verdict::Up, why: None };
    let down = RealHealth { verdict: Verdict::Down, why: Some("3 probes in a row failed: refused".into()) };
    let service = ServiceCounters {
        packets: 140,
        bytes: 14_000,
        flows: 10,
        opens: 12,
        reals: vec![real(1, 40, up), real(2, 3, down)],
    };
    let began = Instant::now();
    let gone = "10.77.2.9:8080".parse().unwrap();
    Report {
        generation: 1,
        attached: vec![Attached { interface: "eth0".to_owned(), mode: "native" }],
        services: [(FRONTEND, Arc::new(service))].into_iter().collect(),
        drops: vec![("ttl", 1), ("denied", 500), ("no-port", 0)],
        moves: Moved { now: 2, ended: 60, forced: 0, lost: 0, at_once: 0 },
        drains: vec![Drained { frontend: FRONTEND, real: gone, began, lasted: Duration::from_secs(30), cut: 0 }],
        drained: DrainTotals { ended: 9, cut: 4 },
        fail_open: vec![FRONTEND],
        probes: Probes {
            sent: 100,
            failed: 3,
            unable: 2,
            late: 1,
            last_error: Some((FRONTEND, "10.77.2.2:8080".parse().unwrap(), "refused".into())),
            last_took: None,
        },
        ..Report::default()
    }
}

/// A node with an ELB `demo`, whose plane has reported.
async fn node() -> Node {
    let node = Node::with_planes().await;
    let asked_at = jiff::Timestamp::now();
    let snapshot = Marathon::Snapshot { apps: vec![demo()], broken: vec![], asked_at };
    node.events.send(Event::Marathon(Marathon::Attached)).await.unwrap();
    node.events.send(Event::Marathon(snapshot)).await.unwrap();
    until("the apps are known", || node.view.now().marathon.snapshot_at.is_some()).await;
    let body = r#"{"type":"layer4","app":"/demo","ports":[{"listen":80,"target":8080}]}"#;
    assert_eq!(node.ask("PUT", "/v1/elbs/demo", body).await.0, StatusCode::CREATED);
    node.reporters.l4.send_replace(Arc::new(report()));
    node
}

async fn text(node: &Node, path: &str) -> String {
    reqwest::get(format!("{}{path}", node.url)).await.unwrap().text().await.unwrap()
}

#[tokio::test]
async fn an_elb_shows_each_instance_with_its_health_its_live_connections_and_the_drains_that_are_over() {
    let node = node().await;
    let (_, shown) = node.ask("GET", "/v1/elbs/demo", "").await;
    let layer4 = &shown["layer4"];
    let told = |n: usize, key: &str| layer4["reals"][n][key].clone();
    let keys = ["instance", "verdict", "health", "live"];
    assert_eq!(keys.map(|key| told(0, key)), [json!("demo.1"), json!("serve"), json!("up"), json!(40)], "{shown}");
    assert_eq!(keys.map(|key| told(1, key)), [json!("demo.2"), json!("drain"), json!("down"), json!(3)], "{shown}");
    assert_eq!(told(1, "why"), "3 probes in a row failed: refused");
    assert_eq!((told(0, "listen"), told(0, "flows")), (json!("tcp 10.77.100.1:80"), json!(5)));
    assert_eq!(told(1, "refusals"), 2);
    let drain = &layer4["drains"][0];
    assert_eq!((&drain["real"], &drain["lasted_s"], &drain["cut"]), (&json!("10.77.2.9:8080"), &json!(30), &json!(0)));
    assert_eq!(layer4["fail_open"], json!(["tcp 10.77.100.1:80"]));

    let page = text(&node, "/elbs/demo").await;
    for said in [
        "drains: 3 connections live; 3 probes in a row failed: refused",
        "drained for 30 s from ",
        ": 0 connections cut",
    ] {
        assert!(page.contains(said), "{said:?} is missing in {page}");
    }
}

#[tokio::test]
async fn where_layer_4_is_not_or_has_not_counted_yet_nothing_is_said_of_it() {
    let node = node().await;
    let (status, made) = node.ask("PUT", "/v1/elbs/web", r#"{"type":"layer7","rules":[{"app":"/demo"}]}"#).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    assert!(made.get("layer4").is_none(), "{made}");
    let control = Node::control().await;
    let (_, status) = control.ask("GET", "/v1/status", "").await;
    assert!(status.get("layer4").is_none(), "{status}");
    assert!(!text(&control, "/metrics").await.contains("tidegate_l4_"));

    let starting = Node::with_planes().await;
    let (_, status) = starting.ask("GET", "/v1/status", "").await;
    assert!(status.get("layer4").is_none(), "a plane that has not counted yet is not *not attached*: {status}");
}

#[tokio::test]
async fn the_status_sums_layer_4_up_and_says_what_is_dropped_now() {
    let node = node().await;
    let start = Instant::now();
    node.view.note_layer4(start);
    let grown = Report { drops: vec![("ttl", 1), ("denied", 530), ("no-port", 0)], ..report() };
    node.reporters.l4.send_replace(Arc::new(grown));
    node.view.note_layer4(start + Duration::from_secs(10));
    let (_, status) = node.ask("GET", "/v1/status", "").await;
    let layer4 = &status["layer4"];
    assert_eq!(layer4["attached"], json!([{"interface": "eth0", "mode": "native"}]));
    assert_eq!(layer4["reals"], json!({"all": 2, "down": 1, "ejected": 0, "live": 43}));
    assert_eq!(layer4["fail_open"], json!([{"elb": "demo", "listen": "tcp 10.77.100.1:80"}]));
    assert_eq!(layer4["drains"], json!({"ended": 9, "cut": 4}));
    assert_eq!(layer4["probes"]["last_error"], "tcp 10.77.100.1:80: 10.77.2.2:8080: refused");
    let drops: Vec<(&Value, &Value, &Value)> = layer4["drops"]
        .as_array()
        .unwrap()
        .iter()
        .map(|of| (&of["reason"], &of["total"], &of["last_minute"]))
        .collect();
    let wanted = [(json!("ttl"), json!(1), json!(0)), (json!("denied"), json!(530), json!(30))];
    assert_eq!(drops, wanted.iter().map(|(a, b, c)| (a, b, c)).collect::<Vec<_>>());
    assert!(layer4["drops"][1]["advice"].as_str().unwrap().contains("--deny"), "{layer4}");

    let page = text(&node, "/").await;
    for said in ["eth0", "(native)", "9 drains ended, 4 connections cut", "fail-open", ": 30 (denied)"] {
        assert!(page.contains(said), "{said:?} is missing in {page}");
    }
}

#[tokio::test]
async fn connections_that_changes_cost_are_a_problem_with_what_to_do() {
    let node = node().await;
    let problems = async || {
        let (_, status) = node.ask("GET", "/v1/status", "").await;
        status["planes"][0]["problems"].as_array().unwrap().clone()
    };
    let start = Instant::now();
    node.view.note_layer4(start);
    assert!(problems().await.is_empty());
    let moves = Moved { forced: 1, lost: 5, at_once: 64, ..report().moves };
    node.reporters.l4.send_replace(Arc::new(Report { moves, ..report() }));
    node.view.note_layer4(start + Duration::from_secs(10));
    let told = problems().await;
    let says = |n: usize, words: &str| told[n].as_str().unwrap().contains(words);
    assert!(says(0, "5 connections lost their instances") && says(0, "use forward fullnat"), "{told:?}");
    assert!(says(1, "64 ring slots") && says(1, "change fewer instances at once"), "{told:?}");
    assert!(text(&node, "/metrics").await.contains("tidegate_plane_problems{plane=\"l4\"} 2\n"));
}

#[tokio::test]
async fn metrics_tell_layer_4_by_elb_and_never_by_instance() {
    let node = node().await;
    let metrics = text(&node, "/metrics").await;
    let front = r#"{elb="demo",vip="10.77.100.1",port="80",protocol="tcp"}"#;
    let by_front = [
        ("packets_total", 140),
        ("bytes_total", 14_000),
        ("flows_total", 10),
        ("syns_total", 12),
        ("reals", 2),
        ("reals_down", 1),
        ("reals_ejected", 0),
        ("live_flows", 43),
        ("fail_open", 1),
    ];
    let mut wanted: Vec<String> =
        by_front.iter().map(|(name, value)| format!("tidegate_l4_{name}{front} {value}")).collect();
    wanted.extend(
        [
            r#"drops_total{reason="denied"} 500"#,
            r#"attached{interface="eth0",mode="native"} 1"#,
            "moves 2",
            r#"moves_total{end="settled"} 60"#,
            r#"moves_total{end="at_once"} 0"#,
            "move_lost_flows_total 0",
            "drains_total 9",
            "drain_cut_connections_total 4",
            r#"probes_total{outcome="good"} 97"#,
            r#"probes_total{outcome="failed"} 3"#,
            r#"probes_total{outcome="unable"} 2"#,
            "late_probes_total 1",
        ]
        .map(|row| format!("tidegate_l4_{row}")),
    );
    for row in wanted {
        assert!(metrics.lines().any(|line| line == row), "{row:?} is missing in {metrics}");
    }
    assert!(!metrics.contains("10.77.2."), "an instance in a label: {metrics}");

    // A direct ELB's connections are not known: no row, no 0 that nobody counted.
    let mut unknown = report();
    let mut service = ServiceCounters::clone(&unknown.services[&FRONTEND]);
    service.reals.iter_mut().for_each(|real| real.live = None);
    unknown.services.insert(FRONTEND, Arc::new(service));
    node.reporters.l4.send_replace(Arc::new(unknown));
    assert!(!text(&node, "/metrics").await.contains("tidegate_l4_live_flows{"));
}
