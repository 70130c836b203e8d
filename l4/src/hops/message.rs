//! What the kernel's messages say of links, neighbours and routes.

use std::net::IpAddr;

use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{InfoData, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, VlanProtocol},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourMessage, NeighbourState},
    route::{
        RouteAddress, RouteAttribute, RouteLwEnCapType, RouteMessage, RouteMetric, RouteNextHopFlags, RouteType,
        RouteVia,
    },
};

use super::way::{Egress, Neighbour, NextHop, Path, Route, Tag};

/// A change that the kernel told of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Event {
    Link(u32, Option<Egress>),
    Neighbour(NextHop, Option<Neighbour>),
    /// The routes to these addresses may differ now.
    Routes(Prefix),
    /// Any route may differ now: an address went, a rule or a next hop object changed.
    AllRoutes,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    pub(crate) fn holds(&self, address: IpAddr) -> bool {
        let (ours, theirs, width) = match (self.address, address) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => (u128::from(ours.to_bits()), u128::from(theirs.to_bits()), 32),
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => (ours.to_bits(), theirs.to_bits(), 128),
            _ => return false,
        };
        let host = width - u32::from(self.length).min(width);
        (ours ^ theirs).checked_shr(host).unwrap_or(0) == 0
    }
}

/// What a message of a multicast group means; `None`: nothing.
pub(crate) fn event(message: RouteNetlinkMessage) -> Option<Event> {
    use RouteNetlinkMessage as Message;
    match message {
        // Bridges talk of their ports and forwarding tables in the same groups.
        Message::NewLink(link) if link.header.interface_family == AddressFamily::Unspec => {
            let (index, egress) = egress(&link);
            Some(Event::Link(index, Some(egress)))
        }
        Message::DelLink(link) if link.header.interface_family == AddressFamily::Unspec => {
            Some(Event::Link(link.header.index, None))
        }
        Message::NewNeighbour(message) => neighbour(&message).map(|(to, known)| Event::Neighbour(to, Some(known))),
        Message::DelNeighbour(message) => neighbour(&message).map(|(to, _)| Event::Neighbour(to, None)),
        Message::NewRoute(route) | Message::DelRoute(route) => prefix(&route).map(Event::Routes),
        // The route that an address brings along is told of; those that it takes along (as their source) are not.
        Message::DelAddress(_) | Message::NewRule(_) | Message::DelRule(_) => Some(Event::AllRoutes),
        _ => None,
    }
}

pub(crate) fn egress(message: &LinkMessage) -> (u32, Egress) {
    let up = message.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp);
    let mut egress = Egress { up, mac: None, mtu: 0, tag: Tag::Untagged };
    let (mut parent, mut id, mut foreign) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(mac) => egress.mac = mac.as_slice().try_into().ok(),
            LinkAttribute::Mtu(mtu) => egress.mtu = *mtu,
            LinkAttribute::Link(index) => parent = Some(*index),
            LinkAttribute::LinkNetNsId(_) => foreign = true,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    let LinkInfo::Data(InfoData::Vlan(vlan)) = info else { continue };
                    for part in vlan {
                        match part {
                            InfoVlan::Id(number) => id = Some(*number),
                            InfoVlan::Protocol(protocol) => foreign |= *protocol != VlanProtocol::Ieee8021Q,
                            _ => {}
                        }
                    }
                }
            }
            _ => {}
        }
    }
    // Others (veth) have a link of their own too; only a VLAN's is the one that packets leave by.
    egress.tag = match (id, parent) {
        (None, _) => Tag::Untagged,
        (Some(id), Some(parent)) if !foreign => Tag::Dot1q { parent, id },
        _ => Tag::Other,
    };
    (message.header.index, egress)
}

pub(crate) fn neighbour(message: &NeighbourMessage) -> Option<(NextHop, Neighbour)> {
    let (mut address, mut known, mut mac) = (None, Neighbour::default(), None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            NeighbourAttribute::ExtFlags(flags) => known.managed = flags.contains(NeighbourExtFlags::Managed),
            _ => {}
        }
    }
    // The kernel's own idea of a neighbour that can be sent to (NUD_VALID).
    use NeighbourState::{Failed, Incomplete, None as Unknown, Other};
    let valid = !matches!(message.header.state, Incomplete | Failed | Unknown | Other(_));
    known.mac = mac.filter(|_| valid);
    known.fixed = matches!(message.header.state, NeighbourState::Permanent | NeighbourState::Noarp);
    Some((NextHop { index: message.header.ifindex, address: address? }, known))
}

