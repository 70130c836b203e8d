//! Who must be compiled again when something changes: found by key, never by walking the table.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use tidegate_dns::Name;

use super::dns;
use crate::model::{
    app::{App, AppId},
    elb::{Elb, ElbName},
};

/// Cloning is free.
#[derive(Clone, Debug, Default)]
pub struct Index {
    elbs: OrdMap<AppId, OrdSet<ElbName>>,
    /// Apps by the DNS label that they share, with the names that were compiled for it.
    labels: OrdMap<String, Label>,
    /// Apps by agent, for agents that are given by name. Entries may be stale: they cost one compile for nothing.
    agents: OrdMap<Arc<str>, OrdSet<AppId>>,
}

#[derive(Clone, Debug, Default)]
struct Label {
    apps: OrdSet<AppId>,
    names: Arc<[Name]>,
}

impl Index {
    pub fn add_elb(&mut self, name: &ElbName, elb: &Elb) {
        for app in elb.spec.apps() {
            self.elbs.entry(app).or_default().insert(name.clone());
        }
    }

    pub fn remove_elb(&mut self, name: &ElbName, elb: &Elb) {
        for app in elb.spec.apps() {
            if let Some(elbs) = self.elbs.get_mut(&app) {
                elbs.remove(name);
                if elbs.is_empty() {
                    self.elbs.remove(&app);
                }
            }
        }
    }

    /// The ELBs that send traffic to the app.
    pub fn elbs_of(&self, app: &AppId) -> impl Iterator<Item = &ElbName> {
        self.elbs.get(app).into_iter().flatten()
    }

    pub fn add_app(&mut self, id: &AppId) {
        let label = dns::app_label(id);
        if !self.labels.get(&label).is_some_and(|known| known.apps.contains(id)) {
            self.labels.entry(label).or_default().apps.insert(id.clone());
        }
    }

    pub fn remove_app(&mut self, id: &AppId) {
        if let Some(label) = self.labels.get_mut(&dns::app_label(id)) {
            label.apps.remove(id);
        }
    }

    pub fn labels(&self) -> impl Iterator<Item = &String> {
        self.labels.keys()
    }

    pub fn apps_of_label(&self, label: &str) -> OrdSet<AppId> {
        self.labels.get(label).map(|label| label.apps.clone()).unwrap_or_default()
    }

    /// Remembers the names that a label has now and tells those that it had.
    pub fn swap_names(&mut self, label: &str, names: Arc<[Name]>) -> Arc<[Name]> {
        let Some(known) = self.labels.get_mut(label) else {
            return Arc::default();
        };
        let before = std::mem::replace(&mut known.names, names);
        if known.apps.is_empty() && known.names.is_empty() {
            self.labels.remove(label);
        }
        before
    }

    /// Notes the named agents of an app.
    pub fn add_agents(&mut self, app: &App) {
        for instance in app.instances.values() {
            if instance.host.parse::<std::net::IpAddr>().is_err()
                && !self.agents.get(&instance.host).is_some_and(|apps| apps.contains(&app.id))
            {
                self.agents.entry(instance.host.clone()).or_default().insert(app.id.clone());
            }
        }
    }

    pub fn apps_on(&self, host: &str) -> OrdSet<AppId> {
        self.agents.get(host).cloned().unwrap_or_default()
    }
}
