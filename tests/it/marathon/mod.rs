//! The Marathon stand-in does what Marathon does, to the byte where clients look at bytes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here, also in its helpers")]

mod apps;
mod client;
mod events;
mod faults;
mod leader;
mod rollout;
mod tasks;

use std::time::Duration;

use serde_json::{Value, json};
use tidegate_tests::marathon::{Config, Settings, Standin};

use self::client::{LIMIT, Reply, eventually, send};

/// A stand-in on loopback, and how to talk to it.
struct Marathon {
    standin: Standin,
    url: String,
}

impl Marathon {
    fn start() -> Marathon {
        Self::with(1, Settings::default())
    }

    fn with(nodes: usize, settings: Settings) -> Marathon {
        let standin = Standin::start(Config { settings, ..Config::local(nodes).unwrap() }).unwrap();
        Marathon { url: standin.url(), standin }
    }

    async fn get(&self, path: &str) -> Reply {
        send(&self.url, &format!("GET {path}"), "", None).await
    }

    async fn send(&self, line: &str, body: Value) -> Reply {
        send(&self.url, line, "", Some(&body)).await
    }

    /// Sends, and expects 200 or 201.
    async fn ok(&self, line: &str, body: Value) -> Value {
        let reply = self.send(line, body).await;
        assert!(matches!(reply.status, 200 | 201), "{line}: {} {}", reply.status, reply.text());
        reply.json()
    }

    async fn done(&self, app: &str) {
        self.standin.wait_deployments_done(app, LIMIT).await.unwrap();
    }

    /// Puts an app and waits until it runs.
    async fn run(&self, app: Value) {
        let id = app["id"].as_str().unwrap().to_owned();
        self.standin.put_app(app).unwrap();
        self.done(&id).await;
    }
}

/// The demo app, with more arguments.
fn demo(id: &str, instances: u32, arguments: &str) -> Value {
    json!({
        "id": id, "instances": instances, "cmd": format!("exec {} {arguments}", env!("CARGO_BIN_EXE_demo_app")),
        "portDefinitions": [{"port": 0, "protocol": "tcp", "name": "http", "labels": {"VIP_0": "/web:80"}}],
        "labels": {"team": "sea", "tier": "front"},
    })
}

/// Something that runs without doing anything, and dies at once when told.
fn sleeper(id: &str, instances: u32) -> Value {
    json!({"id": id, "instances": instances, "cmd": "exec sleep 1000", "taskKillGracePeriodSeconds": 5})
}

fn merged(mut app: Value, more: Value) -> Value {
    app.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    app
}

