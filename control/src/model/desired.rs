//! Everything that operators want, and the pure rules by which a change is taken or refused.

use std::{net::IpAddr, sync::Arc};

use imbl::OrdMap;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::elb::{Elb, ElbName, ElbSpec, Scope};

/// What is wanted. Cloning is free.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Desired {
    pub elbs: OrdMap<ElbName, Arc<Elb>>,
    /// The revision of the newest change.
    pub revision: u64,
}

/// A wish, from any writer: declarative, so that it may arrive twice.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    Put { name: ElbName, spec: ElbSpec },
    Delete { name: ElbName },
}

/// The `[vips]` table of the configuration file: the addresses that ELBs are given, by scope.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pools {
    /// An ELB gets one address from each network of its scope: list an IPv4 and an IPv6 one for dual stack.
    pub internal: Vec<IpNet>,
    pub external: Vec<IpNet>,
}

impl Pools {
    pub fn of(&self, scope: Scope) -> &[IpNet] {
        match scope {
            Scope::Internal => &self.internal,
            Scope::External => &self.external,
        }
    }

    pub fn contain(&self, scope: Scope, vip: IpAddr) -> bool {
        self.of(scope).iter().any(|net| net.contains(&vip))
    }
}
