//! What an ELB does and why: for the API and the status page.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::State;
use crate::model::{
    app::{App, AppId, Instance},
    elb::{ElbSpec, Target, Transport},
    observed::Family,
    ports,
    traffic::{self, Verdict, verdict},
};

/// For each plane, the generation in which an ELB's part changed last: a plane that has applied it is up to date.
/// 0: the plane has no part of it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Deserialize, Serialize, ToSchema)]
pub struct Generations {
    pub l4: u64,
    pub l7: u64,
    pub dns: u64,
}

#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize, ToSchema)]
pub struct ElbStatus {
    pub name: String,
    /// The ELB's DNS name.
    pub dns_name: String,
    #[schema(value_type = Vec<String>)]
    pub vips: Vec<IpAddr>,
    /// What each plane must have applied for all of this to be true.
    pub generations: Generations,
    /// Whether the planes were given anything yet: false until Marathon or the store has told what runs.
    pub published: bool,
    pub ports: Vec<PortStatus>,
}

/// One port of a layer-4 ELB, or one rule of a layer-7 one.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize, ToSchema)]
pub struct PortStatus {
    /// `tcp 80`, or `shop.example.com/api`.
    pub listen: String,
    #[schema(value_type = String)]
    pub app: AppId,
    /// The app's port, as it was asked for; `first` if it was left out.
    pub target: String,
    /// Why nobody can answer, and what to do.
    pub problem: Option<String>,
    pub serving: usize,
    pub draining: usize,
    pub held: usize,
    pub instances: Vec<InstanceStatus>,
}

#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize, ToSchema)]
pub struct InstanceStatus {
    pub id: String,
    pub version: String,
    pub host: String,
    /// Where it answers, in each address family that the ELB can use.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<SocketAddr>,
    /// `serve`, `drain` or `hold`.
    pub verdict: String,
    pub reason: String,
}

/// What an ELB does and why. `None`: there is no such ELB.
pub fn explain(state: &State, name: &str) -> Option<ElbStatus> {
    let elb = state.desired.elbs.get(name)?;
    let families: Vec<Family> = match &elb.spec {
        ElbSpec::Layer4(_) => {
            let has = |family| elb.vips.iter().any(|&vip| Family::of(vip) == family);
            [Family::V4, Family::V6].into_iter().filter(|&family| has(family)).collect()
        }
        // A proxy reaches its upstreams over whichever they have.
        ElbSpec::Layer7(_) => vec![Family::V4, Family::V6],
    };
    let port = |listen: String, app: &AppId, target: Option<&Target>, transport| {
        explain_port(state, listen, app, target, transport, &families)
    };
    let ports = match &elb.spec {
        ElbSpec::Layer4(spec) => spec
            .ports
            .iter()
            .map(|pair| {
                port(format!("{} {}", pair.protocol, pair.listen), &spec.app, pair.target.as_ref(), pair.protocol)
            })
            .collect(),
        ElbSpec::Layer7(spec) => spec
            .rules
            .iter()
            .map(|rule| {
                let listen = format!("{}{}", rule.host.as_deref().unwrap_or("*"), rule.path);
                port(listen, &rule.app, rule.target.as_ref(), Transport::Tcp)
            })
            .collect(),
    };
    Some(ElbStatus {
        name: name.to_owned(),
        dns_name: crate::compile::dns::elb_name(name, &state.policy.domain).to_string(),
        vips: elb.vips.clone(),
        generations: state.generations.get(name).copied().unwrap_or_default(),
        published: state.published(),
        ports,
    })
}

fn explain_port(
    state: &State,
    listen: String,
    id: &AppId,
    target: Option<&Target>,
    transport: Transport,
    families: &[Family],
) -> PortStatus {
    let app = state.observed.apps.get(id);
    let instances: Vec<InstanceStatus> = app
        .map(|app| {
            app.instances
                .values()
                .map(|instance| explain_instance(state, app, instance, target, transport, families))
                .collect()
        })
        .unwrap_or_default();
    let count = |verdict: &str| instances.iter().filter(|instance| instance.verdict == verdict).count();
    let (serving, draining, held) = (count("serve"), count("drain"), count("hold"));
    let problem = match app {
        None => Some(format!("Marathon has no app {id}: create it, or correct the ELB")),
        Some(app) => match app.newest() {
            Some(definition) if ports::place(definition, target, transport).is_none() => {
                Some(ports::no_port(id, definition, target))
            }
            _ if app.wanted == 0 => Some(format!("the app {id} is scaled to 0: scale it up")),
            _ if serving == 0 => Some(format!("no instance of {id} serves; each says why")),
            _ => None,
        },
    };
    let target = target.map_or_else(|| "first".to_owned(), ToString::to_string);
    PortStatus { listen, app: id.clone(), target, problem, serving, draining, held, instances }
}

fn explain_instance(
    state: &State,
    app: &App,
    instance: &Instance,
    target: Option<&Target>,
    transport: Transport,
    families: &[Family],
) -> InstanceStatus {
    let judged = verdict(app, instance);
    let place = app.definition_of(instance).map(|definition| (definition, ports::place(definition, target, transport)));
    let hosts = &state.observed.hosts;
    let addresses: Vec<SocketAddr> = match place {
        Some((definition, Some(place))) => {
            families.iter().filter_map(|&family| ports::find(instance, definition, place, hosts, family)).collect()
        }
        _ => Vec::new(),
    };
    let (verdict, reason) = match (judged, place) {
        (Verdict::Serve | Verdict::Drain(_), Some((definition, None))) => {
            ("hold", ports::no_port(&app.id, definition, target))
        }
        (Verdict::Serve | Verdict::Drain(_), _) if addresses.is_empty() && hosts.lacks(&instance.host) => {
            ("hold", format!("waiting for the address of its agent {}", instance.host))
        }
        (Verdict::Serve | Verdict::Drain(_), _) if addresses.is_empty() => {
            ("hold", "it has no address that the ELB's VIPs can reach".to_owned())
        }
        (judged @ Verdict::Serve, _) => ("serve", traffic::explain(judged, instance)),
        (judged @ Verdict::Drain(_), _) => ("drain", traffic::explain(judged, instance)),
        (judged @ Verdict::Hold(_), _) => ("hold", traffic::explain(judged, instance)),
    };
    InstanceStatus {
        id: instance.id.to_string(),
        version: instance.version.to_string(),
        host: instance.host.to_string(),
        addresses,
        verdict: verdict.to_owned(),
        reason,
    }
}
