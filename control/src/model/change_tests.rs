//! What is taken and what is refused, in words that say what to do.

use imbl::OrdMap;
use serde_json::{Value, json};

use super::*;
use crate::model::app::App;

fn pools() -> Pools {
    Pools {
        internal: vec!["10.77.100.0/29".parse().unwrap(), "fd77:0:100::/64".parse().unwrap()],
        external: Vec::new(),
    }
}

fn spec(body: Value) -> ElbSpec {
    serde_json::from_value(body).unwrap()
}

fn web() -> Value {
    json!({"type": "layer4", "app": "/shop/web", "ports": [{"listen": 80, "target": 8080}]})
}

fn site() -> Value {
    json!({"type": "layer7", "rules": [{"host": "shop.example.com", "app": "/shop/web", "target": "http"}]})
}

/// The body with one field replaced.
fn with(mut body: Value, field: &str, value: Value) -> Value {
    body[field] = value;
    body
}

fn put(desired: &Desired, name: &str, body: Value) -> Result<(Desired, Outcome), Refused> {
    desired.apply(Change::Put { name: name.to_owned(), spec: spec(body) }, &pools(), None, false)
}

fn taken(desired: &Desired, name: &str, body: Value) -> Desired {
    put(desired, name, body).unwrap().0
}

#[test]
fn an_elb_is_given_the_lowest_free_address_of_each_pool() {
    let one = taken(&Desired::default(), "one", web());
    let expected: Vec<IpAddr> = vec!["10.77.100.1".parse().unwrap(), "fd77:0:100::1".parse().unwrap()];
    assert_eq!(one.elbs["one"].vips, expected);
    assert_eq!((one.revision, one.elbs["one"].revision), (1, 1));
    let mut many = taken(&one, "fixed", with(web(), "vips", json!(["10.77.100.3"])));
    many = taken(&many, "two", site());
    many = taken(&many, "three", site());
    let v4 = |desired: &Desired, name: &str| desired.elbs[name].vips[0].to_string();
    assert_eq!((v4(&many, "two"), v4(&many, "three")), ("10.77.100.2".to_owned(), "10.77.100.4".to_owned()));
    many = taken(&many, "four", site());
    many = taken(&many, "five", site());
    let refused = put(&many, "six", site()).unwrap_err();
    assert_eq!(refused, Refused::PoolExhausted { pool: "10.77.100.0/29".parse().unwrap() });
    let (freed, outcome) = many.apply(Change::Delete { name: "one".to_owned() }, &pools(), None, false).unwrap();
    assert_eq!(outcome, Outcome::Deleted);
    assert_eq!(v4(&taken(&freed, "six", site()), "six"), "10.77.100.1");
}

#[test]
fn the_same_change_twice_is_one_change() {
    let (one, outcome) = put(&Desired::default(), "web", web()).unwrap();
    assert_eq!(outcome, Outcome::Created);
    let quoted = with(web(), "ports", json!([{"listen": 80, "target": "8080", "protocol": "tcp"}]));
    let given = with(web(), "vips", json!(["fd77:0:100::1", "10.77.100.1"]));
    for (name, again) in [("same", web()), ("number in quotes", quoted), ("with the given VIPs", given)] {
        assert_eq!(put(&one, "web", again).unwrap(), (one.clone(), Outcome::Unchanged), "{name}");
    }
    let ports = json!([{"listen": 443, "target": 8443}, {"listen": 80, "target": 8080}]);
    let (two, outcome) = put(&one, "web", with(web(), "ports", ports)).unwrap();
    assert_eq!((outcome, two.revision), (Outcome::Updated, 2));
    assert_eq!(two.elbs["web"].vips, one.elbs["web"].vips, "VIPs never change");
    let turned = json!([{"listen": 80, "target": 8080}, {"listen": 443, "target": 8443}]);
    assert_eq!(put(&two, "web", with(web(), "ports", turned)).unwrap().1, Outcome::Unchanged, "order says nothing");
    let gone = two.apply(Change::Delete { name: "nope".to_owned() }, &pools(), None, false).unwrap();
    assert_eq!(gone, (two, Outcome::Unchanged));
}

