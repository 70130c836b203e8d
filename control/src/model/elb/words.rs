//! What an ELB has beyond its addresses, ports and jobs, in words for people.

use ipnet::IpNet;

use super::{ClientAddress, Forward, GUE_PORT, Layer4, Probe, ProbeType};

impl Layer4 {
    /// A name and a value for everything that is set; nothing for what is as by default.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let mut rows = Vec::new();
        let mut row = |name, value: Option<String>| rows.extend(value.map(|value| (name, value)));
        row("forward", self.forward_in_words());
        row("client address", self.client_address_in_words().map(str::to_owned));
        let protection = &self.protection;
        row("allow", list(&protection.allow));
        row("deny", list(&protection.deny));
        row(
            "each source",
            protection.per_source.map(|source| {
                let rate = rate(source.per_second, source.burst);
                format!("{rate}, a source is a /{} (IPv6: /{})", source.prefix_v4, source.prefix_v6)
            }),
        );
        row("all clients", protection.per_vip.map(|all| rate(all.per_second, all.burst)));
        row("SYN cookies", protection.syn_cookies_above.map(|rate| format!("above {rate} SYNs a second")));
        row("health", self.health.as_deref().map(Probe::in_words));
        row("slow start", (self.slow_start_s > 0).then(|| format!("{} s", self.slow_start_s)));
        rows
    }

    fn forward_in_words(&self) -> Option<String> {
        match self.forward {
            Forward::FullNat => None,
            Forward::Gue => Some(format!("gue to UDP port {}", self.gue_port.unwrap_or(GUE_PORT))),
            other => Some(other.to_string()),
        }
    }

    fn client_address_in_words(&self) -> Option<&'static str> {
        match self.client_address {
            ClientAddress::Hidden => None,
            ClientAddress::Toa => Some("toa: a TCP option in the first segments"),
            ClientAddress::Proxy => Some("proxy: the PROXY protocol's header, version 2"),
        }
    }
}

impl Probe {
    fn in_words(&self) -> String {
        let what = match self.kind {
            ProbeType::Tcp => "tcp: a connection is accepted".to_owned(),
            ProbeType::Http | ProbeType::Https => {
                let host = self.host.as_ref().map(|host| format!(" of {host}")).unwrap_or_default();
                let path = self.path.as_deref().unwrap_or("/");
                format!("{}: GET {path}{host} is answered {}", self.kind, self.status.unwrap_or_default())
            }
            ProbeType::Udp => match self.expect.as_ref().filter(|expect| !expect.0.is_empty()) {
                Some(expect) => format!("udp: a datagram is answered, beginning with \"{expect}\""),
                None => "udp: a datagram is answered".to_owned(),
            },
        };
        let (interval, timeout) = (span(self.interval_ms), span(self.timeout_ms()));
        format!("{what} within {timeout}, every {interval}; up after {}, down after {}", self.rise, self.fall)
    }
}

fn list(nets: &[IpNet]) -> Option<String> {
    (!nets.is_empty()).then(|| nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
}

fn rate(per_second: u32, burst: Option<u32>) -> String {
    format!("{per_second} new flows a second, {} at once", burst.unwrap_or(per_second))
}

fn span(ms: u32) -> String {
    if ms.is_multiple_of(1_000) { format!("{} s", ms / 1_000) } else { format!("{ms} ms") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_set_is_told() {
        let mut spec = Layer4::default();
        assert_eq!(spec.settings(), []);
        spec = serde_json::from_str(
            r#"{"app":"/a","ports":[{"listen":80}],"forward":"gue","gue_port":6081,"client_address":"toa",
            "protection":{"allow":["10.0.0.0/8","192.0.2.1"],"deny":["2001:db8::/32"],"per_vip":{"per_second":9},
            "per_source":{"per_second":100,"burst":200,"prefix_v4":24},"syn_cookies_above":5000},
            "health":{"type":"https","path":"/h","host":"a.example","status":"204","interval_ms":1500},
            "slow_start_s":30}"#,
        )
        .unwrap();
        let told: Vec<String> = spec.settings().iter().map(|(name, value)| format!("{name}: {value}")).collect();
        let expected = [
            "forward: gue to UDP port 6081",
            "client address: toa: a TCP option in the first segments",
            "allow: 10.0.0.0/8, 192.0.2.1/32",
            "deny: 2001:db8::/32",
            "each source: 100 new flows a second, 200 at once, a source is a /24 (IPv6: /64)",
            "all clients: 9 new flows a second, 9 at once",
            "SYN cookies: above 5000 SYNs a second",
            "health: https: GET /h of a.example is answered 204 within 1 s, every 1500 ms; up after 2, down after 3",
            "slow start: 30 s",
        ];
        assert_eq!(told, expected);
        let udp: Probe =
            serde_json::from_str(r#"{"type":"udp","send":"a","expect":"\\x00b","interval_ms":50}"#).unwrap();
        let said = "udp: a datagram is answered, beginning with \"\\x00b\" within 50 ms, every 50 ms; up after 2, down after 3";
        assert_eq!(udp.in_words(), said);
    }
}
