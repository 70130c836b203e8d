//! What of an ELB's spec reaches the plane, and by which of its addresses an instance is reached.

use std::sync::Arc;

use imbl::OrdMap;
use ipnet::IpNet;
use serde_json::{Value, json};

use super::*;
use crate::model::app::{App, Definition, Health, Instance, Network, Port, TaskState};

/// An app with port 80, in container mode, and one instance at each of these addresses.
fn observed(addresses: &[&[&str]]) -> Observed {
    let instance = |(n, own): (usize, &&[&str])| Instance {
        id: format!("web.instance-{n}").into(),
        task: format!("web.instance-{n}._app.1").into(),
        state: TaskState::Running,
        version: "v1".into(),
        host: "10.77.1.1".into(),
        agent: None,
        addresses: own.iter().map(|address| address.parse().unwrap()).collect(),
        ports: vec![31_000],
        health: Health::Healthy,
        ready: None,
        started_at: None,
        stopping: None,
        admitted: true,
    };
    let port = |name: &str, container, host| Port {
        name: Some(name.to_owned()),
        tcp: true,
        udp: true,
        container,
        host,
        ..Port::default()
    };
    let ports = vec![port("http", 80, None), port("alt", 8080, None), port("host", 80, Some(0))];
    let definition = Definition { network: Network::Container, ports, ..Definition::default() };
    let instances = addresses.iter().enumerate().map(instance);
    let app = App {
        id: "/web".into(),
        version: "v1".into(),
        wanted: 1,
        definitions: OrdMap::unit("v1".into(), Arc::new(definition)),
        instances: instances.map(|instance| (instance.id.clone(), Arc::new(instance))).collect(),
        deployments: Vec::new(),
    };
    Observed { apps: OrdMap::unit("/web".into(), Arc::new(app)), ..Observed::default() }
}

fn elb(fields: &Value) -> Elb {
    let mut spec =
        json!({"type": "layer4", "app": "/web", "ports": [{"listen": 80}, {"listen": 80, "protocol": "udp"}]});
    spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let vips = vec!["10.77.100.1".parse().unwrap(), "fd77:0:100::1".parse().unwrap()];
    Elb { spec: serde_json::from_value(spec).unwrap(), vips, revision: 1 }
}

fn compiled(fields: &Value, observed: &Observed) -> Vec<(Frontend, Service)> {
    services(&elb(fields), observed).collect()
}

#[test]
fn what_nobody_chose_is_full_nat_without_limits() {
    let nobody = Observed::default();
    for (frontend, service) in compiled(&json!({}), &nobody) {
        assert_eq!(service, Service::default(), "{frontend}");
    }
}

#[test]
fn what_was_chosen_reaches_every_front_end_that_it_is_for() {
    let fields = json!({
        "protection": {
            "allow": ["10.0.0.0/8"], "deny": ["10.1.0.0/16"],
            "per_source": {"per_second": 100, "prefix_v4": 24}, "per_vip": {"per_second": 20_000, "burst": 30_000},
            "syn_cookies_above": 5_000,
        },
        "health": {"type": "https", "host": "a.example", "path": "/healthz", "status": "204", "interval_ms": 500},
        "slow_start_s": 30,
    });
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    let protection = plane::Protection {
        allow: vec![net("10.0.0.0/8")],
        deny: vec![net("10.1.0.0/16")],
        per_source: Some(plane::SourceRate {
            rate: plane::Rate { per_second: 100, burst: 100 },
            prefix_v4: 24,
            prefix_v6: 64,
        }),
        per_vip: Some(plane::Rate { per_second: 20_000, burst: 30_000 }),
        syn_cookies_above: Some(5_000),
    };
    let kind = plane::ProbeKind::Http {
        tls: true,
        host: Some("a.example".to_owned()),
        path: "/healthz".to_owned(),
        status: (204, 204),
    };
    let probe = plane::Probe { kind, interval_ms: 500, timeout_ms: 500, rise: 2, fall: 3 };
    let tcp = Service { protection, probe: Some(probe), slow_start_s: 30, ..Service::default() };
    let mut udp = Service { probe: None, ..tcp.clone() };
    udp.protection.syn_cookies_above = None;
    // The app is not there yet: who comes first finds the protection already.
    let services = compiled(&fields, &Observed::default());
    assert_eq!(services.len(), 4);
    for (frontend, service) in services {
        let expected = if frontend.protocol == Protocol::Tcp { &tcp } else { &udp };
        assert_eq!(service, *expected, "{frontend}");
    }

    let udp = json!({"health": {"type": "udp", "send": "PING\\r\\n", "expect": "\\x00"}});
    for (frontend, service) in compiled(&udp, &Observed::default()) {
        let kind = service.probe.map(|probe| (probe.kind, probe.timeout_ms));
        let wanted = plane::ProbeKind::Udp { send: b"PING\r\n".to_vec(), expect: vec![0] };
        assert_eq!(kind, (frontend.protocol == Protocol::Udp).then_some((wanted, 1_000)), "{frontend}");
    }
}

