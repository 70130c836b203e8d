//! One message of the event stream to what it means for us.

use std::sync::Arc;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use super::read::{Address, addresses, instance_id, nullable};
use crate::{
    cycle::StreamEvent,
    model::app::{AppId, InstanceId, Version},
};

/// What a message tells.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Told {
    /// Somebody's stream is attached. The first that we hear of is ours, or came after ours.
    Attached,
    Stream(StreamEvent),
}

#[derive(Debug, thiserror::Error)]
#[error("an event {event:?} cannot be read: {why}")]
pub struct DecodeError {
    event: String,
    why: serde_json::Error,
}

/// What is asked for. Marathon filters, so that a busy cluster's other messages cost nothing.
const TYPES: &[&str] = &[
    "event_stream_attached",
    "status_update_event",
    "instance_changed_event",
    "instance_health_changed_event",
    "health_status_changed_event",
    "failed_health_check_event",
    "unhealthy_instance_kill_event",
    "unhealthy_task_kill_event",
    "unknown_instance_terminated_event",
    "app_terminated_event",
    "api_post_event",
    "group_change_success",
    "deployment_info",
    "deployment_step_success",
    "deployment_step_failure",
    "deployment_success",
    "deployment_failed",
    "add_health_check_event",
    "remove_health_check_event",
    "scheduler_registered_event",
    "scheduler_reregistered_event",
    "scheduler_disconnected_event",
];

pub(super) fn stream_path() -> String {
    let types: Vec<String> = TYPES.iter().map(|kind| format!("event_type={kind}")).collect();
    format!("/v2/events?plan-format=light&{}", types.join("&"))
}

/// Any event: each kind has some of these.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default, deserialize_with = "nullable")]
    event_type: String,
    timestamp: Option<String>,
    app_id: Option<AppId>,
    run_spec_id: Option<AppId>,
    task_id: Option<Arc<str>>,
    instance_id: Option<Arc<str>>,
    #[serde(default, deserialize_with = "nullable")]
    task_status: String,
    host: Option<Arc<str>>,
    slave_id: Option<Arc<str>>,
    #[serde(default, deserialize_with = "nullable")]
    ip_addresses: Vec<Address>,
    #[serde(default, deserialize_with = "nullable")]
    ports: Vec<u16>,
    version: Option<Version>,
    /// Text, or an object with the text in `str`.
    #[serde(default)]
    condition: Value,
    healthy: Option<bool>,
    app_definition: Option<Named>,
    group_id: Option<String>,
    plan: Option<Plan>,
}

#[derive(Deserialize)]
struct Named {
    id: AppId,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Plan {
    #[serde(default, deserialize_with = "nullable")]
    affected_apps: Vec<AppId>,
    #[serde(default, deserialize_with = "nullable")]
    affected_app_ids: Vec<AppId>,
    #[serde(default, deserialize_with = "nullable")]
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    #[serde(default, deserialize_with = "nullable")]
    actions: Vec<Action>,
}

#[derive(Deserialize)]
struct Action {
    app: Option<AppId>,
}

impl Raw {
    fn app(&self) -> Option<AppId> {
        self.app_id.clone().or_else(|| self.run_spec_id.clone())
    }

    /// Where old versions give the task's id, it is the instance's.
    fn instance(&self) -> Option<InstanceId> {
        self.instance_id.as_ref().or(self.task_id.as_ref()).map(|id| instance_id(id))
    }

    fn both(&self) -> Option<(AppId, InstanceId)> {
        Some((self.app()?, self.instance()?))
    }

    fn condition(&self) -> String {
        let text = self.condition.as_str().or_else(|| self.condition.get("str").and_then(Value::as_str));
        text.unwrap_or_default().to_owned()
    }

