//! Rolling upgrades: capacity, readiness, and what does not restart anything.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{
    Marathon,
    client::{Events, eventually},
    demo, merged, sleeper,
};

fn instances(marathon: &Marathon, id: &str) -> BTreeSet<String> {
    marathon.standin.tasks(id).iter().map(|t| t.id.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_keeps_the_minimum_and_never_exceeds_the_maximum() {
    for (least, over, expect) in [(1.0, 0.0, (4, 5)), (0.5, 0.0, (2, 4)), (1.0, 1.0, (4, 8)), (0.75, 0.25, (3, 5))] {
        let marathon = Marathon::start();
        let strategy = json!({"upgradeStrategy": {"minimumHealthCapacity": least, "maximumOverCapacity": over}});
        marathon.run(merged(sleeper("/a", 4), strategy)).await;
        let old = instances(&marathon, "/a");
        let mut events = Events::open(&marathon.url, "").await;
        events.until_kind("event_stream_attached").await;
        marathon.ok("PUT /v2/apps/a", json!({"env": {"NEW": "1"}})).await;
        let seen = events.until_kind("deployment_success").await;
        // Replayed from the events: who runs and is meant to, and who is there at all.
        let (mut serving, mut there): (BTreeSet<String>, BTreeSet<String>) = (old.clone(), old.clone());
        let (mut fewest, mut most) = (4, 4);
        for (_, data) in seen.iter().filter(|(kind, _)| kind == "instance_changed_event") {
            let id = data["instanceId"].as_str().unwrap().to_owned();
            match data["condition"].as_str().unwrap() {
                "Running" if !serving.insert(id.clone()) => _ = serving.remove(&id),
                "Scheduled" => _ = there.insert(id),
                "Killed" => _ = there.remove(&id),
                _ => {}
            }
            fewest = fewest.min(serving.len());
            most = most.max(there.len());
        }
        assert_eq!((fewest, most), expect, "minimum {least}, over {over}");
        assert!(instances(&marathon, "/a").is_disjoint(&old));
        assert_eq!(instances(&marathon, "/a").len(), 4);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_change_of_the_configuration_restarts_tasks() {
    let marathon = Marathon::start();
    marathon.run(sleeper("/a", 2)).await;
    let old = instances(&marathon, "/a");
    let first = marathon.get("/v2/apps/a").await.json()["app"].clone();
    marathon.ok("PUT /v2/apps/a", json!({"instances": 3})).await;
    marathon.done("/a").await;
    assert!(instances(&marathon, "/a").is_superset(&old), "more instances, the same ones beside them");
    let scaled = marathon.get("/v2/apps/a").await.json()["app"].clone();
    assert_ne!(scaled["version"], first["version"]);
    assert_eq!(scaled["versionInfo"]["lastConfigChangeAt"], first["versionInfo"]["lastConfigChangeAt"]);
    let versions: Vec<&Value> = scaled["tasks"].as_array().unwrap().iter().map(|t| &t["version"]).collect();
    assert_eq!(versions.iter().filter(|v| **v == &first["version"]).count(), 2, "old tasks keep their version");

    let nothing = marathon.ok("PUT /v2/apps/a", json!({"instances": 3})).await;
    assert!(nothing["deploymentId"].is_string());
    marathon.done("/a").await;
    assert_eq!(instances(&marathon, "/a").len(), 3);

    for change in ["PUT /v2/apps/a", "POST /v2/apps/a/restart"] {
        let before = instances(&marathon, "/a");
        marathon.ok(change, json!({"labels": {"tier": "front"}})).await;
        marathon.done("/a").await;
        assert!(instances(&marathon, "/a").is_disjoint(&before), "{change} starts all anew");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_waits_until_new_tasks_are_ready() {
    let marathon = Marathon::start();
    let ready = json!({"readinessChecks": [
        {"name": "up", "portName": "http", "path": "/ready", "intervalSeconds": 0.05, "preserveLastResponse": true},
    ]});
    marathon.run(merged(demo("/web", 1, ""), ready)).await;
    let old = instances(&marathon, "/web");
    let mut events =
        Events::open(&marathon.url, "?event_type=deployment_success&event_type=event_stream_attached").await;
    events.until_kind("event_stream_attached").await;
    let slow = demo("/web", 1, "--ready-after 700");
    marathon.ok("PUT /v2/apps/web", json!({"cmd": slow["cmd"]})).await;
    let results = eventually("a check has answered no", async || {
        let app = marathon.get("/v2/apps/web?embed=app.readiness").await.json()["app"].clone();
        let result = app["readinessCheckResults"][0].clone();
        (result["lastResponse"]["status"] == 503).then_some((app, result))
    });
    let (app, result) = results.await;
    assert_eq!((&result["name"], &result["ready"]), (&json!("up"), &json!(false)));
    assert_eq!(result["lastResponse"]["body"], "not yet\n");
    assert_eq!(app["deployments"].as_array().unwrap().len(), 1);
    let deployment = marathon.get("/v2/deployments").await.json()[0].clone();
    let action = &deployment["currentActions"][0];
    assert_eq!(action["action"], "RestartApplication");
    assert_eq!(action["readinessCheckResults"][0]["taskId"], result["taskId"]);
    assert!(instances(&marathon, "/web").is_superset(&old), "the old one stays until the new one is ready");
    events.until_kind("deployment_success").await;
    assert!(instances(&marathon, "/web").is_disjoint(&old));
    let app = marathon.get("/v2/apps/web?embed=app.readiness").await.json()["app"].clone();
    assert_eq!(app["readinessCheckResults"], json!([]), "results vanish with the deployment");
}
