//! Reads an app's definition: the JSON that a client put, checked, and completed with Marathon's defaults.
//!
//! Durations may be fractions of a second (Marathon takes whole ones only), so that a story need not wait.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    definition::{Backoff, Definition, HealthCheck, Network, Object, Port, PortChoice, Probe, ReadinessCheck},
    error::Detail,
};

/// Keys that Marathon computes and ignores when a client sends them back.
const COMPUTED: [&str; 14] = [
    "id",
    "version",
    "versionInfo",
    "instances",
    "tasks",
    "tasksStaged",
    "tasksRunning",
    "tasksHealthy",
    "tasksUnhealthy",
    "deployments",
    "readinessCheckResults",
    "lastTaskFailure",
    "taskStats",
    "uris",
];

impl Definition {
    /// Reads what a client put; `service_port` hands out a free one for each port that leaves the choice to Marathon.
    pub fn parse(
        id: &str,
        put: &Object,
        version: &str,
        service_port: &mut dyn FnMut() -> u16,
    ) -> Result<Self, Vec<Detail>> {
        let mut json = defaults();
        for (key, value) in put.iter().filter(|(key, value)| !value.is_null() && !COMPUTED.contains(&key.as_str())) {
            json.insert(key.clone(), value.clone());
        }
        let mut read = Reader::default();
        check_id(id, &mut read);
        modernise(&mut json);
        let network = network(&json, &mut read);
        let ports = ports(&mut json, network, service_port, &mut read);
        let top = Value::Object(json.clone());
        let cmd = top.get("cmd").map(|_| read.text(&top, "/cmd", ""));
        let args: Vec<String> = read.list(&top, "/args").iter().filter_map(|a| a.as_str().map(str::to_owned)).collect();
        if cmd.is_none() && args.is_empty() && top.pointer("/container/docker/image").is_none() {
            read.refuse("/", "AppDefinition must either contain one of 'cmd' or 'args', and/or a 'container'.");
        }
        let instances = match put.get("instances").filter(|v| !v.is_null()) {
            None => 1,
            Some(value) => match value.as_u64().and_then(|n| u32::try_from(n).ok()) {
                Some(n) => n,
                None if value.is_i64() => read.refuse_with("/instances", "error.min", 0),
                None => read.refuse_with("/instances", "error.expected.jsnumber", 0),
            },
        };
        for key in ["cpus", "mem", "disk", "gpus"] {
            read.number(&top, &format!("/{key}"), 0.0, 0.0);
        }
        for key in ["labels", "env", "upgradeStrategy"] {
            if top.get(key).is_some_and(|v| !v.is_object()) {
                read.refuse(&format!("/{key}"), "error.expected.jsobject");
            }
        }
        for (key, value) in top.get("labels").and_then(Value::as_object).into_iter().flatten() {
            if !value.is_string() {
                read.refuse(&format!("/labels({key})"), "error.expected.jsstring");
            }
        }
        let health: Vec<HealthCheck> =
            read.list(&top, "/healthChecks").iter().enumerate().map(|(i, c)| health(i, c, &mut read)).collect();
        let readiness =
            read.list(&top, "/readinessChecks").iter().enumerate().map(|(i, c)| readiness(i, c, &mut read)).collect();
        json.insert("healthChecks".into(), health.iter().map(|h| h.json.clone()).collect());
        let kill_selection = read.text(&top, "/killSelection", "YOUNGEST_FIRST");
        if !matches!(kill_selection.as_str(), "YOUNGEST_FIRST" | "OLDEST_FIRST") {
            read.refuse("/killSelection", "error.unknown.enum.literal");
        }
        let definition = Definition {
            id: id.to_owned(),
            version: version.to_owned(),
            instances,
            command: match cmd {
                Some(cmd) => vec!["/bin/sh".into(), "-c".into(), cmd],
                None => args,
            },
            network,
            ports,
            health,
            readiness,
            minimum_health: read.number(&top, "/upgradeStrategy/minimumHealthCapacity", 1.0, 0.0).min(1.0),
            maximum_over: read.number(&top, "/upgradeStrategy/maximumOverCapacity", 1.0, 0.0).min(1.0),
            kill_grace: read.seconds(&top, "/taskKillGracePeriodSeconds", 3.0),
            oldest_first: kill_selection == "OLDEST_FIRST",
            backoff: Backoff {
                first: read.seconds(&top, "/backoffSeconds", 1.0),
                factor: read.number(&top, "/backoffFactor", 1.15, 1.0),
                most: read.seconds(&top, "/maxLaunchDelaySeconds", 300.0),
            },
            unreachable: (top["unreachableStrategy"] != "disabled").then(|| {
                (
                    read.seconds(&top, "/unreachableStrategy/inactiveAfterSeconds", 0.0),
                    read.seconds(&top, "/unreachableStrategy/expungeAfterSeconds", 0.0),
                )
            }),
            json,
        };
        if read.0.is_empty() { Ok(definition) } else { Err(read.0) }
    }
}

