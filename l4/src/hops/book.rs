//! Who is sent which way: the reals with their routes, a mirror of the kernel's neighbours and links, and what of the
//! reals' hops changes when any of these does.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr},
    time::Instant,
};

use super::way::{Egress, Hop, Links, Neighbour, Neighbours, NextHop, Route, choose};

#[derive(Debug, Default)]
pub(crate) struct Book {
    reals: HashMap<IpAddr, Known>,
    /// Which reals are behind a next hop.
    behind: BTreeSet<(NextHop, IpAddr)>,
    neighbours: Neighbours,
    links: Links,
    changes: Vec<(IpAddr, Option<Hop>)>,
}

#[derive(Debug, Default)]
struct Known {
    /// How many reals have this address.
    wanted: usize,
    /// Since when nobody has it.
    leaving: Option<Instant>,
    route: Route,
    hop: Option<Hop>,
}

impl Book {
    /// Whether the address is new.
    pub(crate) fn add(&mut self, address: IpAddr) -> bool {
        let new = !self.reals.contains_key(&address);
        let known = self.reals.entry(address).or_default();
        known.wanted += 1;
        known.leaving = None;
        new
    }

    pub(crate) fn remove(&mut self, address: IpAddr, now: Instant) {
        if let Some(known) = self.reals.get_mut(&address) {
            known.wanted = known.wanted.saturating_sub(1);
            if known.wanted == 0 {
                known.leaving.get_or_insert(now);
            }
        }
    }

