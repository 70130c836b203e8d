//! Answers in Marathon's shape, old and new.

use proptest::prelude::*;

use super::*;

const V1: &str = "2026-11-24T03:00:00.123Z";

/// An app with its interesting part, and one task.
fn answer(parts: &str, task: &str) -> String {
    format!(
        r#"{{"app":{{"id":"/shop/web","acceptedResourceRoles":["*"],"cmd":null,"cpus":0.1,"mem":32,"instances":2,
        "version":"{V1}","tasksRunning":1,"deployments":[],{parts},"tasks":[{{
        "id":"shop_web.instance-8a1d2c3e-1111-11ee-a000-0242ac110002._app.1","appId":"/shop/web","host":"10.77.1.1",
        "slaveId":"e1c0ffee-S0","stagedAt":"2026-11-24T03:00:01.000Z","startedAt":"2026-11-24T03:00:02.000Z",
        "version":"{V1}","state":"TASK_RUNNING","localVolumes":[],"servicePorts":[],{task}}}]}}}}"#
    )
}

fn read(parts: &str, task: &str) -> App {
    let answer = answer(parts, task);
    decode_one(answer.as_bytes()).unwrap_or_else(|error| panic!("{error}: {answer}"))
}

fn only(app: &App) -> &Instance {
    app.instances.values().next().expect("one instance")
}