fn defaults() -> Object {
    let Value::Object(object) = json!({
        "acceptedResourceRoles": ["*"], "backoffFactor": 1.15, "backoffSeconds": 1, "constraints": [], "cpus": 1, "disk": 0,
        "dependencies": [], "env": {}, "executor": "", "fetch": [], "gpus": 0, "healthChecks": [],
        "killSelection": "YOUNGEST_FIRST", "labels": {}, "maxLaunchDelaySeconds": 300, "mem": 128,
        "networks": [{"mode": "host"}], "readinessChecks": [], "requirePorts": false, "role": "*", "secrets": {},
        "unreachableStrategy": {"inactiveAfterSeconds": 0, "expungeAfterSeconds": 0},
        "upgradeStrategy": {"maximumOverCapacity": 1, "minimumHealthCapacity": 1},
    }) else {
        unreachable!("the literal is an object")
    };
    object
}

/// Writes the forms of Marathon 1.4 and before as those of 1.5 and later.
fn modernise(json: &mut Object) {
    let mut mode = None;
    if let Some(container) = json.get_mut("container").and_then(Value::as_object_mut) {
        container.entry("type").or_insert("MESOS".into());
        container.entry("volumes").or_insert(json!([]));
        if let Some(docker) = container.get_mut("docker").and_then(Value::as_object_mut) {
            mode = match docker.remove("network").as_ref().and_then(Value::as_str) {
                Some("BRIDGE") => Some("container/bridge"),
                Some("USER") => Some("container"),
                _ => None,
            };
            let mappings = docker.remove("portMappings").filter(|m| m.as_array().is_some_and(|a| !a.is_empty()));
            for (key, default) in
                [("forcePullImage", json!(false)), ("privileged", json!(false)), ("parameters", json!([]))]
            {
                docker.entry(key).or_insert(default);
            }
            if let Some(mappings) = mappings {
                container.entry("portMappings").or_insert(mappings);
            }
        }
    }
    if json.contains_key("ipAddress") {
        mode = Some("container");
    }
    if let Some(mode) = mode {
        json.insert("networks".into(), json!([{"mode": mode}]));
    }
    if let Some(Value::Array(ports)) = json.remove("ports")
        && !json.contains_key("portDefinitions")
    {
        json.insert(
            "portDefinitions".into(),
            ports.into_iter().map(|port| json!({"port": port, "protocol": "tcp"})).collect(),
        );
    }
}

fn network(json: &Object, read: &mut Reader) -> Network {
    let first = json.get("networks").and_then(|n| n.get(0));
    let named = first.is_some_and(|n| n.get("name").is_some());
    match first.and_then(|n| n.get("mode")).and_then(Value::as_str) {
        Some("host") => Network::Host,
        None if !named => Network::Host,
        None | Some("container") => Network::Container,
        Some("container/bridge") => Network::Bridge,
        Some(_) => read.refuse_with("/networks(0)/mode", "error.unknown.enum.literal", Network::Host),
    }
}

