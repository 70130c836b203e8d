use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use tidegate_tests::{appliance::Settings, cluster::demo_app};

use super::{APP, Stage};

/// From the start of an instance to its readiness. Until then it would answer; nobody must ask it.
const WARM_UP: SignedDuration = SignedDuration::from_secs(2);

#[test]
fn a_rolling_deployment_with_readiness_loses_nothing() {
    let Some(stage) = Stage::set(&Settings::default()) else { return };
    let start = Timestamp::now();
    let load = stage.load(stage.everything());
    load.wait_for_answers(20);
    load.mark("new version");
    let mut app = demo_app(APP, 3);
    app["cmd"] = json!(format!("{} --ready-after {}", app["cmd"].as_str().unwrap(), WARM_UP.as_millis()));
    app["readinessChecks"] = json!([{
        "name": "warm", "protocol": "HTTP", "path": "/ready", "portName": "http",
        "intervalSeconds": 0.5, "timeoutSeconds": 1, "httpStatusCodesForReady": [200]
    }]);
    stage.cluster.deploy(&app).unwrap();
    load.mark("deployed");
    let serving = stage.served_by(&load, 3);
    let account = load.stop();
    account.assert_lossless();
    for task in stage.cluster.standin().tasks(APP) {
        let id = task.task_id();
        assert!(serving.contains(&id), "{id} of the new version does not serve: {serving:?}");
        // The process starts a moment before Marathon says so.
        let ready = task.started_at.unwrap() + WARM_UP - SignedDuration::from_millis(200);
        let first = start + SignedDuration::try_from(account.served_by[&id].first).unwrap();
        assert!(first >= ready, "{id} was asked at {first}, before it was ready at {ready}\n{account}");
    }
    println!("{account}");
}
