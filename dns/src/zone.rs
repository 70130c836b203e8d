//! The data that answers: an Input indexed by name, made from the one before by what changed.
//!
//! A name that only has names below it (an empty non-terminal, such as `marathon.mesos`) exists: it answers NODATA.
//! RFC 8020 has resolvers take NXDOMAIN for everything below a name, so a wrong one there hides every app. Each entry
//! therefore counts its children, and one without data and children goes away.

use std::sync::Arc;

use hickory_proto::rr::{
    Name as WireName, RData, Record,
    rdata::{NS, SOA},
};
use imbl::{HashMap, ordmap::DiffItem};

use crate::input::{Input, Name, Node, Refused};

/// How long others may remember that a name is not there, and the zone's own records: a new app must not hide
/// behind the answer of a moment ago.
pub(crate) const NEGATIVE_TTL: u32 = 5;

/// One generation of the zone. Cloning is free.
#[derive(Clone, Debug, Default)]
pub(crate) struct Zone {
    pub(crate) input: Arc<Input>,
    /// None until the first Input.
    pub(crate) apex: Option<Apex>,
    pub(crate) entries: HashMap<Name, Entry>,
}

/// The zone's own names in the form of the wire.
#[derive(Clone, Debug)]
pub(crate) struct Apex {
    pub(crate) origin: WireName,
    pub(crate) server: WireName,
    /// `server` in presentation form: the name that the NS record points to exists, with or without addresses.
    pub(crate) server_name: Name,
    hostmaster: WireName,
}

/// What is known of a name.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Entry {
    pub(crate) node: Option<Arc<Node>>,
    /// The targets of `node.services`, in their order, in the form of the wire.
    pub(crate) targets: Arc<[WireName]>,
    /// How many names lie directly below.
    children: u32,
}

impl Zone {
    /// The zone after `input`, sharing what did not change.
    pub(crate) fn patch(&self, input: Arc<Input>) -> Result<Self, Refused> {
        input.validate_change(&self.input)?;
        let known = input.known(&self.input);
        let mut next = if self.apex.is_some() && self.input.origin == input.origin {
            Self { input: input.clone(), ..self.clone() }
        } else {
            Self { input: input.clone(), apex: Some(Apex::new(&input.origin)?), entries: HashMap::new() }
        };
        for item in known.diff(&input.names) {
            match item {
                DiffItem::Add(name, node) | DiffItem::Update { new: (name, node), .. } => next.put(name, node)?,
                DiffItem::Remove(name, _) => next.remove(name),
            }
        }
        Ok(next)
    }

    fn put(&mut self, name: &Name, node: &Arc<Node>) -> Result<(), Refused> {
        let targets = node.services.iter().map(|service| wire_name(&service.target)).collect::<Result<_, _>>()?;
        let entry = self.ensure(name);
        entry.node = Some(node.clone());
        entry.targets = targets;
        Ok(())
    }

    /// The entry of `name`, made together with those above it when it is not there.
    fn ensure(&mut self, name: &Name) -> &mut Entry {
        if !self.entries.contains_key(name)
            && let Some(parent) = self.parent(name)
        {
            self.ensure(&parent).children += 1;
        }
        self.entries.entry(name.clone()).or_default()
    }

    fn remove(&mut self, name: &Name) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        entry.node = None;
        entry.targets = Arc::default();
        self.drop_if_unused(name);
    }

    fn drop_if_unused(&mut self, name: &Name) {
        if self.entries.get(name).is_none_or(|entry| entry.node.is_some() || entry.children > 0) {
            return;
        }
        self.entries.remove(name);
        if let Some(parent) = self.parent(name) {
            self.entries.get_mut(&parent).expect("a name is never there without the one above it").children -= 1;
            self.drop_if_unused(&parent);
        }
    }

    /// The name above, within the zone.
    fn parent(&self, name: &Name) -> Option<Name> {
        if *name == self.input.origin {
            return None;
        }
        let (_, parent) = name.split_once('.')?;
        Some(parent.into())
    }
}

