//! What the plane must do now: the whole of it, with unchanged parts shared.

use std::{net::IpAddr, sync::Arc};

use imbl::OrdMap;

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
