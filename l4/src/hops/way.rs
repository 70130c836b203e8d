//! One way to a real: from the route, the neighbour and the link, what the program must know to send a packet.

use std::{collections::HashMap, net::IpAddr};

/// The way to the next machine, as user space found it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Hop {
    /// The interface that packets leave by; of a VLAN, the one beneath it.
    pub ifindex: u32,
    pub source_mac: [u8; 6],
    pub destination_mac: [u8; 6],
    /// The 802.1Q id to send with; 0: untagged.
    pub vlan: u16,
    /// The largest IP packet that fits; 0: unknown.
    pub mtu: u16,
}

/// The next machine on the way to an address, as the kernel's neighbour table names it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct NextHop {
    pub(crate) index: u32,
    pub(crate) address: IpAddr,
}

/// What is known of a next hop.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Neighbour {
    /// Packets can be sent to it, at this hardware address.
    pub(crate) mac: Option<[u8; 6]>,
    /// The kernel keeps it resolved because it was told to.
    pub(crate) managed: bool,
    /// It was written by an operator, or needs no resolving.
    pub(crate) fixed: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Egress {
    /// Set up, and with a carrier.
    pub(crate) up: bool,
    pub(crate) mac: Option<[u8; 6]>,
    pub(crate) mtu: u32,
    pub(crate) tag: Tag,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Tag {
    Untagged,
    Dot1q {
        parent: u32,
        id: u16,
    },
    /// A tag that the program cannot write, or a parent in another namespace.
    Other,
}

/// One of the ways that a route names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Path {
    pub(crate) to: NextHop,
    pub(crate) weight: u16,
}

/// The route to one address; without a path when it leads nowhere or to this machine.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Route {
    pub(crate) paths: Box<[Path]>,
    /// The route's own limit; 0: none.
    pub(crate) mtu: u32,
}

pub(crate) type Neighbours = HashMap<NextHop, Neighbour>;
pub(crate) type Links = HashMap<u32, Egress>;

/// The way to an address now: of several, one of those that work, always the same for the same address, and another
/// only for the addresses whose way is gone (the highest of as many hashes as the path has weight).
pub(crate) fn choose(address: IpAddr, route: &Route, neighbours: &Neighbours, links: &Links) -> Option<Hop> {
    if let [only] = &*route.paths {
        return hop(only.to, route.mtu, neighbours, links);
    }
    let working = route.paths.iter().filter_map(|path| {
        let hop = hop(path.to, route.mtu, neighbours, links)?;
        let best = (0..path.weight.max(1)).map(|turn| hash(address, path.to, turn)).max();
        Some((best, hop))
    });
    working.max_by_key(|(best, _)| *best).map(|(_, hop)| hop)
}

fn hop(to: NextHop, limit: u32, neighbours: &Neighbours, links: &Links) -> Option<Hop> {
    let destination_mac = neighbours.get(&to)?.mac?;
    let link = links.get(&to.index).filter(|link| link.up)?;
    let source_mac = link.mac?;
    let (ifindex, vlan, mtu) = match link.tag {
        Tag::Untagged => (to.index, 0, link.mtu),
        Tag::Dot1q { parent, id } => {
            let below = links.get(&parent).filter(|below| below.up && below.tag == Tag::Untagged)?;
            (parent, id, link.mtu.min(below.mtu))
        }
        Tag::Other => return None,
    };
    let mtu = if limit == 0 { mtu } else { mtu.min(limit) };
    Some(Hop { ifindex, source_mac, destination_mac, vlan, mtu: u16::try_from(mtu).unwrap_or(u16::MAX) })
}

/// The same in every process, so that a restart moves nobody.
fn hash(address: IpAddr, to: NextHop, turn: u16) -> u64 {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    let (address, to_address) = (bits(address), bits(to.address));
    let place = u64::from(to.index) << 16 | u64::from(turn);
    [address as u64, (address >> 64) as u64, to_address as u64, (to_address >> 64) as u64, place]
        .into_iter()
        .fold(0, |state, word| mix(state ^ word))
}

