//! What an ELB does and why: for the API and the status page.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::State;
use crate::model::{
    app::{App, AppId, Instance},
    elb::{ElbSpec, Forward, Layer4, PortPair, Rule, Target, Transport},
    observed::{Family, Observed},
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
    let ports = match &elb.spec {
        ElbSpec::Layer4(spec) => {
            let has = |family| elb.vips.iter().any(|&vip| Family::of(vip) == family);
            let families: Vec<Family> = [Family::V4, Family::V6].into_iter().filter(|&family| has(family)).collect();
            spec.ports.iter().map(|pair| Port::layer4(spec, pair, &families).explain(state)).collect()
        }
        ElbSpec::Layer7(spec) => spec.rules.iter().map(|rule| Port::layer7(rule).explain(state)).collect(),
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

/// How one port or rule of an ELB looks for its instances.
struct Port<'a> {
    listen: String,
    app: &'a AppId,
    target: Option<&'a Target>,
    transport: Transport,
    families: &'a [Family],
    forward: Forward,
    /// Where alone an instance can be served: what is not translated arrives at the port that clients connect to.
    only: Option<u16>,
}

impl<'a> Port<'a> {
    fn layer4(spec: &'a Layer4, pair: &'a PortPair, families: &'a [Family]) -> Self {
        Self {
            listen: format!("{} {}", pair.protocol, pair.listen),
            app: &spec.app,
            target: pair.target.as_ref(),
            transport: pair.protocol,
            families,
            forward: spec.forward,
            only: (!spec.forward.translates()).then_some(pair.listen),
        }
    }

    fn layer7(rule: &'a Rule) -> Self {
        Self {
            listen: format!("{}{}", rule.host.as_deref().unwrap_or("*"), rule.path),
            app: &rule.app,
            target: rule.target.as_ref(),
            transport: Transport::Tcp,
            // A proxy reaches its upstreams over whichever they have.
            families: &[Family::V4, Family::V6],
            forward: Forward::FullNat,
            only: None,
        }
    }

    fn explain(self, state: &State) -> PortStatus {
        let Self { app: id, target, transport, .. } = self;
        let app = state.observed.apps.get(id);
        let instances: Vec<InstanceStatus> = app
            .map(|app| app.instances.values().map(|instance| self.instance(&state.observed, app, instance)).collect())
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
        PortStatus { listen: self.listen, app: id.clone(), target, problem, serving, draining, held, instances }
    }

    fn instance(&self, observed: &Observed, app: &App, instance: &Instance) -> InstanceStatus {
        let judged = verdict(app, instance);
        let place = app
            .definition_of(instance)
            .map(|definition| (definition, ports::place(definition, self.target, self.transport)));
        let hosts = &observed.hosts;
        let mut addresses: Vec<SocketAddr> = match place {
            Some((definition, Some(place))) => {
                let find = |&family| ports::find_for(instance, definition, place, hosts, family, self.forward);
                self.families.iter().filter_map(find).collect()
            }
            _ => Vec::new(),
        };
        // Over a tunnel both families may have come to the same address.
        addresses.dedup();
        let untranslated = addresses.iter().find_map(|at| self.untranslated(at.port()));
        let (verdict, reason) = match (judged, place) {
            (Verdict::Serve | Verdict::Drain(_), Some((definition, None))) => {
                ("hold", ports::no_port(&app.id, definition, self.target))
            }
            (Verdict::Serve | Verdict::Drain(_), _) if addresses.is_empty() && hosts.lacks(&instance.host) => {
                ("hold", format!("waiting for the address of its agent {}", instance.host))
            }
            (Verdict::Serve | Verdict::Drain(_), _) if addresses.is_empty() => {
                ("hold", "it has no address that the ELB's VIPs can reach".to_owned())
            }
            (Verdict::Serve | Verdict::Drain(_), _) if untranslated.is_some() => {
                ("hold", untranslated.unwrap_or_default())
            }
            (Verdict::Serve, _) => ("serve", traffic::explain(judged, instance)),
            (Verdict::Drain(_), _) => ("drain", traffic::explain(judged, instance)),
            (Verdict::Hold(_), _) => ("hold", traffic::explain(judged, instance)),
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

    /// Why an instance at this port cannot be served, and what to do.
    fn untranslated(&self, port: u16) -> Option<String> {
        let only = self.only.filter(|&only| only != port)?;
        Some(format!(
            "it serves port {port}, and forward {} does not translate {only} to it: use forward fullnat, or make the job \
             serve port {only} itself (host port {only}, or a container network)",
            self.forward
        ))
    }
}
