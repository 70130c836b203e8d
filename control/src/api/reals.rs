//! What layer 4 knows of the reals behind an ELB: whether they are well, what they carry, and how drains ended.

use std::net::SocketAddr;

use jiff::{SignedDuration, Timestamp, Unit};
use serde::{Deserialize, Serialize};
use tidegate_l4::{
    Frontend, Protocol, Report,
    report::{Drained, RealCounters, Verdict},
};
use utoipa::ToSchema;

use crate::{
    compile::l4::frontends,
    cycle::{ElbStatus, InstanceStatus},
    model::elb::Elb,
};

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
    /// The instance that it is, as long as Marathon lists it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// `serve`, `drain` or `hold`, as the instance's verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    /// `up`, `down`, `ejected` (its traffic speaks against it) or `unchecked` (nothing speaks against it, and no
    /// check has ended yet or there is none).
    pub health: String,
    /// The reason of a verdict against it.
    pub why: Option<String>,
    /// Connections and UDP flows alive. Absent: not counted yet, or not known, since in the modes without translation only
    /// those of an instance that drains are.
    pub live: Option<u64>,
    /// Packets, and new connections or flows, since the maps were made.
    pub packets: u64,
    pub flows: u64,
    /// Its resets before any answer (full NAT), since the maps were made.
    pub refusals: u64,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct DrainBody {
    pub listen: String,
    #[schema(value_type = String)]
    pub real: SocketAddr,
    #[schema(value_type = String, format = DateTime)]
    pub began_at: Timestamp,
    /// How long it drained, s.
    pub lasted_s: u64,
    /// Connections that were alive when it left: 0 is the proof that its leaving cost nobody one. What the instance ended
    /// itself before is not counted.
    pub cut: u64,
}

impl RealBody {
    /// What an operator should know of it, in words; empty if there is nothing.
    pub fn says(&self) -> String {
        let mut said = Vec::new();
        if self.verdict.as_deref() == Some("drain") {
            said.push(match self.live {
                None => "drains: its connections are being counted".to_owned(),
                Some(0) => "drains: no connection is live any more".to_owned(),
                Some(1) => "drains: 1 connection live".to_owned(),
                Some(live) => format!("drains: {live} connections live"),
            });
        }
        said.extend(self.why.clone());
        said.join("; ")
    }
}

impl DrainBody {
    pub fn says(&self) -> String {
        let Self { listen, real, began_at, lasted_s, cut } = self;
        let cut = if *cut == 1 { "1 connection cut".to_owned() } else { format!("{cut} connections cut") };
        format!("{listen} {real} drained for {lasted_s} s from {began_at}: {cut}")
    }
}

/// `None`: not a layer-4 ELB.
pub(super) fn layer4(elb: &Elb, status: Option<&ElbStatus>, report: &Report) -> Option<Layer4Body> {
    let fronts: Vec<Frontend> = frontends(elb);
    if fronts.is_empty() {
        return None;
    }
    let counted = |frontend: &Frontend| report.services.get(frontend).map(|service| (*frontend, service));
    let reals = fronts.iter().filter_map(counted);
    let reals =
        reals.flat_map(|(frontend, service)| service.reals.iter().map(move |known| real(&frontend, status, known)));
    let ours = |frontend: &Frontend| fronts.contains(frontend);
    Some(Layer4Body {
        reals: reals.collect(),
        drains: report.drains.iter().filter(|drained| ours(&drained.frontend)).map(drain).collect(),
        fail_open: report.fail_open.iter().filter(|frontend| ours(frontend)).map(ToString::to_string).collect(),
    })
}

fn real(frontend: &Frontend, status: Option<&ElbStatus>, known: &RealCounters) -> RealBody {
    let real = (known.address, known.port).into();
    let instance = status.and_then(|status| instance(status, frontend, real));
    RealBody {
        listen: frontend.to_string(),
        real,
        instance: instance.map(|instance| instance.id.clone()),
        verdict: instance.map(|instance| instance.verdict.clone()),
        health: word(known.health.verdict).to_owned(),
        why: known.health.why.as_deref().map(str::to_owned),
        live: known.live,
        packets: known.packets,
        flows: known.flows,
        refusals: known.resets,
    }
}

/// Who a front end's real is: ports of an ELB may lead to the same address.
fn instance<'a>(status: &'a ElbStatus, frontend: &Frontend, real: SocketAddr) -> Option<&'a InstanceStatus> {
    let protocol = match frontend.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    let listen = format!("{protocol} {}", frontend.port);
    let port = status.ports.iter().find(|port| port.listen == listen)?;
    port.instances.iter().find(|instance| instance.addresses.contains(&real))
}

/// A monotonic moment has no date: it is told by how long ago it was.
fn date(began: std::time::Instant) -> Timestamp {
    let ago = SignedDuration::try_from(began.elapsed()).unwrap_or_default();
    let date = Timestamp::now().checked_sub(ago).unwrap_or_default();
    date.round(Unit::Second).unwrap_or(date)
}

fn drain(drained: &Drained) -> DrainBody {
    DrainBody {
        listen: drained.frontend.to_string(),
        real: drained.real,
        began_at: date(drained.began),
        lasted_s: drained.lasted.as_secs(),
        cut: drained.cut,
    }
}

pub(super) fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Unknown => "unchecked",
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
        let body = layer4(&elb, None, &report).unwrap();
        let [real] = &body.reals[..] else { panic!("{body:?}") };
        assert_eq!((real.health.as_str(), real.why.as_deref()), ("down", Some("3 probes in a row failed")));
        assert_eq!((&real.instance, real.says().as_str()), (&None, "3 probes in a row failed"));
        let drains = |live| RealBody { verdict: Some("drain".to_owned()), why: None, live, ..real.clone() }.says();
        assert_eq!(drains(Some(3)), "drains: 3 connections live");
        assert_eq!(drains(Some(0)), "drains: no connection is live any more");
        assert_eq!(drains(None), "drains: its connections are being counted");
        assert_eq!((real.live, real.packets, real.flows), (Some(1), 7, 2));
        assert_eq!(body.drains.len(), 1, "another port's drain is not this ELB's");
        assert_eq!((body.drains[0].lasted_s, body.drains[0].cut), (12, 0));
        assert!((Timestamp::now() - body.drains[0].began_at).as_hours() == 0, "{body:?}");
        let told = body.drains[0].says();
        assert!(told.starts_with("tcp 10.77.100.1:80 10.77.2.9:8080 drained for 12 s from 2"), "{told}");
        assert!(told.ends_with(": 0 connections cut"), "{told}");
        assert_eq!(body.fail_open, ["tcp 10.77.100.1:80"]);
    }
}
