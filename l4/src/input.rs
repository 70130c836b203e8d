//! What the plane must do now: the whole of it, with unchanged parts shared.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use imbl::{OrdMap, OrdSet, ordmap::DiffItem};
use ipnet::IpNet;

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

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        write!(f, "{protocol} {}", SocketAddr::new(self.vip, self.port))
    }
}

/// Who answers behind a front end, and how. Without a real, TCP clients are refused at once (RST).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Service {
    /// Sorted by address and port, no pair twice.
    pub reals: Vec<Real>,
    pub forward: Forward,
    pub client_address: ClientAddress,
    pub protection: Protection,
    /// How its reals are probed. `None`: they are not.
    pub probe: Option<Probe>,
    /// A new real gets its share of new flows in steps over so many seconds; 0: at once.
    pub slow_start_s: u32,
}

/// How packets get to the reals.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Forward {
    /// Addresses and ports are translated in both directions; answers come back through here.
    #[default]
    FullNat,
    /// Only the hardware address is written: the real is a neighbour, has the VIP, serves the VIP's port, and answers
    /// the client itself.
    Direct,
    /// IP in IP: the real unwraps, has the VIP, serves the VIP's port, and answers the client itself.
    IpIp,
    /// As [`Forward::IpIp`], in UDP to this port (GUE variant 1).
    Gue { port: u16 },
}

/// How a real learns its client's address under [`Forward::FullNat`].
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum ClientAddress {
    #[default]
    Hidden,
    /// A TCP option in the first segments of a connection.
    Toa,
    /// The PROXY protocol's header, version 2, before the first byte of a TCP connection.
    Proxy,
}

/// Who may open flows, and how many.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Protection {
    /// Not empty: nobody else may. The longest prefix of both lists decides.
    pub allow: Vec<IpNet>,
    pub deny: Vec<IpNet>,
    /// New flows (TCP connections, UDP datagrams) of one source prefix.
    pub per_source: Option<SourceRate>,
    /// New flows of all clients together.
    pub per_vip: Option<Rate>,
    /// So many SYNs a second are forwarded as they come; those beyond are answered with cookies, and reach a real only
    /// once the client has proved its address (TCP under [`Forward::FullNat`]).
    pub syn_cookies_above: Option<u32>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rate {
    pub per_second: u32,
    /// How many may come at once after a silence.
    pub burst: u32,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SourceRate {
    pub rate: Rate,
    /// What makes a source: so many leading bits of its address.
    pub prefix_v4: u8,
    pub prefix_v6: u8,
}

/// An active check of every real of a service, sent the way that its traffic goes.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Probe {
    pub kind: ProbeKind,
    pub interval_ms: u32,
    pub timeout_ms: u32,
    /// So many good ones in a row make a real healthy again.
    pub rise: u8,
    /// So many bad ones in a row make it unhealthy.
    pub fall: u8,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum ProbeKind {
    /// A connection that is accepted.
    Tcp,
    /// A GET that is answered with a status in the range.
    Http { tls: bool, host: Option<String>, path: String, status: (u16, u16) },
    /// A datagram that is answered, with this at its beginning if it is not empty.
    Udp { send: Vec<u8>, expect: Vec<u8> },
}

/// A layer-4 target.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Real {
    /// Of the VIP's address family, but for the tunnels of [`Forward`], which take either.
    pub address: IpAddr,
    /// Where the real serves; the direct and tunnelling modes do not translate, and use it for nothing but its name.
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
    #[error(
        "{frontend}: the real {address} is not of the VIP's address family; only tunnels (ipip, gue) cross families"
    )]
    Family { frontend: Frontend, address: IpAddr },
    #[error("{frontend}: port 0 cannot be served")]
    PortZero { frontend: Frontend },
    #[error("{frontend}: the VIP is not among the announced addresses")]
    NotAnnounced { frontend: Frontend },
    #[error("{frontend}: the real {real:?} is listed twice, has port 0 or weight 0")]
    Real { frontend: Frontend, real: Real },
    #[error("{frontend}: {count} reals are more than one front end can have: 65,534")]
    Many { frontend: Frontend, count: usize },
    #[error("{frontend}: {what}")]
    Cannot { frontend: Frontend, what: &'static str },
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
            if let Some(what) = service.contradiction(frontend.protocol) {
                return Err(Refused::Cannot { frontend, what });
            }
            if service.reals.len() >= usize::from(u16::MAX) {
                return Err(Refused::Many { frontend, count: service.reals.len() });
            }
            for (i, real) in service.reals.iter().enumerate() {
                let crosses = real.address.is_ipv4() != frontend.vip.is_ipv4();
                if crosses && matches!(service.forward, Forward::FullNat | Forward::Direct) {
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

impl Service {
    /// What cannot be done together, or not at all.
    fn contradiction(&self, protocol: Protocol) -> Option<&'static str> {
        let Protection { per_source, per_vip, syn_cookies_above, .. } = &self.protection;
        let nat = self.forward == Forward::FullNat;
        let tcp = protocol == Protocol::Tcp;
        let silent = |rate: &Rate| rate.per_second == 0 || rate.burst == 0;
        if self.client_address != ClientAddress::Hidden && !(nat && tcp) {
            Some("only TCP under full NAT hides the client's address, so nothing else can tell it")
        } else if syn_cookies_above.is_some() && !(nat && tcp) {
            Some("SYN cookies work with TCP under full NAT only: elsewhere answers do not pass here")
        } else if *syn_cookies_above == Some(0) {
            Some("SYN cookies need a rate above which they are sent")
        } else if per_vip.as_ref().is_some_and(silent) || per_source.is_some_and(|source| silent(&source.rate)) {
            Some("a rate limit of 0, or with a burst of 0, lets nothing through")
        } else if per_source.is_some_and(|source| source.prefix_v4 > 32 || source.prefix_v6 > 128) {
            Some("a source prefix has at most 32 bits in IPv4 and 128 in IPv6")
        } else if matches!(self.forward, Forward::Gue { port: 0 }) {
            Some("GUE needs a UDP port")
        } else if self
            .probe
            .as_ref()
            .is_some_and(|probe| probe.interval_ms < 10 || probe.timeout_ms == 0 || probe.rise == 0 || probe.fall == 0)
        {
            Some("a probe needs an interval of at least 10 ms, a timeout, and a rise and fall of at least 1")
        } else {
            None
        }
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
                services: OrdMap::unit(frontend, Arc::new(Service { reals: reals.to_vec(), ..Service::default() })),
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
        let many: Vec<Real> = (1..=u16::MAX).map(|port| real("10.77.2.1", port, 1)).collect();
        check(80, true, &many[1..], None);
        check(80, true, &many, Some("65535 reals are more"));
    }
}