/// The finisher of SplitMix64.
fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
    const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn next(index: u32, address: &str) -> NextHop {
        NextHop { index, address: ip(address) }
    }

    fn resolved(mac: [u8; 6]) -> Neighbour {
        Neighbour { mac: Some(mac), ..Neighbour::default() }
    }

    fn link(mtu: u32, tag: Tag) -> Egress {
        Egress { up: true, mac: Some(OWN_MAC), mtu, tag }
    }

    fn route(paths: &[NextHop], mtu: u32) -> Route {
        Route { paths: paths.iter().map(|to| Path { to: *to, weight: 1 }).collect(), mtu }
    }

    #[test]
    fn a_hop_is_the_neighbours_mac_behind_the_links_mac() {
        let gateway = next(3, "10.0.0.1");
        let neighbours = Neighbours::from([(gateway, resolved(GATEWAY_MAC))]);
        let links = Links::from([(3, link(1500, Tag::Untagged))]);
        let found = choose(ip("10.9.9.9"), &route(&[gateway], 0), &neighbours, &links);
        let expected = Hop { ifindex: 3, source_mac: OWN_MAC, destination_mac: GATEWAY_MAC, vlan: 0, mtu: 1500 };
        assert_eq!(found, Some(expected));
        let narrow = choose(ip("10.9.9.9"), &route(&[gateway], 1400), &neighbours, &links);
        assert_eq!(narrow, Some(Hop { mtu: 1400, ..expected }));
        let wide = choose(ip("10.9.9.9"), &route(&[gateway], 9000), &neighbours, &links);
        assert_eq!(wide, Some(expected));
    }

    #[test]
    fn what_cannot_be_sent_has_no_hop() {
        let gateway = next(3, "10.0.0.1");
        let neighbours = Neighbours::from([(gateway, resolved(GATEWAY_MAC))]);
        let good = link(1500, Tag::Untagged);
        let links = |link| Links::from([(3, link)]);
        let find =
            |route: &Route, neighbours: &Neighbours, links: &Links| choose(ip("10.9.9.9"), route, neighbours, links);
        assert_eq!(find(&Route::default(), &neighbours, &links(good)), None);
        assert_eq!(find(&route(&[gateway], 0), &Neighbours::new(), &links(good)), None);
        let failed = Neighbours::from([(gateway, Neighbour { managed: true, ..Neighbour::default() })]);
        assert_eq!(find(&route(&[gateway], 0), &failed, &links(good)), None);
        for bad in [
            Egress { up: false, ..good },
            Egress { mac: None, ..good },
            Egress { tag: Tag::Other, ..good },
            Egress { tag: Tag::Dot1q { parent: 2, id: 7 }, ..good },
        ] {
            assert_eq!(find(&route(&[gateway], 0), &neighbours, &links(bad)), None, "{bad:?}");
        }
    }

    #[test]
    fn a_vlan_is_its_parent_and_a_tag() {
        let gateway = next(5, "fd00::1");
        let neighbours = Neighbours::from([(gateway, resolved(GATEWAY_MAC))]);
        let vlan = link(1500, Tag::Dot1q { parent: 2, id: 7 });
        let parent = Egress { mac: Some([2; 6]), ..link(1496, Tag::Untagged) };
        let find = |parent| {
            let links = Links::from([(5, vlan), (2, parent)]);
            choose(ip("fd00:1::9"), &route(&[gateway], 0), &neighbours, &links)
        };
        let expected = Hop { ifindex: 2, source_mac: OWN_MAC, destination_mac: GATEWAY_MAC, vlan: 7, mtu: 1496 };
        assert_eq!(find(parent), Some(expected));
        assert_eq!(find(Egress { up: false, ..parent }), None, "the cable is out");
        assert_eq!(find(Egress { tag: Tag::Dot1q { parent: 1, id: 9 }, ..parent }), None, "two tags");
    }

    #[test]
    fn many_ways_share_the_reals_and_a_lost_one_moves_only_its_own() {
        let ways = [next(3, "10.0.0.1"), next(4, "10.1.0.1"), next(4, "10.1.0.2")];
        let route =
            Route { paths: ways.iter().zip([1, 1, 2]).map(|(to, weight)| Path { to: *to, weight }).collect(), mtu: 0 };
        let mut neighbours: Neighbours =
            ways.iter().enumerate().map(|(at, way)| (*way, resolved([2, 0, 0, 0, 1, at as u8]))).collect();
        let links = Links::from([(3, link(1500, Tag::Untagged)), (4, link(1500, Tag::Untagged))]);
        let real = |at: u32| IpAddr::V4((0x0a09_0000 + at).into());
        let pick = |neighbours: &Neighbours| -> Vec<u8> {
            (0..4000).map(|at| choose(real(at), &route, neighbours, &links).unwrap().destination_mac[5]).collect()
        };
        let all = pick(&neighbours);
        let share = |way: u8| all.iter().filter(|at| **at == way).count();
        assert!((800..1200).contains(&share(0)), "{}", share(0));
        assert!((800..1200).contains(&share(1)), "{}", share(1));
        assert!((1800..2200).contains(&share(2)), "{}", share(2));
        neighbours.insert(ways[0], Neighbour::default());
        for (before, after) in all.iter().zip(pick(&neighbours)) {
            assert!(after != 0 && (*before == 0 || *before == after));
        }
    }
}