#[test]
fn every_style_of_ports_is_understood() {
    // (container, host, name, tcp, udp)
    type Flat<'a> = (u16, Option<u16>, Option<&'a str>, bool, bool);
    let table: [(&str, Network, Vec<Flat<'_>>); 11] = [
        (
            r#""networks":[{"mode":"host"}],"portDefinitions":[{"port":10000,"protocol":"tcp","name":"http","labels":{}},{"port":10001,"protocol":"udp"}]"#,
            Network::Host,
            vec![(10000, Some(10000), Some("http"), true, false), (10001, Some(10001), None, false, true)],
        ),
        (
            r#""ports":[10000,10001]"#,
            Network::Host,
            vec![(10000, Some(10000), None, true, false), (10001, Some(10001), None, true, false)],
        ),
        (
            r#""networks":[{"mode":"container/bridge"}],"container":{"type":"DOCKER","docker":{"image":"x"},"portMappings":[{"containerPort":8080,"hostPort":0,"servicePort":10000,"protocol":"tcp","name":"http","labels":{"VIP_0":"/web:80"}},{"containerPort":53,"protocol":"udp,tcp"}]}"#,
            Network::Bridge,
            vec![(8080, Some(0), Some("http"), true, false), (53, Some(0), None, true, true)],
        ),
        (
            r#""networks":[{"mode":"container","name":"dcos"}],"container":{"portMappings":[{"containerPort":8080,"hostPort":0},{"containerPort":9090,"hostPort":null},{"containerPort":9091}]}"#,
            Network::Container,
            vec![(8080, Some(0), None, true, false), (9090, None, None, true, false), (9091, None, None, true, false)],
        ),
        (r#""networks":[{"name":"dcos"}],"container":null"#, Network::Container, vec![]),
        (
            r#""container":{"docker":{"network":"BRIDGE","portMappings":[{"containerPort":80,"hostPort":0,"name":""}]}}"#,
            Network::Bridge,
            vec![(80, Some(0), None, true, false)],
        ),
        (
            r#""container":{"docker":{"network":"USER","portMappings":[{"containerPort":80}]}},"ipAddress":{"networkName":"n"}"#,
            Network::Container,
            vec![(80, None, None, true, false)],
        ),
        (
            r#""ipAddress":{"groups":[],"discovery":{"ports":[{"number":80,"name":"http","protocol":"tcp"}]}}"#,
            Network::Container,
            vec![(80, None, Some("http"), true, false)],
        ),
        (
            r#""container":{"docker":{"network":"HOST"}},"ports":[5000]"#,
            Network::Host,
            vec![(5000, Some(5000), None, true, false)],
        ),
        (r#""networks":[],"portDefinitions":[]"#, Network::Host, vec![]),
        (r#""labels":null,"healthChecks":null,"readinessChecks":null"#, Network::Host, vec![]),
    ];
    for (parts, network, expected) in table {
        let app = read(parts, r#""ports":[31000]"#);
        let definition = app.newest().unwrap();
        let ports: Vec<Flat<'_>> = definition
            .ports
            .iter()
            .map(|port| (port.container, port.host, port.name.as_deref(), port.tcp, port.udp))
            .collect();
        assert_eq!((definition.network, ports), (network, expected), "{parts}");
    }
}

#[test]
fn a_task_becomes_an_instance() {
    let app = read(
        r#""labels":{"HAPROXY_GROUP":"external"},"healthChecks":[{"protocol":"HTTP","path":"/","maxConsecutiveFailures":2}]"#,
        r#""ports":[31000,31001],"ipAddresses":[{"ipAddress":"10.77.2.5","protocol":"IPv4"},{"ipAddress":"fd77:0:2::5","protocol":"IPv6"}],
           "healthCheckResults":[{"alive":true,"consecutiveFailures":0,"firstSuccess":"2026-11-24T03:00:05.000Z","lastFailure":null,"lastSuccess":"2026-11-24T03:00:05.000Z","lastFailureCause":null,"instanceId":"x"}]"#,
    );
    assert_eq!((&*app.id, &*app.version, app.wanted), ("/shop/web", V1, 2));
    assert_eq!(app.newest().unwrap().labels["HAPROXY_GROUP"], "external");
    let instance = only(&app);
    assert_eq!(&*instance.id, "shop_web.instance-8a1d2c3e-1111-11ee-a000-0242ac110002");
    assert_eq!(&*instance.task, "shop_web.instance-8a1d2c3e-1111-11ee-a000-0242ac110002._app.1");
    assert_eq!((instance.state, instance.health, instance.ready), (TaskState::Running, Health::Healthy, None));
    assert_eq!((&*instance.host, instance.agent.as_deref()), ("10.77.1.1", Some("e1c0ffee-S0")));
    assert_eq!((instance.ports.as_slice(), instance.addresses.len()), ([31000, 31001].as_slice(), 2));
    assert_eq!(instance.started_at, "2026-11-24T03:00:02Z".parse().ok());
}

#[test]
fn health_is_by_all_checks_and_by_their_count() {
    let two = r#""healthChecks":[{"maxConsecutiveFailures":3},{"maxConsecutiveFailures":3}]"#;
    let one = r#""healthChecks":[{}]"#;
    let good = r#"{"alive":true,"consecutiveFailures":0}"#;
    let bad = |count: u32| format!(r#"{{"alive":false,"consecutiveFailures":{count}}}"#);
    let table = [
        (one, String::new(), Health::Unknown),
        (one, good.to_owned(), Health::Healthy),
        (one, bad(1), Health::Unknown),
        (one, bad(3), Health::Unhealthy),
        (two, good.to_owned(), Health::Unknown),
        (two, format!("{good},null"), Health::Unknown),
        (two, format!("{good},{good}"), Health::Healthy),
        (two, format!("{good},{}", bad(4)), Health::Unhealthy),
        (r#""healthChecks":[]"#, good.to_owned(), Health::Unknown),
    ];
    for (checks, results, expected) in table {
        let app = read(checks, &format!(r#""healthCheckResults":[{results}]"#));
        assert_eq!(only(&app).health, expected, "{checks} {results}");
    }
}

#[test]
fn readiness_results_meet_their_task() {
    let check = r#""readinessChecks":[{"name":"r"}]"#;
    let result = |ready: bool| {
        format!(
            r#"{{"name":"r","taskId":"shop_web.instance-8a1d2c3e-1111-11ee-a000-0242ac110002._app.1","ready":{ready}}}"#
        )
    };
    let table = [
        (String::new(), None),
        (result(true), Some(true)),
        (result(false), Some(false)),
        (r#"{"taskId":"other","ready":true}"#.to_owned(), None),
    ];
    for (results, expected) in table {
        let app = read(&format!(r#"{check},"readinessCheckResults":[{results}]"#), r#""ports":[1]"#);
        assert!(app.newest().unwrap().readiness);
        assert_eq!(only(&app).ready, expected, "{results}");
    }
}

#[test]
fn ended_tasks_are_left_out_and_silent_ones_are_kept() {
    let table = [
        ("TASK_STAGING", Some(TaskState::Staging)),
        ("TASK_STARTING", Some(TaskState::Starting)),
        ("TASK_KILLING", Some(TaskState::Killing)),
        ("TASK_UNREACHABLE", Some(TaskState::Unreachable)),
        ("TASK_KILLED", None),
        ("TASK_FAILED", None),
        ("TASK_GONE", None),
    ];
    for (state, expected) in table {
        let body = answer(r#""labels":{}"#, r#""ports":[]"#).replace("TASK_RUNNING", state);
        let app = decode_one(body.as_bytes()).unwrap();
        assert_eq!(app.instances.values().next().map(|instance| instance.state), expected, "{state}");
    }
    let staging = r#"{"app":{"id":"/a","version":"v","instances":1,"tasks":[{"id":"a.1","appId":"/a","host":null,"ports":null}]}}"#;
    assert_eq!(only(&decode_one(staging.as_bytes()).unwrap()).state, TaskState::Staging);
}

#[test]
fn scaling_makes_no_new_definition() {
    let body = |changed: &str| {
        let parts =
            format!(r#""versionInfo":{{"lastScalingAt":"2026-11-24T04:00:00.000Z","lastConfigChangeAt":"{changed}"}}"#);
        let scaled = r#""version":"2026-11-24T04:00:00.000Z","tasksRunning""#;
        answer(&parts, r#""ports":[1]"#).replacen(&format!(r#""version":"{V1}","tasksRunning""#), scaled, 1)
    };
    let app = decode_one(body(V1).as_bytes()).unwrap();
    assert!(app.definition_of(only(&app)).is_some(), "it runs what the newest version says");
    let app = decode_one(body("2026-11-24T03:30:00.000Z").as_bytes()).unwrap();
    assert!(app.definition_of(only(&app)).is_none(), "it was started before the last change");
}

#[test]
fn one_broken_app_is_named_and_the_others_are_read() {
    let body = br#"{"apps":[
        {"id":"/good","version":"v","instances":1},
        {"id":"/label","version":"v","instances":1,"labels":{"a":{"b":1}}},
        {"id":"/port","version":"v","instances":1,"portDefinitions":[{"port":70000}]},
        {"id":"no-slash","version":"v"},
        {"version":"v"},
        7]}"#;
    let list = decode_list(body).unwrap();
    assert_eq!(list.apps.iter().map(|app| &*app.id).collect::<Vec<_>>(), ["/good"]);
    let broken: Vec<&str> = list.broken.iter().map(|(id, _)| &**id).collect();
    assert_eq!(broken, ["/label", "/port", "no-slash", "(without an id)", "(without an id)"]);
    assert!(list.broken.iter().all(|(_, why)| !why.is_empty()));
    assert!(decode_list(b"<html>").is_err() && decode_list(b"{}").is_err(), "not an empty list");
    assert!(decode_list(br#"{"apps":[]}"#).unwrap().apps.is_empty());
}

#[test]
fn an_older_definition_is_an_app_without_a_frame() {
    let body = br#"{"id":"/a","version":"v0","networks":[{"mode":"container"}],"container":{"portMappings":[{"containerPort":9}]}}"#;
    let definition = decode_definition(body).unwrap();
    assert_eq!((definition.network, definition.ports[0].container), (Network::Container, 9));
}

proptest! {
    /// Bytes cut, changed and put in anywhere: an answer or a refusal, never a panic.
    #[test]
    fn damaged_answers_break_nothing(cut in 0usize..1200, at in 0usize..1200, byte in any::<u8>()) {
        let whole = answer(r#""networks":[{"mode":"container"}],"healthChecks":[{}]"#, r#""ports":[1],"healthCheckResults":[{"alive":true}]"#);
        let mut bytes = whole.into_bytes();
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = decode_one(&bytes);
        bytes.truncate(cut);
        let _ = decode_one(&bytes);
        let _ = decode_list(&bytes);
        let _ = decode_definition(&bytes);
    }
}
