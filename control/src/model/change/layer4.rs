//! What a layer-4 ELB may ask for at once, and the one normal form of it.

use super::{Refused, check_listen, check_target};
use crate::model::elb::{
    ClientAddress, Forward, GUE_PORT, LONGEST_PAYLOAD, Layer4, Probe, ProbeType, Protection, StatusRange, Target,
    Transport,
};

/// All ELBs share the plane's table of networks: none may fill it alone.
const MOST_NETWORKS: usize = 1_024;
/// The plane counts in nanoseconds.
const HIGHEST_RATE: u32 = 1_000_000_000;
const LONGEST_SLOW_START_S: u32 = 3_600;

pub(super) fn checked(mut spec: Layer4) -> Result<Layer4, Refused> {
    ports(&mut spec)?;
    forward(&mut spec)?;
    client_address(&spec)?;
    let cookies = cookies_problem(&spec);
    protection(&mut spec.protection, cookies)?;
    let has_port = |transport| spec.ports.iter().any(|pair| pair.protocol == transport);
    if let Some(probe) = &mut spec.health {
        let transport = probe.kind.transport();
        if !has_port(transport) {
            let kind = probe.kind;
            return field(
                "health.type",
                format!("{kind} checks {transport} ports, and there is none: use another type"),
            );
        }
        health(probe)?;
    }
    match spec.slow_start_s {
        0..=LONGEST_SLOW_START_S => Ok(spec),
        long => field("slow_start_s", format!("{long} s is too long: use at most {LONGEST_SLOW_START_S}")),
    }
}

/// `what` says after its last colon what to do.
fn field<T>(field: &'static str, what: impl Into<String>) -> Result<T, Refused> {
    Err(Refused::Field { field, what: what.into() })
}

fn ports(spec: &mut Layer4) -> Result<(), Refused> {
    if spec.ports.is_empty() {
        return Err(Refused::NoPorts);
    }
    spec.ports.sort_by_key(|pair| (pair.listen, pair.protocol));
    for pair in &mut spec.ports {
        check_listen(pair.listen)?;
        check_target(&mut pair.target)?;
    }
    match spec.ports.windows(2).find(|both| (both[0].listen, both[0].protocol) == (both[1].listen, both[1].protocol)) {
        Some(both) => Err(Refused::DuplicateListen { listen: both[0].listen }),
        None => Ok(()),
    }
}

fn forward(spec: &mut Layer4) -> Result<(), Refused> {
    let how = spec.forward;
    match (how, spec.gue_port) {
        (Forward::Gue, None) => spec.gue_port = Some(GUE_PORT),
        (Forward::Gue, Some(0)) => return field("gue_port", "nobody listens at port 0: use 1 to 65535"),
        (Forward::Gue, Some(_)) | (_, None) => {}
        (_, Some(_)) => return field("gue_port", format!("forward {how} has no use for it: leave it out, or use gue")),
    }
    for pair in &spec.ports {
        if let Some(Target::Number(target)) = pair.target
            && target != pair.listen
            && !how.translates()
        {
            let listen = pair.listen;
            return field(
                "forward",
                format!(
                    "{listen}:{target} cannot be served without translation: use forward fullnat, or target {listen}"
                ),
            );
        }
    }
    Ok(())
}

fn client_address(spec: &Layer4) -> Result<(), Refused> {
    let (how, told) = (spec.forward, spec.client_address);
    let udp = spec.ports.iter().find(|pair| pair.protocol == Transport::Udp);
    match (told, udp) {
        (ClientAddress::Hidden, _) => Ok(()),
        _ if !how.translates() => field(
            "client_address",
            format!("forward {how} shows instances the client's own address: leave it out, or use forward fullnat"),
        ),
        (_, Some(udp)) => field(
            "client_address",
            format!("{told} is for TCP, and {} is a UDP port: leave it out, or make an ELB for UDP alone", udp.listen),
        ),
        (_, None) => Ok(()),
    }
}

/// Why SYN cookies cannot be sent, and what to do.
fn cookies_problem(spec: &Layer4) -> Option<String> {
    let how = spec.forward;
    if !how.translates() {
        let why = format!("with forward {how} answers do not pass here, so no cookie can be turned into a connection");
        return Some(format!("{why}: leave it out, or use forward fullnat"));
    }
    let tcp = spec.ports.iter().any(|pair| pair.protocol == Transport::Tcp);
    (!tcp).then(|| "only TCP has SYNs, and there is no TCP port: leave it out".to_owned())
}

