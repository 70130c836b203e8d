//! What Marathon says, held so that a lie or a silence of the source takes nothing away.

use std::{net::IpAddr, sync::Arc};

use imbl::OrdMap;

use super::app::{App, AppId};

/// The apps as last believed. Cloning is free.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Observed {
    pub apps: OrdMap<AppId, Arc<App>>,
    pub hosts: Hosts,
}

/// What the names of agents stand for: the last good answer of each lookup.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Hosts(pub OrdMap<Arc<str>, Arc<[IpAddr]>>);

/// Which of a host's or a container's addresses is meant.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    pub fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }

    pub fn first(self, addresses: &[IpAddr]) -> Option<IpAddr> {
        addresses.iter().copied().find(|&address| Self::of(address) == self)
    }
}

impl Hosts {
    /// Whether the name must be looked up before it can be used.
    pub fn lacks(&self, host: &str) -> bool {
        host.parse::<IpAddr>().is_err() && !self.0.contains_key(host)
    }

    /// The addresses of an agent, given by name or by address. Empty: not known yet.
    pub fn addresses(&self, host: &str) -> Vec<IpAddr> {
        match host.parse() {
            Ok(address) => vec![address],
            Err(_) => self.0.get(host).map(|known| known.to_vec()).unwrap_or_default(),
        }
    }

    pub fn address(&self, host: &str, family: Family) -> Option<IpAddr> {
        match host.parse() {
            Ok(address) => (Family::of(address) == family).then_some(address),
            Err(_) => self.0.get(host).and_then(|known| family.first(known)),
        }
    }
}
