//! What the plane must do now: the whole of it, with unchanged parts shared.

use std::{net::SocketAddr, sync::Arc};

use imbl::OrdMap;

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
}