#[test]
fn what_is_wrong_is_refused_with_what_to_do() {
    let site_with = |rule: Value| with(site(), "rules", json!([rule]));
    let ports = |ports: Value| with(web(), "ports", ports);
    let table: Vec<(&str, Value, &str)> = vec![
        ("Web", web(), "is not an ELB's name"),
        ("-web", web(), "1 to 40 of a-z"),
        ("", web(), "1 to 40"),
        ("a-name-of-forty-one-letters-is-one-too-long", web(), "1 to 40"),
        ("web", ports(json!([])), r#"needs at least one port: add {"listen":80,"target":8080}"#),
        ("web", ports(json!([{"listen": 0}])), "port 0 cannot be served"),
        ("web", ports(json!([{"listen": 80, "target": 0}])), "port 0 cannot be served"),
        ("web", ports(json!([{"listen": 80, "target": ""}])), "target's name is empty"),
        ("web", ports(json!([{"listen": 80}, {"listen": 80, "target": 1}])), "port 80 is listened on twice"),
        ("web", with(web(), "app", json!("shop/web")), "starting with /"),
        ("web", with(web(), "app", json!("/")), "starting with /"),
        ("web", with(web(), "scope", json!("external")), "no pool of external addresses is configured: add external"),
        ("web", with(web(), "vips", json!(["10.0.0.1"])), "10.77.100.0/29, fd77:0:100::/64"),
        ("web", with(web(), "vips", json!(["10.77.100.7"])), "is not in the internal pools"),
        ("web", with(web(), "vips", json!(["10.77.100.1"])), "belongs to the ELB taken"),
        ("web", with(web(), "vips", json!(["10.77.100.2", "10.77.100.2"])), "listed twice"),
        ("taken", site(), "of the other type"),
        ("taken", with(web(), "vips", json!(["10.77.100.2"])), "these never change while it lives"),
        ("taken", with(web(), "scope", json!("external")), "is internal, and that never changes"),
        ("web", with(site(), "rules", json!([])), "at least one rule"),
        ("web", with(site(), "listen", json!([])), "at least one port to listen on"),
        ("web", with(site(), "listen", json!([80, 80])), "port 80 is listened on twice"),
        ("web", site_with(json!({"host": "a b", "app": "/a"})), "is not a host"),
        ("web", site_with(json!({"host": "a.example:80", "app": "/a"})), "without scheme and port"),
        ("web", site_with(json!({"host": "a.*.example", "app": "/a"})), "*.example.com"),
        ("web", site_with(json!({"path": "api", "app": "/a"})), "start it with /"),
        ("web", site_with(json!({"path": "/a?b", "app": "/a"})), "is not a path"),
        (
            "web",
            with(site(), "rules", json!([{"path": "/a", "app": "/a"}, {"path": "/a/", "app": "/b"}])),
            "two rules say any host /a",
        ),
    ];
    let desired = taken(&Desired::default(), "taken", web());
    for (name, body, expected) in table {
        let refused = put(&desired, name, body.clone()).expect_err(&body.to_string()).to_string();
        assert!(refused.contains(expected), "{name} {body}: {refused}");
        assert!(!refused.starts_with(char::is_uppercase) || refused.starts_with("Marathon"), "{refused}");
    }
    // One port over both protocols is two services.
    put(&desired, "dns", with(web(), "ports", json!([{"listen": 53}, {"listen": 53, "protocol": "udp"}]))).unwrap();
}

#[test]
fn rules_have_one_normal_form() {
    let rules = json!([{"host": "Shop.Example.COM", "path": "/api/", "app": "/a"}, {"app": "/b"}]);
    let desired = taken(&Desired::default(), "site", with(site(), "rules", rules));
    let ElbSpec::Layer7(spec) = &desired.elbs["site"].spec else { panic!("layer 7 was asked for") };
    let flat: Vec<_> = spec.rules.iter().map(|rule| (rule.host.as_deref(), rule.path.as_str())).collect();
    assert_eq!(flat, [(None, "/"), (Some("shop.example.com"), "/api")]);
}

#[test]
fn an_unknown_job_is_refused_with_the_nearest_one() {
    let known = |ids: &[&str]| {
        let app = |id: &str| App {
            id: id.into(),
            version: "v".into(),
            wanted: 0,
            definitions: OrdMap::new(),
            instances: OrdMap::new(),
            deployments: Vec::new(),
        };
        Observed { apps: ids.iter().map(|id| (AppId::from(*id), Arc::new(app(id)))).collect(), ..Observed::default() }
    };
    let apply = |observed: &Observed, allow: bool| {
        let change = Change::Put { name: "web".to_owned(), spec: spec(web()) };
        Desired::default().apply(change, &pools(), Some(observed), allow)
    };
    let table = [
        (known(&["/shop/wbe", "/x"]), "did you mean /shop/wbe"),
        (known(&["/entirely/other"]), "none with a similar name"),
        (known(&[]), "Marathon lists no app at all"),
    ];
    for (observed, hint) in table {
        let refused = apply(&observed, false).unwrap_err().to_string();
        assert!(refused.contains("Marathon has no app /shop/web") && refused.contains(hint), "{refused}");
        apply(&observed, true).unwrap();
    }
    apply(&known(&["/shop/web"]), false).unwrap();
    assert_eq!((distance("/shop/wbe", "/shop/web"), distance("", "abc"), distance("abc", "abc")), (2, 3, 0));
}
