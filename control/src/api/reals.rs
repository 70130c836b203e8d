//! What layer 4 knows of the reals behind an ELB: whether they are well, what they carry, and how drains ended.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use tidegate_l4::{
    Frontend, Report,
    report::{Drained, RealCounters, Verdict},
};
use utoipa::ToSchema;

use crate::{compile::l4::frontends, model::elb::Elb};

/// A layer-4 ELB's reals, and its last drains.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Layer4Body {
    pub reals: Vec<RealBody>,
    /// Instances that left, the newest last (the last 64 of all ELBs are remembered).
    pub drains: Vec<DrainBody>,
    /// Ports whose bad reals get new connections all the same, since nearly all of them look bad.
    pub fail_open: Vec<String>,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct RealBody {
    /// `tcp 10.77.100.1:80`.
    pub listen: String,
    #[schema(value_type = String)]
    pub real: SocketAddr,
    /// `up`, `down`, `ejected` (its traffic speaks against it) or `unknown` (nothing does; it is not probed).
    pub health: String,
    /// The reason of a verdict against it.
    pub why: Option<String>,
    /// Connections and UDP flows alive; in the modes without translation those on slots that move, which are all of an
    /// instance that drains. Absent: not counted yet.
    pub live: Option<u64>,
    /// Packets, and new connections or flows, since the maps were made.
    pub packets: u64,
    pub flows: u64,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct DrainBody {
    pub listen: String,
    #[schema(value_type = String)]
    pub real: SocketAddr,
    /// How long it drained, s.
    pub lasted_s: u64,
    /// Connections that were alive when it left: 0 is the proof that nobody lost one.
    pub cut: u64,
}

/// `None`: not a layer-4 ELB.
pub(super) fn layer4(elb: &Elb, report: &Report) -> Option<Layer4Body> {
    let fronts: Vec<Frontend> = frontends(elb);
    if fronts.is_empty() {
        return None;
    }
    let counted = |frontend: &Frontend| report.services.get(frontend).map(|service| (*frontend, service));
    let reals = fronts.iter().filter_map(counted);
    let reals = reals.flat_map(|(frontend, service)| service.reals.iter().map(move |known| real(&frontend, known)));
    let ours = |frontend: &Frontend| fronts.contains(frontend);
    Some(Layer4Body {
        reals: reals.collect(),
        drains: report.drains.iter().filter(|drained| ours(&drained.frontend)).map(drain).collect(),
        fail_open: report.fail_open.iter().filter(|frontend| ours(frontend)).map(ToString::to_string).collect(),
    })
}

fn real(frontend: &Frontend, known: &RealCounters) -> RealBody {
    RealBody {
        listen: frontend.to_string(),
        real: (known.address, known.port).into(),
        health: word(known.health.verdict).to_owned(),
        why: known.health.why.as_deref().map(str::to_owned),
        live: known.live,
        packets: known.packets,
        flows: known.flows,
    }
}

fn drain(drained: &Drained) -> DrainBody {
    DrainBody {
        listen: drained.frontend.to_string(),
        real: drained.real,
        lasted_s: drained.lasted.as_secs(),
        cut: drained.cut,
    }
}

pub(super) fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Unknown => "unknown",
        Verdict::Up => "up",
        Verdict::Down => "down",
        Verdict::Ejected => "ejected",
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::Arc,
        time::{Duration, Instant},
    };

    use imbl::OrdMap;
    use tidegate_l4::report::{Health, ServiceCounters};

    use super::*;

    #[test]
    fn the_plane_s_word_on_each_real_and_drain_is_passed_on() {
        let elb: Elb = serde_json::from_str(
            r#"{"spec":{"type":"layer4","app":"/web","ports":[{"listen":80}]},"vips":["10.77.100.1"],"revision":1}"#,
        )
        .unwrap();
        let [frontend] = frontends(&elb)[..] else { panic!("one front end") };
        let health = Health { verdict: Verdict::Down, why: Some("3 probes in a row failed".into()) };
        let known = RealCounters {
            address: [10, 77, 2, 1].into(),
            port: 8080,
            packets: 7,
            bytes: 700,
            flows: 2,
            opens: 2,
            answers: 2,
            resets: 0,
            live: Some(1),
            health,
        };
        let service = ServiceCounters { reals: vec![known], ..ServiceCounters::default() };
        let drained = Drained {
            frontend,
            real: "10.77.2.9:8080".parse().unwrap(),
            began: Instant::now(),
            lasted: Duration::from_secs(12),
            cut: 0,
        };
        let report = Report {
            services: OrdMap::unit(frontend, Arc::new(service)),
            drains: vec![drained.clone(), Drained { frontend: Frontend { port: 81, ..frontend }, ..drained }],
            fail_open: vec![frontend],
            ..Report::default()
        };
        let body = layer4(&elb, &report).unwrap();
        let [real] = &body.reals[..] else { panic!("{body:?}") };
        assert_eq!((real.health.as_str(), real.why.as_deref()), ("down", Some("3 probes in a row failed")));
        assert_eq!((real.live, real.packets, real.flows), (Some(1), 7, 2));
        assert_eq!(body.drains.len(), 1, "another port's drain is not this ELB's");
        assert_eq!((body.drains[0].lasted_s, body.drains[0].cut), (12, 0));
        assert_eq!(body.fail_open, ["tcp 10.77.100.1:80"]);
    }
}
