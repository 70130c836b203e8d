//! Everything that operators want, and the pure rules by which a change is taken or refused.

use std::{net::IpAddr, sync::Arc};

use imbl::OrdMap;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    app::AppId,
    elb::{Elb, ElbName, ElbSpec, Scope},
};

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

/// What a change did.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    Created,
    Updated,
    Unchanged,
    Deleted,
}

/// Why a change was not taken, and what to do.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refused {
    #[error("{name:?} is not an ELB's name: use 1 to 40 of a-z, 0-9 and -, starting and ending with a letter or digit")]
    Name { name: String },
    #[error("an ELB needs at least one port: add {{\"listen\":80,\"target\":8080}}")]
    NoPorts,
    #[error("an ELB needs at least one port to listen on: add 80 to \"listen\", or leave \"listen\" out")]
    NoListen,
    #[error("port 0 cannot be served: use 1 to 65535")]
    PortZero,
    #[error(
        "the target's name is empty: name a port of the app, give its number, or leave \"target\" out for the first"
    )]
    EmptyTarget,
    #[error("port {listen} is listened on twice: give each port and protocol once")]
    DuplicateListen { listen: u16 },
    #[error("a layer-7 ELB needs at least one rule: add {{\"path\":\"/\",\"app\":\"/shop/web\"}}")]
    NoRules,
    #[error("two rules say {host} {path}: remove one, or make one more specific")]
    DuplicateRule { host: String, path: String },
    #[error("{host:?} is not a host: write shop.example.com or *.example.com, without scheme and port")]
    Host { host: String },
    #[error("{path:?} is not a path: start it with / and leave out spaces, ? and #")]
    Path { path: String },
    #[error("{app:?} is not a job: write a Marathon app id, starting with /, such as /shop/web")]
    AppId { app: AppId },
    #[error("{0}")]
    NoSuchPort(String),
    #[error("{field}: {what}")]
    Field { field: &'static str, what: String },
    #[error("Marathon has no app {app} ({hint}): correct the id, create the app first, or allow it to be missing")]
    UnknownJob { app: AppId, hint: String },
    #[error("the VIP {vip} is not in the {scope} pools ({}): choose a usable address of these, or leave \"vips\" out", list(.pools))]
    VipOutside { vip: IpAddr, scope: Scope, pools: Vec<IpNet> },
    #[error("the VIP {vip} belongs to the ELB {owner}: choose another, or leave \"vips\" out")]
    VipTaken { vip: IpAddr, owner: ElbName },
    #[error("the VIP {vip} is listed twice: list it once")]
    DuplicateVip { vip: IpAddr },
    #[error("the pool {pool} has no free address: delete an ELB, or add a network to [vips] in the configuration")]
    PoolExhausted { pool: IpNet },
    #[error(
        "no pool of {scope} addresses is configured: add {scope} = [\"10.0.100.0/24\"] to [vips] in the configuration"
    )]
    NoPool { scope: Scope },
    #[error("the ELB {name} is of the other type: delete it first, or choose another name")]
    TypeChange { name: ElbName },
    #[error("the ELB {name} is {scope}, and that never changes: delete it first, or choose another name")]
    ScopeChange { name: ElbName, scope: Scope },
    #[error("the ELB {name} has the VIPs {}, and these never change while it lives: leave \"vips\" out, or delete it first", list(.vips))]
    VipChange { name: ElbName, vips: Vec<IpAddr> },
}

fn list<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
