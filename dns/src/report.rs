//! What happened: read by whoever gave the Input.

use std::net::SocketAddr;

use crate::input::Refused;

/// The plane's state, published when an Input was applied or refused and once a second for the counters.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The newest Input that answers now.
    pub generation: u64,
    /// The last Input that was refused, with its reason; cleared by the next good one.
    pub refused: Option<(u64, Refused)>,
    /// Where the plane answers.
    pub listening: Vec<SocketAddr>,
    pub counters: Counters,
    /// What is wrong now and what to do about it, in words.
    pub problems: Vec<String>,
}

/// Counted since the process started.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counters {
    pub queries: u64,
    pub answered: u64,
    /// The name is there, the type is not.
    pub no_data: u64,
    pub no_such_name: u64,
    /// Asked for a name outside the zone.
    pub refused: u64,
    /// Sent with TC: the client comes back over TCP.
    pub truncated: u64,
    /// Could not be read, or not answered.
    pub failed: u64,
}
