//! One question, answered from a zone: pure, with the dice passed in.

use std::{collections::BTreeSet, net::IpAddr};

use hickory_proto::rr::{
    Name as WireName, RData, Record, RecordType,
    rdata::{A, AAAA, SRV},
};

use crate::{
    input::lies_in,
    zone::{Apex, Entry, Zone},
};

/// What goes back, by section.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Answer {
    pub(crate) kind: Kind,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
    pub(crate) additionals: Vec<Record>,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Kind {
    Found,
    /// The name is there, the type is not.
    NoData,
    NoSuchName,
    /// This server is not the authority of the name.
    OutsideZone,
    /// Nobody has said yet what to answer. "There is no such name" would be believed, and remembered.
    #[default]
    NotReady,
}

impl Zone {
    /// Answers `name` in the case it was asked in. `rotation` turns the order of the records: any number will do.
    pub(crate) fn lookup(&self, name: &WireName, kind: RecordType, rotation: u32) -> Answer {
        let Some(apex) = &self.apex else { return Answer::default() };
        let key = key(name);
        // A transfer would hand out the whole zone: nobody has asked for that yet.
        if !lies_in(&key, &self.input.origin) || matches!(kind, RecordType::AXFR | RecordType::IXFR) {
            return Answer { kind: Kind::OutsideZone, ..Answer::default() };
        }
        let at_apex = *key == *self.input.origin;
        let entry = self.entries.get(key.as_str());
        let records = |kind| match kind {
            RecordType::SOA if at_apex => vec![apex.soa(name.clone(), self.input.generation)],
            RecordType::NS if at_apex => vec![apex.ns(name.clone())],
            kind => entry.map_or_else(Vec::new, |entry| entry.records(name, kind, rotation)),
        };
        let answers = match kind {
            // RFC 8482, 4.1: one of the sets is answer enough, and no lever for amplification.
            RecordType::ANY => [RecordType::SOA, RecordType::A, RecordType::AAAA, RecordType::SRV]
                .into_iter()
                .map(records)
                .find(|set| !set.is_empty())
                .unwrap_or_default(),
            kind => records(kind),
        };
        if answers.is_empty() {
            let exists = entry.is_some() || at_apex || *key == *apex.server_name;
            let kind = if exists { Kind::NoData } else { Kind::NoSuchName };
            // RFC 2308: the SOA says how long to remember that.
            let authorities = vec![apex.soa(apex.origin.clone(), self.input.generation)];
            return Answer { kind, authorities, ..Answer::default() };
        }
        let additionals = self.glue(apex, &answers, rotation);
        Answer { kind: Kind::Found, answers, authorities: Vec::new(), additionals }
    }

    /// The addresses of the names that the answers point to.
    fn glue(&self, apex: &Apex, answers: &[Record], rotation: u32) -> Vec<Record> {
        let mut seen = BTreeSet::new();
        let mut glue = Vec::new();
        for record in answers {
            let target = match &record.data {
                RData::SRV(service) => &service.target,
                RData::NS(_) => &apex.server,
                _ => continue,
            };
            let key = key(target);
            if let Some(entry) = self.entries.get(key.as_str())
                && seen.insert(key)
            {
                glue.extend(entry.records(target, RecordType::A, rotation));
                glue.extend(entry.records(target, RecordType::AAAA, rotation));
            }
        }
        glue
    }
}

impl Entry {
    fn records(&self, owner: &WireName, kind: RecordType, rotation: u32) -> Vec<Record> {
        let Some(node) = &self.node else { return Vec::new() };
        let mut data: Vec<RData> = match kind {
            RecordType::A => node.addresses.iter().filter_map(v4).collect(),
            RecordType::AAAA => node.addresses.iter().filter_map(v6).collect(),
            RecordType::SRV => node
                .services
                .iter()
                .zip(self.targets.iter())
                .map(|(s, target)| RData::SRV(SRV::new(s.priority, s.weight, s.port, target.clone())))
                .collect(),
            _ => Vec::new(),
        };
        if !data.is_empty() {
            let turn = rotation as usize % data.len();
            data.rotate_left(turn);
        }
        data.into_iter().map(|data| Record::from_rdata(owner.clone(), node.ttl, data)).collect()
    }
}