#[test]
fn a_tunnel_takes_an_address_of_the_vips_family_if_there_is_one_and_the_other_if_not() {
    let (v4, v6): (&[&str], &[&str]) = (&["10.77.2.1"], &["fd77:0:2::2"]);
    let both: &[&str] = &["fd77:0:2::3", "10.77.2.3"];
    let observed = observed(&[v4, v6, both]);
    let (of_v4, of_v6) = ("10.77.2.1 10.77.2.3", "fd77:0:2::2 fd77:0:2::3");
    let table = [
        ("fullnat", of_v4, of_v6),
        ("direct", of_v4, of_v6),
        ("ipip", "10.77.2.1 10.77.2.3 fd77:0:2::2", "10.77.2.1 fd77:0:2::2 fd77:0:2::3"),
        ("gue", "10.77.2.1 10.77.2.3 fd77:0:2::2", "10.77.2.1 fd77:0:2::2 fd77:0:2::3"),
    ];
    for (forward, of_v4, of_v6) in table {
        for (frontend, service) in compiled(&json!({ "forward": forward }), &observed) {
            let addresses: Vec<String> = service.reals.iter().map(|real| real.address.to_string()).collect();
            let expected = if frontend.vip.is_ipv4() { of_v4 } else { of_v6 };
            assert_eq!(addresses.join(" "), expected, "{forward} {frontend}");
            assert!(service.reals.iter().all(|real| real.port == 80), "{forward} {frontend}");
        }
    }
    let gue = |fields| compiled(&fields, &observed)[0].1.forward;
    assert_eq!(gue(json!({"forward": "gue"})), plane::Forward::Gue { port: 6080 });
    assert_eq!(gue(json!({"forward": "gue", "gue_port": 7000})), plane::Forward::Gue { port: 7000 });
}

#[test]
fn who_serves_another_port_is_left_out_where_ports_are_not_translated() {
    let observed = observed(&[&["10.77.2.1", "fd77:0:2::1"]]);
    // target, forward, ports of the reals at the IPv4 VIP
    let table: [(Value, &str, &[u16]); 6] = [
        (json!("http"), "fullnat", &[80]),
        (json!("http"), "direct", &[80]),
        (json!("alt"), "fullnat", &[8080]),
        (json!("alt"), "direct", &[]),
        (json!("alt"), "ipip", &[]),
        // Its mapping has a host port, and Marathon chose 31000.
        (json!("host"), "gue", &[]),
    ];
    for (target, forward, ports) in table {
        let fields = json!({"forward": forward, "ports": [{"listen": 80, "target": target}]});
        let served: Vec<u16> = compiled(&fields, &observed)[0].1.reals.iter().map(|real| real.port).collect();
        assert_eq!(served, ports, "{fields}");
    }
}

#[test]
fn the_plane_takes_whatever_was_taken_from_an_operator() {
    let observed = observed(&[&["10.77.2.1"], &["fd77:0:2::2"]]);
    let guard = json!({"per_source": {"per_second": 1}, "per_vip": {"per_second": 1}, "syn_cookies_above": 1});
    let tcp = json!([{"listen": 80}]);
    let table = [
        json!({}),
        json!({"protection": guard, "health": {"type": "udp", "send": "a"}}),
        json!({"client_address": "toa", "ports": tcp, "health": {"type": "http", "interval_ms": 10}}),
        json!({"client_address": "proxy", "ports": tcp}),
        json!({"forward": "direct", "health": {"type": "tcp"}}),
        json!({"forward": "ipip", "slow_start_s": 3600}),
        json!({"forward": "gue"}),
    ];
    for fields in table {
        let elb = elb(&fields);
        let services = services(&elb, &observed).map(|(at, service)| (at, Arc::new(service))).collect();
        let announce = elb.vips.iter().copied().collect();
        let input = plane::Input { generation: 1, services, announce };
        assert_eq!(input.validate(&OrdMap::new()), Ok(()), "{fields}");
    }
}
