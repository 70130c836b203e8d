//! What the plane must do now: the whole of it, with unchanged parts shared.

use std::{net::IpAddr, sync::Arc};

use imbl::{OrdMap, OrdSet};

/// Everything that layer 4 must do. Cloning is free; the next Input is the last one with a few keys replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Input {
    /// Counts up with every change; an Input with a smaller one than the last is refused.
    pub generation: u64,
    /// The services by their front end.
    pub services: OrdMap<Frontend, Arc<Service>>,
    /// The addresses that this machine must answer for (ARP, ND): every VIP of `services`, and those that
    /// another plane on this machine serves.
    pub announce: OrdSet<IpAddr>,
}

/// Where clients connect.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Frontend {
    pub vip: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
}

#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// Who answers behind a front end. Without an active real, TCP clients are refused at once (RST).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Service {
    /// Sorted by address and port, no pair twice.
    pub reals: Vec<Real>,
}

/// A layer-4 target.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Real {
    /// Of the VIP's address family.
    pub address: IpAddr,
    pub port: u16,
    /// Its share of new flows relative to the others, 1 to 65,535.
    pub weight: u16,
    pub state: RealState,
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum RealState {
    /// Gets new flows.
    Active,
    /// Keeps the flows that it has and gets no new ones.
    Draining,
}

/// Why an Input was not taken. The plane goes on with the one before.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refused {
    #[error("generation {got} is older than {applied}, which is applied already")]
    Older { got: u64, applied: u64 },
    #[error("{frontend:?}: the real {address} is not of the VIP's address family")]
    Family { frontend: Frontend, address: IpAddr },
    #[error("{frontend:?}: port 0 cannot be served")]
    PortZero { frontend: Frontend },
    #[error("{frontend:?}: the VIP is not among the announced addresses")]
    NotAnnounced { frontend: Frontend },
}