fn v4(address: &IpAddr) -> Option<RData> {
    match address {
        IpAddr::V4(address) => Some(RData::A(A(*address))),
        IpAddr::V6(_) => None,
    }
}

fn v6(address: &IpAddr) -> Option<RData> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some(RData::AAAA(AAAA(*address))),
    }
}

/// The presentation form by which names are kept. A label on the wire may hold any byte, also a dot: what no name of
/// ours has becomes `?`, which finds nothing.
fn key(name: &WireName) -> String {
    let mut key = String::with_capacity(255);
    for label in name.iter() {
        if !key.is_empty() {
            key.push('.');
        }
        key.extend(label.iter().map(|byte| match byte.to_ascii_lowercase() {
            byte @ (b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_') => char::from(byte),
            _ => '?',
        }));
    }
    key
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, str::FromStr, sync::Arc};

    use proptest::prelude::*;

    use super::*;
    use crate::input::{Input, Name, Node, Srv};

    fn zone() -> Zone {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let service = |port, target: &str| Srv { priority: 0, weight: 1, port, target: target.into() };
        let names = [
            ("web.marathon.mesos", vec!["10.77.1.1", "10.77.1.2", "fd77:0:1::1"], vec![]),
            ("v6.marathon.mesos", vec!["fd77:0:1::2"], vec![]),
            ("none.marathon.mesos", vec![], vec![]),
            (
                "_web._tcp.marathon.mesos",
                vec![],
                vec![service(31000, "web.marathon.mesos"), service(31001, "v6.marathon.mesos")],
            ),
        ];
        let names = names
            .into_iter()
            .map(|(name, addresses, services)| {
                let addresses = addresses.into_iter().map(address).collect();
                (Name::from(name), Arc::new(Node { addresses, services, ttl: 7 }))
            })
            .collect();
        Zone::default().patch(Arc::new(Input { generation: 42, origin: "mesos".into(), names })).unwrap()
    }

    /// A script: each line is `question -> kind | answers | authorities | additionals`, records as `owner ttl type data`.
    fn check(zone: &Zone, script: &str) {
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (question, expected) = line.split_once(" -> ").expect("a line has an arrow");
            let mut words = question.split(' ');
            let name = WireName::from_ascii(words.next().unwrap()).unwrap();
            let kind = RecordType::from_str(words.next().unwrap()).unwrap();
            let rotation = words.next().map_or(0, |n| n.parse().unwrap());
            let answer = zone.lookup(&name, kind, rotation);
            let section = |records: &[Record]| {
                let show = |r: &Record| format!("{} {} {} {}", r.name, r.ttl, r.record_type(), r.data);
                records.iter().map(show).collect::<Vec<_>>().join(", ")
            };
            let got = format!(
                "{:?} | {} | {} | {}",
                answer.kind,
                section(&answer.answers),
                section(&answer.authorities),
                section(&answer.additionals)
            );
            let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            let soa = "mesos. 5 SOA ns.mesos. hostmaster.mesos. 42 60 10 86400 5";
            assert_eq!(squeeze(&got), squeeze(&expected.replace("$SOA", soa)), "{question}");
        }
    }

    #[test]
    fn questions_get_the_answers_of_the_script() {
        check(
            &zone(),
            "
            web.marathon.mesos. A -> Found | web.marathon.mesos. 7 A 10.77.1.1, web.marathon.mesos. 7 A 10.77.1.2 | |
            web.marathon.mesos. A 1 -> Found | web.marathon.mesos. 7 A 10.77.1.2, web.marathon.mesos. 7 A 10.77.1.1 | |
            web.marathon.mesos. AAAA 9 -> Found | web.marathon.mesos. 7 AAAA fd77:0:1::1 | |
            WEB.Marathon.mesos. AAAA -> Found | WEB.Marathon.mesos. 7 AAAA fd77:0:1::1 | |
            web.marathon.mesos. ANY 1 -> Found | web.marathon.mesos. 7 A 10.77.1.2, web.marathon.mesos. 7 A 10.77.1.1 | |
            v6.marathon.mesos. ANY -> Found | v6.marathon.mesos. 7 AAAA fd77:0:1::2 | |
            v6.marathon.mesos. A -> NoData | | $SOA |
            web.marathon.mesos. TXT -> NoData | | $SOA |
            none.marathon.mesos. ANY -> NoData | | $SOA |
            marathon.mesos. A -> NoData | | $SOA |
            _tcp.marathon.mesos. SRV -> NoData | | $SOA |
            mesos. A -> NoData | | $SOA |
            mesos. SOA -> Found | $SOA | |
            mesos. NS -> Found | mesos. 5 NS ns.mesos. | |
            mesos. ANY -> Found | $SOA | |
            web.marathon.mesos. SOA -> NoData | | $SOA |
            ns.mesos. A -> NoData | | $SOA |
            nobody.marathon.mesos. A -> NoSuchName | | $SOA |
            x.web.marathon.mesos. A -> NoSuchName | | $SOA |
            web\\.marathon.mesos. A -> NoSuchName | | $SOA |
            web.marathon.mesos.org. A -> OutsideZone | | |
            xmesos. A -> OutsideZone | | |
            . NS -> OutsideZone | | |
            mesos. AXFR -> OutsideZone | | |
            ",
        );
    }

    #[test]
    fn a_service_brings_the_addresses_of_its_targets_each_once() {
        check(
            &zone(),
            "_web._tcp.marathon.mesos. SRV 1 -> Found | _web._tcp.marathon.mesos. 7 SRV 0 1 31001 v6.marathon.mesos., \
             _web._tcp.marathon.mesos. 7 SRV 0 1 31000 web.marathon.mesos. | | v6.marathon.mesos. 7 AAAA fd77:0:1::2, \
             web.marathon.mesos. 7 A 10.77.1.2, web.marathon.mesos. 7 A 10.77.1.1, web.marathon.mesos. 7 AAAA fd77:0:1::1",
        );
    }

    #[test]
    fn nothing_is_denied_before_the_first_input() {
        let answer = Zone::default().lookup(&WireName::from_ascii("web.marathon.mesos.").unwrap(), RecordType::A, 0);
        assert_eq!(answer.kind, Kind::NotReady);
    }

    proptest! {
        #[test]
        fn every_address_is_answered_and_no_other(
            addresses in prop::collection::btree_set(any::<IpAddr>(), 0..20), rotation in any::<u32>(),
        ) {
            let node = Node { addresses: addresses.iter().copied().collect(), services: vec![], ttl: 5 };
            let names = [(Name::from("a.mesos"), Arc::new(node))].into_iter().collect();
            let zone = Zone::default().patch(Arc::new(Input { generation: 1, origin: "mesos".into(), names })).unwrap();
            let name = WireName::from_ascii("a.mesos.").unwrap();
            let mut got = BTreeMap::new();
            for kind in [RecordType::A, RecordType::AAAA] {
                for record in zone.lookup(&name, kind, rotation).answers {
                    *got.entry(record.data.ip_addr().unwrap()).or_insert(0) += 1;
                }
            }
            prop_assert_eq!(got, addresses.into_iter().map(|address| (address, 1)).collect());
        }

        #[test]
        fn over_the_rotations_every_address_comes_first(count in 1..20u8) {
            let addresses: BTreeSet<IpAddr> = (0..count).map(|n| [10, 77, 2, n].into()).collect();
            let node = Node { addresses: addresses.iter().copied().collect(), services: vec![], ttl: 5 };
            let names = [(Name::from("a.mesos"), Arc::new(node))].into_iter().collect();
            let zone = Zone::default().patch(Arc::new(Input { generation: 1, origin: "mesos".into(), names })).unwrap();
            let name = WireName::from_ascii("a.mesos.").unwrap();
            let first = |rotation| zone.lookup(&name, RecordType::A, rotation).answers[0].data.ip_addr().unwrap();
            prop_assert_eq!((0..u32::from(count)).map(first).collect::<BTreeSet<_>>(), addresses);
        }
    }
}
