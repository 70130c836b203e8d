use std::{collections::BTreeSet, sync::Arc};

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::node::Node;

const DEMO: &str = r#"{"type":"layer4","app":"/demo","ports":[{"listen":80,"target":8080}]}"#;

#[tokio::test]
async fn an_elb_is_made_changed_shown_and_removed() {
    let node = Node::control().await;
    node.marathon_runs(&["/demo"]).await;
    let (status, made) = node.ask("PUT", "/v1/elbs/demo", DEMO).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    assert_eq!(made["vips"], json!(["10.77.100.1", "fd77:0:100::1"]));
    assert_eq!(made["dns_name"], "demo.elb.mesos");
    assert_eq!(made["revision"], 1);
    assert_eq!(made["spec"]["ports"][0]["protocol"], "tcp");
    assert_eq!(made["status"]["ports"][0]["app"], "/demo");

    let (status, same) = node.ask("PUT", "/v1/elbs/demo", DEMO).await;
    assert_eq!((status, &same["revision"]), (StatusCode::OK, &json!(1)), "{same}");
    // What was given can be sent back.
    let (status, same) = node.ask("PUT", "/v1/elbs/demo", &made["spec"].to_string()).await;
    assert_eq!((status, &same["revision"]), (StatusCode::OK, &json!(1)), "{same}");

    let (status, changed) = node.ask("PUT", "/v1/elbs/demo", &DEMO.replace("80,", "81,")).await;
    assert_eq!((status, &changed["revision"]), (StatusCode::OK, &json!(2)), "{changed}");
    assert_eq!(changed["vips"], made["vips"]);

    let (status, list) = node.ask("GET", "/v1/elbs", "").await;
    assert_eq!((status, &list["elbs"][0]["name"]), (StatusCode::OK, &json!("demo")), "{list}");
    assert_eq!(node.store.load().unwrap().desired.revision, 2);

    assert_eq!(node.ask("DELETE", "/v1/elbs/demo", "").await.0, StatusCode::NO_CONTENT);
    let (status, gone) = node.ask("DELETE", "/v1/elbs/demo", "").await;
    assert_eq!((status, &gone["error"]), (StatusCode::NOT_FOUND, &json!("there is no ELB demo")));
    assert_eq!(node.ask("GET", "/v1/elbs/demo", "").await.0, StatusCode::NOT_FOUND);
    assert!(node.store.load().unwrap().desired.elbs.is_empty());
}