/// Reads the ports and writes the chosen service ports back into the JSON.
fn ports(json: &mut Object, network: Network, service_port: &mut dyn FnMut() -> u16, read: &mut Reader) -> Vec<Port> {
    let (path, host_mode) = match network {
        Network::Host => ("/portDefinitions", true),
        Network::Bridge | Network::Container => ("/container/portMappings", false),
    };
    if host_mode {
        json.entry("portDefinitions").or_insert(json!([{"port": 0, "protocol": "tcp", "name": "default"}]));
    } else {
        json.remove("portDefinitions");
        let container = json.entry("container").or_insert(json!({"type": "MESOS", "volumes": []}));
        if let Some(container) = container.as_object_mut() {
            let default = match network {
                Network::Bridge => json!([{"containerPort": 0, "hostPort": 0, "protocol": "tcp", "name": "default"}]),
                _ => json!([]),
            };
            container.entry("portMappings").or_insert(default);
        }
    }
    let list = if host_mode {
        json.get_mut("portDefinitions")
    } else {
        json.get_mut("container").and_then(|c| c.get_mut("portMappings"))
    };
    let Some(list) = list.and_then(Value::as_array_mut) else {
        return read.refuse_with(path, "error.expected.jsarray", Vec::new());
    };
    let mut ports = Vec::new();
    for (i, value) in list.iter_mut().enumerate() {
        let at = format!("{path}({i})");
        let Some(entry) = value.as_object_mut() else {
            read.refuse(&at, "error.expected.jsobject");
            continue;
        };
        let mut number = |key: &str| match entry.get(key).filter(|v| !v.is_null()) {
            None => None,
            Some(v) => match v.as_u64().and_then(|n| u16::try_from(n).ok()) {
                Some(n) => Some(n),
                None => read.refuse_with(&format!("{at}/{key}"), "must be between 0 and 65535", None),
            },
        };
        let (container, host, wanted) = if host_mode {
            (0, Some(0), number("port"))
        } else {
            let host = number("hostPort").or((network == Network::Bridge).then_some(0));
            (number("containerPort").unwrap_or(0), host, number("servicePort"))
        };
        let service = wanted.filter(|p| *p != 0).unwrap_or_else(&mut *service_port);
        entry.insert(if host_mode { "port" } else { "servicePort" }.into(), service.into());
        if network == Network::Bridge {
            entry.entry("hostPort").or_insert(0.into());
        }
        entry.entry("labels").or_insert(json!({}));
        let protocol = entry.entry("protocol").or_insert("tcp".into()).as_str().unwrap_or("").to_owned();
        if !matches!(protocol.as_str(), "tcp" | "udp" | "udp,tcp" | "tcp,udp") {
            read.refuse(&format!("{at}/protocol"), "error.unknown.enum.literal");
        }
        let name = entry.get("name").and_then(Value::as_str).map(str::to_owned);
        ports.push(Port { name, protocol, container, host, service });
    }
    if host_mode && json.get("requirePorts") == Some(&Value::Bool(true)) {
        ports.iter_mut().for_each(|p| p.host = Some(p.service));
    }
    ports
}

fn health(i: usize, check: &Value, read: &mut Reader) -> HealthCheck {
    let at = format!("/healthChecks({i})");
    let protocol = check.get("protocol").and_then(Value::as_str).unwrap_or("HTTP");
    let path = check.get("path").and_then(Value::as_str).unwrap_or("/").to_owned();
    let kind = match protocol {
        "HTTP" | "HTTPS" | "MESOS_HTTP" | "MESOS_HTTPS" => Probe::Http(path),
        "TCP" | "MESOS_TCP" => Probe::Tcp,
        "COMMAND" => match check.pointer("/command/value").and_then(Value::as_str) {
            Some(command) => Probe::Command(command.to_owned()),
            None => read.refuse_with(&format!("{at}/command"), "undefined", Probe::Tcp),
        },
        _ => read.refuse_with(&format!("{at}/protocol"), "error.unknown.enum.literal", Probe::Tcp),
    };
    let mut json = json!({
        "gracePeriodSeconds": 300, "ignoreHttp1xx": false, "intervalSeconds": 60, "maxConsecutiveFailures": 3,
        "protocol": protocol, "timeoutSeconds": 20, "delaySeconds": 15,
    });
    if let (Some(json), Some(check)) = (json.as_object_mut(), check.as_object()) {
        if let Probe::Http(path) = &kind {
            json.insert("path".into(), path.as_str().into());
        }
        if !matches!(kind, Probe::Command(_)) && !check.contains_key("port") {
            json.insert("portIndex".into(), 0.into());
        }
        json.extend(check.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), v.clone())));
    }
    HealthCheck {
        by_mesos: protocol.starts_with("MESOS") || protocol == "COMMAND",
        target: match check.get("port").and_then(Value::as_u64).and_then(|p| u16::try_from(p).ok()) {
            Some(port) => PortChoice::Number(port),
            None => match &json["portIndex"] {
                Value::String(name) => PortChoice::Name(name.clone()),
                index => PortChoice::Index(index.as_u64().unwrap_or(0).try_into().unwrap_or(usize::MAX)),
            },
        },
        grace: read.seconds(&json, "/gracePeriodSeconds", 300.0),
        interval: read.seconds(&json, "/intervalSeconds", 60.0),
        timeout: read.seconds(&json, "/timeoutSeconds", 20.0),
        max_failures: read.number(&json, "/maxConsecutiveFailures", 3.0, 0.0) as u32,
        kind,
        json,
    }
}

