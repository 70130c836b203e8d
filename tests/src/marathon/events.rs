//! The event bus: what Marathon says, to whom, and how it can be made to say it wrongly.
//!
//! Order of the keys, of events of one change and of subscribers is fixed here, so that a test can be exact; a client
//! must not rely on it, and the faults make sure that it does not.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
};
use tokio_util::sync::CancellationToken;

use super::{
    definition::{Definition, HealthCheck},
    faults::EventFaults,
    instance::{Instance, iso},
    json::ip_addresses,
};

/// One event, not yet a frame.
#[derive(Clone, Debug)]
pub struct Event {
    pub kind: String,
    pub payload: Map<String, Value>,
}

/// Bytes for one stream, and who wants to know when they were written.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub bytes: Bytes,
    pub receipt: Option<Receipt>,
}

/// Learns the instant at which an event's bytes were handed to the kernel.
#[derive(Clone, Debug)]
pub(crate) struct Receipt(Arc<watch::Sender<Option<Instant>>>);

#[derive(Debug)]
struct Subscriber {
    id: u64,
    /// `None`: everything.
    filter: Option<BTreeSet<String>>,
    frames: mpsc::Sender<Frame>,
    /// Cuts the connection.
    cut: CancellationToken,
}

/// A subscription's reading end.
#[derive(Debug)]
pub(crate) struct Subscription {
    pub id: u64,
    pub frames: mpsc::Receiver<Frame>,
}

#[derive(Debug)]
pub(crate) struct Bus {
    inner: Mutex<Inner>,
    outstanding: usize,
    runtime: Handle,
}

#[derive(Debug, Default)]
struct Inner {
    subscribers: Vec<Subscriber>,
    next: u64,
    faults: EventFaults,
    published: u64,
}

impl Receipt {
    pub(crate) fn new() -> (Receipt, watch::Receiver<Option<Instant>>) {
        let (sender, receiver) = watch::channel(None);
        (Receipt(Arc::new(sender)), receiver)
    }

    /// The first stream counts.
    pub(crate) fn written(&self, at: Instant) {
        self.0.send_if_modified(|when| when.is_none() && when.replace(at).is_none());
    }
}

impl Bus {
    pub(crate) fn new(outstanding: usize, runtime: Handle) -> Arc<Self> {
        Arc::new(Bus { inner: Mutex::default(), outstanding, runtime })
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().expect("nobody panics with it")
    }

    pub(crate) fn set_faults(&self, faults: EventFaults) {
        self.inner().faults = faults;
    }

    /// How many events were published, delivered or not.
    pub(crate) fn published(&self) -> u64 {
        self.inner().published
    }

    pub(crate) fn subscriber_count(&self) -> usize {
        self.inner().subscribers.len()
    }

    pub(crate) fn subscribe(&self, filter: Option<BTreeSet<String>>, cut: CancellationToken) -> Subscription {
        let (sender, frames) = mpsc::channel(self.outstanding);
        let mut inner = self.inner();
        inner.next += 1;
        let id = inner.next;
        inner.subscribers.push(Subscriber { id, filter, frames: sender, cut });
        Subscription { id, frames }
    }

    /// `true` if it was still there.
    pub(crate) fn unsubscribe(&self, id: u64) -> bool {
        let mut inner = self.inner();
        let before = inner.subscribers.len();
        inner.subscribers.retain(|s| s.id != id);
        inner.subscribers.len() < before
    }

    /// Cuts every stream, as a leader does that is one no longer.
    pub(crate) fn cut_all(&self) {
        for subscriber in self.inner().subscribers.drain(..) {
            subscriber.cut.cancel();
        }
    }

    pub(crate) fn publish(self: &Arc<Self>, event: Event) {
        self.publish_with(event, None);
    }

    pub(crate) fn publish_with(self: &Arc<Self>, event: Event, receipt: Option<Receipt>) {
        let frame = Frame { bytes: event.frame(), receipt };
        let mut inner = self.inner();
        inner.published += 1;
        let faults = &inner.faults;
        // A client learns from its own attached event that nothing is lost from now on: that one always arrives.
        let spared = event.kind == "event_stream_attached";
        if faults.loses(&event.kind) && !spared {
            return;
        }
        let copies = 1 + if spared { 0 } else { faults.repeat };
        let (delay, jitter) = (faults.delay_ms, faults.reorder_ms);
        for _ in 0..copies {
            let wait = delay + if jitter == 0 { 0 } else { fastrand::u64(0..=jitter) };
            if wait == 0 || spared {
                inner.deliver(&event.kind, &frame);
                continue;
            }
            let (bus, kind, frame) = (self.clone(), event.kind.clone(), frame.clone());
            self.runtime.spawn(async move {
                tokio::time::sleep(Duration::from_millis(wait)).await;
                bus.inner().deliver(&kind, &frame);
            });
        }
    }
}

impl Inner {
    fn deliver(&mut self, kind: &str, frame: &Frame) {
        self.subscribers.retain(|subscriber| {
            if subscriber.filter.as_ref().is_some_and(|f| !f.contains(kind)) {
                return true;
            }
            match subscriber.frames.try_send(frame.clone()) {
                Ok(()) => true,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    tracing::info!("an event stream is closed: its client does not keep up");
                    subscriber.cut.cancel();
                    false
                }
                Err(mpsc::error::TrySendError::Closed(_)) => false,
            }
        });
    }
}

