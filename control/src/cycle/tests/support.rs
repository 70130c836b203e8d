//! A small world to step through: apps in container mode, instance n at 10.1.0.n.

use std::sync::Arc;

use imbl::OrdMap;
use jiff::{SignedDuration, Timestamp};
use tidegate_l4::RealState;

use crate::{
    compile::Compiled,
    cycle::{Effect, Event, Marathon, Policy, State, StreamEvent, step},
    model::{
        app::{App, Definition, Health, Instance, InstanceId, Network, Port, TaskState},
        desired::Desired,
        elb::{Elb, ElbSpec, Layer4, Layer7, PortPair, Rule, Scope, Target, Transport},
    },
};

pub(super) fn start() -> Timestamp {
    "2026-11-24T03:00:00Z".parse().unwrap()
}

pub(super) struct World {
    pub(super) state: State,
    pub(super) now: Timestamp,
}

impl World {
    pub(super) fn new() -> Self {
        Self { state: State::new(Policy::default(), start()), now: start() }
    }

    /// One step; whatever it was, the small steps must add up to the whole.
    pub(super) fn tell(&mut self, event: Event) -> Vec<Effect> {
        let text = format!("{event:?}");
        let effects = step(&mut self.state, event, self.now);
        let state = &self.state;
        let whole = Compiled::whole(&state.policy.domain, state.policy.ttl, &state.desired, &state.observed);
        assert!(state.compiled.same_work(&whole), "after {text}:\n{:#?}\nwhole:\n{whole:#?}", state.compiled);
        effects
    }

    pub(super) fn pass(&mut self, seconds: i64) -> Timestamp {
        self.now += SignedDuration::from_secs(seconds);
        self.now
    }

    /// The numbers of the instances that get new flows.
    pub(super) fn active(&self) -> Vec<u32> {
        self.reals(RealState::Active)
    }

