//! Layer 4: each VIP and port of an ELB, and the instances behind it.

use std::net::IpAddr;

use tidegate_l4::{Frontend, Protocol, Real, RealState, Service};

use super::in_traffic;
use crate::model::{
    elb::{Elb, ElbSpec, Layer4, PortPair, Transport},
    observed::{Family, Observed},
    ports,
};

/// The front ends of an ELB; none for layer 7.
pub fn frontends(elb: &Elb) -> Vec<Frontend> {
    pairs(elb).map(|(frontend, ..)| frontend).collect()
}

/// The front ends of an ELB with their services.
pub fn services<'a>(elb: &'a Elb, observed: &'a Observed) -> impl Iterator<Item = (Frontend, Service)> + use<'a> {
    pairs(elb).map(|(frontend, spec, pair)| (frontend, service(spec, pair, frontend.vip, observed)))
}

fn pairs(elb: &Elb) -> impl Iterator<Item = (Frontend, &Layer4, &PortPair)> {
    let spec = match &elb.spec {
        ElbSpec::Layer4(spec) => Some(spec),
        ElbSpec::Layer7(_) => None,
    };
    spec.into_iter().flat_map(|spec| {
        elb.vips.iter().flat_map(move |&vip| {
            spec.ports.iter().map(move |pair| {
                let protocol = match pair.protocol {
                    Transport::Tcp => Protocol::Tcp,
                    Transport::Udp => Protocol::Udp,
                };
                (Frontend { vip, port: pair.listen, protocol }, spec, pair)
            })
        })
    })
}

fn service(spec: &Layer4, pair: &PortPair, vip: IpAddr, observed: &Observed) -> Service {
    let Some(app) = observed.apps.get(&spec.app) else {
        return Service::default();
    };
    let mut reals: Vec<Real> = in_traffic(app)
        .filter_map(|(instance, active)| {
            let definition = app.definition_of(instance)?;
            let place = ports::place(definition, pair.target.as_ref(), pair.protocol)?;
            let at = ports::find(instance, definition, place, &observed.hosts, Family::of(vip))?;
            let state = if active { RealState::Active } else { RealState::Draining };
            Some(Real { address: at.ip(), port: at.port(), weight: 1, state })
        })
        .collect();
    // A new instance may have the address of one that drains: Active sorts first and stays.
    reals.sort_unstable();
    reals.dedup_by_key(|real| (real.address, real.port));
    Service { reals, ..Service::default() }
}
