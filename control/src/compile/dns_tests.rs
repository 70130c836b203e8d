//! Names against the words of the Mesos-DNS specification, and the records of whole apps.

use imbl::OrdMap;

use super::*;
use crate::model::app::{Health, Network, Port, TaskState};

#[test]
fn labels_are_mangled_as_mesos_dns_does() {
    let long = "a".repeat(70);
    let refilled = format!("{}{}zz", "b".repeat(60), "-".repeat(5));
    let table = [
        ("web.group", "web-group".to_owned()),
        ("4abc123", "4abc123".to_owned()),
        ("Web_1!", "web-1".to_owned()),
        ("--x--", "x".to_owned()),
        ("---", String::new()),
        (&long, "a".repeat(63)),
        (&refilled, format!("{}zz", "b".repeat(60))),
        (&format!("hello{}f", "-".repeat(70)), "hellof".to_owned()),
    ];
    for (text, expected) in table {
        assert_eq!(label(text), expected, "{text}");
    }
    assert_eq!(hash("test"), "iffe9");
    assert_eq!((app_label("/shop/web").as_str(), dotted("web.shop_x").as_str()), ("web-shop", "web.shop-x"));
}

fn instance(n: u8, agent: &str) -> Instance {
    Instance {
        id: format!("i{n}").into(),
        task: format!("i{n}._app.1").into(),
        state: TaskState::Running,
        version: "v1".into(),
        host: format!("10.77.1.{n}").as_str().into(),
        agent: Some(agent.into()),
        addresses: vec![IpAddr::from([10, 77, 2, n]), format!("fd77:0:2::{n}").parse().unwrap()],
        ports: vec![31000 + u16::from(n)],
        health: Health::Unknown,
        ready: None,
        started_at: None,
        stopping: None,
        admitted: true,
    }
}

fn app(network: Network, instances: Vec<Instance>) -> Arc<App> {
    let ports = vec![
        Port { name: Some("http".to_owned()), tcp: true, container: 8080, ..Port::default() },
        Port { tcp: true, udp: true, container: 53, host: Some(0), ..Port::default() },
    ];
    let definition = Definition { network, ports, ..Definition::default() };
    Arc::new(App {
        id: "/shop/web".into(),
        version: "v1".into(),
        wanted: 1,
        definitions: OrdMap::unit("v1".into(), Arc::new(definition)),
        instances: instances.into_iter().map(|instance| (instance.id.clone(), Arc::new(instance))).collect(),
        deployments: Vec::new(),
    })
}

/// As lines: `name addresses` and `name SRV port target`.
fn lines(app: &Arc<App>) -> Vec<String> {
    let nodes = app_names([app].into_iter(), &Observed::default(), "mesos", 5);
    let mut lines = Vec::new();
    for (name, node) in nodes {
        assert_eq!(node.ttl, 5);
        let mut line = name.to_string();
        node.addresses.iter().for_each(|address| line.push_str(&format!(" {address}")));
        node.services.iter().for_each(|srv| line.push_str(&format!(" {}:{}", srv.target, srv.port)));
        lines.push(line);
    }
    lines
}

#[test]
fn a_container_has_its_own_addresses_and_its_mapped_port_is_its_agents() {
    let can = format!("web-shop-{}-s7", hash("i1._app.1"));
    let expected = [
        format!("_http._web-shop._tcp.marathon.mesos {can}.marathon.mesos:8080"),
        format!("_web-shop._tcp.marathon.mesos {can}.marathon.mesos:8080 {can}.marathon.slave.mesos:31001"),
        format!("_web-shop._udp.marathon.mesos {can}.marathon.slave.mesos:31001"),
        format!("{can}.marathon.mesos 10.77.2.1 fd77:0:2::1"),
        format!("{can}.marathon.slave.mesos 10.77.1.1"),
        "web-shop.marathon.mesos 10.77.2.1 fd77:0:2::1".to_owned(),
        "web.shop.marathon.mesos 10.77.2.1 fd77:0:2::1".to_owned(),
    ];
    let mut got = lines(&app(Network::Container, vec![instance(1, "e1-S7")]));
    got.sort();
    let mut expected = expected.to_vec();
    expected.sort();
    assert_eq!(got, expected);
}

#[test]
fn only_serving_instances_answer_and_the_names_stay() {
    let draining = Instance { state: TaskState::Killing, ..instance(1, "e1-S7") };
    let empty = [
        "_http._web-shop._tcp.marathon.mesos",
        "_web-shop._tcp.marathon.mesos",
        "_web-shop._udp.marathon.mesos",
        "web-shop.marathon.mesos",
        "web.shop.marathon.mesos",
    ];
    assert_eq!(lines(&app(Network::Container, vec![draining.clone()])), empty);
    let both = lines(&app(Network::Host, vec![draining, instance(2, "e1-S8")]));
    assert!(both.contains(&"web-shop.marathon.mesos 10.77.1.2".to_owned()), "{both:?}");
}

#[test]
fn every_name_can_be_asked_for() {
    let mut long = (*app(Network::Container, vec![instance(1, "e1-S123456")])).clone();
    long.id = format!("/{}/{}", "g".repeat(50), "w".repeat(80)).as_str().into();
    let nodes = app_names([&Arc::new(long)].into_iter(), &Observed::default(), "mesos", 5);
    assert!(nodes.len() >= 6);
    for name in nodes.keys() {
        assert!(name.len() <= 253 && name.split('.').all(|label| (1..=63).contains(&label.len())), "{name}");
    }
}
