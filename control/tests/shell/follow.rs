use reqwest::StatusCode;

use crate::node::{Node, until};

const DEMO: &str = r#"{"type":"layer4","app":"/demo","ports":[{"listen":80,"target":8080}]}"#;

#[tokio::test]
async fn a_follower_takes_every_change_keeps_it_and_takes_none_itself() {
    let control = Node::control().await;
    control.ask("PUT", "/v1/elbs/one", DEMO).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("f.redb");
    let follower = Node::follower(&control.url, &path).await;
    let names = |node: &Node| node.view.now().state.desired.elbs.keys().cloned().collect::<Vec<_>>();
    until("the first ELB has come", || names(&follower) == ["one"]).await;
    control.ask("PUT", "/v1/elbs/two", DEMO).await;
    until("the second ELB has come", || names(&follower) == ["one", "two"]).await;
    control.ask("DELETE", "/v1/elbs/one", "").await;
    until("the first ELB has gone", || names(&follower) == ["two"]).await;
    assert_eq!(follower.view.now().state.desired, control.view.now().state.desired);
    assert_eq!(follower.store.load().unwrap().desired, control.view.now().state.desired);

    let (status, answer) = follower.ask("PUT", "/v1/elbs/three", DEMO).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(answer.to_string().contains(&control.url), "{answer}");
    assert_eq!(follower.ask("DELETE", "/v1/elbs/two", "").await.0, StatusCode::FORBIDDEN);
    assert_eq!(follower.ask("GET", "/v1/elbs/two", "").await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_follower_starts_without_the_control_node_and_says_that_it_misses_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("f.redb");
    let control = Node::control().await;
    control.ask("PUT", "/v1/elbs/one", DEMO).await;
    {
        let follower = Node::follower(&control.url, &path).await;
        until("the ELB is kept", || !follower.store.load().unwrap().desired.elbs.is_empty()).await;
    }
    // The old follower's tasks let go of the file when they have ended.
    until("the store is free", || tidegate_control::io::store::Store::open(&path).is_ok()).await;
    let follower = Node::follower("http://127.0.0.1:9", &path).await;
    assert_eq!(follower.ask("GET", "/v1/elbs/one", "").await.0, StatusCode::OK);
    let missed = || follower.view.alarms(&follower.view.now()).contains_key("control-unreachable");
    until("the alarm is raised", missed).await;
    let (_, status) = follower.ask("GET", "/v1/status", "").await;
    assert!(status["alarms"][0]["text"].as_str().unwrap().contains("127.0.0.1:9"), "{status}");
}

#[tokio::test]
async fn a_control_node_that_has_lost_its_store_takes_nothing_away() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("f.redb");
    let control = Node::control().await;
    control.ask("PUT", "/v1/elbs/one", DEMO).await;
    {
        let follower = Node::follower(&control.url, &path).await;
        until("the ELB is kept", || !follower.store.load().unwrap().desired.elbs.is_empty()).await;
    }
    until("the store is free", || tidegate_control::io::store::Store::open(&path).is_ok()).await;
    let empty = Node::control().await;
    let follower = Node::follower(&empty.url, &path).await;
    until("the alarm is raised", || {
        follower.view.alarms(&follower.view.now()).values().any(|alarm| alarm.text.contains("lost changes"))
    })
    .await;
    assert_eq!(follower.view.now().state.desired.elbs.len(), 1);
}
