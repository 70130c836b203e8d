//! What operators ask for.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

mod layer4;
mod probe;
mod words;

pub use layer4::{ClientAddress, Forward, GUE_PORT, Layer4, Protection, Rate, SourceRate, network};
pub use probe::{LONGEST_PAYLOAD, Payload, Probe, ProbeType, StatusRange};

use super::app::AppId;

/// An ELB's name: 1 to 40 of a-z, 0-9 and -, starting and ending with a letter or digit (it is a DNS label).
pub type ElbName = String;

/// The body of `PUT /v1/elbs/{name}`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum ElbSpec {
    /// TCP and UDP ports of one job.
    Layer4(Layer4),
    /// HTTP hosts and paths, each to a job.
    Layer7(Layer7),
}

/// VS port -> RS port.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PortPair {
    /// The port that clients connect to.
    pub listen: u16,
    #[serde(default)]
    pub protocol: Transport,
    /// Which port of the job answers. Absent: its first.
    #[serde(default)]
    pub target: Option<Target>,
}

/// A port of a job: the number inside the container (`8080`), or the name that the app gives it (`"http"`).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Target {
    Number(u16),
    Name(String),
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    #[default]
    Tcp,
    Udp,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    #[default]
    Internal,
    External,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Internal => "internal",
            Self::External => "external",
        })
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Layer7 {
    #[serde(default)]
    pub scope: Scope,
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub vips: Vec<IpAddr>,
    /// The ports to listen on. Absent: 80.
    #[serde(default = "port_80")]
    pub listen: Vec<u16>,
    pub rules: Vec<Rule>,
}

fn port_80() -> Vec<u16> {
    vec![80]
}

/// Which requests go to which job.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// `shop.example.com`, `*.example.com`; absent: any host.
    #[serde(default)]
    pub host: Option<String>,
    /// This path and all below it. Absent: `/`.
    #[serde(default = "root_path")]
    pub path: String,
    #[schema(value_type = String)]
    pub app: AppId,
    #[serde(default)]
    pub target: Option<Target>,
}

fn root_path() -> String {
    "/".to_owned()
}

/// An ELB as it is kept: what was asked for, and what was given.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Elb {
    pub spec: ElbSpec,
    /// The addresses that the ELB was given; they never change while it lives.
    #[schema(value_type = Vec<String>)]
    pub vips: Vec<IpAddr>,
    /// Counts up over all ELBs; the value of the ETag.
    pub revision: u64,
}

/// By name.
pub type Elbs = BTreeMap<ElbName, Elb>;

impl ElbSpec {
    pub fn scope(&self) -> Scope {
        match self {
            Self::Layer4(spec) => spec.scope,
            Self::Layer7(spec) => spec.scope,
        }
    }

    /// The addresses that the operator asked for.
    pub fn wanted_vips(&self) -> &[IpAddr] {
        match self {
            Self::Layer4(spec) => &spec.vips,
            Self::Layer7(spec) => &spec.vips,
        }
    }

    /// A name and a value, in words, for everything else that is set.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Layer4(spec) => spec.settings(),
            Self::Layer7(_) => Vec::new(),
        }
    }

    /// Every job's port that the ELB sends traffic to.
    pub fn targets(&self) -> Vec<(&AppId, Option<&Target>, Transport)> {
        match self {
            Self::Layer4(spec) => {
                spec.ports.iter().map(|pair| (&spec.app, pair.target.as_ref(), pair.protocol)).collect()
            }
            Self::Layer7(spec) => {
                spec.rules.iter().map(|rule| (&rule.app, rule.target.as_ref(), Transport::Tcp)).collect()
            }
        }
    }

    /// Every job that the ELB sends traffic to, each once, sorted.
    pub fn apps(&self) -> Vec<AppId> {
        let mut apps: Vec<AppId> = match self {
            Self::Layer4(spec) => vec![spec.app.clone()],
            Self::Layer7(spec) => spec.rules.iter().map(|rule| rule.app.clone()).collect(),
        };
        apps.sort();
        apps.dedup();
        apps
    }
}