    fn planned_apps(&self) -> Vec<AppId> {
        let Some(plan) = &self.plan else { return Vec::new() };
        let acted = plan.steps.iter().flat_map(|step| &step.actions).filter_map(|action| action.app.as_ref());
        let mut apps: Vec<AppId> =
            plan.affected_apps.iter().chain(&plan.affected_app_ids).chain(acted).cloned().collect();
        apps.sort();
        apps.dedup();
        apps
    }
}

/// `None`: it changes nothing for us, or lacks what it would need to.
pub(super) fn decode(event: &str, data: &str) -> Result<Option<Told>, DecodeError> {
    let raw: Raw = serde_json::from_str(data).map_err(|why| DecodeError { event: event.to_owned(), why })?;
    let kind = if event.is_empty() { raw.event_type.as_str() } else { event };
    if kind == "event_stream_attached" {
        return Ok(Some(Told::Attached));
    }
    Ok(stream_event(kind, &raw).map(Told::Stream))
}

fn stream_event(kind: &str, raw: &Raw) -> Option<StreamEvent> {
    let changed = |apps: Vec<AppId>| (!apps.is_empty()).then_some(StreamEvent::AppsChanged { apps });
    match kind {
        "status_update_event" => {
            let (app, instance) = (raw.app()?, instance_id(raw.task_id.as_ref()?));
            Some(StreamEvent::Status {
                app,
                instance,
                task: raw.task_id.clone()?,
                state: raw.task_status.clone(),
                host: raw.host.clone().filter(|host| !host.is_empty()),
                agent: raw.slave_id.clone().filter(|agent| !agent.is_empty()),
                addresses: addresses(&raw.ip_addresses),
                ports: raw.ports.clone(),
                version: raw.version.clone(),
            })
        }
        "instance_changed_event" => {
            let (app, instance) = raw.both()?;
            let at = raw.timestamp.as_ref().and_then(|at| at.parse::<Timestamp>().ok());
            Some(StreamEvent::InstanceChanged { app, instance, condition: raw.condition(), at })
        }
        "instance_health_changed_event" => {
            let (app, instance) = raw.both()?;
            Some(StreamEvent::Health { app, instance, healthy: raw.healthy })
        }
        "unhealthy_instance_kill_event" | "unhealthy_task_kill_event" => {
            let (app, instance) = raw.both()?;
            Some(StreamEvent::UnhealthyKill { app, instance })
        }
        "unknown_instance_terminated_event" => {
            let (app, instance) = raw.both()?;
            Some(StreamEvent::Gone { app, instance })
        }
        "app_terminated_event" => Some(StreamEvent::AppTerminated { app: raw.app()? }),
        // Of one check; the instance's own event follows. Versions that give a task id have no such event. A failure
        // that flips nothing moves the count of failures, which only the app's answer has.
        "health_status_changed_event" if raw.instance_id.is_some() => None,
        "health_status_changed_event"
        | "failed_health_check_event"
        | "add_health_check_event"
        | "remove_health_check_event" => changed(raw.app().into_iter().collect()),
        "api_post_event" => changed(raw.app_definition.iter().map(|app| app.id.clone()).collect()),
        "group_change_success" => Some(StreamEvent::GroupChanged { group: raw.group_id.clone()? }),
        "deployment_info"
        | "deployment_step_success"
        | "deployment_step_failure"
        | "deployment_success"
        | "deployment_failed" => {
            // Old versions end a deployment with its id only: it may have been of any app.
            changed(raw.planned_apps()).or_else(|| Some(StreamEvent::GroupChanged { group: "/".to_owned() }))
        }
        "scheduler_disconnected_event" => Some(StreamEvent::SchedulerDisconnected(true)),
        "scheduler_registered_event" | "scheduler_reregistered_event" => {
            Some(StreamEvent::SchedulerDisconnected(false))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    const INSTANCE: &str = "shop_web.instance-8a1d2c3e-1111-11ee-a000-0242ac110002";

    fn told(event: &str, data: &str) -> Option<StreamEvent> {
        match decode(event, data).unwrap() {
            Some(Told::Stream(event)) => Some(event),
            Some(Told::Attached) => panic!("not an attach"),
            None => None,
        }
    }

    #[test]
    fn each_kind_of_message_is_understood() {
        let app: AppId = "/shop/web".into();
        let instance: InstanceId = INSTANCE.into();
        let apps =
            |ids: &[&str]| Some(StreamEvent::AppsChanged { apps: ids.iter().map(|id| AppId::from(*id)).collect() });
        let health = |healthy| Some(StreamEvent::Health { app: app.clone(), instance: instance.clone(), healthy });
        let at = "2026-11-24T03:00:00.123Z";
        let changed = StreamEvent::InstanceChanged {
            app: app.clone(),
            instance: instance.clone(),
            condition: "Running".to_owned(),
            at: at.parse().ok(),
        };
        let table = [
            (
                "instance_changed_event",
                format!(r#"{{"instanceId":"{INSTANCE}","condition":"Running","runSpecId":"/shop/web","agentId":"a-S1","host":"h","runSpecVersion":"v","eventType":"instance_changed_event","timestamp":"{at}"}}"#),
                Some(changed.clone()),
            ),
            (
                "instance_changed_event",
                format!(r#"{{"instanceId":"{INSTANCE}","condition":{{"str":"Running"}},"runSpecId":"/shop/web","timestamp":"{at}"}}"#),
                Some(changed),
            ),
            (
                "instance_health_changed_event",
                format!(r#"{{"instanceId":"{INSTANCE}","runSpecId":"/shop/web","healthy":false}}"#),
                health(Some(false)),
            ),
            (
                "instance_health_changed_event",
                format!(r#"{{"instanceId":"{INSTANCE}","runSpecId":"/shop/web","healthy":null}}"#),
                health(None),
            ),
            (
                "unhealthy_task_kill_event",
                format!(r#"{{"appId":"/shop/web","taskId":"{INSTANCE}._app.3","reason":"x"}}"#),
                Some(StreamEvent::UnhealthyKill { app: app.clone(), instance: instance.clone() }),
            ),
            (
                "unknown_instance_terminated_event",
                format!(r#"{{"instanceId":"{INSTANCE}","runSpecId":"/shop/web","condition":"Killed"}}"#),
                Some(StreamEvent::Gone { app: app.clone(), instance: instance.clone() }),
            ),
            ("app_terminated_event", r#"{"appId":"/shop/web"}"#.to_owned(), Some(StreamEvent::AppTerminated { app })),
            ("api_post_event", r#"{"uri":"/v2/apps","appDefinition":{"id":"/a","cmd":"x"}}"#.to_owned(), apps(&["/a"])),
            (
                "deployment_info",
                r#"{"plan":{"id":"d","version":"v","affectedApps":["/b","/a"],"steps":[{"actions":[{"action":"ScaleApplication","app":"/a"}]}]}}"#
                    .to_owned(),
                apps(&["/a", "/b"]),
            ),
            (
                "deployment_success",
                r#"{"id":"d"}"#.to_owned(),
                Some(StreamEvent::GroupChanged { group: "/".to_owned() }),
            ),
            (
                "group_change_success",
                r#"{"groupId":"/shop","version":"v"}"#.to_owned(),
                Some(StreamEvent::GroupChanged { group: "/shop".to_owned() }),
            ),
            ("health_status_changed_event", r#"{"appId":"/a","instanceId":"i","alive":true}"#.to_owned(), None),
            ("health_status_changed_event", r#"{"appId":"/a","taskId":"i","alive":true}"#.to_owned(), apps(&["/a"])),
            ("scheduler_disconnected_event", "{}".to_owned(), Some(StreamEvent::SchedulerDisconnected(true))),
            ("scheduler_reregistered_event", "{}".to_owned(), Some(StreamEvent::SchedulerDisconnected(false))),
            ("framework_message_event", "{}".to_owned(), None),
            ("instance_changed_event", "{}".to_owned(), None),
        ];
        for (event, data, expected) in table {
            assert_eq!(told(event, &data), expected, "{event} {data}");
        }
        assert!(matches!(decode("event_stream_attached", r#"{"remoteAddress":"::1"}"#), Ok(Some(Told::Attached))));
    }

    #[test]
    fn a_status_update_carries_all_that_an_instance_needs() {
        let data = format!(
            r#"{{"slaveId":"e1-S0","taskId":"{INSTANCE}._app.1","taskStatus":"TASK_RUNNING","message":"","appId":"/shop/web",
               "host":"10.77.1.1","ipAddresses":[{{"ipAddress":"10.77.2.7","protocol":"IPv4"}},{{"ipAddress":"bad"}}],
               "ports":[31000,31001],"version":"2026-11-24T03:00:00.123Z","eventType":"status_update_event","timestamp":"x"}}"#
        );
        let expected = StreamEvent::Status {
            app: "/shop/web".into(),
            instance: INSTANCE.into(),
            task: format!("{INSTANCE}._app.1").into(),
            state: "TASK_RUNNING".to_owned(),
            host: Some("10.77.1.1".into()),
            agent: Some("e1-S0".into()),
            addresses: vec![IpAddr::from([10, 77, 2, 7])],
            ports: vec![31000, 31001],
            version: Some("2026-11-24T03:00:00.123Z".into()),
        };
        assert_eq!(told("status_update_event", &data), Some(expected));
        assert!(decode("status_update_event", "{not json").is_err());
    }

    #[test]
    fn every_type_that_is_understood_is_asked_for() {
        let path = stream_path();
        assert!(path.contains("event_type=event_stream_attached&"));
        assert!(path.contains("event_type=status_update_event"));
    }

    proptest! {
        #[test]
        fn no_text_breaks_it(event in ".{0,30}", data in ".{0,200}") {
            let _ = decode(&event, &data);
        }
    }
}
