//! Tasks: their JSON, their health, how they are killed, crash, get lost and come back.

use serde_json::{Value, json};
use tidegate_tests::marathon::Command;

use super::{
    Marathon, alive,
    client::{Events, eventually, send},
    demo, merged, sleeper,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_task_has_service_ports_only_in_the_list_of_all_tasks() {
    let marathon = Marathon::start();
    marathon.run(demo("/g/web", 1, "")).await;
    let app = marathon.get("/v2/apps/g/web").await.json()["app"].clone();
    let task = app["tasks"][0].clone();
    let keys: Vec<&str> = task.as_object().unwrap().keys().map(String::as_str).collect();
    let expect = [
        "appId",
        "host",
        "id",
        "ipAddresses",
        "localVolumes",
        "ports",
        "role",
        "servicePorts",
        "slaveId",
        "stagedAt",
        "startedAt",
        "state",
        "version",
    ];
    assert_eq!(keys, expect);
    assert_eq!(task["servicePorts"], json!([]));
    assert_eq!((&task["state"], &task["version"]), (&json!("TASK_RUNNING"), &app["version"]));
    assert!(task["id"].as_str().unwrap().starts_with("g_web.instance-"));
    assert!(task["slaveId"].as_str().unwrap().ends_with("-S0"));
    let all = marathon.get("/v2/tasks").await.json();
    assert_eq!(all["tasks"][0]["servicePorts"], json!([app["portDefinitions"][0]["port"]]));
    let own = marathon.get("/v2/apps/g/web/tasks").await.json();
    assert_eq!(own["tasks"][0]["id"], task["id"]);
    let text = send(&marathon.url, "GET /v2/tasks", "Accept: text/plain\r\n", None).await.text();
    let (service, port) = (&app["portDefinitions"][0]["port"], &task["ports"][0]);
    assert_eq!(text, format!("g_web\t{service}\t127.0.0.1:{port}\t\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_finds_marathons_environment() {
    let marathon = Marathon::start();
    let app = json!({
        "id": "/g/env", "cmd": "env > env.new; mv env.new env.txt; exec sleep 1000", "env": {"MINE": "1"}, "labels": {"team": "sea"},
        "portDefinitions": [{"port": 0, "name": "http"}, {"port": 0, "name": "admin-api"}],
    });
    marathon.run(app).await;
    let task = marathon.standin.tasks("/g/env").remove(0);
    let path = format!("/proc/{}/cwd/env.txt", task.pid.unwrap());
    let env = eventually("it is written", async || std::fs::read_to_string(&path).ok()).await;
    let (one, two) = (task.ports[0], task.ports[1]);
    for line in [
        format!("PORT={one}"),
        format!("PORT0={one}"),
        format!("PORT1={two}"),
        format!("PORTS={one},{two}"),
        format!("PORT_HTTP={one}"),
        format!("PORT_ADMIN_API={two}"),
        format!("PORT_10000={one}"),
        "HOST=127.0.0.1".into(),
        "TASK_HOST=127.0.0.1".into(),
        "MARATHON_APP_ID=/g/env".into(),
        format!("MARATHON_APP_VERSION={}", task.definition.version),
        format!("MESOS_TASK_ID={}", task.task_id()),
        "MARATHON_APP_LABEL_TEAM=sea".into(),
        "MINE=1".into(),
    ] {
        assert!(env.lines().any(|l| l == line), "{line} is missing in\n{env}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_unknown_then_good_and_is_told() {
    let marathon = Marathon::start();
    let mut events = Events::open(&marathon.url, "").await;
    events.until_kind("event_stream_attached").await;
    let check = json!({"healthChecks": [
        {"protocol": "HTTP", "path": "/health", "portIndex": 0, "intervalSeconds": 0.05, "gracePeriodSeconds": 20},
        {"protocol": "TCP", "portIndex": 0, "intervalSeconds": 0.05, "gracePeriodSeconds": 20},
    ]});
    marathon.standin.put_app(merged(demo("/web", 1, ""), check)).unwrap();
    let seen = events.until_kind("deployment_success").await;
    let of = |kind: &str| seen.iter().filter(|(k, _)| k == kind).map(|(_, d)| d.clone()).collect::<Vec<Value>>();
    assert_eq!(of("health_status_changed_event").len(), 2, "one for each check");
    let changed = of("instance_health_changed_event");
    assert_eq!((changed.len(), &changed[0]["healthy"]), (1, &json!(true)), "only when all checks are good");
    let app = marathon.get("/v2/apps/web").await.json()["app"].clone();
    assert_eq!((&app["tasksHealthy"], &app["tasksUnhealthy"]), (&json!(1), &json!(0)));
    let results = app["tasks"][0]["healthCheckResults"].as_array().unwrap();
    assert_eq!(results.len(), 2);
    for result in results {
        assert_eq!((&result["alive"], &result["consecutiveFailures"]), (&json!(true), &json!(0)));
        assert_eq!(result["instanceId"], of("health_status_changed_event")[0]["instanceId"]);
        assert!(result["firstSuccess"].is_string() && result["lastFailure"].is_null());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unhealthy_task_is_killed_after_enough_failures_and_replaced() {
    let marathon = Marathon::start();
    let check = json!({"healthChecks": [
        {"protocol": "COMMAND", "command": {"value": "! test -e sick"}, "intervalSeconds": 0.05, "maxConsecutiveFailures": 3},
    ]});
    let file = tempfile::tempdir().unwrap();
    let sick = file.path().join("sick");
    let check = Value::from(check.to_string().replace("sick", sick.to_str().unwrap()));
    let check: Value = serde_json::from_str(check.as_str().unwrap()).unwrap();
    marathon.run(merged(sleeper("/a", 1), check)).await;
    let mut events = Events::open(&marathon.url, "").await;
    events.until_kind("event_stream_attached").await;
    std::fs::write(&sick, "").unwrap();
    let mut seen = events.until(|_, d| d["taskStatus"] == "TASK_KILLED").await;
    std::fs::remove_file(&sick).unwrap();
    seen.retain(|(_, d)| d["taskStatus"] != "TASK_STAGING");
    let kinds: Vec<&str> = seen.iter().map(|(k, _)| k.as_str()).collect();
    let expect = [
        "failed_health_check_event",
        "health_status_changed_event",
        "instance_health_changed_event",
        "failed_health_check_event",
        "failed_health_check_event",
        "unhealthy_instance_kill_event",
        "status_update_event",
        "instance_changed_event",
        "status_update_event",
    ];
    assert_eq!(kinds, expect, "one failure is enough not to be alive, three to be killed, and the goal stays");
    assert_eq!(seen[1].1["alive"], false);
    assert_eq!(seen[6].1["taskStatus"], "TASK_KILLING");
    let killed = &seen[5].1;
    assert!(killed["reason"].as_str().unwrap().starts_with("Command exited"));
    assert_eq!(killed["taskId"], format!("{}._app.1", killed["instanceId"].as_str().unwrap()));
    // The replacement.
    events.until(|_, d| d["condition"] == "Running").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_within_the_grace_period_do_not_count() {
    let marathon = Marathon::start();
    let check = |grace: f64| json!({"healthChecks": [{"protocol": "HTTP", "path": "/health", "intervalSeconds": 0.02, "gracePeriodSeconds": grace, "maxConsecutiveFailures": 2}]});
    let mut events =
        Events::open(&marathon.url, "?event_type=failed_health_check_event&event_type=unhealthy_instance_kill_event")
            .await;
    eventually("attached", async || (marathon.standin.streams() == 1).then_some(())).await;
    marathon.standin.put_app(merged(demo("/graced", 1, "--sick"), check(1000.0))).unwrap();
    marathon.standin.put_app(merged(demo("/judged", 1, "--sick"), check(0.0))).unwrap();
    let seen = events.until_kind("unhealthy_instance_kill_event").await;
    assert!(seen.iter().all(|(_, d)| d["appId"] == "/judged"), "{seen:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stubborn_task_gets_its_grace_period_and_is_then_killed() {
    let marathon = Marathon::start();
    let app =
        json!({"id": "/a", "cmd": "trap '' TERM; while :; do sleep 0.05; done", "taskKillGracePeriodSeconds": 0.3});
    marathon.run(app).await;
    let pid = marathon.standin.tasks("/a")[0].pid.unwrap();
    let before = std::time::Instant::now();
    marathon.standin.scale("/a", 0).unwrap();
    marathon.done("/a").await;
    eventually("its process is gone", async || (!alive(pid)).then_some(())).await;
    assert!(before.elapsed().as_millis() >= 300);
}

#[tokio::test(flavor = "multi_thread")]
async fn scaling_in_takes_the_youngest_unless_told_otherwise() {
    let marathon = Marathon::start();
    for (id, selection, expect) in [("/young", "YOUNGEST_FIRST", 0), ("/old", "OLDEST_FIRST", 2)] {
        marathon.run(merged(sleeper(id, 1), json!({"killSelection": selection}))).await;
        for n in 2..=3 {
            marathon.standin.scale(id, n).unwrap();
            marathon.done(id).await;
        }
        let tasks = marathon.standin.tasks(id);
        marathon.standin.scale(id, 1).unwrap();
        marathon.done(id).await;
        assert_eq!(marathon.standin.tasks(id)[0].id, tasks[expect].id, "{selection}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chosen_task_is_killed_with_and_without_a_replacement() {
    let marathon = Marathon::start();
    marathon.run(sleeper("/a", 3)).await;
    let ids = || marathon.standin.tasks("/a").iter().map(|t| t.task_id()).collect::<Vec<_>>();
    let first = ids()[0].clone();
    let done = marathon.ok(&format!("DELETE /v2/apps/a/tasks/{first}?scale=true"), json!({})).await;
    assert!(done["deploymentId"].is_string());
    marathon.done("/a").await;
    assert!(ids().len() == 2 && !ids().contains(&first));
    assert_eq!(marathon.get("/v2/apps/a").await.json()["app"]["instances"], 2);

    let second = ids()[0].clone();
    let body = json!({"ids": [second]});
    marathon.ok("POST /v2/tasks/delete?scale=true", body.clone()).await;
    // Asked again before it is dead: it does not count twice.
    marathon.send("POST /v2/tasks/delete?scale=true&force=true", body).await;
    marathon.done("/a").await;
    assert_eq!(marathon.get("/v2/apps/a").await.json()["app"]["instances"], 1);

    let third = ids()[0].clone();
    let killed = marathon.ok(&format!("DELETE /v2/apps/a/tasks/{third}"), json!({})).await;
    assert_eq!(killed["task"]["id"], json!(third));
    eventually("a replacement", async || (ids().len() == 1 && !ids().contains(&third)).then_some(())).await;
    marathon.done("/a").await;
    let killed = marathon.ok("DELETE /v2/apps/a/tasks?host=127.0.0.1", json!({})).await;
    assert_eq!(killed["tasks"].as_array().unwrap().len(), 1);
    let both = marathon.send("DELETE /v2/apps/a/tasks?scale=true&wipe=true", json!({})).await;
    assert_eq!(both.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_dies_is_started_again_ever_later() {
    let marathon = Marathon::start();
    let app = json!({"id": "/crash", "cmd": "exit 3", "backoffSeconds": 0.05, "backoffFactor": 100, "maxLaunchDelaySeconds": 1000});
    let mut events = Events::open(&marathon.url, "?event_type=status_update_event").await;
    marathon.standin.put_app(app).unwrap();
    // Twice: after 0.05 s, and then only after 5 s.
    for _ in 0..2 {
        let failed = events.until(|_, d| d["taskStatus"] == "TASK_FAILED").await.pop().unwrap().1;
        assert_eq!(failed["message"], "Command terminated with status 3");
    }
    let queue = eventually("it waits in the queue", async || {
        let queue = marathon.get("/v2/queue").await.json()["queue"].clone();
        (queue[0]["delay"]["overdue"] == false).then_some(queue)
    })
    .await;
    assert_eq!((&queue[0]["app"]["id"], &queue[0]["count"]), (&json!("/crash"), &json!(1)));
    assert!(queue[0]["delay"]["timeLeftSeconds"].as_u64().unwrap() >= 1);
    let app = marathon.get("/v2/apps/crash?embed=app.lastTaskFailure").await.json()["app"].clone();
    assert_eq!(app["lastTaskFailure"]["state"], "TASK_FAILED");
    assert_eq!(marathon.send("DELETE /v2/queue/crash/delay", json!({})).await.status, 204);
    events.until(|_, d| d["taskStatus"] == "TASK_FAILED").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_task_serves_on_is_replaced_and_is_killed_when_it_returns() {
    let marathon = Marathon::start();
    marathon.run(sleeper("/a", 1)).await;
    let old = marathon.standin.tasks("/a").remove(0);
    let mut events = Events::open(&marathon.url, "").await;
    events.until_kind("event_stream_attached").await;
    marathon.standin.run(Command::LoseTask { id: old.task_id() }).await.unwrap();
    let seen = events.until(|_, d| d["condition"] == "Running").await;
    assert_eq!(seen[0].1["taskStatus"], "TASK_UNREACHABLE");
    assert_eq!(seen[1].1["condition"], "Unreachable");
    assert!(alive(old.pid.unwrap()), "nobody has told it");
    eventually("forgotten", async || marathon.standin.tasks("/a").iter().all(|t| t.id != old.id).then_some(())).await;
    marathon.standin.run(Command::ReturnTask { id: old.task_id() }).await.unwrap();
    let end = events.until_kind("unknown_instance_terminated_event").await.pop().unwrap().1;
    assert_eq!(end["instanceId"], json!(old.id));
    eventually("killed", async || (!alive(old.pid.unwrap())).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_patient_strategy_waits_for_the_lost_task() {
    let marathon = Marathon::start();
    let strategy = json!({"unreachableStrategy": {"inactiveAfterSeconds": 1000, "expungeAfterSeconds": 2000}});
    marathon.run(merged(sleeper("/a", 1), strategy)).await;
    let id = marathon.standin.tasks("/a")[0].task_id();
    marathon.standin.run(Command::LoseTask { id: id.clone() }).await.unwrap();
    let state = async || marathon.get("/v2/apps/a").await.json()["app"]["tasks"][0]["state"].clone();
    eventually("unreachable", async || (state().await == "TASK_UNREACHABLE").then_some(())).await;
    assert_eq!(marathon.standin.tasks("/a").len(), 1, "no replacement yet");
    marathon.standin.run(Command::ReturnTask { id: id.clone() }).await.unwrap();
    eventually("back", async || (state().await == "TASK_RUNNING").then_some(())).await;

    let mut events = Events::open(&marathon.url, "?event_type=status_update_event").await;
    eventually("attached", async || (marathon.standin.streams() == 1).then_some(())).await;
    marathon.standin.run(Command::VanishTask { id: id.clone() }).await.unwrap();
    let lost = events.until(|_, d| d["taskStatus"] == "TASK_LOST").await.pop().unwrap().1;
    assert_eq!(lost["taskId"], json!(id));
    assert!(marathon.standin.run(Command::LoseTask { id: "nix".into() }).await.is_err());
}
