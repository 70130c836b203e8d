//! Writes what a change touched into the Inputs, and knows which planes it concerned.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use imbl::OrdMap;
use tidegate_l4::Frontend;

use super::{Compiled, dns, index::Index, l4, l7};
use crate::model::{
    desired::Desired,
    elb::{Elb, ElbName},
    observed::Observed,
};

/// A mark for each plane.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Planes {
    pub l4: bool,
    pub l7: bool,
    pub dns: bool,
}

impl Planes {
    pub fn any(self) -> bool {
        self.l4 || self.l7 || self.dns
    }

    pub fn or(self, other: Self) -> Self {
        Self { l4: self.l4 || other.l4, l7: self.l7 || other.l7, dns: self.dns || other.dns }
    }
}

#[derive(Debug)]
pub struct Writer<'a> {
    compiled: &'a mut Compiled,
    index: &'a mut Index,
    domain: &'a str,
    ttl: u32,
    desired: &'a Desired,
    observed: &'a Observed,
    changed: Planes,
}

impl<'a> Writer<'a> {
    pub fn new(
        compiled: &'a mut Compiled,
        index: &'a mut Index,
        domain: &'a str,
        ttl: u32,
        desired: &'a Desired,
        observed: &'a Observed,
    ) -> Self {
        Self { compiled, index, domain, ttl, desired, observed, changed: Planes::default() }
    }

    /// What changed since the last call.
    pub fn take_changed(&mut self) -> Planes {
        std::mem::take(&mut self.changed)
    }

    /// Takes away what an ELB had and has no longer. For all touched ELBs before any is filled: an address that one
    /// gave back may be another's now.
    pub fn clear_elb(&mut self, name: &ElbName, old: &Elb) {
        let new = self.desired.elbs.get(name).cloned();
        let new = new.as_deref();
        let kept: Vec<Frontend> = new.map(l4::frontends).unwrap_or_default();
        for frontend in l4::frontends(old) {
            if !kept.contains(&frontend) {
                self.set_service(frontend, None);
            }
        }
        let kept = new.map(l7::listeners).unwrap_or_default();
        for at in l7::listeners(old).into_keys() {
            if !kept.contains_key(&at) {
                self.set_listener(at, None);
            }
        }
        for (pool, (app, _)) in l7::pools(old) {
            let desired = self.desired;
            let used = self
                .index
                .elbs_of(app)
                .filter_map(|elb| desired.elbs.get(elb))
                .any(|elb| l7::pools(elb).contains_key(&pool));
            if !used {
                self.set_pool(pool, None);
            }
        }
        for vip in &old.vips {
            if !new.is_some_and(|new| new.vips.contains(vip)) && self.compiled.l4.announce.contains(vip) {
                Arc::make_mut(&mut self.compiled.l4).announce.remove(vip);
                self.changed.l4 = true;
            }
        }
        if new.is_none() {
            self.set_node(dns::elb_name(name, self.domain), None);
        }
    }

    /// Writes all that an ELB has now.
    pub fn fill_elb(&mut self, name: &ElbName, elb: &Elb) {
        let observed = self.observed;
        for (frontend, service) in l4::services(elb, observed) {
            self.set_service(frontend, Some(service));
        }
        for (pool, (app, target)) in l7::pools(elb) {
            self.set_pool(pool, Some(l7::pool(app, target, observed)));
        }
        for (at, listener) in l7::listeners(elb) {
            self.set_listener(at, Some(listener));
        }
        for vip in &elb.vips {
            if !self.compiled.l4.announce.contains(vip) {
                Arc::make_mut(&mut self.compiled.l4).announce.insert(*vip);
                self.changed.l4 = true;
            }
        }
        self.set_node(dns::elb_name(name, self.domain), Some(dns::elb_node(elb, self.ttl)));
    }

    /// Writes the names of all apps that share a DNS label.
    pub fn write_label(&mut self, label: &str) {
        let ids = self.index.apps_of_label(label);
        let apps = ids.iter().filter_map(|id| self.observed.apps.get(id));
        let nodes: BTreeMap<_, _> = dns::app_names(apps, self.observed, self.domain, self.ttl);
        let before = self.index.swap_names(label, nodes.keys().cloned().collect());
        for gone in before.iter().filter(|name| !nodes.contains_key(*name)) {
            self.set_node(gone.clone(), None);
        }
        for (name, node) in nodes {
            self.set_node(name, Some(node));
        }
    }

    fn set_service(&mut self, at: Frontend, service: Option<tidegate_l4::Service>) {
        let input = &mut self.compiled.l4;
        self.changed.l4 |= set(input, |input| &input.services, |input| &mut input.services, at, service);
    }

    fn set_listener(&mut self, at: SocketAddr, listener: Option<tidegate_l7::Listener>) {
        let input = &mut self.compiled.l7;
        self.changed.l7 |= set(input, |input| &input.listeners, |input| &mut input.listeners, at, listener);
    }

    fn set_pool(&mut self, name: Arc<str>, pool: Option<tidegate_l7::Pool>) {
        let input = &mut self.compiled.l7;
        self.changed.l7 |= set(input, |input| &input.pools, |input| &mut input.pools, name, pool);
    }

    fn set_node(&mut self, name: tidegate_dns::Name, node: Option<tidegate_dns::Node>) {
        let input = &mut self.compiled.dns;
        self.changed.dns |= set(input, |input| &input.names, |input| &mut input.names, name, node);
    }
}

/// Sets or removes one key, only if that makes a difference: what is equal keeps its `Arc`, and planes skip it.
fn set<I: Clone, K: Ord + Clone, V: PartialEq>(
    input: &mut Arc<I>,
    read: impl Fn(&I) -> &OrdMap<K, Arc<V>>,
    write: impl Fn(&mut I) -> &mut OrdMap<K, Arc<V>>,
    key: K,
    value: Option<V>,
) -> bool {
    let same = match (read(input).get(&key), &value) {
        (Some(old), Some(new)) => **old == *new,
        (None, None) => true,
        _ => false,
    };
    if same {
        return false;
    }
    let map = write(Arc::make_mut(input));
    match value {
        Some(value) => map.insert(key, Arc::new(value)),
        None => map.remove(&key),
    };
    true
}