    /// Forgets the addresses that left before; returns the next hops that are kept in vain now.
    pub(crate) fn forget(&mut self, before: Instant) -> Vec<NextHop> {
        let gone = |known: &Known| known.leaving.is_some_and(|since| since < before);
        let gone: Vec<IpAddr> =
            self.reals.iter().filter(|(_, known)| gone(known)).map(|(address, _)| *address).collect();
        let mut free = BTreeSet::new();
        for address in gone {
            let Some(known) = self.reals.remove(&address) else { continue };
            if known.hop.is_some() {
                self.changes.push((address, None));
            }
            for path in &known.route.paths {
                self.behind.remove(&(path.to, address));
                free.insert(path.to);
            }
        }
        let kept = |to: &NextHop| self.neighbours.get(to).is_some_and(|known| known.managed && !known.fixed);
        free.into_iter().filter(|to| kept(to) && self.reals_behind(*to).next().is_none()).collect()
    }

    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.reals.keys().copied()
    }

    pub(crate) fn reals_behind(&self, to: NextHop) -> impl Iterator<Item = IpAddr> + '_ {
        let first = (to, IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        self.behind.range(first..).take_while(move |(hop, _)| *hop == to).map(|(_, address)| *address)
    }

    pub(crate) fn hop(&self, address: IpAddr) -> Option<Hop> {
        self.reals.get(&address)?.hop
    }

    /// The next hops of an address that can be asked for now, each with whether it is resolved and whether it is kept
    /// so.
    pub(crate) fn askable(&self, address: IpAddr) -> impl Iterator<Item = (NextHop, bool, bool)> + '_ {
        let paths = self.reals.get(&address).map(|known| &*known.route.paths).unwrap_or_default();
        paths.iter().map(|path| path.to).filter(|to| self.links.get(&to.index).is_some_and(|link| link.up)).map(|to| {
            let neighbour = self.neighbours.get(&to).copied().unwrap_or_default();
            (to, neighbour.mac.is_some(), neighbour.managed || neighbour.fixed)
        })
    }

    pub(crate) fn set_route(&mut self, address: IpAddr, route: Route) {
        let Some(known) = self.reals.get_mut(&address) else { return };
        if known.route == route {
            return;
        }
        for path in &known.route.paths {
            self.behind.remove(&(path.to, address));
        }
        self.behind.extend(route.paths.iter().map(|path| (path.to, address)));
        known.route = route;
        self.choose(address);
    }

    pub(crate) fn set_neighbour(&mut self, to: NextHop, neighbour: Option<Neighbour>) {
        let before = match neighbour {
            Some(neighbour) => self.neighbours.insert(to, neighbour),
            None => self.neighbours.remove(&to),
        };
        if before.and_then(|before| before.mac) != neighbour.and_then(|now| now.mac) {
            self.choose_behind(to);
        }
    }

    /// Whether anything is different.
    pub(crate) fn set_link(&mut self, index: u32, link: Option<Egress>) -> bool {
        let before = match link {
            Some(link) => self.links.insert(index, link),
            None => self.links.remove(&index),
        };
        let different = before != link;
        if different {
            self.choose_all();
        }
        different
    }

    /// All that the kernel has.
    pub(crate) fn replace(&mut self, links: Links, neighbours: Neighbours) {
        let same_links = self.links == links;
        self.links = links;
        let before = std::mem::replace(&mut self.neighbours, neighbours);
        if !same_links {
            self.choose_all();
            return;
        }
        let mac = |neighbours: &Neighbours, to: &NextHop| neighbours.get(to).and_then(|known| known.mac);
        let old = before.keys().chain(self.neighbours.keys());
        let different: BTreeSet<NextHop> =
            old.filter(|to| mac(&before, to) != mac(&self.neighbours, to)).copied().collect();
        for to in different {
            self.choose_behind(to);
        }
    }

    /// What changed since it was asked for last, in order.
    pub(crate) fn changes(&mut self) -> Vec<(IpAddr, Option<Hop>)> {
        std::mem::take(&mut self.changes)
    }

    fn choose_behind(&mut self, to: NextHop) {
        for address in self.reals_behind(to).collect::<Vec<_>>() {
            self.choose(address);
        }
    }

    fn choose_all(&mut self) {
        for address in self.addresses().collect::<Vec<_>>() {
            self.choose(address);
        }
    }

    fn choose(&mut self, address: IpAddr) {
        let Some(known) = self.reals.get_mut(&address) else { return };
        let hop = choose(address, &known.route, &self.neighbours, &self.links);
        if known.hop != hop {
            known.hop = hop;
            self.changes.push((address, hop));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        super::way::{Path, Tag},
        *,
    };

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 8];
    const LINK: Egress = Egress { up: true, mac: Some([2; 6]), mtu: 1500, tag: Tag::Untagged };

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn gateway() -> NextHop {
        NextHop { index: 3, address: ip("10.0.0.1") }
    }

    fn at(mac: [u8; 6]) -> Option<Neighbour> {
        Some(Neighbour { mac: Some(mac), managed: true, fixed: false })
    }

    fn via(to: NextHop) -> Route {
        Route { paths: Box::new([Path { to, weight: 1 }]), mtu: 0 }
    }

    /// Two reals behind one gateway and one on the link.
    fn book() -> Book {
        let mut book = Book::default();
        assert!(book.set_link(3, Some(LINK)));
        for real in ["10.9.0.1", "10.9.0.2"] {
            assert!(book.add(ip(real)));
            book.set_route(ip(real), via(gateway()));
        }
        assert!(book.add(ip("10.0.0.5")));
        book.set_route(ip("10.0.0.5"), via(NextHop { index: 3, address: ip("10.0.0.5") }));
        assert!(book.changes().is_empty());
        book
    }

    fn changed(book: &mut Book) -> Vec<(String, Option<u8>)> {
        let mut changes = book.changes();
        changes.sort_by_key(|(address, _)| *address);
        changes.into_iter().map(|(address, hop)| (address.to_string(), hop.map(|hop| hop.destination_mac[5]))).collect()
    }

    #[test]
    fn a_neighbour_changes_only_the_reals_behind_it() {
        let mut book = book();
        book.set_neighbour(gateway(), at(MAC));
        assert_eq!(changed(&mut book), [("10.9.0.1".into(), Some(9)), ("10.9.0.2".into(), Some(9))]);
        book.set_neighbour(gateway(), Some(Neighbour { managed: false, ..at(MAC).unwrap() }));
        assert_eq!(changed(&mut book), []);
        book.set_neighbour(gateway(), at(OTHER));
        assert_eq!(changed(&mut book), [("10.9.0.1".into(), Some(8)), ("10.9.0.2".into(), Some(8))]);
        book.set_neighbour(gateway(), None);
        assert_eq!(changed(&mut book), [("10.9.0.1".into(), None), ("10.9.0.2".into(), None)]);
    }

    #[test]
    fn what_is_read_anew_changes_only_what_differs() {
        let mut book = book();
        let near = NextHop { index: 3, address: ip("10.0.0.5") };
        let known = |mac| Neighbours::from([(gateway(), at(mac).unwrap()), (near, at(MAC).unwrap())]);
        book.replace(Links::from([(3, LINK)]), known(MAC));
        assert_eq!(changed(&mut book).len(), 3);
        book.replace(Links::from([(3, LINK)]), known(OTHER));
        assert_eq!(changed(&mut book).len(), 2);
        book.replace(Links::from([(3, Egress { mtu: 1400, ..LINK })]), known(OTHER));
        assert_eq!(changed(&mut book).len(), 3);
        book.replace(Links::new(), known(OTHER));
        assert!(changed(&mut book).iter().all(|(_, hop)| hop.is_none()));
    }

    #[test]
    fn a_next_hop_is_kept_until_the_last_real_behind_it_is_forgotten() {
        let mut book = book();
        book.set_neighbour(gateway(), at(MAC));
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        assert!(!book.add(ip("10.9.0.1")), "two reals have it");
        book.remove(ip("10.9.0.1"), now);
        book.remove(ip("10.9.0.2"), now);
        assert_eq!(book.forget(later), []);
        assert!(book.hop(ip("10.9.0.1")).is_some() && book.hop(ip("10.9.0.2")).is_none());
        book.remove(ip("10.9.0.1"), now);
        assert_eq!(book.forget(now), [], "its flows go on for a while");
        assert!(!book.add(ip("10.9.0.1")), "it came back meanwhile");
        book.remove(ip("10.9.0.1"), now);
        assert_eq!(book.forget(later), [gateway()]);
    }
}
