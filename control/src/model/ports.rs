//! Where an instance answers: which port is meant, and at which address it is.

use std::net::{IpAddr, SocketAddr};

use super::{
    app::{Definition, Instance, Network},
    elb::{Forward, Target, Transport},
    observed::{Family, Hosts},
};

/// A port of a definition.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Place {
    /// By its place in [`Definition::ports`].
    Index(usize),
    /// A port that no mapping names, at the container's own address.
    Own(u16),
}

/// Finds the port that is meant. Several may match (`53/tcp` and `53/udp`): one that speaks the transport goes first;
/// if none says so the first is taken, because definitions often leave the protocol out.
pub fn place(definition: &Definition, target: Option<&Target>, transport: Transport) -> Option<Place> {
    let matches = |&index: &usize| {
        let port = &definition.ports[index];
        match target {
            None => true,
            Some(Target::Number(number)) => port.container == *number,
            Some(Target::Name(name)) => port.name.as_deref() == Some(name),
        }
    };
    let speaks = |&index: &usize| match transport {
        Transport::Tcp => definition.ports[index].tcp,
        Transport::Udp => definition.ports[index].udp,
    };
    let all = 0..definition.ports.len();
    let found = all.clone().filter(matches).find(speaks).or_else(|| all.clone().find(matches));
    match (found, target) {
        (Some(index), _) => Some(Place::Index(index)),
        (None, Some(&Target::Number(number))) if definition.network == Network::Container => Some(Place::Own(number)),
        (None, _) => None,
    }
}

/// What to say when [`place`] finds nothing.
pub fn no_port(app: &str, definition: &Definition, target: Option<&Target>) -> String {
    let known: Vec<String> = definition
        .ports
        .iter()
        .map(|port| match &port.name {
            Some(name) => format!("{} ({name})", port.container),
            None => port.container.to_string(),
        })
        .collect();
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    match target {
        Some(target) => format!("the app {app} has no port {target}: it has {known}; correct the ELB's target"),
        None => format!("the app {app} defines no port: give the ELB a target, or the app a port mapping"),
    }
}

/// Where the definition's port `index` of this instance is, as Marathon computes it: the agent's address and host port
/// if the port is mapped to one, else the container's own address and port. Host ports are listed without gaps for the
/// ports that have one, so they are counted, not indexed. `None`: not reachable (no address of this family yet ...).
pub fn address_of(
    instance: &Instance,
    definition: &Definition,
    index: usize,
    hosts: &Hosts,
    family: Family,
) -> Option<SocketAddr> {
    let port = definition.ports.get(index)?;
    let has_host_port = |index: usize| match definition.network {
        Network::Host | Network::Bridge => true,
        Network::Container => definition.ports[index].host.is_some(),
    };
    let (address, number) = if has_host_port(index) {
        let cursor = (0..index).filter(|&before| has_host_port(before)).count();
        (hosts.address(&instance.host, family)?, *instance.ports.get(cursor)?)
    } else {
        (family.first(&instance.addresses)?, port.container)
    };
    (number != 0).then_some(SocketAddr::new(address, number))
}

/// Where a place is, in one address family.
pub fn find(
    instance: &Instance,
    definition: &Definition,
    place: Place,
    hosts: &Hosts,
    family: Family,
) -> Option<SocketAddr> {
    match place {
        Place::Index(index) => address_of(instance, definition, index, hosts, family),
        Place::Own(port) => Some(SocketAddr::new(family.first(&instance.addresses)?, port)),
    }
}

/// Where a place is for packets that were sent to a VIP of this family. A tunnel takes an address of the other family
/// where there is none of the VIP's.
pub fn find_for(
    instance: &Instance,
    definition: &Definition,
    place: Place,
    hosts: &Hosts,
    family: Family,
    forward: Forward,
) -> Option<SocketAddr> {
    let same = find(instance, definition, place, hosts, family);
    same.or_else(|| find(instance, definition, place, hosts, family.other()).filter(|_| forward.crosses()))
}