fn readiness(i: usize, check: &Value, read: &mut Reader) -> ReadinessCheck {
    let at = format!("/readinessChecks({i})");
    if !check.is_object() {
        read.refuse(&at, "error.expected.jsobject");
    }
    let codes = read.list(check, "/httpStatusCodesForReady");
    let codes: Vec<u16> = codes.iter().filter_map(|c| c.as_u64().and_then(|c| u16::try_from(c).ok())).collect();
    ReadinessCheck {
        name: read.text(check, "/name", "readinessCheck"),
        path: read.text(check, "/path", "/"),
        port: PortChoice::Name(read.text(check, "/portName", "http-api")),
        interval: read.seconds(check, "/intervalSeconds", 30.0),
        timeout: read.seconds(check, "/timeoutSeconds", 10.0),
        ready_codes: if codes.is_empty() { vec![200] } else { codes },
        keep_response: check.get("preserveLastResponse").and_then(Value::as_bool).unwrap_or(false),
    }
}

fn check_id(id: &str, read: &mut Reader) {
    let word = |w: &str| {
        !w.is_empty()
            && !w.starts_with('-')
            && !w.ends_with('-')
            && w.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    if id == "/" {
        read.refuse("/id", "Path must contain at least one path element");
    } else if !id.split('/').skip(1).all(|part| part.split('.').all(word)) {
        read.refuse(
            "/id",
            "must fully match regular expression \
             '^(([a-z0-9]|[a-z0-9][a-z0-9\\-]*[a-z0-9])\\.)*([a-z0-9]|[a-z0-9][a-z0-9\\-]*[a-z0-9])|(\\.|\\.\\.)$'",
        );
    }
}

/// Reads values by JSON pointer, notes what is wrong and goes on, so that a client learns of all its mistakes at once.
#[derive(Default)]
struct Reader(Vec<Detail>);

impl Reader {
    fn refuse(&mut self, path: &str, error: &str) {
        self.0.push(Detail { path: path.to_owned(), errors: vec![error.to_owned()] });
    }

    fn refuse_with<T>(&mut self, path: &str, error: &str, instead: T) -> T {
        self.refuse(path, error);
        instead
    }

    fn text(&mut self, top: &Value, path: &str, default: &str) -> String {
        match top.pointer(path) {
            None => default.to_owned(),
            Some(Value::String(text)) => text.clone(),
            Some(_) => self.refuse_with(path, "error.expected.jsstring", default.to_owned()),
        }
    }

    fn number(&mut self, top: &Value, path: &str, default: f64, least: f64) -> f64 {
        match top.pointer(path).map(|v| v.as_f64()) {
            None => default,
            Some(Some(number)) if number >= least => number,
            Some(Some(_)) => self.refuse_with(path, "error.min", default),
            Some(None) => self.refuse_with(path, "error.expected.jsnumber", default),
        }
    }

    fn seconds(&mut self, top: &Value, path: &str, default: f64) -> Duration {
        // A year is more than any test waits, and keeps the conversion from overflowing.
        Duration::from_secs_f64(self.number(top, path, default, 0.0).min(31_536_000.0))
    }

    fn list<'v>(&mut self, top: &'v Value, path: &str) -> &'v [Value] {
        match top.pointer(path) {
            None => &[],
            Some(Value::Array(list)) => list,
            Some(_) => self.refuse_with(path, "error.expected.jsarray", &[]),
        }
    }
}
