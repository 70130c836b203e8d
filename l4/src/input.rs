//! What the plane must do now: the whole of it, with unchanged parts shared.

use std::{net::IpAddr, sync::Arc};

use imbl::{OrdMap, OrdSet, ordmap::DiffItem};

/// Everything that layer 4 must do. Cloning is free; the next Input is the last one with a few keys replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Input {
    /// Counts up with every change; an Input with a smaller one than the last is refused. 0 means "nothing is known
    /// yet" and is never applied: what the maps hold from before a restart goes on being served.
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
    #[error("{frontend:?}: the real {real:?} is listed twice, has port 0 or weight 0")]
    Real { frontend: Frontend, real: Real },
    #[error("the maps hold {capacity} {what} and no more")]
    Full { what: &'static str, capacity: u32 },
}

impl Input {
    /// Whether all of it can be done; `before` was validated already, so only what differs is looked at.
    pub fn validate(&self, before: &OrdMap<Frontend, Arc<Service>>) -> Result<(), Refused> {
        for item in before.diff(&self.services) {
            let (DiffItem::Add(frontend, service) | DiffItem::Update { new: (frontend, service), .. }) = item else {
                continue;
            };
            let frontend = *frontend;
            if frontend.port == 0 {
                return Err(Refused::PortZero { frontend });
            }
            if !self.announce.contains(&frontend.vip) {
                return Err(Refused::NotAnnounced { frontend });
            }
            for (i, real) in service.reals.iter().enumerate() {
                if real.address.is_ipv4() != frontend.vip.is_ipv4() {
                    return Err(Refused::Family { frontend, address: real.address });
                }
                let twice = i > 0 && {
                    let before = &service.reals[i - 1];
                    (before.address, before.port) >= (real.address, real.port)
                };
                if twice || real.port == 0 || real.weight == 0 {
                    return Err(Refused::Real { frontend, real: *real });
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn real(address: &str, port: u16, weight: u16) -> Real {
        Real { address: address.parse().unwrap(), port, weight, state: RealState::Active }
    }

    #[test]
    fn refuses_what_cannot_be_served() {
        let vip: IpAddr = "10.77.100.1".parse().unwrap();
        let check = |port, announced: bool, reals: &[Real], expect: Option<&str>| {
            let frontend = Frontend { vip, port, protocol: Protocol::Tcp };
            let input = Input {
                generation: 1,
                services: OrdMap::unit(frontend, Arc::new(Service { reals: reals.to_vec() })),
                announce: if announced { OrdSet::unit(vip) } else { OrdSet::new() },
            };
            let got = input.validate(&OrdMap::new()).err().map(|refused| refused.to_string());
            assert_eq!(got.is_some(), expect.is_some(), "{got:?}");
            assert!(got.unwrap_or_default().contains(expect.unwrap_or_default()));
        };
        let good = real("10.77.2.1", 80, 1);
        check(80, true, &[good, real("10.77.2.1", 81, 1), real("10.77.2.2", 80, 65_535)], None);
        check(80, true, &[], None);
        check(0, true, &[good], Some("port 0"));
        check(80, false, &[good], Some("announced"));
        check(80, true, &[real("fd77::1", 80, 1)], Some("family"));
        check(80, true, &[good, good], Some("twice"));
        check(80, true, &[real("10.77.2.1", 0, 1)], Some("port 0"));
        check(80, true, &[real("10.77.2.1", 80, 0)], Some("weight 0"));
    }
}
