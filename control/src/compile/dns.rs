//! DNS: the names of apps as Mesos-DNS gives them, and the names of ELBs.
//!
//! Two apps can have one label (`/shop/web` and `/web-shop` are both `web-shop`): their names are one set, compiled
//! together by that label.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use sha1::{Digest, Sha1};
use tidegate_dns::{Name, Node, Srv};

use super::in_traffic;
use crate::model::{
    app::{App, Definition, Instance},
    elb::Elb,
    observed::Observed,
    ports::{self, Place},
};

/// RFC 1035, 2.3.4.
const LABEL_MAX: usize = 63;
const NAME_MAX: usize = 253;

/// The label of an app: `/shop/web` is `web-shop`.
pub fn app_label(id: &str) -> String {
    label(&reversed(id))
}

/// As Marathon names the app's tasks in Mesos: `/shop/web` is `web.shop`.
fn reversed(id: &str) -> String {
    id.split('/').filter(|part| !part.is_empty()).rev().collect::<Vec<_>>().join(".")
}

/// One label out of any text: lower case, `.` and `_` become `-`, what DNS has no letter for is dropped.
pub fn label(text: &str) -> String {
    let kept: String = text
        .chars()
        .filter_map(|c| match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9') => Some(c),
            '-' | '.' | '_' => Some('-'),
            _ => None,
        })
        .collect();
    let text = kept.trim_start_matches('-');
    let (head, rest) = text.split_at(text.len().min(LABEL_MAX));
    let head = head.trim_end_matches('-');
    if rest.is_empty() {
        return head.to_owned();
    }
    // What dashes at the cut freed is refilled from behind it: so does Mesos-DNS.
    let rest = rest.trim_start_matches('-');
    format!("{head}{}", &rest[..rest.len().min(LABEL_MAX - head.len())])
}

/// The same with dots kept: `web.shop`.
fn dotted(text: &str) -> String {
    text.split('.').map(label).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(".")
}

/// Five letters that tell the tasks of an app apart: the top 25 bits of the id's SHA-1 in z-base-32.
fn hash(task: &str) -> String {
    const LETTERS: &[u8; 32] = b"ybndrfg8ejkmcpqxot1uwisza345h769";
    let digest = Sha1::digest(task.as_bytes());
    let bits = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
    (0..5).map(|i| char::from(LETTERS[(bits >> (27 - 5 * i)) as usize & 31])).collect()
}

/// `web-shop-7i5ue-s0`: one instance, by its task and its agent.
fn canonical(label: &str, instance: &Instance) -> String {
    let task = if instance.task.is_empty() { &instance.id } else { &instance.task };
    let mut tail = format!("-{}", hash(task));
    if let Some(number) = instance.agent.as_deref().and_then(|agent| agent.rsplit('-').next()) {
        tail.push_str(&format!("-{}", self::label(number)));
    }
    // Mesos-DNS lets this grow beyond 63 octets, which nobody can ask for: the front gives way.
    let front = label[..label.len().min(LABEL_MAX.saturating_sub(tail.len()))].trim_end_matches('-');
    format!("{front}{tail}")
}

/// The name of an ELB.
pub fn elb_name(elb: &str, domain: &str) -> Name {
    format!("{elb}.elb.{domain}").into()
}

pub fn elb_node(elb: &Elb, ttl: u32) -> Node {
    let mut addresses = elb.vips.clone();
    addresses.sort_unstable();
    Node { addresses, services: Vec::new(), ttl }
}

/// Every name of the apps that share a label.
pub fn app_names<'a>(
    apps: impl Iterator<Item = &'a Arc<App>>,
    observed: &Observed,
    domain: &str,
    ttl: u32,
) -> BTreeMap<Name, Node> {
    let mut names = Names { nodes: BTreeMap::new(), domain, ttl };
    apps.for_each(|app| names.add_app(app, observed));
    let mut nodes = names.nodes;
    for node in nodes.values_mut() {
        node.addresses.sort_unstable();
        node.addresses.dedup();
        node.services.sort_unstable_by(|a, b| (&a.target, a.port).cmp(&(&b.target, b.port)));
        node.services.dedup();
    }
    nodes
}

