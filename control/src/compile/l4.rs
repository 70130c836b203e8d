//! Layer 4: each VIP and port of an ELB, and the instances behind it.

use std::net::IpAddr;

use tidegate_l4 as plane;
use tidegate_l4::{Frontend, Protocol, Real, RealState, Service};

use super::in_traffic;
use crate::model::{
    elb::{
        ClientAddress, Elb, ElbSpec, Forward, GUE_PORT, Layer4, Payload, PortPair, Probe, ProbeType, Protection,
        Transport,
    },
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
    Service {
        reals: reals(spec, pair, vip, observed),
        forward: match spec.forward {
            Forward::FullNat => plane::Forward::FullNat,
            Forward::Direct => plane::Forward::Direct,
            Forward::IpIp => plane::Forward::IpIp,
            Forward::Gue => plane::Forward::Gue { port: spec.gue_port.unwrap_or(GUE_PORT) },
        },
        client_address: match spec.client_address {
            ClientAddress::Hidden => plane::ClientAddress::Hidden,
            ClientAddress::Toa => plane::ClientAddress::Toa,
            ClientAddress::Proxy => plane::ClientAddress::Proxy,
        },
        protection: protection(&spec.protection, pair.protocol),
        probe: spec.health.as_deref().filter(|probe| probe.kind.transport() == pair.protocol).map(probe),
        slow_start_s: spec.slow_start_s,
    }
}

fn reals(spec: &Layer4, pair: &PortPair, vip: IpAddr, observed: &Observed) -> Vec<Real> {
    let Some(app) = observed.apps.get(&spec.app) else {
        return Vec::new();
    };
    let family = Family::of(vip);
    let mut reals: Vec<Real> = in_traffic(app)
        .filter_map(|(instance, active)| {
            let definition = app.definition_of(instance)?;
            let place = ports::place(definition, pair.target.as_ref(), pair.protocol)?;
            let at = ports::find_for(instance, definition, place, &observed.hosts, family, spec.forward)?;
            // What is not translated would arrive at a port where nobody listens; the status says so.
            let served = spec.forward.translates() || at.port() == pair.listen;
            let state = if active { RealState::Active } else { RealState::Draining };
            served.then_some(Real { address: at.ip(), port: at.port(), weight: 1, state })
        })
        .collect();
    // A new instance may have the address of one that drains: Active sorts first and stays.
    reals.sort_unstable();
    reals.dedup_by_key(|real| (real.address, real.port));
    reals
}

fn protection(wanted: &Protection, protocol: Transport) -> plane::Protection {
    let rate = |per_second, burst: Option<u32>| plane::Rate { per_second, burst: burst.unwrap_or(per_second) };
    plane::Protection {
        allow: wanted.allow.clone(),
        deny: wanted.deny.clone(),
        per_source: wanted.per_source.map(|source| plane::SourceRate {
            rate: rate(source.per_second, source.burst),
            prefix_v4: source.prefix_v4,
            prefix_v6: source.prefix_v6,
        }),
        per_vip: wanted.per_vip.map(|all| rate(all.per_second, all.burst)),
        syn_cookies_above: wanted.syn_cookies_above.filter(|_| protocol == Transport::Tcp),
    }
}

fn probe(wanted: &Probe) -> plane::Probe {
    let bytes = |payload: &Option<Payload>| payload.clone().unwrap_or_default().0;
    let kind = match wanted.kind {
        ProbeType::Tcp => plane::ProbeKind::Tcp,
        ProbeType::Http | ProbeType::Https => {
            let status = wanted.status.unwrap_or_default();
            plane::ProbeKind::Http {
                tls: wanted.kind == ProbeType::Https,
                host: wanted.host.clone(),
                path: wanted.path.clone().unwrap_or_else(|| "/".to_owned()),
                status: (status.first, status.last),
            }
        }
        ProbeType::Udp => plane::ProbeKind::Udp { send: bytes(&wanted.send), expect: bytes(&wanted.expect) },
    };
    let Probe { interval_ms, rise, fall, .. } = *wanted;
    plane::Probe { kind, interval_ms, timeout_ms: wanted.timeout_ms(), rise, fall }
}

#[cfg(test)]
#[path = "l4_tests.rs"]
mod tests;