impl Event {
    pub fn new(kind: &str, payload: Value) -> Event {
        let Value::Object(mut payload) = payload else { unreachable!("events are objects, see the callers below") };
        payload.insert("eventType".into(), kind.into());
        payload.insert("timestamp".into(), iso(Timestamp::now()).into());
        Event { kind: kind.to_owned(), payload }
    }

    /// `event: <type>CRLF data: <one line>CRLF CRLF`: no id and no retry, so that no client can resume.
    fn frame(&self) -> Bytes {
        let data = serde_json::to_string(&self.payload).expect("a map with text keys");
        Bytes::from(format!("event: {}\r\ndata: {data}\r\n\r\n", self.kind))
    }
}

pub(crate) fn attached(remote: &str) -> Event {
    Event::new("event_stream_attached", json!({"remoteAddress": remote}))
}

pub(crate) fn detached(remote: &str) -> Event {
    Event::new("event_stream_detached", json!({"remoteAddress": remote}))
}

/// `state` is usually the condition's, but the first one of a task says STAGING and comes from Marathon itself.
pub(crate) fn status_update(instance: &Instance, message: &str) -> Event {
    let staging = instance.condition.task_state() == "TASK_STAGING";
    let slave = instance.agent.as_ref().filter(|_| !staging).map_or("", |(_, id)| id);
    Event::new(
        "status_update_event",
        json!({
            "slaveId": slave, "taskId": instance.task_id(), "taskStatus": instance.condition.task_state(),
            "message": message, "appId": instance.definition.id, "host": instance.host(),
            "ipAddresses": ip_addresses(&instance.addresses), "ports": instance.ports,
            "version": instance.definition.version,
        }),
    )
}

/// Also when only the goal has changed: then it says the condition that the instance had before.
pub(crate) fn instance_changed(instance: &Instance) -> Event {
    Event::new(
        "instance_changed_event",
        json!({
            "instanceId": instance.id, "condition": instance.condition.name(), "runSpecId": instance.definition.id,
            "agentId": instance.agent.as_ref().map(|(_, id)| id), "host": instance.host(),
            "runSpecVersion": instance.definition.version,
        }),
    )
}

pub(crate) fn unknown_instance_terminated(instance: &Instance) -> Event {
    Event::new(
        "unknown_instance_terminated_event",
        json!({"instanceId": instance.id, "runSpecId": instance.definition.id, "condition": "Killed"}),
    )
}

pub(crate) fn instance_health_changed(instance: &Instance) -> Event {
    Event::new(
        "instance_health_changed_event",
        json!({
            "instanceId": instance.id, "runSpecId": instance.definition.id,
            "runSpecVersion": instance.definition.version, "healthy": instance.healthy(),
        }),
    )
}

pub(crate) fn health_status_changed(instance: &Instance, alive: bool) -> Event {
    Event::new(
        "health_status_changed_event",
        json!({
            "appId": instance.definition.id, "instanceId": instance.id, "version": instance.definition.version,
            "alive": alive,
        }),
    )
}

/// `taskId` holds the instance's id: so it is in Marathon.
pub(crate) fn failed_health_check(instance: &Instance, check: &HealthCheck) -> Event {
    Event::new(
        "failed_health_check_event",
        json!({"appId": instance.definition.id, "taskId": instance.id, "healthCheck": check.json}),
    )
}

pub(crate) fn unhealthy_kill(instance: &Instance, reason: &str) -> Event {
    Event::new(
        "unhealthy_instance_kill_event",
        json!({
            "appId": instance.definition.id, "taskId": instance.task_id(), "instanceId": instance.id,
            "version": instance.definition.version, "reason": reason, "host": instance.host(),
            "slaveId": instance.agent.as_ref().map(|(_, id)| id),
        }),
    )
}

pub(crate) fn add_health_check(definition: &Definition, check: &HealthCheck) -> Event {
    Event::new(
        "add_health_check_event",
        json!({"appId": definition.id, "version": definition.version, "healthCheck": check.json}),
    )
}

pub(crate) fn remove_health_check(app: &str) -> Event {
    Event::new("remove_health_check_event", json!({"appId": app}))
}

pub(crate) fn app_terminated(app: &str) -> Event {
    Event::new("app_terminated_event", json!({"appId": app}))
}

pub(crate) fn api_post(client: &str, uri: &str, definition: Value) -> Event {
    Event::new("api_post_event", json!({"clientIp": client, "uri": uri, "appDefinition": definition}))
}

pub(crate) fn group_change_success(group: &str, version: &str) -> Event {
    Event::new("group_change_success", json!({"groupId": group, "version": version}))
}

pub(crate) fn deployment(kind: &str, plan: Value, step: Value) -> Event {
    Event::new(kind, json!({"plan": plan, "currentStep": step}))
}

pub(crate) fn deployment_end(kind: &str, id: &str, plan: Value) -> Event {
    Event::new(kind, json!({"id": id, "plan": plan}))
}
