//! Layer 7: the listeners and routes of an ELB, and one pool for each job's port that rules lead to.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use tidegate_l7::{Listener, Pool, Route, Upstream, UpstreamState};

use super::in_traffic;
use crate::model::{
    app::AppId,
    elb::{Elb, ElbSpec, Layer7, Target, Transport},
    observed::Observed,
    ports,
};

fn layer7(elb: &Elb) -> Option<&Layer7> {
    match &elb.spec {
        ElbSpec::Layer7(spec) => Some(spec),
        ElbSpec::Layer4(_) => None,
    }
}

/// Where an ELB listens; nowhere for layer 4.
pub fn listeners(elb: &Elb) -> BTreeMap<SocketAddr, Listener> {
    let Some(spec) = layer7(elb) else {
        return BTreeMap::new();
    };
    let routes: Vec<Route> = spec
        .rules
        .iter()
        .map(|rule| Route {
            host: rule.host.as_deref().map(Arc::from),
            path: rule.path.as_str().into(),
            pool: pool_name(&rule.app, rule.target.as_ref()),
        })
        .collect();
    let at = elb.vips.iter().flat_map(|&vip| spec.listen.iter().map(move |&port| SocketAddr::new(vip, port)));
    at.map(|at| (at, Listener { routes: routes.clone() })).collect()
}

/// The pools that an ELB leads to, by name.
pub fn pools(elb: &Elb) -> BTreeMap<Arc<str>, (&AppId, Option<&Target>)> {
    let rules = layer7(elb).into_iter().flat_map(|spec| &spec.rules);
    rules.map(|rule| (pool_name(&rule.app, rule.target.as_ref()), (&rule.app, rule.target.as_ref()))).collect()
}

/// `/shop/web:http`, or `/shop/web` for the first port. ELBs that lead to the same port share the pool.
pub fn pool_name(app: &str, target: Option<&Target>) -> Arc<str> {
    match target {
        Some(target) => format!("{app}:{target}").into(),
        None => app.into(),
    }
}

pub fn pool(app: &AppId, target: Option<&Target>, observed: &Observed) -> Pool {
    let Some(app) = observed.apps.get(app) else {
        return Pool::default();
    };
    let mut upstreams: Vec<Upstream> = in_traffic(app)
        .filter_map(|(instance, active)| {
            let definition = app.definition_of(instance)?;
            let place = ports::place(definition, target, Transport::Tcp)?;
            let address = ports::find_any(instance, definition, place, &observed.hosts)?;
            let state = if active { UpstreamState::Active } else { UpstreamState::Draining };
            Some(Upstream { address, weight: 1, state })
        })
        .collect();
    upstreams.sort_unstable();
    upstreams.dedup_by_key(|upstream| upstream.address);
    Pool { upstreams }
}
