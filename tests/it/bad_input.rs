//! Bad input: each says what is wrong and what to do, and changes nothing else.

use std::{
    fs::{self, File},
    process::Command,
    time::Duration,
};

use serde_json::{Value, json};
use tidegate_tests::{
    appliance::{self, Appliance, Settings},
    cluster::{Cluster, demo_app},
    http1::Response,
    lab::{Fabric, Host, Mounts, addresses},
    marathon::Faults,
};

/// What a Tidegate said that must not have been able to start, in a machine of its own that must look as before.
fn refused(wrapper: &[&str], config: impl Fn(String) -> String) -> String {
    let fabric = Fabric::new().unwrap();
    let host = fabric.appliance("appliance", addresses::APPLIANCE).unwrap();
    let before = looks(&host);
    // Below a directory that everybody may read, for the test that is not root.
    let dir =
        tempfile::Builder::new().permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777)).tempdir().unwrap();
    let file = dir.path().join("tidegate.toml");
    fs::write(&file, config(Settings::default().toml(dir.path()))).unwrap();
    let (said, mounts) = (dir.path().join("said"), Mounts::new().unwrap());
    let log = File::create(&said).unwrap();
    let binary = appliance::binary("tidegate");
    let words: Vec<&str> =
        wrapper.iter().copied().chain([binary.to_str().unwrap(), "run", "--config", file.to_str().unwrap()]).collect();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdout(log.try_clone().unwrap()).stderr(log);
    mounts.enter(&mut command);
    let process = host.ns.start(command).unwrap();
    let status = process.wait(Duration::from_secs(20));
    let said = fs::read_to_string(&said).unwrap();
    assert!(status.is_some_and(|status| status.code().is_some_and(|code| code != 0)), "{status:?} after\n{said}");
    assert_eq!(looks(&host), before, "something was changed by a Tidegate that said\n{said}");
    said
}

/// The addresses and programs of a machine.
fn looks(host: &Host) -> String {
    host.ns.output(Command::new("ip").args(["-details", "address"])).unwrap()
}

fn assert_says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "it does not say {word:?}:\n{text}");
    }
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_key_that_was_meant() {
    if !appliance::require() {
        return;
    }
    let said = refused(&[], |config| format!("{config}pin_dri = 3\n"));
    assert_says(&said, &["tidegate.toml:", "pin_dri", "pin_dir"]);
}

#[test]
fn an_interface_that_is_not_there_is_named_with_those_that_are() {
    if !appliance::require() {
        return;
    }
    let said = refused(&[], |config| config.replace("\"eth0\"", "\"eth9\""));
    assert_says(&said, &["eth9", "eth0", "interfaces"]);
}

#[test]
fn who_is_not_root_is_told_so() {
    if !appliance::require() {
        return;
    }
    // The binary may lie where only root can look: a copy is run.
    let dir =
        tempfile::Builder::new().permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755)).tempdir().unwrap();
    let copy = dir.path().join("tidegate");
    fs::copy(appliance::binary("tidegate"), &copy).unwrap();
    let drop = "exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all \"$0\" \"$2\" \"$3\" \"$4\"";
    let said = refused(&["sh", "-c", drop, copy.to_str().unwrap()], |config| config);
    assert_says(&said, &["root", "--roles"]);
}

#[test]
fn a_machine_that_allows_no_bpf_is_told_what_is_missing() {
    if !appliance::require() {
        return;
    }
    let said = refused(&["setpriv", "--bounding-set=-bpf,-sys_admin,-perfmon"], |config| config);
    assert_says(&said, &["CAP_BPF", "--roles"]);
}

/// A Tidegate that is told of one job, `/demo`.
fn with_demo() -> Option<(Appliance, Cluster)> {
    if !appliance::require() {
        return None;
    }
    let cluster = Cluster::start().unwrap();
    cluster.deploy(&demo_app("/demo", 1)).unwrap();
    let appliance = Appliance::start(&cluster.appliance, &Settings { resync_s: 1, ..Settings::default() }).unwrap();
    appliance.poll("Tidegate knows the job", |appliance| Ok(appliance.status()?["instances"] == 1)).unwrap();
    Some((appliance, cluster))
}

fn put(appliance: &Appliance, spec: &Value) -> Response {
    appliance.ask("PUT", "/v1/elbs/bad", spec.to_string().as_bytes()).unwrap()
}

