//! The event stream: its bytes, its filter, its keep-alives, its limits, and which event comes when.

use std::time::Duration;

use serde_json::{Value, json};
use tidegate_tests::marathon::{Event, Settings};

use super::{
    Marathon,
    client::{Events, eventually},
    merged, send, sleeper,
};

/// Each event as one short word.
fn words(events: &[(String, Value)]) -> Vec<String> {
    let word = |(kind, data): &(String, Value)| match kind.as_str() {
        "status_update_event" => data["taskStatus"].as_str().unwrap().to_owned(),
        "instance_changed_event" => data["condition"].as_str().unwrap().to_owned(),
        other => other.to_owned(),
    };
    events.iter().map(word).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_are_exact_to_the_byte() {
    let marathon = Marathon::start();
    let mut events = Events::open(&marathon.url, "").await;
    assert!(events.head.starts_with("HTTP/1.1 200 OK\r\n"), "{}", events.head);
    assert!(
        events.head.to_lowercase().contains("content-type: text/event-stream;charset=utf-8\r\n"),
        "{}",
        events.head
    );
    events.more().await;
    let frame = String::from_utf8(events.content.clone()).unwrap();
    let data = frame.strip_prefix("event: event_stream_attached\r\ndata: ").unwrap().strip_suffix("\r\n\r\n").unwrap();
    assert!(!data.contains(['\r', '\n']));
    let data: Value = serde_json::from_str(data).unwrap();
    assert_eq!((&data["eventType"], &data["remoteAddress"]), (&json!("event_stream_attached"), &json!("127.0.0.1")));
    let time = data["timestamp"].as_str().unwrap();
    assert!(time.len() == 24 && time.ends_with('Z'), "milliseconds and UTC: {time}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_needs_its_accept_header() {
    let marathon = Marathon::start();
    let refused = send(&marathon.url, "GET /v2/events", "Accept: application/json\r\n", None).await;
    assert_eq!(refused.status, 405);
    assert!(refused.text().contains("HTTP method GET is not supported by this URL"));
}

#[tokio::test(flavor = "multi_thread")]
async fn keep_alives_are_empty_lines() {
    let marathon = Marathon::with(1, Settings { keep_alive: Duration::from_millis(50), ..Settings::default() });
    let mut events = Events::open(&marathon.url, "?event_type=nothing").await;
    while events.content.len() < 6 {
        events.more().await;
    }
    assert!(events.content.chunks(2).all(|line| line == b"\r\n"), "{:?}", events.content);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_lets_only_its_types_through() {
    let marathon = Marathon::start();
    let mut events =
        Events::open(&marathon.url, "?event_type=app_terminated_event&event_type=deployment_success&plan-format=light")
            .await;
    eventually("attached", async || (marathon.standin.streams() == 1).then_some(())).await;
    marathon.run(sleeper("/a", 1)).await;
    marathon.standin.delete_app("/a").unwrap();
    let seen = events.until_kind("app_terminated_event").await;
    assert_eq!(words(&seen), ["deployment_success", "app_terminated_event"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_life_of_a_task_is_told_in_order() {
    let marathon = Marathon::start();
    let types = "?event_type=status_update_event&event_type=instance_changed_event&event_type=event_stream_attached";
    let mut events = Events::open(&marathon.url, types).await;
    events.until_kind("event_stream_attached").await;
    marathon.standin.put_app(sleeper("/a", 1)).unwrap();
    let birth = events.until(|_, data| data["condition"] == "Running").await;
    let expect = ["Scheduled", "TASK_STAGING", "Provisioned", "TASK_STARTING", "Starting", "TASK_RUNNING", "Running"];
    assert_eq!(words(&birth), expect);
    let (staging, running) = (&birth[1].1, &birth[5].1);
    assert_eq!(staging["slaveId"], "", "Mesos has not said anything yet");
    assert_eq!(running["appId"], "/a");
    assert_eq!(running["ipAddresses"], json!([{"ipAddress": "127.0.0.1", "protocol": "IPv4"}]));
    assert!((31_000..=32_000).contains(&running["ports"][0].as_u64().unwrap()));
    let instance = birth[6].1["instanceId"].as_str().unwrap();
    assert!(instance.starts_with("a.instance-") && instance.len() == "a.instance-".len() + 36, "{instance}");
    assert_eq!(running["taskId"], format!("{instance}._app.1"));
    assert_eq!(birth[6].1["runSpecId"], "/a");

    marathon.done("/a").await;
    marathon.standin.scale("/a", 0).unwrap();
    let death = events.until(|_, data| data["condition"] == "Killed").await;
    // The first says only that the goal has changed: the condition is the old one.
    assert_eq!(words(&death), ["Running", "TASK_KILLING", "Killing", "TASK_KILLED", "Killed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_feature_killing_is_not_announced() {
    let marathon = Marathon::with(1, Settings { task_killing: false, ..Settings::default() });
    marathon.run(sleeper("/a", 1)).await;
    let mut events =
        Events::open(&marathon.url, "?event_type=status_update_event&event_type=event_stream_attached").await;
    events.until_kind("event_stream_attached").await;
    marathon.standin.scale("/a", 0).unwrap();
    let death = events.until(|_, data| data["taskStatus"] == "TASK_KILLED").await;
    assert_eq!(words(&death), ["TASK_KILLED"]);
    assert_eq!(marathon.get("/v2/info").await.json()["marathon_config"]["features"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_tells_its_steps_and_only_some_calls_tell_of_themselves() {
    let marathon = Marathon::start();
    let types = [
        "event_stream_attached",
        "api_post_event",
        "group_change_success",
        "deployment_info",
        "deployment_step_success",
        "deployment_success",
        "app_terminated_event",
        "add_health_check_event",
        "remove_health_check_event",
    ];
    let mut events = Events::open(&marathon.url, &format!("?event_type={}", types.join("&event_type="))).await;
    events.until_kind("event_stream_attached").await;
    let check =
        json!({"healthChecks": [{"protocol": "COMMAND", "command": {"value": "true"}, "intervalSeconds": 0.05}]});
    marathon.ok("POST /v2/apps", merged(sleeper("/g/a", 1), check)).await;
    let seen = events.until_kind("deployment_success").await;
    let mut expect = vec!["add_health_check_event", "group_change_success", "api_post_event"];
    expect.extend(["deployment_info", "deployment_step_success"].repeat(2));
    expect.push("deployment_success");
    // Handing the deployment over and telling of the call happen side by side.
    let mut sorted = (words(&seen), expect);
    sorted.0.sort();
    sorted.1.sort();
    assert_eq!(sorted.0, sorted.1);
    let find = |kind: &str| &seen.iter().find(|(k, _)| k == kind).unwrap().1;
    assert_eq!(find("group_change_success")["groupId"], "/g");
    let post = find("api_post_event");
    assert_eq!((&post["uri"], &post["clientIp"]), (&json!("/v2/apps"), &json!("127.0.0.1")));
    assert_eq!(post["appDefinition"]["id"], "/g/a");
    let info = find("deployment_info");
    assert_eq!(info["plan"]["steps"][0]["actions"], json!([{"action": "StartApplication", "app": "/g/a"}]));
    assert_eq!(info["currentStep"]["actions"], json!([{"action": "StartApplication", "app": "/g/a"}]));
    assert_eq!(find("deployment_success")["id"], info["plan"]["id"]);

    // Bulk changes, groups and deletions are told of by group_change_success alone.
    marathon.ok("PUT /v2/apps", json!([{"id": "/g/a", "instances": 2}])).await;
    assert!(!words(&events.until_kind("deployment_success").await).contains(&"api_post_event".to_owned()));
    marathon.ok("PATCH /v2/apps/g/a", json!({"instances": 1})).await;
    assert!(words(&events.until_kind("deployment_success").await).contains(&"api_post_event".to_owned()));
    marathon.ok("DELETE /v2/apps/g/a", json!({})).await;
    assert_eq!(marathon.get("/v2/apps/g/a").await.status, 404, "it is gone before its tasks are");
    let end = words(&events.until_kind("deployment_success").await);
    assert!(!end.contains(&"api_post_event".to_owned()) && end.contains(&"app_terminated_event".to_owned()), "{end:?}");
    assert!(end.contains(&"remove_health_check_event".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_keep_up_is_cut_off() {
    let marathon = Marathon::with(1, Settings { outstanding_events: 8, ..Settings::default() });
    let mut slow = Events::open_with_buffer(&marathon.url, "", Some(4096)).await;
    let mut quick = Events::open(&marathon.url, "?event_type=end&event_type=event_stream_attached").await;
    quick.until_kind("event_stream_attached").await;
    let big = "x".repeat(1 << 20);
    // More than the kernel's buffers and the stream's own can hold.
    for _ in 0..64 {
        marathon.standin.say(Event::new("big", json!({"big": big})));
        tokio::task::yield_now().await;
        if marathon.standin.streams() == 1 {
            break;
        }
    }
    eventually("only the quick one is left", async || (marathon.standin.streams() == 1).then_some(())).await;
    while slow.next().await.is_some() {}
    marathon.standin.say(Event::new("end", json!({})));
    quick.until_kind("end").await;
}
