//! The table in which the usual packet finds its service by one look: who has which place.

use std::collections::HashMap;

use tidegate_ebpf::abi::{Address, Head, Service, ServiceKey};

use crate::mapped::Mapped;

/// The program may look at a place at any time. So a place is emptied before it is written, and another's only written
/// by [`Heads::settle`], later, when no packet can be on its way that read half of the one before. Services that are
/// changed in place may be seen half old and half new: the program sees that by the real, which names its service.
pub(crate) struct Heads {
    map: Mapped<Head>,
    /// Who wants a place: the first has it.
    wanted: HashMap<u32, Vec<(ServiceKey, Service)>>,
    /// Places that were emptied and are to be given.
    free: Vec<u32>,
}

impl Heads {
    /// Empties what an earlier process left: whoever is written anew comes back.
    pub(crate) fn new(map: Mapped<Head>) -> Self {
        for place in 0..map.len() {
            if map.get(place).is_some_and(|head| head != Head::default()) {
                let _ = map.set(place, &Head::default());
            }
        }
        Self { map, wanted: HashMap::new(), free: Vec::new() }
    }

    pub(crate) fn set(&mut self, key: ServiceKey, service: Service) {
        let place = Head::place(&key);
        let wanted = self.wanted.entry(place).or_default();
        match wanted.iter_mut().position(|(known, _)| *known == key) {
            Some(0) => {
                wanted[0].1 = service;
                self.write(place);
            }
            Some(rank) => wanted[rank].1 = service,
            None => {
                wanted.push((key, service));
                // A place that somebody just left is given later.
                if wanted.len() == 1 && !self.free.contains(&place) {
                    self.write(place);
                }
            }
        }
    }

    /// A FULLNAT source.
    pub(crate) fn set_local(&mut self, local: Address, index: u32) {
        self.set(Self::local(local), Service { id: index, ..Service::default() });
    }

    pub(crate) fn remove_local(&mut self, local: Address) {
        self.remove(&Self::local(local));
    }

    fn local(vip: Address) -> ServiceKey {
        ServiceKey { vip, port: 0, protocol: Head::LOCAL, pad: 0 }
    }

    pub(crate) fn remove(&mut self, key: &ServiceKey) {
        let place = Head::place(key);
        let Some(wanted) = self.wanted.get_mut(&place) else { return };
        let Some(rank) = wanted.iter().position(|(known, _)| known == key) else { return };
        wanted.remove(rank);
        if rank == 0 {
            let _ = self.map.set(place as usize, &Head::default());
            self.free.push(place);
        }
        if self.wanted.get(&place).is_some_and(Vec::is_empty) {
            self.wanted.remove(&place);
        }
    }

    /// Gives the places that were left some time ago.
    pub(crate) fn settle(&mut self) {
        for place in std::mem::take(&mut self.free) {
            self.write(place);
        }
    }

    /// The service first, then the key that shows it.
    fn write(&self, place: u32) {
        let Some((key, service)) = self.wanted.get(&place).and_then(|wanted| wanted.first()) else { return };
        let there = self.map.get(place as usize).unwrap_or_default();
        let head = Head { key: there.key, service: *service, pad: [0; 6] };
        let _ = self.map.set(place as usize, &head);
        if there.key != *key {
            let _ = self.map.set(place as usize, &Head { key: *key, ..head });
        }
    }
}
