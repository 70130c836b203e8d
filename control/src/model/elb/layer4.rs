//! What operators ask of layer 4: how packets reach the job's instances, and who may open flows.

use std::{fmt, net::IpAddr};

use clap::ValueEnum;
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use utoipa::ToSchema;

use super::{PortPair, Scope, probe::Probe};
use crate::model::app::AppId;

#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Layer4 {
    #[serde(default)]
    pub scope: Scope,
    /// Addresses to use, out of the scope's pools. Empty: one is taken from each pool of the scope.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub vips: Vec<IpAddr>,
    /// The job: a Marathon app id such as `/shop/web`.
    #[schema(value_type = String)]
    pub app: AppId,
    pub ports: Vec<PortPair>,
    /// How packets get to the instances. `fullnat`: addresses and ports are translated, answers come back through here.
    /// The others translate nothing, and the host, which has the VIP, answers the client itself: `direct` reaches
    /// neighbours, `ipip` and `gue` wrap packets and reach either address family.
    #[serde(default)]
    pub forward: Forward,
    /// The UDP port that instances unwrap GUE at, only for `"forward":"gue"`. Absent: 6080.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gue_port: Option<u16>,
    /// How an instance learns its client's address: `toa`, by a TCP option that its kernel must read; `proxy`, by the
    /// PROXY protocol's header, version 2, which it must expect. Both only for `"forward":"fullnat"` and TCP ports alone.
    #[serde(default)]
    pub client_address: ClientAddress,
    /// Who may open flows, and how many.
    #[serde(default, skip_serializing_if = "Protection::is_empty")]
    pub protection: Protection,
    /// An active check of every instance, sent the way that its traffic goes; beside Marathon's own health checks, which
    /// always count. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Box<Probe>>,
    /// A new instance gets its share of new flows in steps over so many seconds, 3,600 at most. 0: at once.
    #[serde(default)]
    pub slow_start_s: u32,
}

/// How packets get to the instances.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema, ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lower")]
pub enum Forward {
    /// Addresses and ports are translated, answers come back through here; asks nothing of the instances
    #[default]
    FullNat,
    /// Only the hardware address is written: hosts are neighbours, have the VIP, serve its port, and answer clients themselves
    Direct,
    /// IP in IP: hosts unwrap, have the VIP, serve its port, and answer clients themselves
    IpIp,
    /// As ipip, but in UDP (GUE variant 1): for networks that carry nothing but TCP and UDP, or spread load by ports
    Gue,
}

/// How an instance learns its client's address under `fullnat`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ClientAddress {
    /// It sees the balancer's address
    #[default]
    Hidden,
    /// By a TCP option in the first segments (TOA): its kernel must read it, others ignore it
    Toa,
    /// By the PROXY protocol's header, version 2: the instance must expect it on every connection
    Proxy,
}

/// Who may open flows, and how many. What it counts is TCP connections and UDP datagrams.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Protection {
    /// Networks (`10.0.0.0/8`, `2001:db8::/32`) or addresses. Not empty: nobody else may, in either address family. The
    /// longest prefix of `allow` and `deny` decides. At most 1,024 of both.
    #[serde(deserialize_with = "networks", skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub allow: Vec<IpNet>,
    /// Networks or addresses that may not.
    #[serde(deserialize_with = "networks", skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub deny: Vec<IpNet>,
    /// New flows of one source prefix, at each VIP and port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_source: Option<SourceRate>,
    /// New flows of all clients together, at each VIP and port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_vip: Option<Rate>,
    /// SYNs a second that are forwarded as they come, at each VIP and TCP port; those beyond are answered with cookies,
    /// and reach an instance only once the client has proved its address. Only for `"forward":"fullnat"`; UDP ports get
    /// none. Absent: no cookies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub syn_cookies_above: Option<u32>,
}

/// A limit of new flows; those beyond are dropped.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// New flows a second.
    pub per_second: u32,
    /// How many may come at once after a silence. Absent: `per_second`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}

/// A limit of the new flows of each source prefix; those beyond are dropped.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SourceRate {
    /// New flows a second.
    pub per_second: u32,
    /// How many may come at once after a silence. Absent: `per_second`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// So many leading bits of an IPv4 address are one source, 1 to 32.
    #[serde(default = "whole_v4")]
    pub prefix_v4: u8,
    /// So many leading bits of an IPv6 address are one source, 1 to 128: a household has a /64.
    #[serde(default = "network_v6")]
    pub prefix_v6: u8,
}

pub const GUE_PORT: u16 = 6080;

fn whole_v4() -> u8 {
    32
}

fn network_v6() -> u8 {
    64
}

impl SourceRate {
    pub fn new(per_second: u32) -> Self {
        Self { per_second, burst: None, prefix_v4: whole_v4(), prefix_v6: network_v6() }
    }
}

impl Forward {
    /// Whether an instance may serve at another port than its clients connect to.
    pub fn translates(self) -> bool {
        self == Self::FullNat
    }

    /// Whether an instance may have the other address family than the VIP.
    pub fn crosses(self) -> bool {
        matches!(self, Self::IpIp | Self::Gue)
    }
}

impl Protection {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// `10.0.0.0/8`, `2001:db8::/32`, or one address; without the bits behind the prefix.
pub fn network(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<IpAddr>().ok().map(IpNet::from);
    match text.parse::<IpNet>().ok().or_else(address) {
        Some(net) => Ok(net.trunc()),
        None => Err(format!("`{text}` is neither a network nor an address: write it like 10.0.0.0/8 or 2001:db8::/32")),
    }
}

fn networks<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<IpNet>, D::Error> {
    let texts = Vec::<String>::deserialize(input)?;
    texts.iter().map(|text| network(text).map_err(D::Error::custom)).collect()
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FullNat => "fullnat",
            Self::Direct => "direct",
            Self::IpIp => "ipip",
            Self::Gue => "gue",
        })
    }
}

impl fmt::Display for ClientAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hidden => "hidden",
            Self::Toa => "toa",
            Self::Proxy => "proxy",
        })
    }
}