#[tokio::test]
async fn a_bad_request_says_what_is_wrong_and_what_to_do_and_changes_nothing() {
    let node = Node::control().await;
    node.marathon_runs(&["/demo"]).await;
    let (_, before) = node.ask("PUT", "/v1/elbs/demo", DEMO).await;
    let put = |body: &str| ("PUT", "/v1/elbs/new", body.to_owned());
    let table: Vec<((&str, &str, String), u16, &str)> = vec![
        (put(""), 400, "empty"),
        (put("{\"type\":\"layer4\",\n  \"app\": }"), 400, "line 2 column"),
        (put("{"), 400, "line 1"),
        (put("[]"), 422, ""),
        (put("{}"), 422, "type"),
        (put(r#"{"type":"layer5"}"#), 422, "layer4"),
        (put(&DEMO.replace("\"app\"", "\"ap\"")), 422, "unknown field `ap`"),
        (put("{\"type\":\"layer4\",\n\"ap\":1,\"app\":\"/demo\",\"ports\":[]}"), 422, "line 2 column 1"),
        (put(&DEMO.replace("80,", "70000,")), 422, "70000"),
        (put(&DEMO.replace("80,", "0,")), 422, "port 0"),
        (put(r#"{"type":"layer4","app":"/demo","ports":[]}"#), 422, "at least one port"),
        (put(r#"{"type":"layer4","app":"/demo"}"#), 422, "ports"),
        (put(&DEMO.replace("{\"type\"", "{\"forward\":\"ipip\",\"type\"")), 422, "forward: 80:8080 cannot be served"),
        (put(&DEMO.replace("{\"type\"", "{\"forward\":\"nat\",\"type\"")), 422, "`nat`, expected one of `fullnat`"),
        (
            put(
                "{\"type\":\"layer4\",\"app\":\"/demo\",\"ports\":[{\"listen\":80}],\n\"protection\":{\"deny\":[\"10.0.0.0/33\"]}}",
            ),
            422,
            "like 10.0.0.0/8 or 2001:db8::/32 at line 2 column 23",
        ),
        (put(r#"{"type":"layer7","rules":[]}"#), 422, "at least one rule"),
        (put(r#"{"type":"layer7","rules":[{"app":"/demo","host":"http://a"}]}"#), 422, "not a host"),
        (put(&DEMO.replace("/demo", "/dmeo")), 422, "/dmeo"),
        (put(&DEMO.replace("/demo", "demo")), 422, "not a job"),
        (put(&DEMO.replace("{\"type\"", "{\"vips\":[\"192.0.2.1\"],\"type\"")), 422, "192.0.2.1"),
        (put(&DEMO.replace("{\"type\"", "{\"vips\":[\"10.77.100.1\"],\"type\"")), 422, "demo"),
        (put(&DEMO.replace("{\"type\"", "{\"vips\":[\"10.77.100.300\"],\"type\"")), 422, "IP"),
        (put(&DEMO.replace("{\"type\"", "{\"scope\":\"external\",\"type\"")), 422, "external"),
        (("PUT", "/v1/elbs/Not_A_Name", DEMO.to_owned()), 422, "not an ELB's name"),
        (("PUT", "/v1/elbs/%ff", DEMO.to_owned()), 400, "UTF-8"),
        (("PUT", "/v1/elbs/new?allow=1", DEMO.to_owned()), 400, "allow"),
        (("PUT", "/v1/elbs/new?allow_missing=perhaps", DEMO.to_owned()), 400, "allow_missing"),
        (("PUT", "/v1/elbs/new?allow_missing", DEMO.to_owned()), 400, "allow_missing"),
        (("PUT", "/v1/elbs/demo", r#"{"type":"layer7","rules":[{"app":"/demo"}]}"#.to_owned()), 422, "other type"),
        (("POST", "/v1/elbs/new", DEMO.to_owned()), 405, "POST"),
        (("POST", "/v1/elbs", DEMO.to_owned()), 405, "POST"),
        (("GET", "/v1/elb", String::new()), 404, "/v1/elb"),
        (("GET", "/v1/elbs/", String::new()), 404, "/v1/elbs/"),
        (("GET", "/v1/desired?since=x", String::new()), 400, "since"),
        (("PUT", "/v1/elbs/new", " ".repeat(3 << 20)), 413, "limit"),
    ];
    for ((method, path, body), status, says) in table {
        let (got, answer) = node.ask(method, path, &body).await;
        let shown = &body[..body.len().min(100)];
        assert_eq!(got.as_u16(), status, "{method} {path} {shown}: {answer}");
        let error = answer["error"].as_str().unwrap_or_else(|| panic!("{method} {path} {shown}: {answer}"));
        let hint = answer["hint"].as_str().unwrap_or_default();
        assert!(format!("{error}\n{hint}").contains(says), "{method} {path} {shown}: {answer} does not say {says:?}");
    }
    let (_, list) = node.ask("GET", "/v1/elbs", "").await;
    assert_eq!(list["elbs"].as_array().unwrap().len(), 1);
    assert_eq!(list["revision"], before["revision"]);
}

#[tokio::test]
async fn how_packets_are_treated_is_kept_shown_and_can_be_sent_back() {
    const GUARDED: &str = r#"{"type":"layer4","app":"/demo","ports":[{"listen":80,"target":8080}],"client_address":"toa",
        "protection":{"allow":["10.0.0.0/8"],"per_vip":{"per_second":20000},"syn_cookies_above":5000},
        "health":{"type":"http","path":"/healthz"},"slow_start_s":30}"#;
    let node = Node::control().await;
    node.marathon_runs(&["/demo"]).await;
    let (status, plain) = node.ask("PUT", "/v1/elbs/demo", DEMO).await;
    assert_eq!((status, &plain["spec"]["forward"]), (StatusCode::CREATED, &json!("fullnat")), "{plain}");
    assert_eq!(plain["spec"]["client_address"], "hidden");
    let (status, guarded) = node.ask("PUT", "/v1/elbs/demo", GUARDED).await;
    assert_eq!((status, &guarded["revision"]), (StatusCode::OK, &json!(2)), "{guarded}");
    assert_eq!(guarded["spec"]["protection"]["per_vip"], json!({"per_second": 20000, "burst": 20000}));
    assert_eq!(guarded["spec"]["health"]["status"], "200-399");
    for again in [GUARDED, &guarded["spec"].to_string()] {
        let (status, same) = node.ask("PUT", "/v1/elbs/demo", again).await;
        assert_eq!((status, &same["revision"]), (StatusCode::OK, &json!(2)), "{same}");
    }
    let kept = node.store.load().unwrap().desired.elbs["demo"].spec.clone();
    assert_eq!(serde_json::to_value(kept).unwrap(), guarded["spec"]);
}

#[tokio::test]
async fn a_wrong_method_is_told_which_are_right() {
    let node = Node::control().await;
    let response = reqwest::Client::new().post(format!("{}/v1/elbs/x", node.url)).send().await.unwrap();
    let allow = response.headers()["allow"].to_str().unwrap().to_owned();
    assert!(allow.contains("PUT") && allow.contains("DELETE"), "{allow}");
}

#[tokio::test]
async fn before_marathon_was_reached_a_job_is_taken_on_trust_and_the_answer_says_so() {
    let node = Node::control().await;
    let (status, made) = node.ask("PUT", "/v1/elbs/demo", DEMO).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    assert!(made["warnings"][0].as_str().unwrap().contains("Marathon has not been reached"), "{made}");
    assert_eq!(made["readiness"]["ready"], false, "{made}");
    assert_eq!(node.ask("GET", "/readyz", "").await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(node.ask("GET", "/healthz", "").await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_job_may_be_missing_where_that_is_allowed() {
    let node = Node::control().await;
    node.marathon_runs(&["/other"]).await;
    assert_eq!(node.ask("PUT", "/v1/elbs/demo", DEMO).await.0, StatusCode::UNPROCESSABLE_ENTITY);
    let (status, made) = node.ask("PUT", "/v1/elbs/demo?allow_missing=true", DEMO).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    assert!(made["warnings"][0].as_str().unwrap().contains("runs no /demo yet"), "{made}");
}

#[tokio::test]
async fn who_has_seen_an_older_revision_is_refused() {
    let node = Node::control().await;
    let changed = DEMO.replace("80,", "81,");
    let put = async |body: &str, header: &str, value: &str| {
        node.ask_with("PUT", "/v1/elbs/demo", body, &[(header, value)]).await.0.as_u16()
    };
    assert_eq!(put(DEMO, "if-match", "\"1\"").await, 412, "there is none yet");
    assert_eq!(put(DEMO, "if-match", "*").await, 412, "there is none yet");
    assert_eq!(put(DEMO, "if-none-match", "*").await, 201);
    assert_eq!(put(DEMO, "if-none-match", "*").await, 412);
    assert_eq!(put(&changed, "if-match", "\"7\", \"1\"").await, 200);
    assert_eq!(put(DEMO, "if-match", "\"1\"").await, 412);
    assert_eq!(put(DEMO, "if-match", "*").await, 200);
    assert_eq!(put(DEMO, "if-match", "one").await, 400);
    assert_eq!(put(DEMO, "if-none-match", "\"1\"").await, 400);
    let (status, answer) = node.ask_with("DELETE", "/v1/elbs/demo", "", &[("if-match", "\"2\"")]).await;
    assert_eq!(status, StatusCode::PRECONDITION_FAILED);
    assert!(answer["error"].as_str().unwrap().contains("revision 3"), "{answer}");
    let response = reqwest::get(format!("{}/v1/elbs/demo", node.url)).await.unwrap();
    let tag = response.headers()["etag"].to_str().unwrap().to_owned();
    let (status, _) = node.ask_with("DELETE", "/v1/elbs/demo", "", &[("if-match", &tag)]).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn two_writers_at_once_are_served_one_after_the_other() {
    let node = Node::control().await;
    node.marathon_runs(&["/demo"]).await;
    let writes = (0..20).map(|i| {
        let (node, path) = (&node, format!("/v1/elbs/e{}", i % 10));
        async move { node.ask("PUT", &path, DEMO).await.0.as_u16() }
    });
    let mut statuses = futures_util::future::join_all(writes).await;
    statuses.sort_unstable();
    assert_eq!(statuses, [[200; 10], [201; 10]].concat());
    let (_, list) = node.ask("GET", "/v1/elbs", "").await;
    let vips: BTreeSet<String> = list["elbs"].as_array().unwrap().iter().map(|elb| elb["vips"].to_string()).collect();
    assert_eq!((vips.len(), &list["revision"]), (10, &json!(10)));
}

#[tokio::test]
async fn an_elb_is_ready_when_every_plane_has_applied_it() {
    let node = Node::with_planes().await;
    node.marathon_runs(&["/demo"]).await;
    node.ask("PUT", "/v1/elbs/demo", DEMO).await;
    let (_, shown) = node.ask("GET", "/v1/elbs/demo", "").await;
    assert_eq!(shown["readiness"]["ready"], false, "{shown}");
    assert!(shown["readiness"]["reasons"][0].as_str().unwrap().starts_with("l4 has applied"), "{shown}");
    let published = node.view.now().published();
    node.reporters.l4.send_replace(Arc::new(tidegate_l4::Report { generation: published.l4, ..Default::default() }));
    node.reporters.l7.send_replace(Arc::new(tidegate_l7::Report { generation: published.l7, ..Default::default() }));
    let (_, shown) = node.ask("GET", "/v1/elbs/demo", "").await;
    assert_eq!(shown["readiness"]["reasons"].as_array().unwrap().len(), 1, "{shown}");
    node.reporters.dns.send_replace(Arc::new(tidegate_dns::Report { generation: published.dns, ..Default::default() }));
    let (_, shown) = node.ask("GET", "/v1/elbs/demo", "").await;
    assert_eq!(shown["readiness"]["ready"], true, "{shown}");
    assert_eq!(node.ask("GET", "/readyz", "").await.0, StatusCode::OK);

    // The addresses are withdrawn before the answer: a plane that lags is waited for.
    let reporter = node.reporters.dns.clone();
    let mut inputs = node.inputs.clone();
    inputs.mark_unchanged();
    let plane = tokio::spawn(async move {
        inputs.changed().await.unwrap();
        let generation = inputs.borrow().generation;
        reporter.send_replace(Arc::new(tidegate_dns::Report { generation, ..Default::default() }));
        generation
    });
    let l4 = node.reporters.l4.clone();
    l4.send_replace(Arc::new(tidegate_l4::Report { generation: u64::MAX, ..Default::default() }));
    node.reporters.l7.send_replace(Arc::new(tidegate_l7::Report { generation: u64::MAX, ..Default::default() }));
    assert_eq!(node.ask("DELETE", "/v1/elbs/demo", "").await.0, StatusCode::NO_CONTENT);
    assert_eq!(plane.await.unwrap(), node.view.now().published().dns);
}

#[tokio::test]
async fn pages_render_for_people() {
    let node = Node::control().await;
    let page = async |path: &str| {
        let response = reqwest::get(format!("{}{path}", node.url)).await.unwrap();
        (response.status(), response.headers()["content-type"].clone(), response.text().await.unwrap())
    };
    assert!(page("/").await.2.contains("tidegate elb create"));
    node.marathon_runs(&["/demo"]).await;
    node.ask("PUT", "/v1/elbs/demo", DEMO).await;
    let (status, kind, text) = page("/").await;
    assert_eq!((status, kind.to_str().unwrap()), (StatusCode::OK, "text/html; charset=utf-8"));
    assert!(text.contains("href=\"/elbs/demo\"") && text.contains("10.77.100.1"), "{text}");
    let (_, _, text) = page("/elbs/demo").await;
    for word in ["demo.elb.mesos", "fd77:0:100::1", "/demo", "http-equiv=\"refresh\""] {
        assert!(text.contains(word), "{word} is missing in {text}");
    }
    let (status, _, text) = page("/elbs/%3Cscript%3E").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(!text.contains("<script>"), "{text}");
}

#[tokio::test]
async fn every_metric_has_help_and_type() {
    let node = Node::with_planes().await;
    node.marathon_runs(&["/demo"]).await;
    let (_, Value::String(text)) = node.ask("GET", "/metrics", "").await else { panic!("not text") };
    let mut described = BTreeSet::new();
    for line in text.lines() {
        match line.strip_prefix("# ") {
            Some(comment) => drop(described.insert(comment.split(' ').nth(1).unwrap().to_owned())),
            None => {
                let name = line.split(['{', ' ']).next().unwrap();
                assert!(described.contains(name), "{line}");
                assert!(name.starts_with("tidegate_"), "{line}");
            }
        }
    }
    assert!(text.contains("tidegate_marathon_attached 1\n"), "{text}");
}

#[tokio::test]
async fn the_description_names_every_route_and_only_routes() {
    let node = Node::control().await;
    let (status, document) = node.ask("GET", "/v1/openapi.json", "").await;
    assert_eq!(status, StatusCode::OK);
    let mut described = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            described.insert(format!("{} {path}", method.to_uppercase()));
            let path = path.replace("{name}", "nothing");
            let (status, answer) = node.ask(&method.to_uppercase(), &path, "").await;
            assert_ne!(status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
            assert!(
                !answer["error"].as_str().unwrap_or_default().starts_with("there is no /"),
                "{method} {path}: {answer}"
            );
        }
    }
    let routes = [
        "GET /",
        "GET /elbs/{name}",
        "GET /v1/elbs",
        "GET /v1/elbs/{name}",
        "PUT /v1/elbs/{name}",
        "DELETE /v1/elbs/{name}",
        "GET /v1/status",
        "GET /v1/desired",
        "GET /v1/openapi.json",
        "GET /healthz",
        "GET /readyz",
        "GET /metrics",
    ];
    assert_eq!(described, routes.iter().map(ToString::to_string).collect::<BTreeSet<_>>());
    // Every reference leads somewhere.
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(document["components"]["schemas"].get(name).is_some(), "{name} is not described");
    }
}
