//! How the plane runs: read once, at start.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// The `[dns]` table of the configuration file.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where to answer, over UDP and TCP. A wildcard address stands for every address of the machine, each bound by
    /// itself, so that replies leave from the address that was asked; not for VIPs (addresses of a single host beside a
    /// network's), which have services of their own.
    pub listen: Vec<SocketAddr>,
    /// The largest UDP reply in bytes, whatever the client offers (DNS flag day 2020: 1232).
    pub udp_payload: u16,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec!["0.0.0.0:53".parse().expect("a literal"), "[::]:53".parse().expect("a literal")],
            udp_payload: 1232,
        }
    }
}
