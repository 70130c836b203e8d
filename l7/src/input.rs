//! What the plane must do now: the whole of it, with unchanged parts shared.

use std::{net::SocketAddr, sync::Arc};

use imbl::{OrdMap, ordmap::DiffItem};

/// Everything that layer 7 must do. Cloning is free; the next Input is the last one with a few keys replaced.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Input {
    /// Counts up with every change; an Input with a smaller one than the last is refused.
    pub generation: u64,
    /// Where to listen, and the routes of each listener. An address may not be on an interface yet.
    pub listeners: OrdMap<SocketAddr, Arc<Listener>>,
    /// Groups of upstreams by name: the name is for people and counters.
    pub pools: OrdMap<Arc<str>, Arc<Pool>>,
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Listener {
    /// In any order: the most specific match wins (exact host, then wildcard, then any; longest path first).
    pub routes: Vec<Route>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Route {
    /// `shop.example.com`, `*.example.com`, or any host. Lower case, without a port.
    pub host: Option<Arc<str>>,
    /// Matches this path and what lies below it, at a `/` boundary: `/api` matches `/api` and `/api/x`, not `/apix`.
    pub path: Arc<str>,
    /// A key of [`Input::pools`]. A pool without a usable upstream answers 503 with the reason.
    pub pool: Arc<str>,
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Pool {
    /// Sorted by address, none twice.
    pub upstreams: Vec<Upstream>,
}

/// A layer-7 target.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Upstream {
    pub address: SocketAddr,
    /// Its share of requests relative to the others, 1 to 65,535.
    pub weight: u16,
    pub state: UpstreamState,
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum UpstreamState {
    /// Gets new requests.
    Active,
    /// Finishes the requests that it has and gets no new ones.
    Draining,
}

/// Why an Input was not taken. The plane goes on with the one before.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refused {
    #[error("generation {got} is older than {applied}, which is applied already")]
    Older { got: u64, applied: u64 },
    #[error("the listener {listener} routes to the pool {pool}, which is not there")]
    NoPool { listener: SocketAddr, pool: Arc<str> },
    #[error("the listener {listener} has the path {path}, which does not start with /")]
    Path { listener: SocketAddr, path: Arc<str> },
    #[error("the listener {listener} has the host {host}, which is not a host name")]
    Host { listener: SocketAddr, host: Arc<str> },
    #[error(
        "the pool {pool} gives {address} the weight 0; weights go from 1 to 65535, to send it nothing let it drain"
    )]
    Weight { pool: Arc<str>, address: SocketAddr },
    #[error("the pool {pool} is not sorted by address without repeats at {address}")]
    Order { pool: Arc<str>, address: SocketAddr },
}

impl Input {
    /// Whether the plane would take this Input after the generation `applied`.
    pub fn validate(&self, applied: u64) -> Result<(), Refused> {
        self.validate_change(&Self { generation: applied, ..Self::default() })
    }

    /// The same, when `old` is known to be good: only what differs from it is looked at.
    pub(crate) fn validate_change(&self, old: &Input) -> Result<(), Refused> {
        if self.generation < old.generation {
            return Err(Refused::Older { got: self.generation, applied: old.generation });
        }
        let mut pools_left = false;
        for change in old.pools.diff(&self.pools) {
            match change {
                DiffItem::Add(name, pool) | DiffItem::Update { new: (name, pool), .. } => pool.validate(name)?,
                DiffItem::Remove(..) => pools_left = true,
            }
        }
        for change in old.listeners.diff(&self.listeners) {
            match change {
                DiffItem::Add(address, listener) | DiffItem::Update { new: (address, listener), .. } => {
                    listener.validate(*address)?;
                    self.has_pools_of(*address, listener)?;
                }
                DiffItem::Remove(..) => {}
            }
        }
        // An unchanged listener can only have lost a pool when a pool went away.
        if pools_left {
            self.listeners.iter().try_for_each(|(address, listener)| self.has_pools_of(*address, listener))?;
        }
        Ok(())
    }

    fn has_pools_of(&self, address: SocketAddr, listener: &Listener) -> Result<(), Refused> {
        match listener.routes.iter().find(|route| !self.pools.contains_key(&route.pool)) {
            Some(route) => Err(Refused::NoPool { listener: address, pool: route.pool.clone() }),
            None => Ok(()),
        }
    }
}