struct Names<'a> {
    nodes: BTreeMap<Name, Node>,
    domain: &'a str,
    ttl: u32,
}

impl Names<'_> {
    fn add_app(&mut self, app: &App, observed: &Observed) {
        let (label, dotted) = (app_label(&app.id), dotted(&reversed(&app.id)));
        if label.is_empty() {
            return;
        }
        // The names of an app without a serving instance stay: clients get NODATA and come back, instead of NXDOMAIN.
        self.add(&label, "marathon", &[]);
        self.add(&dotted, "marathon", &[]);
        if let Some(newest) = app.newest() {
            for service in newest.ports.iter().flat_map(|port| service_names(&label, port)) {
                self.add(&service, "marathon", &[]);
            }
        }
        for (instance, active) in in_traffic(app) {
            if let Some(definition) = app.definition_of(instance).filter(|_| active) {
                self.add_instance(&label, &dotted, instance, definition, observed);
            }
        }
    }

    fn add_instance(
        &mut self,
        label: &str,
        dotted: &str,
        instance: &Instance,
        definition: &Definition,
        observed: &Observed,
    ) {
        let own = ports::own_addresses(instance, definition, &observed.hosts);
        let canonical = canonical(label, instance);
        for name in [label, dotted, &canonical] {
            self.add(name, "marathon", &own);
        }
        for (index, port) in definition.ports.iter().enumerate() {
            let Some(at) = ports::find_any(instance, definition, Place::Index(index), &observed.hosts) else {
                continue;
            };
            // A port that is mapped to the agent is not at the container's address: its target is the agent's name.
            let target = if own.contains(&at.ip()) {
                self.name(&canonical, "marathon")
            } else {
                self.add(&canonical, "marathon.slave", &observed.hosts.addresses(&instance.host))
            };
            for service in service_names(label, port) {
                let (Some(name), Some(target)) = (self.name(&service, "marathon"), target.clone()) else { continue };
                let srv = Srv { priority: 0, weight: 1, port: at.port(), target };
                self.node(name).services.push(srv);
            }
        }
    }

    fn add(&mut self, name: &str, under: &str, addresses: &[IpAddr]) -> Option<Name> {
        let name = self.name(name, under)?;
        self.node(name.clone()).addresses.extend_from_slice(addresses);
        Some(name)
    }

    fn name(&self, name: &str, under: &str) -> Option<Name> {
        let name = format!("{name}.{under}.{}", self.domain);
        (name.len() <= NAME_MAX).then(|| name.into())
    }

    fn node(&mut self, name: Name) -> &mut Node {
        let ttl = self.ttl;
        self.nodes.entry(name).or_insert_with(|| Node { ttl, ..Node::default() })
    }
}

/// `_web-shop._tcp`, and `_http._web-shop._tcp` for a port with a name.
fn service_names(app: &str, port: &crate::model::app::Port) -> Vec<String> {
    let named = port.name.as_deref().map(label).filter(|name| !name.is_empty() && name.len() < LABEL_MAX);
    let protocols = [(port.tcp, "_tcp"), (port.udp, "_udp")].into_iter().filter(|(spoken, _)| *spoken);
    // The underscore needs room in the label.
    let app = &app[..app.len().min(LABEL_MAX - 1)];
    protocols
        .flat_map(|(_, protocol)| {
            let all = format!("_{app}.{protocol}");
            let one = named.as_ref().map(|name| format!("_{name}.{all}"));
            [Some(all), one].into_iter().flatten()
        })
        .collect()
}

#[cfg(test)]
#[path = "dns_tests.rs"]
mod tests;