fn protection(protection: &mut Protection, cookies: Option<String>) -> Result<(), Refused> {
    let Protection { allow, deny, per_source, per_vip, syn_cookies_above } = protection;
    for nets in [&mut *allow, &mut *deny] {
        nets.sort_unstable();
        nets.dedup();
    }
    if let Some(net) = allow.iter().find(|net| deny.binary_search(net).is_ok()) {
        return field("protection.deny", format!("{net} is allowed as well: remove it from one of the lists"));
    }
    let count = allow.len() + deny.len();
    if count > MOST_NETWORKS {
        let many = format!("{count} networks are too many: list at most {MOST_NETWORKS} in allow and deny together");
        return field("protection.allow", many);
    }
    if let Some(source) = per_source {
        rate("protection.per_source.per_second", source.per_second)?;
        rate("protection.per_source.burst", *source.burst.get_or_insert(source.per_second))?;
        prefix("protection.per_source.prefix_v4", source.prefix_v4, 32)?;
        prefix("protection.per_source.prefix_v6", source.prefix_v6, 128)?;
    }
    if let Some(all) = per_vip {
        rate("protection.per_vip.per_second", all.per_second)?;
        rate("protection.per_vip.burst", *all.burst.get_or_insert(all.per_second))?;
    }
    if let Some(above) = *syn_cookies_above {
        const FIELD: &str = "protection.syn_cookies_above";
        if let Some(why) = cookies {
            return field(FIELD, why);
        }
        rate(FIELD, above)?;
    }
    Ok(())
}

fn rate(name: &'static str, rate: u32) -> Result<(), Refused> {
    match rate {
        0 => field(name, "0 would let nothing through: use at least 1, or leave it out for no limit"),
        1..=HIGHEST_RATE => Ok(()),
        high => field(name, format!("{high} is more than can be counted: use at most {HIGHEST_RATE}, or leave it out")),
    }
}

fn prefix(name: &'static str, bits: u8, most: u8) -> Result<(), Refused> {
    match bits {
        0 => field(name, "0 bits make all clients one source: use per_vip for that"),
        bits if bits > most => field(name, format!("an address has no {bits} bits: use 1 to {most}")),
        _ => Ok(()),
    }
}

fn health(probe: &mut Probe) -> Result<(), Refused> {
    let kind = probe.kind;
    let given = [
        ("health.path", probe.path.is_some(), kind.is_http()),
        ("health.host", probe.host.is_some(), kind.is_http()),
        ("health.status", probe.status.is_some(), kind.is_http()),
        ("health.send", probe.send.is_some(), kind == ProbeType::Udp),
        ("health.expect", probe.expect.is_some(), kind == ProbeType::Udp),
    ];
    if let Some((name, ..)) = given.into_iter().find(|(_, given, fits)| *given && !fits) {
        return field(name, format!("a {kind} check has no use for it: leave it out, or use another health.type"));
    }
    if kind.is_http() {
        request(probe)?;
    }
    if kind == ProbeType::Udp {
        datagrams(probe)?;
    }
    times(probe)
}

fn request(probe: &mut Probe) -> Result<(), Refused> {
    let path = probe.path.get_or_insert_with(|| "/".to_owned());
    if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
        return field("health.path", format!("{path:?} is not a path: start it with / and leave out spaces and #"));
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    if let Some(host) = &probe.host
        && (host.is_empty() || host.len() > 255 || !host.bytes().all(plain))
    {
        return field(
            "health.host",
            format!("{host:?} is not a host: write shop.example.com, without scheme and path"),
        );
    }
    probe.status.get_or_insert_with(StatusRange::default);
    Ok(())
}

fn datagrams(probe: &Probe) -> Result<(), Refused> {
    match &probe.send {
        Some(send) if !send.0.is_empty() => {}
        _ => return field("health.send", "an empty datagram asks for no answer: say what to send, such as PING\\r\\n"),
    }
    for (name, payload) in [("health.send", &probe.send), ("health.expect", &probe.expect)] {
        let bytes = payload.as_ref().map_or(0, |payload| payload.0.len());
        if bytes > LONGEST_PAYLOAD {
            return field(name, format!("{bytes} bytes are too many: use at most {LONGEST_PAYLOAD}"));
        }
    }
    Ok(())
}

fn times(probe: &mut Probe) -> Result<(), Refused> {
    let interval = probe.interval_ms;
    if !(10..=3_600_000).contains(&interval) {
        return field("health.interval_ms", format!("{interval} ms cannot be kept: use 10 to 3600000"));
    }
    let timeout = probe.timeout_ms();
    if timeout == 0 {
        return field("health.timeout_ms", "nothing answers in 0 ms: use at least 1, or leave it out");
    }
    if timeout > interval {
        let long = format!("{timeout} ms are longer than the {interval} ms between two checks: use at most {interval}");
        return field("health.timeout_ms", long);
    }
    probe.timeout_ms = Some(timeout);
    for (name, times) in [("health.rise", probe.rise), ("health.fall", probe.fall)] {
        if times == 0 {
            return field(name, "0 checks decide nothing: use at least 1");
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "layer4_tests.rs"]
mod tests;