fn alive(pid: i32) -> bool {
    // SAFETY: signal 0 only asks.
    unsafe { libc::kill(pid, 0) == 0 }
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_it_kills_every_task() {
    let marathon = Marathon::start();
    marathon.run(sleeper("/a", 3)).await;
    let pids: Vec<i32> = marathon.standin.tasks("/a").iter().filter_map(|t| t.pid).collect();
    assert_eq!(pids.len(), 3);
    assert!(pids.iter().all(|pid| alive(*pid)));
    marathon.standin.stop().await;
    assert!(!pids.iter().any(|pid| alive(*pid)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_app_finishes_what_it_began_and_says_goodbye() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let marathon = Marathon::start();
    marathon.run(demo("/web", 1, "--drain 400")).await;
    let task = marathon.standin.tasks("/web").remove(0);
    let address = marathon.standin.endpoint(&task).unwrap();
    let url = format!("http://{address}");
    eventually("it listens", async || client::try_send(&url, "GET /health", "", None).await.ok()).await;
    let who = send(&url, "GET /", "", None).await.json();
    assert_eq!((&who["task"], &who["app"]), (&json!(task.task_id()), &json!("/web")));
    assert_eq!(send(&url, "POST /echo", "", Some(&json!({"a": 1}))).await.json(), json!({"a": 1}));

    let mut open = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut line = vec![0; 4096];
    open.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let n = open.read(&mut line).await.unwrap();
    assert!(String::from_utf8_lossy(&line[..n]).contains("Connection: keep-alive"));
    // A slow request is on its way when the end is announced, and gets its answer.
    open.write_all(b"GET /slow?ms=600 HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    marathon.standin.scale("/web", 0).unwrap();
    let lame = eventually("a new connection is told to go away", async || {
        let reply = client::try_send(&url, "GET /health", "Connection: keep-alive\r\n", None).await.ok()?;
        (reply.header("connection") == Some("close")).then_some(reply)
    });
    assert_eq!(lame.await.status, 200);
    let mut answer = Vec::new();
    open.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("Connection: close"), "{answer}");
    marathon.done("/web").await;
    marathon.standin.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_synthetic_apps_are_there_at_once_and_a_change_is_followed_to_the_wire() {
    use tidegate_tests::marathon::{SyntheticChange, SyntheticTask};
    let marathon = Marathon::start();
    let task =
        |n: u32| SyntheticTask { host: "10.77.1.1".into(), ports: vec![31_000 + (n % 1000) as u16], addresses: vec![] };
    let apps = (0..10_000).map(|n| (json!({"id": format!("/bulk/app-{n}")}), (0..10).map(task).collect()));
    marathon.standin.add_synthetic(apps).unwrap();
    let all = marathon.get("/v2/apps?embed=apps.tasks").await.json();
    let apps = all["apps"].as_array().unwrap();
    assert_eq!(apps.len(), 10_000);
    assert!(apps.iter().all(|app| app["tasks"].as_array().unwrap().len() == 10));

    let mut events = client::Events::open(&marathon.url, "").await;
    events.until_kind("event_stream_attached").await;
    let before = std::time::Instant::now();
    let pushed = marathon.standin.push("/bulk/app-77", SyntheticChange::Start(task(77))).unwrap();
    let id = pushed.instance.to_string();
    let said = events.until_kind("instance_changed_event").await;
    let seen = std::time::Instant::now();
    assert_eq!(said[0].1["taskStatus"], "TASK_RUNNING");
    let written = pushed.written().await;
    assert!(before < written && written < seen);
    let app = marathon.get("/v2/apps/bulk/app-77").await.json();
    assert_eq!(app["app"]["instances"], 11);
    marathon.standin.push("/bulk/app-77", SyntheticChange::Killed(id.clone())).unwrap();
    let app = marathon.get("/v2/apps/bulk/app-77").await.json();
    assert_eq!(app["app"]["tasks"].as_array().unwrap().len(), 10);
    assert!(marathon.standin.push("/bulk/app-77", SyntheticChange::Killed(id)).is_err());
}

/// All network modes, checked from a namespace of Marathon's own.
#[tokio::test(flavor = "multi_thread")]
async fn tasks_run_in_every_network_mode_of_the_lab() {
    use tidegate_tests::{
        lab::{self, Fabric, addresses},
        marathon::{Dialer, Place},
    };
    if !lab::require() {
        return;
    }
    let fabric = Fabric::new().unwrap();
    let host = fabric.host("marathon", addresses::MARATHON).unwrap();
    let agents = [("host-a", addresses::HOST_A), ("host-b", addresses::HOST_B)];
    let agents = agents.map(|(name, at)| Place::Lab(fabric.agent(name, at).unwrap()));
    let config = Config {
        nodes: vec![(host.ns.run(|| std::net::TcpListener::bind("10.77.0.2:8080").unwrap()), "10.77.0.2:8080".into())],
        agents: agents.into(),
        dialer: Dialer::Lab(host.ns.clone()),
        settings: Settings::default(),
    };
    let standin = Standin::start(config).unwrap();
    let check = json!({"healthChecks": [
        {"protocol": "HTTP", "path": "/health", "intervalSeconds": 0.1, "gracePeriodSeconds": 10},
        {"protocol": "COMMAND", "command": {"value": "true"}, "intervalSeconds": 0.1, "gracePeriodSeconds": 10},
    ]});
    let modes = [
        ("/host", "", json!({})),
        (
            "/bridge",
            "--port 8080",
            json!({"networks": [{"mode": "container/bridge"}],
            "container": {"portMappings": [{"containerPort": 8080, "hostPort": 0}]}}),
        ),
        (
            "/container",
            "--port 8080",
            json!({"networks": [{"mode": "container", "name": "flat"}],
            "container": {"portMappings": [{"containerPort": 8080}]}}),
        ),
    ];
    for (id, arguments, more) in &modes {
        let mut app = merged(merged(demo(id, 2, arguments), check.clone()), more.clone());
        if *id != "/host" {
            app.as_object_mut().unwrap().remove("portDefinitions");
        }
        standin.put_app(app).unwrap();
    }
    for (id, ..) in &modes {
        // Only what the check has reached is healthy, and only then is the deployment over.
        standin.wait_deployments_done(id, LIMIT).await.unwrap();
        for task in standin.tasks(id) {
            let address = standin.endpoint(&task).unwrap();
            match *id {
                "/container" => {
                    assert!(task.ports.is_empty() && address.port() == 8080 && task.addresses.contains(&address.ip()))
                }
                _ => assert!(address.ip().to_string() == task.host() && address.port() == task.ports[0]),
            }
        }
        let hosts: std::collections::BTreeSet<String> = standin.tasks(id).iter().map(|t| t.host().to_owned()).collect();
        assert_eq!(hosts.len(), 2, "{id} is spread over the agents");
    }
    tokio::time::timeout(Duration::from_secs(10), standin.stop()).await.unwrap();
}