impl Apex {
    fn new(origin: &Name) -> Result<Self, Refused> {
        let server_name: Name = format!("ns.{origin}").into();
        Ok(Self {
            origin: wire_name(origin)?,
            server: wire_name(&server_name)?,
            hostmaster: wire_name(&format!("hostmaster.{origin}").into())?,
            server_name,
        })
    }

    pub(crate) fn soa(&self, owner: WireName, generation: u64) -> Record {
        // RFC 1982: a serial is a number modulo 2^32, which a cut generation is. Nobody transfers the zone, so the
        // three times of secondaries are only well formed.
        let serial = generation as u32;
        let soa = SOA::new(self.server.clone(), self.hostmaster.clone(), serial, 60, 10, 86_400, NEGATIVE_TTL);
        Record::from_rdata(owner, NEGATIVE_TTL, RData::SOA(soa))
    }

    pub(crate) fn ns(&self, owner: WireName) -> Record {
        Record::from_rdata(owner, NEGATIVE_TTL, RData::NS(NS(self.server.clone())))
    }
}

fn wire_name(name: &Name) -> Result<WireName, Refused> {
    WireName::from_ascii(format!("{name}.")).map_err(|e| Refused::BadName { name: name.clone(), why: e.to_string() })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use imbl::OrdMap;
    use proptest::prelude::*;

    use super::*;

    fn node(last: u8) -> Arc<Node> {
        Arc::new(Node { addresses: vec![[10, 77, 1, last].into()], services: vec![], ttl: 5 })
    }

    fn input(generation: u64, names: &[&str]) -> Arc<Input> {
        let names = names.iter().map(|name| (Name::from(*name), node(1))).collect();
        Arc::new(Input { generation, origin: "mesos".into(), names })
    }

    fn existing(zone: &Zone) -> BTreeSet<&str> {
        zone.entries.keys().map(AsRef::as_ref).collect()
    }

    #[test]
    fn a_name_exists_as_long_as_it_or_one_below_it_has_data() {
        let zone = Zone::default().patch(input(1, &["a.b.mesos", "b.mesos", "x.y.z.mesos"])).unwrap();
        assert_eq!(existing(&zone), ["a.b.mesos", "b.mesos", "mesos", "x.y.z.mesos", "y.z.mesos", "z.mesos"].into());
        let zone = zone.patch(input(2, &["a.b.mesos"])).unwrap();
        assert_eq!(existing(&zone), ["a.b.mesos", "b.mesos", "mesos"].into());
        let zone = zone.patch(input(3, &[])).unwrap();
        assert_eq!(existing(&zone), BTreeSet::new());
    }

    #[test]
    fn a_bad_input_changes_nothing() {
        let zone = Zone::default().patch(input(2, &["a.mesos"])).unwrap();
        assert!(matches!(zone.patch(input(1, &[])), Err(Refused::Older { got: 1, applied: 2 })));
        assert!(matches!(zone.patch(input(3, &["a.b"])), Err(Refused::OutsideZone { .. })));
        assert_eq!(existing(&zone), ["a.mesos", "mesos"].into());
    }

    /// Names over a tiny alphabet, so that parents and children meet often.
    fn names() -> impl Strategy<Value = OrdMap<Name, Arc<Node>>> {
        let name = prop::collection::vec("[ab]", 0..5).prop_map(|labels| {
            let mut labels = labels;
            labels.push("mesos".into());
            Name::from(labels.join("."))
        });
        prop::collection::vec((name, 1..4u8), 0..12)
            .prop_map(|pairs| pairs.into_iter().map(|(name, last)| (name, node(last))).collect())
    }

    proptest! {
        #[test]
        fn patching_comes_to_the_same_as_building_anew(steps in prop::collection::vec(names(), 1..6)) {
            let mut patched = Zone::default();
            for (step, names) in steps.into_iter().enumerate() {
                let input = Arc::new(Input { generation: step as u64 + 1, origin: "mesos".into(), names });
                patched = patched.patch(input.clone()).unwrap();
                prop_assert_eq!(&patched.entries, &Zone::default().patch(input).unwrap().entries);
            }
        }
    }
}
