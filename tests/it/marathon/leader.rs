//! Several endpoints: redirection, proxying, elections; and who may ask at all.

use serde_json::json;
use tidegate_tests::marathon::{Command, FailOver, Settings};

use super::{
    Marathon,
    client::{Events, eventually, send, try_send},
    demo, merged, sleeper,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_redirects_the_stream_and_asks_the_leader_for_the_rest() {
    let marathon = Marathon::with(2, Settings::default());
    marathon.run(sleeper("/a", 1)).await;
    let urls = marathon.standin.urls();
    let (leader, standby) = (&urls[0], &urls[1]);
    let redirect = send(standby, "GET /v2/events?event_type=x", "Accept: text/event-stream\r\n", None).await;
    assert_eq!(
        (redirect.status, redirect.header("location")),
        (302, Some(&*format!("{leader}/v2/events?event_type=x")))
    );

    let direct = send(leader, "GET /v2/apps", "", None).await;
    let proxied = send(standby, "GET /v2/apps", "", None).await;
    assert_eq!(direct.json(), proxied.json());
    assert_eq!((direct.header("x-marathon-leader"), direct.header("x-marathon-via")), (Some(leader.as_str()), None));
    let via = format!("1.1 {}", standby.trim_start_matches("http://"));
    assert_eq!(
        (proxied.header("x-marathon-leader"), proxied.header("x-marathon-via")),
        (Some(leader.as_str()), Some(&*via))
    );
    for url in &urls {
        assert_eq!(send(url, "GET /v2/leader", "", None).await.json()["leader"], leader.trim_start_matches("http://"));
        assert_eq!(send(url, "GET /ping", "", None).await.text().trim(), "pong");
    }
    let info = marathon.get("/v2/info").await.json();
    assert_eq!((&info["elected"], &info["leader"]), (&json!(true), &json!(leader.trim_start_matches("http://"))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_leader_closes_streams_until_it_is_ready_and_knows_no_health() {
    let marathon = Marathon::with(2, Settings::default());
    // The second check is made by Mesos, which remembers.
    let checks = json!({"healthChecks": [
        {"protocol": "HTTP", "path": "/health", "intervalSeconds": 0.05, "gracePeriodSeconds": 20},
        {"protocol": "COMMAND", "command": {"value": "true"}, "intervalSeconds": 0.05, "gracePeriodSeconds": 20},
    ]});
    marathon.run(merged(demo("/web", 1, ""), checks)).await;
    let urls = marathon.standin.urls();
    let mut events = Events::open(&urls[0], "").await;
    events.until_kind("event_stream_attached").await;
    let host = marathon.standin.tasks("/web")[0].host().to_owned();
    // Nothing answers the checks any more, so that what the new leader knows stays to be seen.
    marathon.standin.run(Command::FreezeAgent { host: host.clone(), frozen: true }).await.unwrap();
    let over = marathon.standin.fail_over(FailOver { election_ms: 200, warming_ms: 1000, empty_ms: 0 });
    let watch = async {
        while events.next().await.is_some() {}
        eventually("the other one is elected", async || {
            let leader = send(&urls[1], "GET /v2/apps", "", None).await;
            (leader.status == 503).then_some(())
        })
        .await;
        let mut early = Events::open(&urls[1], "").await;
        assert!(early.head.starts_with("HTTP/1.1 200"));
        assert_eq!(early.next().await, None, "accepted, and closed at once");
    };
    tokio::join!(over, watch);
    assert_eq!(marathon.standin.url(), urls[1]);
    let results = marathon.get("/v2/apps/web").await;
    assert_eq!(results.status, 200);
    let results = results.json()["app"]["tasks"][0]["healthCheckResults"].clone();
    assert_eq!(results.as_array().unwrap().len(), 1, "Mesos' own result is there at once: {results}");
    let mut events =
        Events::open(&urls[1], "?event_type=instance_health_changed_event&event_type=event_stream_attached").await;
    events.until_kind("event_stream_attached").await;
    marathon.standin.run(Command::FreezeAgent { host, frozen: false }).await.unwrap();
    let known = events.until_kind("instance_health_changed_event").await.pop().unwrap().1;
    assert_eq!(known["healthy"], true);
    let redirect = send(&urls[0], "GET /v2/events", "Accept: text/event-stream\r\n", None).await;
    assert_eq!(redirect.status, 302, "the old leader is a standby now");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_leader_a_request_waits_and_then_gives_up() {
    let marathon = Marathon::start();
    assert_eq!(marathon.send("DELETE /v2/leader", json!({})).await.json()["message"], "Leadership abdicated");
    eventually("the same one leads again", async || (marathon.get("/v2/info").await.status == 200).then_some(())).await;
    let over = marathon.standin.fail_over(FailOver { election_ms: 4000, warming_ms: 0, empty_ms: 0 });
    let ask = async {
        eventually("there is none", async || {
            let reply = send(&marathon.url, "GET /v2/apps", "", None).await;
            (reply.status == 502).then_some(reply)
        })
        .await
    };
    let ((), reply) = tokio::join!(over, ask);
    assert_eq!(reply.text(), "Could not determine the current leader");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_can_die_and_come_back() {
    let marathon = Marathon::with(2, Settings::default());
    let urls = marathon.standin.urls();
    let mut events = Events::open(&urls[0], "").await;
    events.until_kind("event_stream_attached").await;
    marathon.standin.run(Command::Node { index: 0, up: false }).await.unwrap();
    assert_eq!(events.next().await, None);
    let refused = try_send(&urls[0], "GET /ping", "", None).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(send(&urls[1], "GET /ping", "", None).await.status, 200);
    marathon.standin.run(Command::Node { index: 0, up: true }).await.unwrap();
    eventually("it answers", async || try_send(&urls[0], "GET /ping", "", None).await.ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_asked_for_everywhere() {
    let settings = Settings { credentials: Some(("sea".into(), "tide".into())), ..Settings::default() };
    let marathon = Marathon::with(1, settings);
    for path in ["/v2/apps", "/ping", "/v2/events"] {
        let refused = marathon.get(path).await;
        assert_eq!(refused.status, 401, "{path}");
        assert!(refused.header("www-authenticate").unwrap().starts_with("Basic realm="));
        assert!(refused.json()["message"].is_string());
    }
    for (given, status) in [("Basic c2VhOnRpZGU=", 200), ("Basic c2VhOmViYg==", 401), ("Bearer c2VhOnRpZGU=", 401)] {
        let reply = send(&marathon.url, "GET /v2/apps", &format!("Authorization: {given}\r\n"), None).await;
        assert_eq!(reply.status, status, "{given}");
    }
}
