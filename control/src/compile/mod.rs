//! (Desired, Observed) -> what each plane must do. Pure, and only for what a change touched.

pub mod dns;
pub mod index;
pub mod l4;
pub mod l7;
mod write;

use std::sync::Arc;

pub use write::{Planes, Writer};

use crate::model::{
    app::{App, Instance},
    desired::Desired,
    observed::Observed,
    traffic::{Verdict, verdict},
};

/// The planes' Inputs as last compiled. Cloning is free.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    pub l4: Arc<tidegate_l4::Input>,
    pub l7: Arc<tidegate_l7::Input>,
    pub dns: Arc<tidegate_dns::Input>,
}

impl Compiled {
    /// Nothing to do yet.
    pub fn empty(domain: &Arc<str>, generation: u64) -> Self {
        Self {
            l4: Arc::new(tidegate_l4::Input { generation, ..Default::default() }),
            l7: Arc::new(tidegate_l7::Input { generation, ..Default::default() }),
            dns: Arc::new(tidegate_dns::Input { generation, origin: domain.clone(), ..Default::default() }),
        }
    }

    /// Everything at once: what the small steps of [`Writer`] must add up to.
    pub fn whole(domain: &Arc<str>, ttl: u32, desired: &Desired, observed: &Observed) -> Self {
        let mut compiled = Self::empty(domain, 0);
        let mut index = index::Index::default();
        observed.apps.keys().for_each(|app| index.add_app(app));
        desired.elbs.iter().for_each(|(name, elb)| index.add_elb(name, elb));
        let labels: Vec<_> = index.labels().cloned().collect();
        let mut writer = Writer::new(&mut compiled, &mut index, domain, ttl, desired, observed);
        desired.elbs.iter().for_each(|(name, elb)| writer.fill_elb(name, elb));
        labels.iter().for_each(|label| writer.write_label(label));
        compiled
    }

    /// The same work, whatever the generations.
    pub fn same_work(&self, other: &Self) -> bool {
        (&self.l4.services, &self.l4.announce) == (&other.l4.services, &other.l4.announce)
            && (&self.l7.listeners, &self.l7.pools) == (&other.l7.listeners, &other.l7.pools)
            && (&self.dns.origin, &self.dns.names) == (&other.dns.origin, &other.dns.names)
    }
}

/// The instances that have traffic, and whether each may get more. Those that Marathon is stopping get more only while
/// there is nobody else: until they are killed they answer, and refusing the client would be worse.
fn in_traffic(app: &App) -> impl Iterator<Item = (&Instance, bool)> {
    let nobody_else = !app.instances.values().any(|instance| verdict(app, instance) == Verdict::Serve);
    app.instances.values().filter_map(move |instance| match verdict(app, instance) {
        Verdict::Serve => Some((&**instance, true)),
        Verdict::Drain(reason) => Some((&**instance, nobody_else && reason.still_answers())),
        Verdict::Hold(_) => None,
    })
}