#[test]
fn an_elb_that_cannot_be_is_refused_with_the_reason_and_nothing_is_kept() {
    let Some((appliance, _cluster)) = with_demo() else { return };
    let before = appliance.ask("GET", "/v1/elbs", b"").unwrap().text();
    let port = json!([{"listen": 80}]);
    let cases = [
        ("no port", json!({"type": "layer4", "app": "/demo", "ports": []}), vec!["port", "hint"]),
        ("port 0", json!({"type": "layer4", "app": "/demo", "ports": [{"listen": 0}]}), vec!["port"]),
        (
            "a VIP outside the pool",
            json!({"type": "layer4", "app": "/demo", "ports": port, "vips": ["192.0.2.1"]}),
            vec!["192.0.2.1", "10.77.100.0/24"],
        ),
        ("an unknown job", json!({"type": "layer4", "app": "/nope", "ports": port}), vec!["/nope", "create the app"]),
        (
            "a job's port that it does not have",
            json!({"type": "layer4", "app": "/demo", "ports": [{"listen": 80, "target": "smtp"}]}),
            vec!["no port smtp", "8080 (http)"],
        ),
        ("a field that is not one", json!({"type": "layer4", "app": "/demo", "prots": port}), vec!["prots"]),
        ("no rule", json!({"type": "layer7", "rules": []}), vec!["rule"]),
    ];
    for (what, spec, words) in cases {
        let response = put(&appliance, &spec);
        assert!((400..500).contains(&response.status), "{what}: {} {}", response.status, response.text());
        assert_says(&response.text(), &words);
    }
    let response = appliance
        .ask("PUT", "/v1/elbs/Bad_Name", br#"{"type":"layer4","app":"/demo","ports":[{"listen":80}]}"#)
        .unwrap();
    assert!((400..500).contains(&response.status), "{}", response.text());
    let response = appliance.ask("PUT", "/v1/elbs/bad", b"{").unwrap();
    assert_eq!(response.status, 400, "{}", response.text());
    assert_eq!(appliance.ask("GET", "/v1/elbs", b"").unwrap().text(), before, "nothing was kept");
    // The job may get the port with its next version: who says so is believed, and sees what the ELB waits for.
    let spec = json!({"type": "layer4", "app": "/demo", "ports": [{"listen": 80, "target": "smtp"}]});
    let response = appliance.ask("PUT", "/v1/elbs/bad?allow_missing=true", spec.to_string().as_bytes()).unwrap();
    assert_eq!(response.status, 201, "{}", response.text());
    assert_says(&response.text(), &["no port smtp", "8080 (http)"]);
}

#[test]
fn an_app_whose_json_is_broken_harms_no_other() {
    let Some((appliance, cluster)) = with_demo() else { return };
    let broken = [
        json!({"labels": {"HAPROXY_0_VHOST": 7}}),
        json!({"labels": "not a map"}),
        json!({"tasks": 1, "container": [], "instances": "many"}),
    ];
    cluster.deploy(&demo_app("/bad", 1)).unwrap();
    for object in broken {
        let object = object.as_object().unwrap().clone();
        let faults = Faults { broken_apps: [("/bad".to_owned(), object.clone())].into(), ..Faults::default() };
        cluster.standin().set_faults(faults);
        // The others are still followed: one more instance of /demo is heard of.
        for instances in [2, 1] {
            cluster.scale("/demo", instances).unwrap();
            appliance
                .poll(&format!("/demo is followed beside {object:?}"), |appliance| {
                    let text = appliance.ask("GET", "/metrics", b"")?.text();
                    let status = appliance.status()?;
                    let known = status["instances"].as_u64().unwrap_or(0);
                    // /bad may be kept as it was last believed, or left out.
                    Ok(!text.is_empty() && (known == u64::from(instances) || known == u64::from(instances) + 1))
                })
                .unwrap();
        }
        appliance
            .poll("the broken app is named", |appliance| Ok(appliance.status()?.to_string().contains("/bad")))
            .unwrap();
    }
    cluster.standin().set_faults(Faults::default());
    appliance
        .poll("the complaint is over", |appliance| Ok(!appliance.status()?["alarms"].to_string().contains("/bad")))
        .unwrap();
}

#[test]
fn a_marathon_that_cannot_be_reached_is_an_alarm_and_no_end() {
    if !appliance::require() {
        return;
    }
    let fabric = Fabric::new().unwrap();
    let host = fabric.appliance("appliance", addresses::APPLIANCE).unwrap();
    let marathons = vec!["http://10.77.0.1:1".to_owned()];
    let appliance = Appliance::start(&host, &Settings { marathons, ..Settings::default() }).unwrap();
    appliance
        .poll("an alarm is raised", |appliance| {
            let status = appliance.status()?;
            let alarms = status["alarms"].as_array().cloned().unwrap_or_default();
            Ok(alarms.iter().any(|alarm| {
                let text = alarm["text"].as_str().unwrap_or_default();
                alarm["key"] == "marathon-unreachable" && text.contains("10.77.0.1:1")
            }))
        })
        .unwrap();
    assert_eq!(appliance.ask("GET", "/healthz", b"").unwrap().status, 200);
    let ready = appliance.ask("GET", "/readyz", b"").unwrap();
    assert_eq!(ready.status, 503, "{}", ready.text());
    assert_says(&ready.text(), &["Marathon"]);
}
