//! What the plane must do now: the whole of it, with unchanged parts shared.

use std::{net::IpAddr, sync::Arc};

use imbl::{OrdMap, ordmap::DiffItem};

/// A whole domain name in presentation form: lower case, no trailing dot (`web.marathon.mesos`).
pub type Name = Arc<str>;

/// Everything that the plane answers. Cloning is free; the next Input is the last one with a few keys replaced.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Input {
    /// Counts up with every change; an Input with a smaller one than the last is refused. Also the zone's serial.
    pub generation: u64,
    /// The zone that this server is the authority of (`mesos`). Every name lies in it.
    pub origin: Name,
    pub names: OrdMap<Name, Arc<Node>>,
}

/// What a name has. A node without data exists all the same: it answers NODATA, not NXDOMAIN.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Node {
    /// A and AAAA. Answered in an order that rotates.
    pub addresses: Vec<IpAddr>,
    pub services: Vec<Srv>,
    /// Seconds.
    pub ttl: u32,
}

/// RFC 2782.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Srv {
    pub priority: u16,
    pub weight: u16,
    pub port: u16,
    /// A name of the zone: its addresses go into the additional section.
    pub target: Name,
}

/// Why an Input was not taken. The plane goes on with the one before.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refused {
    #[error("generation {got} is older than {applied}, which is applied already")]
    Older { got: u64, applied: u64 },
    #[error("{name} does not lie in the zone {origin}")]
    OutsideZone { name: Name, origin: Name },
    #[error("{name} is not a domain name: {why}")]
    BadName { name: Name, why: String },
}

impl Input {
    /// Checks all of it.
    pub fn validate(&self) -> Result<(), Refused> {
        self.validate_change(&Self::default())
    }

    /// Checks what differs from `old`, which was good: the cost follows the change.
    pub(crate) fn validate_change(&self, old: &Self) -> Result<(), Refused> {
        if self.generation < old.generation {
            return Err(Refused::Older { got: self.generation, applied: old.generation });
        }
        check_name(&self.origin)?;
        for item in self.known(old).diff(&self.names) {
            if let DiffItem::Add(name, node) | DiffItem::Update { new: (name, node), .. } = item {
                self.check_inside(name)?;
                node.services.iter().try_for_each(|service| self.check_inside(&service.target))?;
            }
        }
        Ok(())
    }

    /// The names of `old` that need no second look: all of them, or none when the zone is another one.
    pub(crate) fn known(&self, old: &Self) -> OrdMap<Name, Arc<Node>> {
        if old.origin == self.origin { old.names.clone() } else { OrdMap::new() }
    }

    fn check_inside(&self, name: &Name) -> Result<(), Refused> {
        check_name(name)?;
        if lies_in(name, &self.origin) {
            Ok(())
        } else {
            Err(Refused::OutsideZone { name: name.clone(), origin: self.origin.clone() })
        }
    }
}

/// Whether `name` is `origin` or below it.
pub(crate) fn lies_in(name: &str, origin: &str) -> bool {
    name.strip_suffix(origin).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Host names and the underscore labels of RFC 8552; what the wire could carry beyond that nobody here names things by.
fn check_name(name: &Name) -> Result<(), Refused> {
    let bad = |why: String| Err(Refused::BadName { name: name.clone(), why });
    if name.is_empty() {
        return bad("it is empty".into());
    }
    // RFC 1035, 2.3.4: 255 octets on the wire, of which the first length and the root take two.
    if name.len() > 253 {
        return bad(format!("it has {} characters, at most 253 fit", name.len()));
    }
    for label in name.split('.') {
        if label.is_empty() {
            return bad("it has an empty label".into());
        }
        if label.len() > 63 {
            return bad(format!("the label {label} has {} characters, at most 63 fit", label.len()));
        }
        if let Some(c) = label.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-' | '_')) {
            return bad(format!("it has the character {c:?}; a to z, 0 to 9, - and _ may stand in it"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(origin: &str, name: &str) -> Input {
        Input {
            generation: 1,
            origin: origin.into(),
            names: OrdMap::unit(name.into(), Arc::new(Node { ttl: 5, ..Node::default() })),
        }
    }

    #[test]
    fn only_names_of_the_zone_are_taken() {
        let long_label = format!("{}.mesos", "a".repeat(64));
        let long_name = format!("{}mesos", "a.".repeat(125));
        for (origin, name, problem) in [
            ("mesos", "web.marathon.mesos", ""),
            ("mesos", "_web._tcp.marathon.mesos", ""),
            ("mesos", "mesos", ""),
            ("mesos", "web.marathon.mesos.org", "web.marathon.mesos.org does not lie in the zone mesos"),
            ("mesos", "xmesos", "xmesos does not lie in the zone mesos"),
            ("mesos", "Web.mesos", "it has the character 'W'"),
            ("mesos", "web..mesos", "it has an empty label"),
            ("mesos", "web.mesos.", "it has an empty label"),
            ("mesos", "*.mesos", "it has the character '*'"),
            ("mesos", "", "it is empty"),
            ("", "web", "it is empty"),
            ("mesos", &long_label, "at most 63 fit"),
            ("mesos", &long_name, "it has 255 characters, at most 253 fit"),
        ] {
            let got = input(origin, name).validate().map_or_else(|why| why.to_string(), |()| String::new());
            assert!(got.contains(problem) && got.is_empty() == problem.is_empty(), "{name} in {origin}: {got:?}");
        }
    }

    #[test]
    fn a_service_must_point_into_the_zone() {
        let mut input = input("mesos", "web.mesos");
        let service = Srv { priority: 0, weight: 1, port: 80, target: "web.example.com".into() };
        let node = Node { services: vec![service], ..Node::default() };
        input.names.insert("_web._tcp.mesos".into(), Arc::new(node));
        assert!(matches!(input.validate(), Err(Refused::OutsideZone { .. })), "{:?}", input.validate());
    }

    #[test]
    fn a_change_is_checked_against_what_is_applied() {
        let old = input("mesos", "web.mesos");
        let older = Input { generation: 0, ..old.clone() };
        assert_eq!(older.validate_change(&old), Err(Refused::Older { got: 0, applied: 1 }));
        let elsewhere = Input { generation: 2, origin: "test".into(), ..old.clone() };
        assert!(
            matches!(elsewhere.validate_change(&old), Err(Refused::OutsideZone { .. })),
            "names that did not change must still fit a new zone"
        );
    }
}