    pub(super) fn reals(&self, wanted: RealState) -> Vec<u32> {
        let reals = self.state.compiled.l4.services.values().flat_map(|service| &service.reals);
        let mut numbers: Vec<u32> =
            reals.filter(|real| real.state == wanted).map(|real| number(real.address)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    pub(super) fn instance(&self, app: &str, n: u32) -> Arc<Instance> {
        self.state.observed.apps[app].instances[&id(n)].clone()
    }
}

pub(super) fn number(address: std::net::IpAddr) -> u32 {
    match address {
        std::net::IpAddr::V4(v4) => u32::from(v4) & 0xffff,
        std::net::IpAddr::V6(_) => panic!("the world has IPv4 only"),
    }
}

pub(super) fn id(n: u32) -> InstanceId {
    format!("x.instance-{n:04}").into()
}

fn address(n: u32) -> std::net::IpAddr {
    std::net::Ipv4Addr::from(0x0a01_0000 + n).into()
}

pub(super) fn instance(n: u32) -> Instance {
    Instance {
        id: id(n),
        task: format!("x.instance-{n:04}._app.1").into(),
        state: TaskState::Running,
        version: "v1".into(),
        host: "10.77.1.1".into(),
        agent: Some("e1-S0".into()),
        addresses: vec![address(n)],
        ports: Vec::new(),
        health: Health::Healthy,
        ready: None,
        started_at: Some(start() - SignedDuration::from_secs(3600)),
        stopping: None,
        admitted: false,
    }
}

pub(super) fn bare(n: u32) -> Instance {
    with_health(instance(n), Health::Unknown)
}

pub(super) fn with_health(instance: Instance, health: Health) -> Instance {
    Instance { health, ..instance }
}

pub(super) fn of_version(instance: Instance, version: &str) -> Instance {
    Instance { version: version.into(), ..instance }
}

pub(super) fn on(instance: Instance, host: &str) -> Instance {
    Instance { host: host.into(), ports: vec![8080], ..instance }
}

pub(super) fn app(id: &str, instances: impl IntoIterator<Item = Instance>) -> App {
    let definition = Definition {
        network: Network::Container,
        ports: vec![Port { name: Some("http".to_owned()), tcp: true, container: 8080, ..Port::default() }],
        health_checks: vec![3],
        ..Definition::default()
    };
    App {
        id: id.into(),
        version: "v1".into(),
        wanted: 2,
        definitions: OrdMap::unit("v1".into(), Arc::new(definition)),
        instances: instances.into_iter().map(|instance| (instance.id.clone(), Arc::new(instance))).collect(),
        deployments: Vec::new(),
    }
}

fn redefined(app: App, with: impl FnOnce(&mut Definition)) -> App {
    let mut definition = (**app.newest().unwrap()).clone();
    with(&mut definition);
    App { definitions: OrdMap::unit("v1".into(), Arc::new(definition)), ..app }
}

pub(super) fn unchecked(app: App) -> App {
    redefined(app, |definition| definition.health_checks.clear())
}

pub(super) fn on_host_ports(app: App) -> App {
    redefined(app, |definition| definition.ports[0].host = Some(0))
}

fn layer4(app: &str) -> ElbSpec {
    let ports = vec![PortPair { listen: 80, protocol: Transport::Tcp, target: Some(Target::Number(8080)) }];
    ElbSpec::Layer4(Layer4 { app: app.into(), ports, ..Layer4::default() })
}

pub(super) fn layer7(app: &str) -> ElbSpec {
    let rules = vec![Rule { host: None, path: "/".to_owned(), app: app.into(), target: None }];
    ElbSpec::Layer7(Layer7 { scope: Scope::Internal, vips: Vec::new(), listen: vec![80], rules })
}

pub(super) fn put(desired: &mut Desired, name: &str, vip: &str, spec: ElbSpec) {
    desired.revision += 1;
    let elb = Elb { spec, vips: vec![vip.parse().unwrap()], revision: desired.revision };
    desired.elbs.insert(name.to_owned(), Arc::new(elb));
}

pub(super) fn put_layer4(desired: &mut Desired, name: &str, vip: &str, app: &str) {
    put(desired, name, vip, layer4(app));
}

pub(super) fn elb(name: &str, vip: &str, app: &str) -> Desired {
    let mut desired = Desired::default();
    put_layer4(&mut desired, name, vip, app);
    desired
}

/// An ELB that listens at 80 and forwards like this.
pub(super) fn forwarded(name: &str, vip: &str, app: &str, forward: &str, target: &str) -> Desired {
    let target = target.parse().map_or_else(|_| Target::Name(target.to_owned()), Target::Number);
    let ports = vec![PortPair { listen: 80, protocol: Transport::Tcp, target: Some(target) }];
    let forward = serde_json::from_value(forward.into()).unwrap();
    let mut desired = Desired::default();
    put(&mut desired, name, vip, ElbSpec::Layer4(Layer4 { app: app.into(), ports, forward, ..Layer4::default() }));
    desired
}

/// One of layer 4 and one of layer 7.
pub(super) fn both(l4: &str, vip4: &str, l7: &str, vip7: &str, app: &str) -> Desired {
    let mut desired = elb(l4, vip4, app);
    put(&mut desired, l7, vip7, layer7(app));
    desired
}

pub(super) fn attached() -> Event {
    Event::Marathon(Marathon::Attached)
}

pub(super) fn snapshot(apps: Vec<App>, asked_at: Timestamp) -> Event {
    Event::Marathon(Marathon::Snapshot { apps, broken: Vec::new(), asked_at })
}

pub(super) fn stream(event: StreamEvent) -> Event {
    Event::Marathon(Marathon::Stream(event))
}

pub(super) fn status(app: &str, n: u32, state: &str) -> Event {
    let known = instance(n);
    stream(StreamEvent::Status {
        app: app.into(),
        instance: known.id,
        task: known.task,
        state: state.to_owned(),
        host: Some(known.host),
        agent: known.agent,
        addresses: known.addresses,
        ports: known.ports,
        version: Some(known.version),
    })
}

pub(super) fn health(app: &str, n: u32, healthy: bool) -> Event {
    stream(StreamEvent::Health { app: app.into(), instance: id(n), healthy: Some(healthy) })
}

pub(super) fn changed(app: &str, n: u32, condition: &str, at: Timestamp) -> Event {
    let condition = condition.to_owned();
    stream(StreamEvent::InstanceChanged { app: app.into(), instance: id(n), condition, at: Some(at) })
}
