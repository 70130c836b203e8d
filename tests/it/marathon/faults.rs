//! Each way in which the stand-in can be made to misbehave.

use std::{collections::BTreeSet, time::Duration};

use serde_json::json;
use tidegate_tests::marathon::{Event, EventFaults, Faults};
use tokio::time::timeout;

use super::{
    Marathon,
    client::{Events, eventually, send},
    merged, sleeper,
};

/// Says `n` numbered events and the last word, and returns the numbers in the order of their arrival.
async fn said(marathon: &Marathon, faults: EventFaults, n: u64, expect: usize) -> Vec<u64> {
    let mut events = Events::open(&marathon.url, "").await;
    events.until_kind("event_stream_attached").await;
    marathon.standin.set_faults(Faults { events: faults, ..Faults::default() });
    (0..n).for_each(|i| marathon.standin.say(Event::new("number", json!({"n": i}))));
    let mut numbers = Vec::new();
    while numbers.len() < expect {
        numbers.push(events.until_kind("number").await.pop().unwrap().1["n"].as_u64().unwrap());
    }
    marathon.standin.set_faults(Faults::default());
    marathon.standin.say(Event::new("end", json!({})));
    let rest = events.until_kind("end").await;
    assert!(!rest.iter().any(|(kind, _)| kind == "number"), "{rest:?}");
    numbers
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_lost_repeated_delayed_and_reordered() {
    let marathon = Marathon::start();
    let lose = EventFaults { lose: vec!["number".into()], ..EventFaults::default() };
    assert!(said(&marathon, lose, 5, 0).await.is_empty());
    let all = EventFaults { lose: vec!["*".into()], ..EventFaults::default() };
    assert!(said(&marathon, all, 5, 0).await.is_empty());
    let repeat = EventFaults { repeat: 2, ..EventFaults::default() };
    assert_eq!(said(&marathon, repeat, 2, 6).await, [0, 0, 0, 1, 1, 1]);
    let delay = EventFaults { delay_ms: 200, ..EventFaults::default() };
    let before = std::time::Instant::now();
    assert_eq!(said(&marathon, delay, 1, 1).await, [0]);
    assert!(before.elapsed() >= Duration::from_millis(200));
    let reorder = EventFaults { reorder_ms: 200, ..EventFaults::default() };
    let order = said(&marathon, reorder, 50, 50).await;
    assert!(!order.is_sorted(), "50 events within 200 ms stay in order once in 10^64 times: {order:?}");
    assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_empty_late_wrong_or_never_come() {
    let marathon = Marathon::start();
    marathon.run(merged(sleeper("/a", 1), json!({"labels": {"x": "y"}}))).await;
    let set = async |body| {
        let reply = marathon.send("POST /stand-in/faults", body).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()
    };
    assert_eq!(set(json!({"empty": true})).await["empty"], true);
    assert_eq!(marathon.get("/v2/apps").await.json(), json!({"apps": []}));
    assert_eq!(marathon.get("/v2/tasks").await.json(), json!({"tasks": []}));
    assert_eq!(marathon.get("/v2/groups").await.json()["apps"], json!([]));
    assert_eq!(marathon.get("/stand-in/faults").await.json()["empty"], true);

    // A key at a time; null ends a fault.
    let now =
        set(json!({"empty": null, "broken_apps": {"/a": {"instances": "three", "labels": 7, "tasks": null}}})).await;
    assert_eq!(now["empty"], false);
    let app = marathon.get("/v2/apps?embed=apps.tasks").await.json()["apps"][0].clone();
    assert_eq!((&app["instances"], &app["labels"], &app["tasks"]), (&json!("three"), &json!(7), &json!(null)));
    assert_eq!(marathon.get("/v2/apps/a").await.json()["app"]["instances"], "three");

    set(json!({"broken_apps": null, "hang": ["/v2/apps"]})).await;
    assert!(timeout(Duration::from_millis(200), marathon.get("/v2/apps")).await.is_err());
    assert_eq!(marathon.get("/v2/tasks").await.status, 200, "only those that are named");
    set(json!({"hang": [], "fail": {"/v2/tasks": 503}})).await;
    assert_eq!(marathon.get("/v2/tasks").await.status, 503);
    set(json!({"fail": {}, "slow_ms": 150})).await;
    let before = std::time::Instant::now();
    assert_eq!(marathon.get("/v2/apps").await.status, 200);
    assert!(before.elapsed() >= Duration::from_millis(150));
    let reply = marathon.send("DELETE /stand-in/faults", json!({})).await;
    assert_eq!(reply.json(), serde_json::to_value(Faults::default()).unwrap());

    for wrong in [json!({"emtpy": true}), json!({"do": [{"dance": {}}]}), json!({"do": [{"lose_task": {"id": "nix"}}]})]
    {
        let reply = marathon.send("POST /stand-in/faults", wrong.clone()).await;
        assert!((400..500).contains(&reply.status), "{wrong} is refused: {}", reply.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn things_happen_on_command_over_http() {
    let marathon = Marathon::start();
    marathon.run(sleeper("/a", 2)).await;
    let mut events = Events::open(&marathon.url, "").await;
    events.until_kind("event_stream_attached").await;
    let first = marathon.standin.tasks("/a")[0].task_id();
    marathon.ok("POST /stand-in/faults", json!({"do": [{"signal_task": {"id": first, "signal": 9}}]})).await;
    let failed = events.until(|_, d| d["taskStatus"] == "TASK_FAILED").await;
    assert!(!failed.iter().any(|(_, d)| d["taskStatus"] == "TASK_KILLING"), "it died without a word");
    assert_eq!(failed.last().unwrap().1["message"], "Command terminated with signal 9");
    marathon.done("/a").await;
    marathon.ok("POST /stand-in/faults", json!({"do": ["cut_streams"]})).await;
    while events.next().await.is_some() {}

    let frozen = marathon.standin.tasks("/a").remove(0);
    let state = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", frozen.pid.unwrap())).unwrap();
        stat.rsplit(") ").next().unwrap()[..1].to_owned()
    };
    for (freeze, expect) in [(true, "T"), (false, "S")] {
        let command = json!({"do": [{"freeze_agent": {"host": "127.0.0.1", "frozen": freeze}}]});
        assert_eq!(send(&marathon.url, "POST /stand-in/faults", "", Some(&command)).await.status, 200);
        eventually("it has stopped or goes on", async || (state() == expect).then_some(())).await;
    }
}
