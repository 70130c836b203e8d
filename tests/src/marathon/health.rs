//! Checks that are really made: health checks of running tasks, and readiness checks while a deployment waits.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    core::Core,
    definition::{HealthCheck, Probe, ReadinessCheck},
    events,
    instance::{Condition, HealthResult, Instance, Order, ReadinessResult},
    place::Spawned,
};

/// Answers are read up to here: more than a readiness check's body ever needs.
const MAX_ANSWER: u64 = 64 * 1024;

/// Starts the health checks of a running instance; they end when the set is dropped.
pub(crate) fn watch(
    core: &Arc<Core>,
    instance: &Arc<Instance>,
    task: &Arc<Spawned>,
    env: BTreeMap<String, String>,
) -> JoinSet<()> {
    let mut checks = JoinSet::new();
    for n in 0..instance.definition.health.len() {
        let (core, instance, task, env) = (core.clone(), instance.clone(), task.clone(), env.clone());
        checks.spawn(async move {
            let check = &instance.definition.health[n];
            let mut tick = interval(check.interval.max(Duration::from_millis(10)));
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                let limit = check.timeout;
                let result = match &check.kind {
                    Probe::Command(command) => task.check(command, &env, limit).await,
                    Probe::Tcp | Probe::Http(_) => probe(&core, &instance, check).await,
                };
                note(&core, &instance, n, result);
            }
        });
    }
    checks
}

async fn probe(core: &Core, instance: &Instance, check: &HealthCheck) -> Result<(), String> {
    let (host, port) = instance.endpoint(&check.target).ok_or("the check's port is not one of the app's")?;
    let reach = async {
        match &check.kind {
            Probe::Http(path) => match get(core, &host, port, path).await?.status {
                200..400 => Ok(()),
                status => Err(format!("HTTP status {status}")),
            },
            _ => connect(core, &host, port).await.map(drop),
        }
    };
    timeout(check.timeout, reach).await.unwrap_or_else(|_| Err("Check timed out".to_owned()))
}

/// Writes a result down, and says what it changes.
fn note(core: &Arc<Core>, instance: &Instance, n: usize, result: Result<(), String>) {
    let (app, id) = (&instance.definition.id, &instance.id);
    let check = &instance.definition.health[n];
    core.change(|world| {
        let Some(before) = world.instance(app, id).cloned() else { return };
        if before.condition != Condition::Running {
            return;
        }
        let now = Timestamp::now();
        let old = before.health[n].as_ref();
        let was_alive = old.is_some_and(|r| r.alive);
        let age = before.started_at.map_or(Duration::ZERO, |at| now.duration_since(at).unsigned_abs());
        if result.is_err() && old.is_none_or(|r| r.first_success.is_none()) && age < check.grace {
            return;
        }
        let mut new = old.cloned().unwrap_or(HealthResult {
            alive: false,
            consecutive_failures: 0,
            first_success: None,
            last_success: None,
            last_failure: None,
            last_failure_cause: None,
        });
        // One failure is enough to be called not alive, long before the task is killed for it.
        match &result {
            Ok(()) => {
                new.alive = true;
                new.consecutive_failures = 0;
                new.first_success = new.first_success.or(Some(now));
                new.last_success = Some(now);
            }
            Err(cause) => {
                new.alive = false;
                new.consecutive_failures += 1;
                new.last_failure = Some(now);
                new.last_failure_cause = Some(cause.clone());
            }
        }
        let failures = new.consecutive_failures;
        world.change(app, id, |i| i.health[n] = Some(new));
        let Some(after) = world.instance(app, id).cloned() else { return };
        if result.is_err() {
            core.bus.publish(events::failed_health_check(&after, check));
        }
        if was_alive != result.is_ok() {
            core.bus.publish(events::health_status_changed(&after, result.is_ok()));
        }
        if before.healthy() != after.healthy() {
            core.bus.publish(events::instance_health_changed(&after));
        }
        // The goal stays: the kill is announced by an event of its own, and a replacement follows.
        if check.max_failures > 0 && failures >= check.max_failures && !after.doomed {
            core.bus.publish(events::unhealthy_kill(&after, &result.err().unwrap_or_default()));
            if let Some(orders) = &after.orders {
                _ = orders.send(Order::Kill);
            }
        }
    });
}

/// Asks one new instance whether it is ready until it says so; for each of its readiness checks.
pub(crate) fn await_readiness(core: &Arc<Core>, instance: &Arc<Instance>, into: &mut JoinSet<()>) {
    for n in 0..instance.definition.readiness.len() {
        let (core, instance) = (core.clone(), instance.clone());
        into.spawn(async move {
            let check = &instance.definition.readiness[n];
            let mut tick = interval(check.interval.max(Duration::from_millis(10)));
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                let result = ask(&core, &instance, check).await;
                let ready = result.ready;
                let noted = core.change_instance(&instance.definition.id, &instance.id, |i| {
                    i.readiness.retain(|r| r.name != result.name);
                    i.readiness.push(result);
                });
                if ready || noted.is_none() {
                    return;
                }
            }
        });
    }
}

async fn ask(core: &Core, instance: &Instance, check: &ReadinessCheck) -> ReadinessResult {
    let answer = async {
        let (host, port) = instance.endpoint(&check.port).ok_or("no port of that name")?;
        get(core, &host, port, &check.path).await
    };
    let answer = timeout(check.timeout, answer).await.unwrap_or_else(|_| Err("timed out".to_owned()));
    let ready = answer.as_ref().is_ok_and(|a| check.ready_codes.contains(&a.status));
    let last_response = check.keep_response.then(|| match answer {
        Ok(answer) => json!({"status": answer.status, "contentType": answer.content_type, "body": answer.body}),
        Err(cause) => json!({"status": 504, "contentType": "text/plain", "body": cause}),
    });
    ReadinessResult { name: check.name.clone(), ready, last_response }
}

struct Answer {
    status: u16,
    content_type: String,
    body: String,
}

async fn connect(core: &Core, host: &str, port: u16) -> Result<tokio::net::TcpStream, String> {
    let ip: std::net::IpAddr = match host.parse() {
        Ok(ip) => ip,
        Err(_) => {
            let mut found =
                tokio::net::lookup_host((host, port)).await.map_err(|e| format!("cannot resolve {host}: {e}"))?;
            found.next().ok_or(format!("{host} has no address"))?.ip()
        }
    };
    core.dialer.connect(SocketAddr::new(ip, port)).await.map_err(|e| e.to_string())
}

/// One HTTP request on a connection of its own.
async fn get(core: &Core, host: &str, port: u16, path: &str) -> Result<Answer, String> {
    let mut stream = connect(core, host, port).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: marathon/1.11\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.map_err(|e| e.to_string())?;
    let mut bytes = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut bytes).await.map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or("not an HTTP answer")?;
    let content_type = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-type"))
        .map(|(_, value)| value.trim().to_owned());
    Ok(Answer { status, content_type: content_type.unwrap_or_default(), body: body.to_owned() })
}
