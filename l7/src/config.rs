//! How the plane runs: read once, at start.

use serde::{Deserialize, Serialize};

/// The `[l7]` table of the configuration file. Times in milliseconds.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How long a TCP connection to an upstream may take before another upstream is tried.
    pub connect_timeout_ms: u64,
    /// How many upstreams are tried for one request when connections fail.
    pub tries: usize,
    /// Longest silence between two reads from an upstream.
    pub upstream_read_timeout_ms: u64,
    /// How long requests may go on after the plane was told to stop, or their listener was removed.
    pub grace_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { connect_timeout_ms: 1_000, tries: 3, upstream_read_timeout_ms: 60_000, grace_ms: 10_000 }
    }
}