/// The answer to the question for the route to an address; `None` when it names a next hop object only.
pub(crate) fn route(address: IpAddr, message: &RouteMessage) -> Option<Route> {
    if message.header.kind != RouteType::Unicast {
        return Some(Route::default());
    }
    let mut paths = Vec::new();
    let mut mtu = 0;
    let (mut index, mut object) = (None, false);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(oif) => index = Some(*oif),
            RouteAttribute::NhId(_) => object = true,
            RouteAttribute::Metrics(metrics) => {
                for metric in metrics {
                    if let RouteMetric::Mtu(limit) = metric {
                        mtu = *limit;
                    }
                }
            }
            RouteAttribute::MultiPath(hops) => {
                for hop in hops {
                    if !hop.flags.contains(RouteNextHopFlags::Dead) && !tunnels(&hop.attributes) {
                        let to = next_hop(address, hop.interface_index, &hop.attributes);
                        paths.push(Path { to, weight: u16::from(hop.hops) + 1 });
                    }
                }
            }
            _ => {}
        }
    }
    match index {
        // A tunnel's header is the kernel's to write.
        Some(index) if paths.is_empty() && !tunnels(&message.attributes) => {
            paths.push(Path { to: next_hop(address, index, &message.attributes), weight: 1 });
        }
        None if paths.is_empty() && object => return None,
        _ => {}
    }
    Some(Route { paths: paths.into(), mtu })
}