/// The same in whichever family there is, IPv4 first.
pub fn find_any(instance: &Instance, definition: &Definition, place: Place, hosts: &Hosts) -> Option<SocketAddr> {
    [Family::V4, Family::V6].into_iter().find_map(|family| find(instance, definition, place, hosts, family))
}

/// The addresses that the instance itself has: the container's own, else its agent's.
pub fn own_addresses(instance: &Instance, definition: &Definition, hosts: &Hosts) -> Vec<IpAddr> {
    if definition.network == Network::Container && !instance.addresses.is_empty() {
        instance.addresses.clone()
    } else {
        hosts.addresses(&instance.host)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::app::{Health, Port, TaskState};

    fn port(name: &str, container: u16, host: Option<u16>, protocols: &str) -> Port {
        Port {
            name: (!name.is_empty()).then(|| name.to_owned()),
            tcp: protocols.contains("tcp"),
            udp: protocols.contains("udp"),
            container,
            host,
            ..Port::default()
        }
    }

    fn definition(network: Network, ports: Vec<Port>) -> Definition {
        Definition { network, ports, ..Definition::default() }
    }

    fn instance(host: &str, ports: &[u16], addresses: &[&str]) -> Instance {
        Instance {
            id: "web.instance-1".into(),
            task: "web.instance-1._app.1".into(),
            state: TaskState::Running,
            version: "v1".into(),
            host: host.into(),
            agent: None,
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            ports: ports.to_vec(),
            health: Health::Unknown,
            ready: None,
            started_at: None,
            stopping: None,
            admitted: false,
        }
    }

    #[test]
    fn every_network_mode_finds_its_address() {
        use Network::{Bridge, Container, Host};
        let own = ["10.77.2.5", "fd77:0:2::5"];
        // network, ports (host part), host, task ports, addresses, index, IPv4 answer, IPv6 answer
        type Row<'a> = (Network, &'a [Option<u16>], &'a [u16], &'a [&'a str], usize, Option<&'a str>, Option<&'a str>);
        let table: &[Row<'_>] = &[
            (Host, &[Some(0), Some(0)], &[31000, 31001], &own, 1, Some("10.77.1.1:31001"), None),
            (Host, &[Some(0)], &[], &[], 0, None, None),
            (Bridge, &[None, Some(0)], &[31000, 31001], &["172.17.0.2"], 0, Some("10.77.1.1:31000"), None),
            (Bridge, &[None, Some(0)], &[31000, 31001], &["172.17.0.2"], 1, Some("10.77.1.1:31001"), None),
            (Container, &[None], &[], &own, 0, Some("10.77.2.5:8000"), Some("[fd77:0:2::5]:8000")),
            (Container, &[None], &[], &[], 0, None, None),
            // A gap: the second port has no host port, so the third has the second number of the list.
            (Container, &[Some(0), None, Some(0)], &[31000, 31001], &own, 2, Some("10.77.1.1:31001"), None),
            (
                Container,
                &[Some(0), None, Some(0)],
                &[31000, 31001],
                &own,
                1,
                Some("10.77.2.5:8001"),
                Some("[fd77:0:2::5]:8001"),
            ),
            (Container, &[Some(0)], &[31000], &own, 4, None, None),
        ];
        for &(network, host_ports, task_ports, addresses, index, v4, v6) in table {
            let ports =
                host_ports.iter().enumerate().map(|(i, &host)| port("", 8000 + i as u16, host, "tcp")).collect();
            let definition = definition(network, ports);
            let instance = instance("10.77.1.1", task_ports, addresses);
            for (family, expected) in [(Family::V4, v4), (Family::V6, v6)] {
                let got = address_of(&instance, &definition, index, &Hosts::default(), family);
                assert_eq!(
                    got,
                    expected.map(|e| e.parse().unwrap()),
                    "{network:?} {host_ports:?} [{index}] {family:?}"
                );
            }
        }
    }

    #[test]
    fn an_agent_given_by_name_is_reachable_once_it_is_resolved() {
        let definition = definition(Network::Host, vec![port("", 0, Some(0), "tcp")]);
        let instance = instance("agent-a.example", &[31000], &[]);
        let mut hosts = Hosts::default();
        assert!(hosts.lacks(&instance.host));
        assert_eq!(address_of(&instance, &definition, 0, &hosts, Family::V4), None);
        let known: Vec<IpAddr> = vec!["fd77:0:1::1".parse().unwrap(), "10.77.1.1".parse().unwrap()];
        hosts.0.insert("agent-a.example".into(), known.into());
        assert!(!hosts.lacks(&instance.host));
        assert_eq!(find_any(&instance, &definition, Place::Index(0), &hosts), "10.77.1.1:31000".parse().ok());
        let v6 = address_of(&instance, &definition, 0, &hosts, Family::V6);
        assert_eq!(v6, "[fd77:0:1::1]:31000".parse().ok());
    }

    #[test]
    fn a_target_is_a_number_a_name_or_the_first() {
        let ports =
            || vec![port("http", 8080, None, "tcp"), port("dns", 53, None, "tcp"), port("dns-udp", 53, None, "udp")];
        let mapped = definition(Network::Container, ports());
        let bridge = definition(Network::Bridge, ports());
        let none = definition(Network::Container, Vec::new());
        let number = |n| Some(Target::Number(n));
        let name = |n: &str| Some(Target::Name(n.to_owned()));
        let table = [
            (&mapped, None, Transport::Tcp, Some(Place::Index(0))),
            (&mapped, number(53), Transport::Tcp, Some(Place::Index(1))),
            (&mapped, number(53), Transport::Udp, Some(Place::Index(2))),
            (&mapped, name("http"), Transport::Tcp, Some(Place::Index(0))),
            (&mapped, name("http"), Transport::Udp, Some(Place::Index(0))),
            (&mapped, name("nope"), Transport::Tcp, None),
            (&mapped, number(9), Transport::Tcp, Some(Place::Own(9))),
            (&bridge, number(9), Transport::Tcp, None),
            (&none, None, Transport::Tcp, None),
            (&none, number(80), Transport::Tcp, Some(Place::Own(80))),
        ];
        for (definition, target, transport, expected) in table {
            assert_eq!(place(definition, target.as_ref(), transport), expected, "{target:?} {transport:?}");
        }
    }

    proptest! {
        /// The cursor against the plain description: walk the mappings, taking a host port for each that has one.
        #[test]
        fn host_ports_are_counted_as_marathon_counts_them(
            hosts in prop::collection::vec(prop::option::of(0u16..3), 0..12),
            ports in prop::collection::vec(1u16..65535, 0..12),
            has_address in any::<bool>(),
            bridge in any::<bool>(),
        ) {
            let network = if bridge { Network::Bridge } else { Network::Container };
            let mappings = hosts.iter().enumerate().map(|(i, &host)| port("", 100 + i as u16, host, "tcp")).collect();
            let definition = definition(network, mappings);
            let own: &[&str] = if has_address { &["10.77.2.9"] } else { &[] };
            let instance = instance("10.77.1.1", &ports, own);
            let mut left = ports.iter();
            for (index, host) in hosts.iter().enumerate() {
                let expected: Option<SocketAddr> = if host.is_some() || bridge {
                    left.next().map(|port| format!("10.77.1.1:{port}").parse().unwrap())
                } else {
                    has_address.then(|| format!("10.77.2.9:{}", 100 + index).parse().unwrap())
                };
                let got = address_of(&instance, &definition, index, &Hosts::default(), Family::V4);
                prop_assert_eq!(got, expected);
            }
        }
    }
}