impl Listener {
    fn validate(&self, listener: SocketAddr) -> Result<(), Refused> {
        for Route { host, path, .. } in &self.routes {
            if !path.starts_with('/') {
                return Err(Refused::Path { listener, path: path.clone() });
            }
            if let Some(host) = host.as_ref().filter(|host| !is_host(host)) {
                return Err(Refused::Host { listener, host: host.clone() });
            }
        }
        Ok(())
    }
}

impl Pool {
    fn validate(&self, pool: &Arc<str>) -> Result<(), Refused> {
        if let Some(upstream) = self.upstreams.iter().find(|upstream| upstream.weight == 0) {
            return Err(Refused::Weight { pool: pool.clone(), address: upstream.address });
        }
        match self.upstreams.windows(2).find(|pair| pair[0].address >= pair[1].address) {
            Some(pair) => Err(Refused::Order { pool: pool.clone(), address: pair[1].address }),
            None => Ok(()),
        }
    }
}

/// A host as routes write it: a lower-case name, `*.` before a name, or an IP literal (IPv6 in brackets).
fn is_host(host: &str) -> bool {
    if let Some(literal) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return literal.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let name = host.strip_prefix("*.").unwrap_or(host);
    name.len() <= 253
        && name.split('.').all(|label| {
            // Underscores are no host names by RFC 1123 and in use all the same.
            let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
            (1..=63).contains(&label.len()) && label.bytes().all(plain)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(host: Option<&str>, path: &str, pool: &str) -> Arc<Listener> {
        Arc::new(Listener { routes: vec![Route { host: host.map(Into::into), path: path.into(), pool: pool.into() }] })
    }

    fn pool(upstreams: &[(&str, u16)]) -> Arc<Pool> {
        let upstream = |(address, weight): &(&str, u16)| Upstream {
            address: address.parse().unwrap(),
            weight: *weight,
            state: UpstreamState::Active,
        };
        Arc::new(Pool { upstreams: upstreams.iter().map(upstream).collect() })
    }

    fn good() -> Input {
        Input {
            generation: 5,
            listeners: OrdMap::unit(address(), listener(Some("a.example"), "/", "shop")),
            pools: OrdMap::unit("shop".into(), pool(&[("10.0.0.1:80", 1), ("10.0.0.2:80", 1)])),
        }
    }

    fn address() -> SocketAddr {
        "10.77.100.5:80".parse().unwrap()
    }

    #[test]
    fn a_good_input_is_taken_again_and_an_older_one_is_not() {
        assert_eq!(good().validate(0), Ok(()));
        assert_eq!(good().validate(5), Ok(()));
        assert_eq!(good().validate(6), Err(Refused::Older { got: 5, applied: 6 }));
    }

    #[test]
    fn names_what_is_wrong() {
        let with_listener = |listener| Input { listeners: OrdMap::unit(address(), listener), ..good() };
        let with_pool = |pool| Input { pools: OrdMap::unit("shop".into(), pool), ..good() };
        let cases = [
            (with_listener(listener(None, "/", "none")), "the pool none, which is not there"),
            (with_listener(listener(None, "api", "shop")), "the path api, which does not start with /"),
            (with_listener(listener(Some("A.example"), "/", "shop")), "the host A.example"),
            (with_listener(listener(Some("a.example:80"), "/", "shop")), "the host a.example:80"),
            (with_listener(listener(Some("*"), "/", "shop")), "the host *,"),
            (with_listener(listener(Some("a..b"), "/", "shop")), "the host a..b"),
            (with_listener(listener(Some(""), "/", "shop")), "which is not a host name"),
            (with_pool(pool(&[("10.0.0.1:80", 0)])), "the weight 0"),
            (with_pool(pool(&[("10.0.0.1:80", 1), ("10.0.0.1:80", 1)])), "not sorted"),
            (with_pool(pool(&[("10.0.0.2:80", 1), ("10.0.0.1:80", 1)])), "not sorted"),
        ];
        for (input, words) in cases {
            let refused = input.validate(5).expect_err(words).to_string();
            assert!(refused.contains(words), "{refused:?} should contain {words:?}");
            assert_eq!(input.validate_change(&good()).expect_err(words).to_string(), refused);
        }
        for host in ["a", "*.a.example", "_x.a-b.example", "10.0.0.1", "[fd77::1]"] {
            assert_eq!(with_listener(listener(Some(host), "/", "shop")).validate(0), Ok(()), "{host}");
        }
    }

    #[test]
    fn notices_that_an_unchanged_listener_lost_its_pool() {
        let lost = Input { pools: OrdMap::new(), ..good() };
        assert_eq!(lost.validate_change(&good()), Err(Refused::NoPool { listener: address(), pool: "shop".into() }));
    }
}
