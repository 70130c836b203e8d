//! The JSON of apps, groups and versions, and how wrong requests are refused.

use serde_json::{Value, json};

use super::{Marathon, demo, merged, send, sleeper};

#[tokio::test(flavor = "multi_thread")]
async fn an_app_is_shown_with_marathons_defaults() {
    let marathon = Marathon::start();
    let created = marathon.send("POST /v2/apps", demo("/group/web", 2, "")).await;
    assert_eq!(created.status, 201);
    let body = created.json();
    assert_eq!(created.header("marathon-deployment-id"), body["deployments"][0]["id"].as_str());
    assert_eq!((&body["tasks"], &body["tasksRunning"]), (&json!([]), &json!(0)));
    marathon.done("/group/web").await;

    let app = marathon.get("/v2/apps/group/web").await.json()["app"].clone();
    for (pointer, expect) in [
        ("/id", json!("/group/web")),
        ("/instances", json!(2)),
        ("/backoffSeconds", json!(1)),
        ("/networks", json!([{"mode": "host"}])),
        ("/upgradeStrategy", json!({"maximumOverCapacity": 1, "minimumHealthCapacity": 1})),
        ("/killSelection", json!("YOUNGEST_FIRST")),
        ("/portDefinitions/0/port", json!(10_000)),
        ("/portDefinitions/0/labels", json!({"VIP_0": "/web:80"})),
        ("/tasksRunning", json!(2)),
        ("/tasksStaged", json!(0)),
        ("/tasksHealthy", json!(0)),
        ("/deployments", json!([])),
    ] {
        assert_eq!(app.pointer(pointer), Some(&expect), "{pointer} of {app:#}");
    }
    assert_eq!(app["versionInfo"]["lastConfigChangeAt"], app["version"]);
    assert_eq!(app.get("readinessCheckResults"), None, "only when embedded");
    let listed = marathon.get("/v2/apps").await.json()["apps"][0].clone();
    assert_eq!(listed.get("tasks"), None, "tasks are embedded only on request");
    assert_eq!(listed["tasksRunning"], 2);
    let listed = marathon.get("/v2/apps?embed=apps.tasks&embed=apps.readiness").await.json()["apps"][0].clone();
    assert_eq!(listed["tasks"].as_array().unwrap().len(), 2);
    assert_eq!(listed["readinessCheckResults"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn old_forms_of_definitions_are_shown_in_the_new_one() {
    let marathon = Marathon::start();
    // They cannot run on loopback, but a definition is one all the same.
    for (id, put, pointer, expect) in [
        ("/ports", json!({"cmd": "x", "ports": [0, 0]}), "/portDefinitions/1/protocol", json!("tcp")),
        (
            "/docker",
            json!({"container": {"docker": {"image": "i", "network": "BRIDGE", "portMappings": [{"containerPort": 80}]}}}),
            "/container/portMappings/0/hostPort",
            json!(0),
        ),
        (
            "/user",
            json!({"container": {"docker": {"image": "i", "network": "USER"}}}),
            "/networks/0/mode",
            json!("container"),
        ),
        (
            "/named",
            json!({"cmd": "x", "networks": [{"name": "n"}], "container": {"portMappings": [{"containerPort": 80}]}}),
            "/container/portMappings/0/servicePort",
            json!(10_000),
        ),
    ] {
        let created = marathon.send("POST /v2/apps", merged(put, json!({"id": id, "instances": 0}))).await;
        assert_eq!(created.status, 201, "{}", created.text());
        let shown = created.json();
        if pointer.ends_with("servicePort") {
            assert!(
                shown.pointer(pointer).and_then(Value::as_u64).is_some_and(|p| (10_000..20_000).contains(&p)),
                "{shown:#}"
            );
        } else {
            assert_eq!(shown.pointer(pointer), Some(&expect), "{shown:#}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_filtered_by_id_command_and_label() {
    let marathon = Marathon::start();
    for (id, labels) in
        [("/sea/web", json!({"tier": "front"})), ("/sea/db", json!({"tier": "back", "x": "1"})), ("/other", json!({}))]
    {
        marathon.run(merged(sleeper(id, 0), json!({"labels": labels}))).await;
    }
    for (query, expect) in [
        ("", vec!["/other", "/sea/db", "/sea/web"]),
        ("id=SEA", vec!["/sea/db", "/sea/web"]),
        ("cmd=sleep%201000", vec!["/other", "/sea/db", "/sea/web"]),
        ("cmd=nothing", vec![]),
        ("label=tier", vec!["/sea/db", "/sea/web"]),
        ("label=tier%3D%3Dfront", vec!["/sea/web"]),
        ("label=tier!%3Dfront", vec!["/sea/db"]),
        ("label=tier%3D%3Dback,x", vec!["/sea/db"]),
        ("label=tier%20in%20(back)", vec!["/sea/db"]),
    ] {
        let apps = marathon.get(&format!("/v2/apps?{query}")).await.json();
        let ids: Vec<&str> = apps["apps"].as_array().unwrap().iter().map(|a| a["id"].as_str().unwrap()).collect();
        assert_eq!(ids, expect, "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_are_kept_and_can_be_gone_back_to() {
    let marathon = Marathon::start();
    marathon.run(sleeper("/a", 1)).await;
    let first = marathon.get("/v2/apps/a").await.json()["app"]["version"].clone();
    marathon.ok("PUT /v2/apps/a", json!({"labels": {"new": "yes"}})).await;
    marathon.done("/a").await;
    let versions = marathon.get("/v2/apps/a/versions").await.json()["versions"].clone();
    assert_eq!(versions.as_array().map(Vec::len), Some(2));
    assert_eq!(versions[1], first, "the newest comes first");
    let old = marathon.get(&format!("/v2/apps/a/versions/{}", first.as_str().unwrap())).await.json();
    assert_eq!((&old["labels"], &old["version"]), (&json!({}), &first));
    marathon.ok("PUT /v2/apps/a", json!({"version": first})).await;
    marathon.done("/a").await;
    assert_eq!(marathon.get("/v2/apps/a").await.json()["app"]["labels"], json!({}));
    assert_eq!(marathon.get("/v2/apps/a/versions/1999-01-01T00:00:00.000Z").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_are_refused_in_marathons_words() {
    let marathon = Marathon::start();
    marathon.run(sleeper("/a", 0)).await;
    let deep = |path: &'static str| (422, "Object is not valid", Some(path));
    for (line, body, (status, message, path)) in [
        ("GET /v2/apps/nix", json!(null), (404, "App '/nix' does not exist", None)),
        ("DELETE /v2/apps/nix", json!(null), (404, "App '/nix' does not exist", None)),
        ("PATCH /v2/apps/nix", json!({"instances": 1}), (404, "App '/nix' does not exist", None)),
        ("POST /v2/apps/nix/restart", json!({}), (404, "App '/nix' does not exist", None)),
        ("GET /v2/groups/nix", json!(null), (404, "Group '/nix' does not exist", None)),
        ("DELETE /v2/deployments/nix", json!(null), (404, "Deployment 'nix' does not exist", None)),
        ("DELETE /v2/apps/a/tasks/nix", json!(null), (404, "Task 'nix' does not exist", None)),
        ("POST /v2/tasks/delete", json!({"ids": ["nix"]}), (400, "Invalid task id 'nix'.", None)),
        ("POST /v2/apps", json!({"id": "/a", "cmd": "x"}), (409, "An app with id [/a] already exists.", None)),
        ("POST /v2/apps", json!({"id": "/b"}), deep("/")),
        ("POST /v2/apps", json!({"cmd": "x"}), deep("/id")),
        ("POST /v2/apps", json!({"id": "/B_ad", "cmd": "x"}), deep("/id")),
        ("POST /v2/apps", json!({"id": "/b", "cmd": "x", "instances": -1}), deep("/instances")),
        ("PUT /v2/apps/a", json!({"instances": "three"}), deep("/instances")),
        ("PUT /v2/apps/a", json!({"labels": {"a": 1}}), deep("/labels(a)")),
        ("PUT /v2/apps/a", json!({"portDefinitions": [{"port": 70_000}]}), deep("/portDefinitions(0)/port")),
        ("PUT /v2/apps/a", json!({"healthChecks": [{"protocol": "SMOKE"}]}), deep("/healthChecks(0)/protocol")),
        ("PUT /v2/apps/a", json!({"killSelection": "PRETTIEST"}), deep("/killSelection")),
        ("GET /v2/nothing", json!(null), (500, "URI not found", None)),
    ] {
        let reply = marathon.send(line, body).await;
        let json = reply.json();
        assert_eq!((reply.status, json["message"].as_str()), (status, Some(message)), "{line}: {json}");
        if let Some(path) = path {
            assert_eq!(json["details"][0]["path"], path, "{line}: {json}");
            assert!(json["details"][0]["errors"][0].is_string());
        }
    }
    let reply = send(&marathon.url, "POST /v2/apps", "X-Pad: {\r\n", Some(&json!("{"))).await;
    assert_eq!(reply.status, 422, "a text is no app");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_under_deployment_is_locked_and_force_cancels_it() {
    let marathon = Marathon::start();
    // It never gets ready: the deployment stays.
    let ready = json!({"readinessChecks": [{"portName": "default", "intervalSeconds": 0.05}]});
    let first = marathon.ok("POST /v2/apps", merged(sleeper("/a", 1), ready)).await["deployments"][0]["id"].clone();
    let refused = marathon.send("PUT /v2/apps/a", json!({"instances": 2})).await;
    assert_eq!(refused.status, 409);
    assert_eq!(refused.json()["deployments"], json!([{"id": first}]));
    assert!(refused.json()["message"].as_str().unwrap().starts_with("App is locked by one or more deployments."));
    assert_eq!(marathon.send("DELETE /v2/apps/a", json!({})).await.status, 409);
    assert_eq!(marathon.send("POST /v2/apps/a/restart", json!({})).await.status, 409);

    let listed = marathon.get("/v2/deployments").await.json();
    assert_eq!(listed[0]["id"], first);
    assert_eq!(listed[0]["affectedApps"], json!(["/a"]));
    assert_eq!(listed[0]["totalSteps"], 2);
    let mut events = super::client::Events::open(&marathon.url, "?event_type=deployment_failed").await;
    let second = marathon.ok("PUT /v2/apps/a?force=true", json!({"instances": 0, "readinessChecks": []})).await;
    let failed = events.until_kind("deployment_failed").await.pop().unwrap().1;
    assert_eq!(failed["id"], first);
    assert_ne!(second["deploymentId"], first);
    marathon.done("/a").await;
    assert_eq!(marathon.get("/v2/deployments").await.json(), json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_can_be_rolled_back_or_just_ended() {
    let marathon = Marathon::start();
    marathon.run(sleeper("/a", 1)).await;
    let never =
        json!({"labels": {"new": "yes"}, "readinessChecks": [{"portName": "default", "intervalSeconds": 0.05}]});
    let id = marathon.ok("PUT /v2/apps/a", never.clone()).await["deploymentId"].as_str().unwrap().to_owned();
    let undone = marathon.ok(&format!("DELETE /v2/deployments/{id}"), json!({})).await;
    assert_ne!(undone["deploymentId"], json!(id));
    marathon.done("/a").await;
    assert_eq!(marathon.get("/v2/apps/a").await.json()["app"]["labels"], json!({}));

    let id = marathon.ok("PUT /v2/apps/a", never).await["deploymentId"].as_str().unwrap().to_owned();
    let ended = marathon.send(&format!("DELETE /v2/deployments/{id}?force=true"), json!({})).await;
    assert_eq!((ended.status, ended.body.len()), (202, 0));
    assert_eq!(marathon.get("/v2/apps/a").await.json()["app"]["labels"], json!({"new": "yes"}), "what was put stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_put_with_all_that_is_in_it() {
    let marathon = Marathon::start();
    let app = |id: &str| json!({"id": id, "cmd": "exec sleep 1000", "instances": 1});
    marathon
        .ok("POST /v2/groups", json!({"id": "/sea", "apps": [app("web")], "groups": [{"id": "deep", "apps": [app("db"), app("/sea/deep/kv")]}]}))
        .await;
    for id in ["/sea/web", "/sea/deep/db", "/sea/deep/kv"] {
        marathon.done(id).await;
    }
    let root = marathon.get("/v2/groups").await.json();
    assert_eq!(root["groups"][0]["apps"][0]["id"], "/sea/web");
    assert_eq!(root["groups"][0]["groups"][0]["id"], "/sea/deep");
    assert_eq!(root["groups"][0]["groups"][0]["apps"].as_array().unwrap().len(), 2);
    assert_eq!(marathon.send("POST /v2/groups", json!({"id": "/sea"})).await.status, 409);

    // What a new list leaves out goes; what is not mentioned stays.
    marathon.ok("PUT /v2/groups/sea/deep", json!({"apps": [app("db")]})).await;
    marathon.done("/sea/deep/kv").await;
    assert_eq!(marathon.get("/v2/apps/sea/deep/kv").await.status, 404);
    marathon.ok("PUT /v2/groups/sea", json!({"scaleBy": 2})).await;
    marathon.done("/sea/web").await;
    assert_eq!(marathon.get("/v2/apps/sea/deep/db").await.json()["app"]["instances"], 2);
    let all = marathon.get("/v2/apps//sea/*").await.json();
    assert_eq!(all["*"].as_array().unwrap().len(), 2);

    marathon.done("/sea/deep/db").await;
    let gone = marathon.ok("DELETE /v2/groups/sea", json!({})).await;
    assert!(gone["deploymentId"].is_string());
    assert_eq!(marathon.get("/v2/groups/sea").await.status, 404);
    marathon.done("/sea/web").await;
    assert_eq!(marathon.get("/v2/tasks").await.json(), json!({"tasks": []}));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_apps_change_in_one_deployment() {
    let marathon = Marathon::start();
    let both = json!([sleeper("/a", 1), sleeper("/b", 1)]);
    let done = marathon.ok("PUT /v2/apps", both).await;
    let deployments = marathon.get("/v2/deployments").await.json();
    if let Some(deployment) = deployments.get(0) {
        assert_eq!((&deployment["id"], &deployment["affectedApps"]), (&done["deploymentId"], &json!(["/a", "/b"])));
    }
    marathon.done("/a").await;
    marathon.done("/b").await;
    assert_eq!(marathon.send("PATCH /v2/apps", json!([sleeper("/c", 1)])).await.status, 404);
    marathon.ok("PATCH /v2/apps", json!([{"id": "/a", "instances": 2}, {"id": "/b", "instances": 0}])).await;
    marathon.done("/a").await;
    assert_eq!((marathon.standin.tasks("/a").len(), marathon.standin.tasks("/b").len()), (2, 0));
}