fn next_hop(address: IpAddr, index: u32, attributes: &[RouteAttribute]) -> NextHop {
    let gateway = attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::Gateway(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        // An IPv4 route may lead through an IPv6 neighbour (RFC 5549).
        RouteAttribute::Via(RouteVia::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::Via(RouteVia::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    });
    NextHop { index, address: gateway.unwrap_or(address) }
}

fn tunnels(attributes: &[RouteAttribute]) -> bool {
    attributes
        .iter()
        .any(|attribute| matches!(attribute, RouteAttribute::EncapType(encap) if *encap != RouteLwEnCapType::None))
}

fn prefix(message: &RouteMessage) -> Option<Prefix> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::Destination(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    });
    let any = match message.header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    Some(Prefix { address: address.unwrap_or(any), length: message.header.destination_prefix_length })
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::{link::InfoKind, route::RouteNextHop};

    use super::*;

    fn link(flags: LinkFlags, attributes: Vec<LinkAttribute>) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = 5;
        message.header.flags = flags;
        message.attributes = attributes;
        message
    }

    fn vlan(parts: Vec<InfoVlan>) -> LinkAttribute {
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vlan), LinkInfo::Data(InfoData::Vlan(parts))])
    }

    #[test]
    fn a_vlan_device_is_known_by_its_kind_and_a_veth_is_none() {
        let running = LinkFlags::Up | LinkFlags::LowerUp;
        let of = |attributes| egress(&link(running, attributes)).1.tag;
        assert_eq!(of(vec![LinkAttribute::Link(2)]), Tag::Untagged);
        let plain = || vlan(vec![InfoVlan::Id(7), InfoVlan::Protocol(VlanProtocol::Ieee8021Q)]);
        assert_eq!(of(vec![LinkAttribute::Link(2), plain()]), Tag::Dot1q { parent: 2, id: 7 });
        assert_eq!(of(vec![LinkAttribute::Link(2), LinkAttribute::LinkNetNsId(1), plain()]), Tag::Other);
        let provider = vlan(vec![InfoVlan::Id(7), InfoVlan::Protocol(VlanProtocol::Ieee8021Ad)]);
        assert_eq!(of(vec![LinkAttribute::Link(2), provider]), Tag::Other);
    }

    #[test]
    fn a_link_without_a_carrier_is_not_up() {
        for (flags, up) in
            [(LinkFlags::Up | LinkFlags::LowerUp, true), (LinkFlags::Up, false), (LinkFlags::LowerUp, false)]
        {
            let (index, egress) = egress(&link(flags, vec![LinkAttribute::Mtu(1400)]));
            assert_eq!((index, egress.up, egress.mtu), (5, up, 1400), "{flags:?}");
        }
    }

    #[test]
    fn a_route_names_its_ways() {
        let real: IpAddr = "10.9.0.1".parse().unwrap();
        let of = |kind, attributes| {
            let mut message = RouteMessage::default();
            message.header.kind = kind;
            message.attributes = attributes;
            route(real, &message)
        };
        let to = |index, address: &str| NextHop { index, address: address.parse().unwrap() };
        let paths =
            |route: Option<Route>| route.unwrap().paths.iter().map(|path| (path.to, path.weight)).collect::<Vec<_>>();
        let gateway = |text: &str| RouteAttribute::Gateway(RouteAddress::Inet(text.parse().unwrap()));
        assert_eq!(paths(of(RouteType::Unicast, vec![RouteAttribute::Oif(3)])), [(to(3, "10.9.0.1"), 1)]);
        let via = vec![RouteAttribute::Oif(3), gateway("10.0.0.1")];
        assert_eq!(paths(of(RouteType::Unicast, via.clone())), [(to(3, "10.0.0.1"), 1)]);
        let six = vec![RouteAttribute::Oif(3), RouteAttribute::Via(RouteVia::Inet6("fe80::1".parse().unwrap()))];
        assert_eq!(paths(of(RouteType::Unicast, six)), [(to(3, "fe80::1"), 1)]);
        for kind in [RouteType::Local, RouteType::BlackHole, RouteType::Unreachable, RouteType::Prohibit] {
            assert_eq!(of(kind, via.clone()), Some(Route::default()), "{kind:?}");
        }
        let hop = |index, hops, flags, attributes| {
            let mut hop = RouteNextHop::default();
            (hop.interface_index, hop.hops, hop.flags, hop.attributes) = (index, hops, flags, attributes);
            hop
        };
        let many = RouteAttribute::MultiPath(vec![
            hop(3, 0, RouteNextHopFlags::empty(), vec![gateway("10.0.0.1")]),
            hop(4, 0, RouteNextHopFlags::Dead, vec![gateway("10.1.0.1")]),
            hop(4, 2, RouteNextHopFlags::empty(), vec![gateway("10.1.0.2")]),
        ]);
        let limit = RouteAttribute::Metrics(vec![RouteMetric::Advmss(1), RouteMetric::Mtu(1400)]);
        let found = of(RouteType::Unicast, vec![many, limit]);
        assert_eq!(found.as_ref().unwrap().mtu, 1400);
        assert_eq!(paths(found), [(to(3, "10.0.0.1"), 1), (to(4, "10.1.0.2"), 3)]);
        assert_eq!(of(RouteType::Unicast, vec![RouteAttribute::NhId(1)]), None);
        let tunnel = vec![RouteAttribute::Oif(3), RouteAttribute::EncapType(RouteLwEnCapType::Mpls)];
        assert_eq!(of(RouteType::Unicast, tunnel), Some(Route::default()));
    }

    #[test]
    fn a_prefix_holds_its_own_addresses() {
        for (network, length, address, held) in [
            ("10.9.0.0", 16, "10.9.7.1", true),
            ("10.9.0.0", 16, "10.8.7.1", false),
            ("10.9.0.1", 32, "10.9.0.1", true),
            ("10.9.0.1", 32, "10.9.0.2", false),
            ("0.0.0.0", 0, "10.9.0.2", true),
            ("0.0.0.0", 0, "fd00::1", false),
            ("::", 0, "fd00::1", true),
            ("fd00::", 64, "fd00::1", true),
            ("fd00::", 64, "fd00:0:0:1::1", false),
        ] {
            let prefix = Prefix { address: network.parse().unwrap(), length };
            assert_eq!(prefix.holds(address.parse().unwrap()), held, "{network}/{length} {address}");
        }
    }

    #[test]
    fn a_neighbour_that_is_not_valid_has_no_mac() {
        for (state, mac, fixed) in [
            (NeighbourState::Reachable, true, false),
            (NeighbourState::Stale, true, false),
            (NeighbourState::Probe, true, false),
            (NeighbourState::Permanent, true, true),
            (NeighbourState::Failed, false, false),
            (NeighbourState::Incomplete, false, false),
        ] {
            let mut message = NeighbourMessage::default();
            message.header.ifindex = 3;
            message.header.state = state;
            message.attributes = vec![
                NeighbourAttribute::Destination(NeighbourAddress::Inet("10.0.0.1".parse().unwrap())),
                NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 9]),
                NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed),
            ];
            let (to, known) = neighbour(&message).unwrap();
            assert_eq!(to, NextHop { index: 3, address: "10.0.0.1".parse().unwrap() });
            assert_eq!((known.mac.is_some(), known.fixed, known.managed), (mac, fixed, true), "{state:?}");
        }
    }
}
