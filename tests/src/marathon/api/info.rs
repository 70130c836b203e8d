//! Deployments, the launch queue, the leader, and the rest.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use axum::response::IntoResponse;
use http::{StatusCode, header};
use serde_json::{Value, json};

use super::{Answer, Call, begun, ok};
use crate::marathon::{
    definition::absolute,
    deploy,
    error::ApiError,
    faults::FailOver,
    instance::{Condition, Instance, iso},
    json, leader,
    world::World,
};

pub(super) fn route(call: &Call, path: &[&str]) -> Answer {
    match (call.method.as_str(), path) {
        ("GET" | "HEAD", ["ping"]) => {
            Ok(([(header::CONTENT_TYPE, "text/plain;charset=utf-8")], "pong\n").into_response())
        }
        ("GET", ["metrics"]) => ok(&metrics(call)),
        ("GET", ["v2", "info"]) => ok(&info(call)),
        ("GET", ["v2", "leader"]) => match call.core.leader() {
            Some(leader) => ok(&json!({"leader": leader})),
            None => Err(ApiError::NotFound("There is no leader".into())),
        },
        ("DELETE", ["v2", "leader"]) => {
            let core = call.core.clone();
            tokio::spawn(async move { leader::fail_over(&core, FailOver::default()).await });
            ok(&json!({"message": "Leadership abdicated"}))
        }
        ("GET", ["v2", "deployments"]) => ok(&call.core.read(|world| {
            let app = |id: &str| world.apps.get(id).cloned();
            world.deployments.iter().map(|d| json::deployment(d, &app)).collect::<Vec<_>>()
        })),
        ("DELETE", ["v2", "deployments", id]) => end_deployment(call, id),
        ("GET", ["v2", "queue"]) => ok(&json!({"queue": call.core.read(queue)})),
        ("DELETE", ["v2", "queue", app @ .., "delay"]) => {
            let app = absolute(&app.join("/"));
            call.core.change(|world| {
                let waiting = world.app(&app)?.instances.values().any(|i| i.condition == Condition::Scheduled);
                match world.delays.remove(app.as_str()).is_some() || waiting {
                    true => Ok(StatusCode::NO_CONTENT.into_response()),
                    false => Err(ApiError::NotFound(format!("Application {app} not found in tasks queue."))),
                }
            })
        }
        ("GET", ["v2", "pods"] | ["v2", "pods::status"] | ["v2", "pods", "::status"]) => ok(&json!([])),
        ("GET", ["v2", "plugins"]) => ok(&json!({"plugins": []})),
        _ => Err(ApiError::UnknownUri),
    }
}

/// Undone by a new deployment, or with `force` just ended.
fn end_deployment(call: &Call, id: &str) -> Answer {
    call.core.change(|world| {
        let Some(deployment) = deploy::cancel(&call.core, world, id) else {
            return Err(ApiError::NotFound(format!("Deployment '{id}' does not exist")));
        };
        if call.flag("force") {
            return Ok(StatusCode::ACCEPTED.into_response());
        }
        let done = deploy::begin(&call.core, world, deploy::rollback(&deployment), true, "/")?;
        begun(StatusCode::OK, &done)
    })
}

fn queue(world: &World) -> Vec<Value> {
    let mut waiting: BTreeMap<&str, Vec<&Arc<Instance>>> = BTreeMap::new();
    for (id, app) in world.visible() {
        let scheduled = app.instances.values().filter(|i| i.condition == Condition::Scheduled);
        scheduled.for_each(|i| waiting.entry(id).or_default().push(i));
    }
    let entry = |(app, instances): (&str, Vec<&Arc<Instance>>)| {
        let left = world.delays.get(app).map_or(0, |d| d.until.saturating_duration_since(Instant::now()).as_millis());
        let since = instances.iter().map(|i| i.staged_at).min().map(iso);
        json!({
            "app": json::definition(&instances[0].definition), "count": instances.len(), "since": since,
            "delay": {"timeLeftSeconds": left.div_ceil(1000) as u64, "overdue": left == 0},
            "processedOffersSummary": {
                "processedOffersCount": 0, "unusedOffersCount": 0,
                "rejectSummaryLastOffers": [], "rejectSummaryLaunchAttempt": [],
            },
        })
    };
    waiting.into_iter().map(entry).collect()
}

fn metrics(call: &Call) -> Value {
    let gauge = |value: u64| json!({"value": value});
    let (apps, deployments) = call.core.read(|w| (w.visible().count() as u64, w.deployments.len() as u64));
    json!({
        "version": "3.0.0", "counters": {}, "histograms": {}, "meters": {}, "timers": {},
        "gauges": {
            "marathon.apps.active.gauge": gauge(apps), "marathon.deployments.active.gauge": gauge(deployments),
            "marathon.http.event-streams.active.gauge": gauge(call.core.bus.subscriber_count() as u64),
        },
    })
}

fn info(call: &Call) -> Value {
    let leader = call.core.leader();
    let hostname = leader.as_deref().and_then(|l| l.split(':').next()).unwrap_or("").to_owned();
    let port: Option<u16> = leader.as_deref().and_then(|l| l.rsplit(':').next()).and_then(|p| p.parse().ok());
    let features: &[&str] = if call.core.settings.task_killing { &["task_killing"] } else { &[] };
    json!({
        "name": "marathon", "version": "1.11.24", "buildref": "stand-in", "elected": leader.is_some(), "leader": leader,
        "frameworkId": call.core.agents.first().map(|a| format!("{}-0000", a.id.trim_end_matches("-S0"))),
        "marathon_config": {
            "master": "zk://127.0.0.1:2181/mesos", "failover_timeout": 604_800, "framework_name": "marathon", "ha": true,
            "checkpoint": true, "local_port_min": 10_000, "local_port_max": 20_000, "executor": "//cmd",
            "hostname": hostname, "webui_url": null, "mesos_role": null, "task_launch_timeout": 300_000,
            "task_launch_confirm_timeout": 300_000, "reconciliation_initial_delay": 15_000,
            "reconciliation_interval": 600_000, "mesos_user": "root", "leader_proxy_connection_timeout_ms": 5000,
            "leader_proxy_read_timeout_ms": 10_000, "mesos_leader_ui_url": null, "features": features,
        },
        "zookeeper_config": {
            "zk": "zk://127.0.0.1:2181/marathon", "zk_timeout": 10_000, "zk_connection_timeout": 10_000,
            "zk_session_timeout": 10_000, "zk_max_versions": 50, "zk_compression": true,
            "zk_compression_threshold": 65_536, "zk_max_node_size": 1_024_000,
        },
        "http_config": {"http_port": port, "https_port": 8443},
    })
}
