//! How the plane runs: read once, at start.

use std::{net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

/// The `[l4]` table of the configuration file.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The interfaces that traffic enters and leaves by. Empty: the interface of the default route.
    pub interfaces: Vec<String>,
    /// The addresses that FULLNAT connections to the reals come from; used for nothing else.
    /// Each gives about 64,000 flows, and takes 4 MB. At most 64 of a family. They are added to the first interface.
    pub local_addresses: Vec<IpAddr>,
    /// Where the maps and the program's links are pinned, so that they outlive the process.
    pub pin_dir: PathBuf,
    /// Where in the driver the program runs.
    pub mode: Mode,
}

/// Where the XDP program is hooked.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Native where the driver can, generic where it cannot (and the report says so).
    #[default]
    Auto,
    /// In the driver, before an skb exists.
    Native,
    /// After the skb was built: every driver can, at about half the speed.
    Generic,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            local_addresses: Vec::new(),
            pin_dir: PathBuf::from("/sys/fs/bpf/tidegate"),
            mode: Mode::Auto,
        }
    }
}
