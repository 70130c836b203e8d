//! The flags of `tidegate elb create` that say how layer 4 treats an ELB's packets.

use clap::Args;
use ipnet::IpNet;

use crate::model::elb::{
    ClientAddress, Forward, Layer4, Payload, Probe, ProbeType, Protection, Rate, SourceRate, StatusRange, network,
};

/// How packets are forwarded.
// Groups are flat: clap leaves the group of a struct empty that has another struct in it.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "How packets are forwarded (layer4)")]
#[group(id = "forwarding", conflicts_with = "rule")]
pub(super) struct Forwarding {
    /// How packets get to the instances; left out: fullnat. The others answer clients directly and translate no port.
    #[arg(long, value_enum, value_name = "HOW")]
    forward: Option<Forward>,
    /// The UDP port that hosts unwrap GUE at; left out: 6080.
    #[arg(long, value_name = "PORT")]
    gue_port: Option<u16>,
    /// How an instance learns its client's address under fullnat (TCP); left out: hidden.
    #[arg(long, value_enum, value_name = "HOW")]
    client_address: Option<ClientAddress>,
    /// A new instance gets its share of new flows in steps over this time, such as 30s.
    #[arg(long, value_name = "TIME", value_parser = milliseconds)]
    slow_start: Option<u32>,
}

/// Who may open flows, and how many.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Who may open flows, and how many (layer4)")]
#[group(id = "protecting", conflicts_with = "rule")]
pub(super) struct Protecting {
    /// A network or address whose clients may; nobody else may then. The longest prefix of --allow and --deny decides.
    #[arg(long, value_name = "NET", value_delimiter = ',', value_parser = network)]
    allow: Vec<IpNet>,
    /// A network or address whose clients may not.
    #[arg(long, value_name = "NET", value_delimiter = ',', value_parser = network)]
    deny: Vec<IpNet>,
    /// New flows a second of one source, and how many at once (left out: as many). A source is so many leading bits of an
    /// IPv4 address (left out: 32), and of an IPv6 one (64).
    #[arg(long, value_name = "RATE[:BURST][/V4[/V6]]", value_parser = source_rate)]
    source_rate: Option<SourceRate>,
    /// New flows a second of all clients together, and how many at once (left out: as many).
    #[arg(long, value_name = "RATE[:BURST]", value_parser = rate)]
    vip_rate: Option<Rate>,
    /// SYNs a second beyond which clients must prove their address first (fullnat, TCP ports).
    #[arg(long, value_name = "RATE")]
    syn_cookies_above: Option<u32>,
}

