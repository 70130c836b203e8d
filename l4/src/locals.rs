//! Which place each FULLNAT address has. A flow's place is its local address and port, so an address keeps its place as
//! long as it is configured, also through restarts.

use std::net::IpAddr;

use anyhow::bail;
use tidegate_ebpf::abi::LOCALS;

/// The addresses in their places: IPv4's from 0, IPv6's from `first_v6`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Locals {
    pub(crate) v4: Vec<IpAddr>,
    pub(crate) v6: Vec<IpAddr>,
    pub(crate) first_v6: u32,
    /// Addresses that have no place, since maps that are in use keep their size.
    pub(crate) homeless: Vec<IpAddr>,
}

impl Locals {
    /// In maps that were just made.
    pub(crate) fn new(wanted: &[IpAddr]) -> anyhow::Result<Self> {
        let (v4, v6) = families(wanted);
        for family in [&v4, &v6] {
            if family.len() > LOCALS as usize {
                bail!("l4.local_addresses holds {} addresses of one family, at most {LOCALS} work", family.len());
            }
        }
        let first_v6 = v4.len() as u32;
        Ok(Self { v4, v6, first_v6, homeless: Vec::new() })
    }

    /// In maps that hold `self` and have `room` for so many addresses.
    pub(crate) fn change(&self, wanted: &[IpAddr], room: u32) -> anyhow::Result<Self> {
        let Self { v4, v6, .. } = Self::new(wanted)?;
        let mut homeless = Vec::new();
        let v4 = place(&self.v4, v4, self.first_v6, &mut homeless);
        let v6 = place(&self.v6, v6, room - self.first_v6.min(room), &mut homeless);
        Ok(Self { v4, v6, first_v6: self.first_v6, homeless })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, IpAddr)> + '_ {
        let v4 = (0..).zip(self.v4.iter().copied());
        v4.chain((self.first_v6..).zip(self.v6.iter().copied()))
    }
}

fn families(addresses: &[IpAddr]) -> (Vec<IpAddr>, Vec<IpAddr>) {
    addresses.iter().partition(|address| address.is_ipv4())
}

/// Places without gaps; who has one of them keeps it.
fn place(old: &[IpAddr], mut wanted: Vec<IpAddr>, room: u32, homeless: &mut Vec<IpAddr>) -> Vec<IpAddr> {
    let room = room as usize;
    if wanted.len() > room {
        // Those that serve already go on.
        wanted.sort_by_key(|address| !old.contains(address));
        homeless.extend(wanted.drain(room..));
    }
    let kept = |i: usize| old.get(i).copied().filter(|address| wanted.contains(address));
    let places: Vec<Option<IpAddr>> = (0..wanted.len()).map(kept).collect();
    let mut others = wanted.iter().filter(|address| !places.contains(&Some(**address))).copied();
    places.iter().map(|place| place.or_else(|| others.next())).map_while(|place| place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(numbers: &[u8]) -> Vec<IpAddr> {
        numbers.iter().map(|number| IpAddr::from([10, 77, 101, *number])).collect()
    }

    #[test]
    fn an_address_keeps_its_place_and_new_ones_fill_the_gaps() {
        let old = Locals::new(&list(&[1, 2, 3])).unwrap();
        let change = |numbers: &[u8]| old.change(&list(numbers), 3).unwrap();
        assert_eq!(change(&[3, 2, 1]).v4, list(&[1, 2, 3]));
        assert_eq!(change(&[3, 4, 2]).v4, list(&[4, 2, 3]));
        assert_eq!(change(&[3]).v4, list(&[3]));
        assert_eq!(change(&[]).v4, list(&[]));
    }

    #[test]
    fn where_room_ends_those_that_serve_go_on() {
        let old = Locals::new(&list(&[1, 2])).unwrap();
        let more = old.change(&list(&[7, 2, 8, 1]), 2).unwrap();
        assert_eq!((more.v4, more.homeless), (list(&[1, 2]), list(&[7, 8])));
    }

    #[test]
    fn families_have_places_of_their_own() {
        let mixed = ["fd77::1", "10.77.101.1", "fd77::2"].map(|address| address.parse().unwrap());
        let locals = Locals::new(&mixed).unwrap();
        let places: Vec<_> = locals.iter().collect();
        assert_eq!(places, [(0, mixed[1]), (1, mixed[0]), (2, mixed[2])]);
        assert_eq!(locals.change(&mixed, 3).unwrap(), locals);
        assert!(Locals::new(&(0..65).map(|i| IpAddr::from([10, 0, 0, i])).collect::<Vec<_>>()).is_err());
    }
}
