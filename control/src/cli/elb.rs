//! `tidegate elb ...`.

mod layer4;
mod reals;

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{anyhow, bail};
use clap::{Args, Subcommand, ValueEnum};
use http::{Method, StatusCode};
use serde::Deserialize;

use super::{
    Remote,
    client::Client,
    table::{pairs, table},
};
use crate::{
    api::{ElbList, Layer4Body, Readiness},
    model::elb::{ElbSpec, Layer4, Layer7, PortPair, Rule, Scope, Target, Transport},
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Makes an ELB, or changes it to what is said here. Saying the same again changes nothing.
    #[command(after_help = "Examples:
  tidegate elb create demo --type layer4 --app /demo --port 80:8080
  tidegate elb create names --type layer4 --app /dns --port 53:53/udp --port 53:53
  tidegate elb create web --type layer4 --app /shop/web --port 80:http --vip 10.77.100.7
  tidegate elb create web --type layer4 --app /shop/web --port 80:http \\
      --health http:/healthz --slow-start 30s
  tidegate elb create web --type layer4 --app /shop/web --port 80:http --client-address proxy
  tidegate elb create web --type layer4 --app /shop/web --port 80:http \\
      --allow 10.0.0.0/8 --deny 10.9.0.0/16 --source-rate 100/24 \\
      --vip-rate 20000:40000 --syn-cookies-above 5000
  tidegate elb create video --type layer4 --app /video --port 80 --forward ipip
  tidegate elb create names --type layer4 --app /dns --port 53/udp \\
      --health udp --health-send 'PING\\n'
  tidegate elb create shop --type layer7 --rule shop.example.com/=/shop/web \\
      --rule shop.example.com/api=/shop/api:8080
  tidegate elb create all --type layer7 --listen 80 --listen 8080 --rule /=/demo")]
    Create(Box<Create>),
    /// All ELBs.
    List {
        #[command(flatten)]
        remote: Remote,
    },
    /// One ELB: its addresses, its name, and the instances behind each port.
    Show {
        name: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Removes an ELB: its addresses are withdrawn and may be given to another.
    Delete {
        name: String,
        #[command(flatten)]
        remote: Remote,
    },
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// 1 to 40 of a-z, 0-9 and -. Clients find the ELB by it: NAME.elb.<domain>.
    name: String,
    /// What it balances: connections and datagrams (layer4), or HTTP requests (layer7).
    #[arg(long = "type", value_enum, value_name = "TYPE")]
    kind: Kind,
    /// The job: a Marathon app id such as /shop/web (layer4).
    #[arg(long, required_if_eq("kind", "layer4"), conflicts_with = "rule")]
    app: Option<String>,
    /// VS port and RS port (layer4). RS is the number inside the container or the port's name; left out: the app's first.
    #[arg(long, value_name = "VS[:RS][/udp]", value_parser = port_pair, required_if_eq("kind", "layer4"), conflicts_with = "rule")]
    port: Vec<PortPair>,
    /// Which requests go to which job (layer7). A rule without a host takes every host.
    #[arg(long, value_name = "[HOST][/PATH]=APP[:PORT]", value_parser = rule, required_if_eq("kind", "layer7"))]
    rule: Vec<Rule>,
    /// Where to listen (layer7); left out: 80.
    #[arg(long, value_name = "PORT", conflicts_with = "port")]
    listen: Vec<u16>,
    /// An address out of the scope's pools; left out: one is given from each.
    #[arg(long)]
    vip: Vec<IpAddr>,
    /// Who may reach it.
    #[arg(long, value_enum, default_value = "internal")]
    scope: ScopeArg,
    /// Take a job that Marathon does not run yet.
    #[arg(long)]
    allow_missing: bool,
    /// How many seconds to wait until it is ready.
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    wait: u64,
    #[command(flatten)]
    remote: Remote,
    #[command(flatten)]
    forwarding: layer4::Forwarding,
    #[command(flatten)]
    protecting: layer4::Protecting,
    #[command(flatten)]
    checking: layer4::Checking,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Kind {
    Layer4,
    Layer7,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ScopeArg {
    Internal,
    External,
}

/// An ELB as the API tells it: the part that is printed.
#[derive(Debug, Deserialize)]
struct Told {
    name: String,
    spec: ElbSpec,
    vips: Vec<IpAddr>,
    dns_name: String,
    revision: u64,
    readiness: Readiness,
    status: Option<Status>,
    #[serde(default)]
    layer4: Option<Layer4Body>,
    #[serde(default)]
    warnings: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Status {
    ports: Vec<Port>,
}

#[derive(Debug, Deserialize)]
struct Port {
    listen: String,
    app: String,
    target: String,
    problem: Option<String>,
    serving: usize,
    draining: usize,
    held: usize,
    instances: Vec<Instance>,
}

#[derive(Debug, Deserialize)]
struct Instance {
    id: String,
    host: String,
    addresses: Vec<SocketAddr>,
    verdict: String,
    reason: String,
}

pub(super) async fn main(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Create(create) => self::create(*create).await,
        Verb::List { remote } => list(&Client::new(&remote)?).await,
        Verb::Show { name, remote } => show(&Client::new(&remote)?, &name).await,
        Verb::Delete { name, remote } => delete(&Client::new(&remote)?, &name).await,
    }
}

async fn create(create: Create) -> anyhow::Result<()> {
    let client = Client::new(&create.remote)?;
    let path = path_of(&create.name)?;
    let query = if create.allow_missing { "?allow_missing=true" } else { "" };
    let body = serde_json::to_string(&spec(&create))?;
    let answer = client.ask(Method::PUT, &format!("{path}{query}"), Some(body)).await?;
    let put: Told = answer.read()?;
    let made = if answer.status == StatusCode::CREATED { "made" } else { "as asked for" };
    let (text, elb) = wait(&client, &path, answer.text, create.wait).await?;
    if client.json {
        println!("{text}");
        return Ok(());
    }
    println!("{} is {made}\n", elb.name);
    print_elb(&elb);
    for warning in &put.warnings {
        println!("\nwarning: {warning}");
    }
    Ok(())
}

/// Until the ELB is ready, or the time is over; the last answer.
async fn wait(client: &Client, path: &str, first: String, seconds: u64) -> anyhow::Result<(String, Told)> {
    const PAUSE: Duration = Duration::from_millis(100);
    let mut text = first;
    let mut left = u32::try_from(seconds.min(3600) * 10).expect("at most 36,000");
    loop {
        let elb: Told = serde_json::from_str(&text)?;
        if elb.readiness.ready || left == 0 {
            return Ok((text, elb));
        }
        left -= 1;
        tokio::time::sleep(PAUSE).await;
        text = client.ask(Method::GET, path, None).await?.text;
    }
}

async fn list(client: &Client) -> anyhow::Result<()> {
    let answer = client.ask(Method::GET, "/v1/elbs", None).await?;
    if client.json {
        println!("{}", answer.text);
        return Ok(());
    }
    let list: ElbList = answer.read()?;
    if list.elbs.is_empty() {
        println!("there is no ELB yet: tidegate elb create --help shows how to make one");
        return Ok(());
    }
    let rows: Vec<Vec<String>> = list
        .elbs
        .iter()
        .map(|elb| {
            let (kind, behind) = describe(&elb.spec);
            let ready = if elb.ready { "yes" } else { "NO" };
            vec![elb.name.clone(), kind.to_owned(), join(&elb.vips), elb.dns_name.clone(), behind, ready.to_owned()]
        })
        .collect();
    println!("{}", table(&["NAME", "TYPE", "VIPS", "DNS NAME", "PORTS AND JOBS", "READY"], &rows));
    Ok(())
}

async fn show(client: &Client, name: &str) -> anyhow::Result<()> {
    let answer = client.ask(Method::GET, &path_of(name)?, None).await?;
    match client.json {
        true => println!("{}", answer.text),
        false => print_elb(&answer.read()?),
    }
    Ok(())
}

async fn delete(client: &Client, name: &str) -> anyhow::Result<()> {
    client.ask(Method::DELETE, &path_of(name)?, None).await?;
    if !client.json {
        println!("{name} is removed");
    }
    Ok(())
}

/// The name goes into a URL: what could never be a name is refused here, with the same words as there.
fn path_of(name: &str) -> anyhow::Result<String> {
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_') {
        bail!("{name:?} is not an ELB's name: use 1 to 40 of a-z, 0-9 and -");
    }
    Ok(format!("/v1/elbs/{name}"))
}

fn print_elb(elb: &Told) {
    let (kind, behind) = describe(&elb.spec);
    let ready = match elb.readiness.ready {
        true => "yes".to_owned(),
        false => format!("NO: {}", elb.readiness.reasons.join("; ")),
    };
    let mut rows = vec![
        ("name", elb.name.clone()),
        ("type", format!("{kind}, {}", elb.spec.scope())),
        ("VIPs", join(&elb.vips)),
        ("DNS name", elb.dns_name.clone()),
        ("ports and jobs", behind),
    ];
    rows.extend(elb.spec.settings());
    rows.extend([("revision", elb.revision.to_string()), ("ready", ready)]);
    println!("{}", pairs(&rows));
    if let Some(status) = &elb.status {
        println!("\n{}", instances(status));
    }
    if let Some(layer4) = &elb.layer4 {
        reals::print(layer4);
    }
}

fn join(vips: &[IpAddr]) -> String {
    vips.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The type, and what is behind it on one line.
fn describe(spec: &ElbSpec) -> (&'static str, String) {
    match spec {
        ElbSpec::Layer4(spec) => {
            let ports: Vec<String> = spec
                .ports
                .iter()
                .map(|pair| {
                    let target = pair.target.as_ref().map_or("first".to_owned(), ToString::to_string);
                    format!("{}/{}->{target}", pair.listen, pair.protocol)
                })
                .collect();
            ("layer4", format!("{} of {}", ports.join(", "), spec.app))
        }
        ElbSpec::Layer7(spec) => {
            let rules: Vec<String> = spec
                .rules
                .iter()
                .map(|rule| format!("{}{}->{}", rule.host.as_deref().unwrap_or("*"), rule.path, rule.app))
                .collect();
            let listen: Vec<String> = spec.listen.iter().map(ToString::to_string).collect();
            ("layer7", format!("{}: {}", listen.join(","), rules.join(", ")))
        }
    }
}

fn spec(create: &Create) -> ElbSpec {
    let scope = match create.scope {
        ScopeArg::Internal => Scope::Internal,
        ScopeArg::External => Scope::External,
    };
    match create.kind {
        Kind::Layer4 => ElbSpec::Layer4(create.forwarding.fill(Layer4 {
            scope,
            vips: create.vip.clone(),
            app: create.app.as_deref().unwrap_or_default().into(),
            ports: create.port.clone(),
            protection: create.protecting.protection(),
            health: create.checking.probe().map(Box::new),
            ..Layer4::default()
        })),
        Kind::Layer7 => ElbSpec::Layer7(Layer7 {
            scope,
            vips: create.vip.clone(),
            listen: if create.listen.is_empty() { vec![80] } else { create.listen.clone() },
            rules: create.rule.clone(),
        }),
    }
}

/// `80`, `80:8080`, `80:http`, `53:53/udp`.
fn port_pair(text: &str) -> anyhow::Result<PortPair> {
    let (ports, protocol) = match text.rsplit_once('/') {
        None => (text, Transport::Tcp),
        Some((ports, "tcp")) => (ports, Transport::Tcp),
        Some((ports, "udp")) => (ports, Transport::Udp),
        Some((_, other)) => bail!("{other:?} is neither tcp nor udp"),
    };
    let (listen, behind) = match ports.split_once(':') {
        None => (ports, None),
        Some((listen, behind)) => (listen, Some(target(behind)?)),
    };
    let listen =
        listen.parse().map_err(|_| anyhow!("{listen:?} is not a port from 1 to 65535: write it like 80:8080"))?;
    Ok(PortPair { listen, protocol, target: behind })
}

fn target(text: &str) -> anyhow::Result<Target> {
    match text.parse() {
        Ok(number) => Ok(Target::Number(number)),
        Err(_) if text.is_empty() || text.bytes().all(|byte| byte.is_ascii_digit()) => {
            bail!("{text:?} is neither a port from 1 to 65535 nor the name of one")
        }
        Err(_) => Ok(Target::Name(text.to_owned())),
    }
}

/// `shop.example.com/api=/shop/api:8080`, `/=/demo`.
fn rule(text: &str) -> anyhow::Result<Rule> {
    let (from, to) = text.split_once('=').ok_or_else(|| {
        anyhow!("a rule says which requests go to which job: write it like shop.example.com/=/shop/web")
    })?;
    let (host, path) = match from.find('/') {
        Some(at) => (&from[..at], &from[at..]),
        None => (from, "/"),
    };
    let (app, behind) = match to.split_once(':') {
        None => (to, None),
        Some((app, behind)) => (app, Some(target(behind)?)),
    };
    if !app.starts_with('/') {
        bail!("{app:?} is not a job: write a Marathon app id, starting with /, such as /shop/web");
    }
    let host = (!host.is_empty() && host != "*").then(|| host.to_owned());
    Ok(Rule { host, path: path.to_owned(), app: app.into(), target: behind })
}

/// Each port with its instances.
fn instances(status: &Status) -> String {
    let ports: Vec<String> = status
        .ports
        .iter()
        .map(|port| {
            let mut text = format!(
                "{} -> {} port {}: {} serving, {} draining, {} held",
                port.listen, port.app, port.target, port.serving, port.draining, port.held
            );
            if let Some(problem) = &port.problem {
                text += &format!("\n  {problem}");
            }
            if !port.instances.is_empty() {
                let rows: Vec<Vec<String>> = port
                    .instances
                    .iter()
                    .map(|instance| {
                        let addresses: Vec<String> = instance.addresses.iter().map(ToString::to_string).collect();
                        vec![
                            instance.id.clone(),
                            instance.host.clone(),
                            addresses.join(" "),
                            instance.verdict.clone(),
                            instance.reason.clone(),
                        ]
                    })
                    .collect();
                text += "\n";
                text += &table(&["INSTANCE", "AGENT", "ANSWERS AT", "VERDICT", "WHY"], &rows);
            }
            text
        })
        .collect();
    ports.join("\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_pair_is_read() {
        let pair = |listen, protocol, target| PortPair { listen, protocol, target };
        let table = [
            ("80", pair(80, Transport::Tcp, None)),
            ("80:8080", pair(80, Transport::Tcp, Some(Target::Number(8080)))),
            ("80:http", pair(80, Transport::Tcp, Some(Target::Name("http".to_owned())))),
            ("53:53/udp", pair(53, Transport::Udp, Some(Target::Number(53)))),
            ("53/tcp", pair(53, Transport::Tcp, None)),
        ];
        for (text, wanted) in table {
            assert_eq!(port_pair(text).unwrap(), wanted, "{text}");
        }
        for text in ["", "http", "80:", "80:70000", "70000", "80/sctp", ":80", "80 "] {
            assert!(port_pair(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_rule_is_read() {
        let rule_of = |host: Option<&str>, path: &str, app: &str, target| Rule {
            host: host.map(str::to_owned),
            path: path.to_owned(),
            app: app.into(),
            target,
        };
        let table = [
            ("shop.example.com/=/demo", rule_of(Some("shop.example.com"), "/", "/demo", None)),
            ("shop.example.com=/demo", rule_of(Some("shop.example.com"), "/", "/demo", None)),
            ("*.example.com/api=/a/b:8080", rule_of(Some("*.example.com"), "/api", "/a/b", Some(Target::Number(8080)))),
            ("/=/demo:http", rule_of(None, "/", "/demo", Some(Target::Name("http".to_owned())))),
            ("*/x=/demo", rule_of(None, "/x", "/demo", None)),
        ];
        for (text, wanted) in table {
            assert_eq!(rule(text).unwrap(), wanted, "{text}");
        }
        for text in ["", "shop", "shop=demo", "/=", "/=/demo:"] {
            assert!(rule(text).is_err(), "{text:?}");
        }
    }
}
