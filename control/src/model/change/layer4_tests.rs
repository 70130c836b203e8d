//! What contradicts itself is refused by its field; the rest has one form.

use serde_json::{Value, json};

use super::*;

fn taken(body: &Value) -> Result<Layer4, String> {
    let spec: Layer4 = serde_json::from_value(body.clone()).map_err(|error| error.to_string())?;
    checked(spec).map_err(|refused| refused.to_string())
}

/// A job with one TCP port, and these fields besides.
fn web(fields: Value) -> Value {
    let mut body = json!({"app": "/shop/web", "ports": [{"listen": 80}]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

fn udp(fields: Value) -> Value {
    let mut body = web(fields);
    body["ports"] = json!([{"listen": 53, "protocol": "udp"}]);
    body
}

fn guarded(protection: Value) -> Value {
    web(json!({ "protection": protection }))
}

fn probed(health: Value) -> Value {
    web(json!({ "health": health }))
}

#[test]
fn what_contradicts_itself_is_refused_by_its_field_with_what_to_do() {
    let both = json!([{"listen": 53}, {"listen": 53, "protocol": "udp"}]);
    let many: Vec<String> = (0..1_025).map(|n| format!("10.{}.{}.0/24", n / 256, n % 256)).collect();
    let other_port = json!([{"listen": 80, "target": 8080}]);
    let table: Vec<(Value, &str, &str)> = vec![
        (web(json!({"forward": "nat"})), "unknown variant `nat`", "fullnat"),
        (web(json!({"forward": "fullnat", "gue_port": 6080})), "gue_port: forward fullnat", "leave it out"),
        (web(json!({"forward": "gue", "gue_port": 0})), "gue_port: nobody listens", "1 to 65535"),
        (
            web(json!({"forward": "ipip", "ports": other_port})),
            "forward: 80:8080 cannot be served without translation",
            "use forward fullnat",
        ),
        (web(json!({"forward": "direct", "ports": other_port})), "forward: 80:8080", "or target 80"),
        (
            web(json!({"forward": "ipip", "client_address": "toa"})),
            "client_address: forward ipip shows",
            "leave it out",
        ),
        (
            web(json!({"client_address": "proxy", "ports": both})),
            "client_address: proxy is for TCP, and 53",
            "an ELB for UDP",
        ),
        (udp(json!({"client_address": "toa"})), "client_address: toa is for TCP", "leave it out"),
        (guarded(json!({"syn_cookies_above": 0})), "protection.syn_cookies_above: 0 would", "at least 1"),
        (
            web(json!({"forward": "direct", "protection": {"syn_cookies_above": 9}})),
            "protection.syn_cookies_above: with forward direct",
            "use forward fullnat",
        ),
        (
            udp(json!({"protection": {"syn_cookies_above": 9}})),
            "protection.syn_cookies_above: only TCP",
            "leave it out",
        ),
        (guarded(json!({"per_source": {"per_second": 0}})), "protection.per_source.per_second: 0", "at least 1"),
        (guarded(json!({"per_source": {"per_second": 1, "burst": 0}})), "protection.per_source.burst: 0", "at least 1"),
        (guarded(json!({"per_vip": {"per_second": 0}})), "protection.per_vip.per_second: 0", "at least 1"),
        (guarded(json!({"per_vip": {"per_second": 1, "burst": 0}})), "protection.per_vip.burst: 0", "at least 1"),
        (
            guarded(json!({"per_vip": {"per_second": 4_000_000_000_u32}})),
            "protection.per_vip.per_second",
            "at most 1000000000",
        ),
        (
            guarded(json!({"per_source": {"per_second": 1, "prefix_v4": 33}})),
            "protection.per_source.prefix_v4",
            "1 to 32",
        ),
        (
            guarded(json!({"per_source": {"per_second": 1, "prefix_v6": 129}})),
            "protection.per_source.prefix_v6",
            "1 to 128",
        ),
        (
            guarded(json!({"per_source": {"per_second": 1, "prefix_v4": 0}})),
            "protection.per_source.prefix_v4",
            "use per_vip",
        ),
        (guarded(json!({"per_source": {"burst": 1}})), "per_second", ""),
        (guarded(json!({"allow": ["10.0.0.0/33"]})), "`10.0.0.0/33` is neither", "like 10.0.0.0/8"),
        (guarded(json!({"deny": ["example.com"]})), "`example.com` is neither", "like 10.0.0.0/8"),
        (
            guarded(json!({"allow": ["10.0.0.0/8"], "deny": ["192.0.2.0/24", "10.1.0.0/8"]})),
            "protection.deny: 10.0.0.0/8 is allowed as well",
            "remove it",
        ),
        (guarded(json!({"deny": many})), "protection.allow: 1025 networks", "at most 1024"),
        (guarded(json!({"alow": []})), "unknown field `alow`", "allow"),
        (udp(json!({"health": {"type": "tcp"}})), "health.type: tcp checks tcp ports", "another type"),
        (probed(json!({"type": "udp", "send": "a"})), "health.type: udp checks udp ports", "another type"),
        (probed(json!({"type": "icmp"})), "unknown variant `icmp`", "http"),
        (probed(json!({"path": "/"})), "missing field `type`", ""),
        (probed(json!({"type": "tcp", "path": "/"})), "health.path: a tcp check", "leave it out"),
        (probed(json!({"type": "tcp", "send": "a"})), "health.send: a tcp check", "leave it out"),
        (probed(json!({"type": "http", "expect": "a"})), "health.expect: a http check", "leave it out"),
        (
            udp(json!({"health": {"type": "udp", "send": "a", "status": "200"}})),
            "health.status: a udp check",
            "leave it out",
        ),
        (udp(json!({"health": {"type": "udp"}})), "health.send: an empty datagram", "PING"),
        (udp(json!({"health": {"type": "udp", "send": ""}})), "health.send: an empty datagram", "PING"),
        (udp(json!({"health": {"type": "udp", "send": "a".repeat(513)}})), "health.send: 513 bytes", "at most 512"),
        (udp(json!({"health": {"type": "udp", "send": "\\q"}})), "`\\q` has a \\", "write \\xNN"),
        (
            probed(json!({"type": "http", "path": "healthz"})),
            "health.path: \"healthz\" is not a path",
            "start it with /",
        ),
        (probed(json!({"type": "http", "path": "/a b\r\nX: y"})), "health.path", "start it with /"),
        (probed(json!({"type": "http", "host": "http://a/"})), "health.host", "without scheme"),
        (probed(json!({"type": "http", "host": ""})), "health.host", "without scheme"),
        (probed(json!({"type": "http", "status": "2xx"})), "`2xx` is not a range", "like 200-399"),
        (probed(json!({"type": "http", "status": "399-200"})), "`399-200` is not a range", "like 200-399"),
        (probed(json!({"type": "tcp", "interval_ms": 9})), "health.interval_ms: 9 ms", "use 10"),
        (probed(json!({"type": "tcp", "interval_ms": 3_600_001})), "health.interval_ms", "use 10"),
        (probed(json!({"type": "tcp", "timeout_ms": 0})), "health.timeout_ms: nothing answers", "at least 1"),
        (probed(json!({"type": "tcp", "timeout_ms": 2_001})), "health.timeout_ms: 2001 ms", "at most 2000"),
        (probed(json!({"type": "tcp", "rise": 0})), "health.rise: 0", "at least 1"),
        (probed(json!({"type": "tcp", "fall": 0})), "health.fall: 0", "at least 1"),
        (web(json!({"slow_start_s": 3_601})), "slow_start_s: 3601 s", "at most 3600"),
    ];
    for (body, wrong, remedy) in table {
        let refused = taken(&body).expect_err(&body.to_string());
        let (what, hint) = refused.rsplit_once(": ").unwrap_or((&refused, &refused));
        assert!(what.contains(wrong), "{body}: {refused}");
        assert!(hint.contains(remedy) || wrong.contains("unknown"), "{body}: {refused}");
    }
}

#[test]
fn what_is_left_out_is_filled_in_and_means_the_same_when_it_is_sent_back() {
    let table = [
        (web(json!({})), "/forward", json!("fullnat")),
        (web(json!({})), "/client_address", json!("hidden")),
        (web(json!({})), "/slow_start_s", json!(0)),
        (web(json!({"forward": "gue"})), "/gue_port", json!(6080)),
        (web(json!({"forward": "ipip", "ports": [{"listen": 80, "target": "80"}]})), "/ports/0/target", json!(80)),
        (guarded(json!({"per_vip": {"per_second": 7}})), "/protection/per_vip/burst", json!(7)),
        (
            guarded(json!({"per_source": {"per_second": 7}})),
            "/protection/per_source",
            json!({"per_second": 7, "burst": 7, "prefix_v4": 32, "prefix_v6": 64}),
        ),
        (
            guarded(json!({"allow": ["192.0.2.7", "10.1.2.3/8", "10.0.0.0/8", "2001:db8::1/32"]})),
            "/protection/allow",
            json!(["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"]),
        ),
        (
            web(
                json!({"ports": [{"listen": 53}, {"listen": 53, "protocol": "udp"}], "protection": {"syn_cookies_above": 9}}),
            ),
            "/protection/syn_cookies_above",
            json!(9),
        ),
        (
            probed(json!({"type": "http"})),
            "/health",
            json!({"type": "http", "path": "/", "status": "200-399", "interval_ms": 2000, "timeout_ms": 1000, "rise": 2, "fall": 3}),
        ),
        (probed(json!({"type": "tcp", "interval_ms": 500})), "/health/timeout_ms", json!(500)),
        (udp(json!({"health": {"type": "udp", "send": "\\x50ING\n"}})), "/health/send", json!("PING\\n")),
    ];
    for (body, pointer, expected) in table {
        let spec = taken(&body).unwrap_or_else(|refused| panic!("{body}: {refused}"));
        let shown = serde_json::to_value(&spec).unwrap();
        assert_eq!(shown.pointer(pointer), Some(&expected), "{shown}");
        assert_eq!(taken(&shown).as_ref(), Ok(&spec), "{shown}");
    }
    let plain = serde_json::to_value(taken(&web(json!({}))).unwrap()).unwrap();
    assert!(plain.get("protection").is_none() && plain.get("health").is_none(), "{plain}");
}