/// How instances are checked.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Checking instances (layer4)")]
#[group(id = "checking", conflicts_with = "rule")]
pub(super) struct Checking {
    /// How every instance is checked, beside Marathon's own checks: tcp, http, http:/healthz, https:/healthz, udp.
    #[arg(long, value_name = "TYPE[:PATH]", value_parser = health)]
    health: Option<Health>,
    /// The host that http and https name; left out: the instance's address.
    #[arg(long, value_name = "HOST", requires = "health")]
    health_host: Option<String>,
    /// The good answers to http and https; left out: 200-399.
    #[arg(long, value_name = "FIRST[-LAST]", requires = "health")]
    health_status: Option<StatusRange>,
    /// The datagram of udp, with \xNN for any byte.
    #[arg(long, value_name = "TEXT", requires = "health")]
    health_send: Option<Payload>,
    /// What its answer must begin with; left out: any answer is good.
    #[arg(long, value_name = "TEXT", requires = "health")]
    health_expect: Option<Payload>,
    /// From one check to the next; left out: 2s.
    #[arg(long, value_name = "TIME", value_parser = milliseconds, requires = "health")]
    health_interval: Option<u32>,
    /// How long an answer may take; left out: 1s, or the interval if that is shorter.
    #[arg(long, value_name = "TIME", value_parser = milliseconds, requires = "health")]
    health_timeout: Option<u32>,
    /// So many good checks in a row make an instance healthy again; left out: 2.
    #[arg(long, value_name = "COUNT", requires = "health")]
    health_rise: Option<u8>,
    /// So many bad ones make it unhealthy; left out: 3.
    #[arg(long, value_name = "COUNT", requires = "health")]
    health_fall: Option<u8>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Health {
    kind: ProbeType,
    path: Option<String>,
}

impl Forwarding {
    /// The spec with what was said.
    pub(super) fn fill(&self, spec: Layer4) -> Layer4 {
        Layer4 {
            forward: self.forward.unwrap_or_default(),
            gue_port: self.gue_port,
            client_address: self.client_address.unwrap_or_default(),
            // A part of a second is a second: 0 would be another wish.
            slow_start_s: self.slow_start.unwrap_or_default().div_ceil(1_000),
            ..spec
        }
    }
}

impl Protecting {
    pub(super) fn protection(&self) -> Protection {
        Protection {
            allow: self.allow.clone(),
            deny: self.deny.clone(),
            per_source: self.source_rate,
            per_vip: self.vip_rate,
            syn_cookies_above: self.syn_cookies_above,
        }
    }
}

impl Checking {
    pub(super) fn probe(&self) -> Option<Probe> {
        let Health { kind, path } = self.health.clone()?;
        let default = Probe::new(kind);
        Some(Probe {
            path,
            host: self.health_host.clone(),
            status: self.health_status,
            send: self.health_send.clone(),
            expect: self.health_expect.clone(),
            interval_ms: self.health_interval.unwrap_or(default.interval_ms),
            timeout_ms: self.health_timeout,
            rise: self.health_rise.unwrap_or(default.rise),
            fall: self.health_fall.unwrap_or(default.fall),
            ..default
        })
    }
}

/// `100`, `100:200`.
fn rate(text: &str) -> Result<Rate, String> {
    let number = |text: &str| {
        text.parse().map_err(|_| format!("{text:?} is no number of flows: write it like 100, or 100:200 with a burst"))
    };
    let (per_second, burst) = match text.split_once(':') {
        None => (text, None),
        Some((per_second, burst)) => (per_second, Some(number(burst)?)),
    };
    Ok(Rate { per_second: number(per_second)?, burst })
}

/// `100`, `100/24`, `100:200/24/56`.
fn source_rate(text: &str) -> Result<SourceRate, String> {
    let mut parts = text.split('/');
    let Rate { per_second, burst } = rate(parts.next().unwrap_or_default())?;
    let mut source = SourceRate { burst, ..SourceRate::new(per_second) };
    let bits = |text: &str| {
        text.parse()
            .map_err(|_| format!("{text:?} is no length of a prefix: write it like 100/24, or 100/24/56 for IPv6"))
    };
    if let Some(prefix) = parts.next() {
        source.prefix_v4 = bits(prefix)?;
    }
    if let Some(prefix) = parts.next() {
        source.prefix_v6 = bits(prefix)?;
    }
    match parts.next() {
        None => Ok(source),
        Some(more) => Err(format!("nothing can stand after the IPv6 prefix: leave out /{more}")),
    }
}

/// `tcp`, `http`, `http:/healthz`.
fn health(text: &str) -> Result<Health, String> {
    let (kind, path) = match text.split_once(':') {
        None => (text, None),
        Some((kind, path)) => (kind, Some(path.to_owned())),
    };
    match <ProbeType as clap::ValueEnum>::from_str(kind, false) {
        Ok(kind) => Ok(Health { kind, path }),
        Err(_) => Err(format!("{kind:?} is no kind of check: write tcp, http:/healthz, https:/healthz or udp")),
    }
}

/// `30s`, `500ms`, `2m`.
fn milliseconds(text: &str) -> Result<u32, String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = match unit {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" => Some(60_000),
        _ => None,
    };
    let ms = unit.and_then(|unit| number.parse::<u32>().ok()?.checked_mul(unit));
    ms.ok_or_else(|| format!("{text:?} is no time: write it like 2s, 500ms or 1m"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::{Value, json};

    use super::super::{Verb as ElbVerb, spec as spec_of};
    use crate::cli::{Cli, Verb};

    fn spec(flags: &str) -> Result<Value, String> {
        let line = format!("tidegate elb create web --type layer4 --app /web --port 80 {flags}");
        let cli =
            Cli::try_parse_from(line.split(' ').filter(|word| !word.is_empty())).map_err(|why| why.to_string())?;
        let Verb::Elb(ElbVerb::Create(create)) = cli.verb else { panic!("{line}") };
        Ok(serde_json::to_value(spec_of(&create)).unwrap())
    }

    #[test]
    fn every_flag_reaches_the_spec() {
        let table = [
            ("", "/forward", json!("fullnat")),
            ("--forward gue --gue-port 7000", "/gue_port", json!(7000)),
            ("--client-address proxy", "/client_address", json!("proxy")),
            ("--slow-start 30s", "/slow_start_s", json!(30)),
            ("--slow-start 1500ms", "/slow_start_s", json!(2)),
            ("--allow 10.0.0.0/8,192.0.2.1 --allow 2001:db8::/32", "/protection/allow/2", json!("2001:db8::/32")),
            ("--deny 10.1.0.0/16", "/protection/deny", json!(["10.1.0.0/16"])),
            (
                "--source-rate 100/24",
                "/protection/per_source",
                json!({"per_second": 100, "prefix_v4": 24, "prefix_v6": 64}),
            ),
            (
                "--source-rate 100:200/24/56",
                "/protection/per_source",
                json!({"per_second": 100, "burst": 200, "prefix_v4": 24, "prefix_v6": 56}),
            ),
            ("--vip-rate 20000", "/protection/per_vip", json!({"per_second": 20000})),
            ("--vip-rate 20000:30000", "/protection/per_vip", json!({"per_second": 20000, "burst": 30000})),
            ("--syn-cookies-above 5000", "/protection/syn_cookies_above", json!(5000)),
            ("--health tcp", "/health", json!({"type": "tcp", "interval_ms": 2000, "rise": 2, "fall": 3})),
            (
                "--health https:/healthz --health-host a.example --health-status 204 --health-interval 500ms \
                 --health-timeout 100ms --health-rise 1 --health-fall 5",
                "/health",
                json!({"type": "https", "path": "/healthz", "host": "a.example", "status": "204", "interval_ms": 500,
                       "timeout_ms": 100, "rise": 1, "fall": 5}),
            ),
            ("--health udp --health-send \\x00a --health-expect b", "/health/send", json!("\\x00a")),
        ];
        for (flags, pointer, expected) in table {
            let spec = spec(flags).unwrap_or_else(|why| panic!("{flags}: {why}"));
            assert_eq!(spec.pointer(pointer), Some(&expected), "{flags}: {spec}");
        }
    }

    #[test]
    fn a_slip_is_answered_with_how_it_is_written() {
        let table = [
            ("--forward nat", "fullnat"),
            ("--source-rate a", "like 100"),
            ("--source-rate 100/x", "like 100/24"),
            ("--source-rate 100/24/56/7", "leave out /7"),
            ("--vip-rate 1:", "with a burst"),
            ("--allow 10.0.0.0/33", "like 10.0.0.0/8"),
            ("--health icmp", "http:/healthz"),
            ("--health http --health-status ok", "like 200-399"),
            ("--health tcp --health-interval 2", "like 2s"),
            ("--slow-start soon", "like 2s"),
            ("--slow-start 99999999m", "like 2s"),
            ("--health-rise 2", "--health <TYPE[:PATH]>"),
        ];
        for (flags, says) in table {
            let why = spec(flags).expect_err(flags);
            assert!(why.contains(says), "{flags}: {why}");
        }
    }

    #[test]
    fn layer_7_has_none_of_them() {
        for flag in ["--forward direct", "--slow-start 1s", "--vip-rate 1", "--allow 10.0.0.0/8", "--health tcp"] {
            let line = format!("tidegate elb create web --type layer7 --rule /=/web {flag}");
            let why = Cli::try_parse_from(line.split(' ')).expect_err(flag).to_string();
            assert!(why.contains("cannot be used with"), "{flag}: {why}");
        }
    }
}
