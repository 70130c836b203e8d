//! What happened: read by whoever gave the Input.

use std::{net::SocketAddr, sync::Arc};

use imbl::OrdMap;

use crate::input::Refused;

/// The plane's state, published when an Input was applied or refused and once a second for the counters.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The newest Input that answers requests now: its listeners listen, its pools are swapped.
    pub generation: u64,
    /// The last Input that was refused, with its reason; cleared by the next good one.
    pub refused: Option<(u64, Refused)>,
    /// Counters by pool.
    pub pools: OrdMap<Arc<str>, Arc<PoolCounters>>,
    /// What is wrong now and what to do about it, in words (a listener that cannot be opened ...).
    pub problems: Vec<String>,
    /// Listeners of the Input that could not be opened: each has its line in `problems` and is tried every second.
    pub unopened: Vec<SocketAddr>,
}

/// Counted since the process started.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PoolCounters {
    pub requests: u64,
    /// Requests that are being answered now.
    pub in_flight: u64,
    /// Answers by class: 1xx to 5xx.
    pub status: [u64; 5],
    /// Requests that were tried on another upstream because a connection failed.
    pub retries: u64,
    /// Requests answered 503 because no upstream was usable.
    pub unavailable: u64,
    pub upstreams: Vec<UpstreamCounters>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UpstreamCounters {
    pub address: SocketAddr,
    pub requests: u64,
    pub in_flight: u64,
    pub connect_failures: u64,
}
