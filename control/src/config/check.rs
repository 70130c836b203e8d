//! What can be known about a configuration before anything runs.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;

use super::{Config, Role};

/// Something that keeps Tidegate from running (fatal), or that its operator should know.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    pub fatal: bool,
    /// The key to change.
    pub key: &'static str,
    /// What is wrong, and what to do.
    pub text: String,
}

/// What the configuration is held against. The default knows nothing and finds nothing wrong.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// The names of the interfaces.
    pub interfaces: Option<BTreeSet<String>>,
    pub root: Option<bool>,
    pub bpf_mounted: Option<bool>,
}

impl Machine {
    pub fn here() -> Self {
        let interfaces = std::fs::read_dir("/sys/class/net").ok().map(|entries| {
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect::<BTreeSet<_>>()
        });
        let mounts = std::fs::read_to_string("/proc/mounts").ok();
        Self {
            interfaces,
            root: Some(nix::unistd::geteuid().is_root()),
            bpf_mounted: mounts.map(|mounts| mounts.lines().any(|line| line.split(' ').nth(2) == Some("bpf"))),
        }
    }
}

/// Everything that is wrong or odd, the fatal first.
pub fn check(config: &Config, machine: &Machine) -> Vec<Finding> {
    let mut findings = Vec::new();
    roles(config, &mut findings);
    names(config, &mut findings);
    sources(config, &mut findings);
    addresses(config, &mut findings);
    ports(config, machine, &mut findings);
    if config.roles.contains(&Role::L4) {
        layer4(config, machine, &mut findings);
    }
    findings.sort_by_key(|finding| !finding.fatal);
    findings
}

fn fatal(key: &'static str, text: impl Into<String>) -> Finding {
    Finding { fatal: true, key, text: text.into() }
}

fn warning(key: &'static str, text: impl Into<String>) -> Finding {
    Finding { fatal: false, key, text: text.into() }
}

fn roles(config: &Config, findings: &mut Vec<Finding>) {
    let control = config.roles.contains(&Role::Control);
    if config.roles.is_empty() {
        findings.push(fatal("roles", "no role is left: name at least one of l4, l7, dns, control"));
        return;
    }
    match (&config.api.follow, control) {
        (None, false) => findings.push(fatal(
            "api.follow",
            "this machine has no role control, so it must know where the ELBs come from: set follow = \"http://NODE:7070\" \
             under [api] (the machine that has the role control), or add control to the roles",
        )),
        (Some(_), true) => findings.push(fatal(
            "api.follow",
            "a machine with the role control keeps the ELBs itself and cannot follow another: remove follow, or remove \
             control from the roles",
        )),
        (Some(url), false) => {
            if let Err(why) = base_url(url) {
                findings.push(fatal("api.follow", why));
            }
        }
        (None, true) => {}
    }
    if config.store.path.as_os_str().is_empty() {
        findings.push(fatal("store.path", "is empty: name the file that keeps the ELBs"));
    }
    if config.api.listen.is_empty() {
        findings.push(fatal("api.listen", "is empty: name an address such as 127.0.0.1:7070"));
    }
}

/// A URL of a server, such as `http://10.77.0.1:7070`.
pub(crate) fn base_url(text: &str) -> Result<reqwest::Url, String> {
    let url = reqwest::Url::parse(text)
        .map_err(|error| format!("{text:?} is not a URL ({error}): write it like http://10.77.0.1:7070"))?;
    match (url.scheme(), url.host()) {
        ("http" | "https", Some(_)) => Ok(url),
        _ => Err(format!("{text:?} is not an http or https URL with a host: write it like http://10.77.0.1:7070")),
    }
}

fn names(config: &Config, findings: &mut Vec<Finding>) {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if config.domain.len() > 100 || !config.domain.split('.').all(label) {
        findings.push(fatal(
            "domain",
            format!("{:?} is not a domain in lower case without a trailing dot, such as mesos", config.domain),
        ));
    }
    if config.ttl_s > 3600 {
        findings.push(warning("ttl_s", "clients will use instances that are long gone: 5 to 60 seconds are usual"));
    }
}

fn sources(config: &Config, findings: &mut Vec<Finding>) {
    // It also reads ca_file, so that a file that is not there is found before the start.
    if let Err(error) = config.marathon.check() {
        findings.push(fatal("marathon", format!("{error:#}")));
    }
    if config.marathon.ca_file.is_some() && config.marathon.urls.iter().all(|url| url.starts_with("http://")) {
        findings.push(warning("marathon.ca_file", "no address of Marathon is https, so the certificates are not used"));
    }
    if config.marathon.password.is_some() && config.marathon.user.is_none() {
        findings.push(warning("marathon.password", "there is a password but no user: neither is sent"));
    }
}

/// Layer 4 has room for so many of each family.
const MOST_LOCALS: usize = 64;

fn addresses(config: &Config, findings: &mut Vec<Finding>) {
    let pools: Vec<(&'static str, IpNet)> = (config.vips.internal.iter().map(|net| ("vips.internal", *net)))
        .chain(config.vips.external.iter().map(|net| ("vips.external", *net)))
        .collect();
    if pools.is_empty() && config.roles.contains(&Role::Control) {
        findings.push(warning("vips.internal", "there is no VIP pool: no ELB can be given an address"));
    }
    for (i, (key, a)) in pools.iter().enumerate() {
        for (other, b) in &pools[i + 1..] {
            if a.contains(&b.network()) || b.contains(&a.network()) {
                findings.push(fatal(key, format!("{a} overlaps {b} of {other}: an address would be given twice")));
            }
        }
    }
    if !config.roles.contains(&Role::L4) {
        return;
    }
    for local in &config.l4.local_addresses {
        if let Some((key, net)) = pools.iter().find(|(_, net)| net.contains(local)) {
            findings.push(fatal(
                "l4.local_addresses",
                format!("{local} lies in the VIP pool {net} ({key}): an ELB could be given it; take one outside"),
            ));
        }
    }
    for v6 in [false, true] {
        let name = if v6 { "IPv6" } else { "IPv4" };
        let count = config.l4.local_addresses.iter().filter(|local| local.is_ipv6() == v6).count();
        if count > MOST_LOCALS {
            findings.push(fatal(
                "l4.local_addresses",
                format!("{count} {name} addresses are too many: list at most {MOST_LOCALS} of each family"),
            ));
        }
        let pooled = pools.iter().any(|(_, net)| net.addr().is_ipv6() == v6);
        if pooled && count == 0 {
            findings.push(warning(
                "l4.local_addresses",
                format!(
                    "there are {name} VIPs, but no {name} local address: layer-4 ELBs with forward fullnat cannot serve \
                     {name}"
                ),
            ));
        }
    }
}

fn ports(config: &Config, machine: &Machine, findings: &mut Vec<Finding>) {
    for listen in &config.api.listen {
        if !listen.ip().is_loopback() {
            findings.push(warning(
                "api.listen",
                format!(
                    "{listen} can be reached from other machines, and the API has no login: guard it by the network"
                ),
            ));
        }
    }
    if config.roles.contains(&Role::Dns) {
        if config.dns.listen.is_empty() {
            findings.push(fatal("dns.listen", "is empty: name an address, or remove dns from the roles"));
        }
        let low: Vec<&SocketAddr> = config.dns.listen.iter().filter(|a| (1..1024).contains(&a.port())).collect();
        if machine.root == Some(false) && !low.is_empty() {
            findings.push(warning(
                "dns.listen",
                "ports below 1024 usually need root (or CAP_NET_BIND_SERVICE): use a higher one to try it out",
            ));
        }
    }
    if config.roles.contains(&Role::L7) && config.l7.tries == 0 {
        findings.push(fatal("l7.tries", "0 tries answer no request: 1 is the least"));
    }
}

fn layer4(config: &Config, machine: &Machine, findings: &mut Vec<Finding>) {
    const WITHOUT: &str = "run without layer 4 by --roles l7,dns,control";
    if let Some(there) = &machine.interfaces {
        for wanted in config.l4.interfaces.iter().filter(|wanted| !there.contains(*wanted)) {
            let there = there.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            findings.push(warning(
                "l4.interfaces",
                format!(
                    "there is no interface {wanted} here now (there are: {there}); layer 4 cannot start without it"
                ),
            ));
        }
    }
    if machine.root == Some(false) {
        findings.push(warning("roles", format!("layer 4 needs root: become root, or {WITHOUT}")));
    }
    if machine.bpf_mounted == Some(false) && config.l4.pin_dir.starts_with("/sys/fs/bpf") {
        findings.push(warning(
            "l4.pin_dir",
            format!("no BPF file system is mounted: `mount -t bpf bpf /sys/fs/bpf`, or {WITHOUT}"),
        ));
    }
    if config.l4.local_addresses.iter().any(IpAddr::is_unspecified) {
        findings.push(fatal("l4.local_addresses", "a wildcard is not an address that connections can come from"));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{super::Loaded, *};

    #[test]
    fn more_local_addresses_than_layer_4_has_room_for_are_refused() {
        let many = |count: u8| {
            let list: Vec<String> = (0..count).map(|n| format!("'10.77.101.{n}'")).collect();
            findings(&format!("[l4]\nlocal_addresses = [{}, 'fd77:0:101::1']", list.join(", ")), &Machine::default())
        };
        assert!(many(64).iter().all(|finding| !finding.fatal), "{:?}", many(64));
        let found = many(65);
        assert!(found.iter().any(|f| f.fatal && f.text.contains("65 IPv4 addresses are too many")), "{found:?}");
    }

    fn findings(text: &str, machine: &Machine) -> Vec<Finding> {
        check(&Loaded::parse(Path::new("a.toml"), text.to_owned()).unwrap().config, machine)
    }

    #[test]
    fn what_cannot_run_is_fatal_and_says_why() {
        let table: &[(&str, &str, &str)] = &[
            ("roles = []", "roles", "no role"),
            ("roles = ['l4']", "api.follow", "where the ELBs come from"),
            ("[api]\nfollow = 'http://a:1'", "api.follow", "cannot follow"),
            ("roles = ['l7']\n[api]\nfollow = 'a:1'", "api.follow", "like http://"),
            ("[api]\nlisten = []", "api.listen", "name an address"),
            ("[store]\npath = ''", "store.path", "empty"),
            ("domain = 'Mesos.'", "domain", "lower case"),
            ("[marathon]\nurls = []", "marathon", "is empty"),
            ("[marathon]\nurls = ['marathon:8080']", "marathon", "http://host:8080"),
            ("[marathon]\nca_file = '/nonexistent.pem'", "marathon", "/nonexistent.pem"),
            ("[vips]\nexternal = ['10.77.0.0/16']", "vips.internal", "overlaps"),
            ("[l4]\nlocal_addresses = ['10.77.100.7']", "l4.local_addresses", "VIP pool"),
            ("[marathon]\nresync_s = 0", "marathon", "at least 1"),
            ("[dns]\nlisten = []", "dns.listen", "empty"),
            ("[l7]\ntries = 0", "l7.tries", "1 is the least"),
        ];
        for (text, key, says) in table {
            let found = findings(text, &Machine::default());
            let hit = found.iter().any(|f| f.fatal && f.key == *key && f.text.contains(says));
            assert!(hit, "{text:?} gave {found:?}");
        }
    }

    #[test]
    fn what_is_odd_is_a_warning() {
        let bare = Machine { interfaces: Some(["lo".to_owned()].into()), root: Some(false), bpf_mounted: Some(false) };
        let table: &[(&str, &str, &str)] = &[
            ("[l4]\ninterfaces = ['eth9']", "l4.interfaces", "no interface eth9"),
            ("", "roles", "needs root"),
            ("", "l4.pin_dir", "mount -t bpf"),
            ("", "dns.listen", "1024"),
            ("[api]\nlisten = ['0.0.0.0:7070']", "api.listen", "no login"),
            ("[l4]\nlocal_addresses = ['10.77.101.1']", "l4.local_addresses", "no IPv6 local address"),
            ("[vips]\ninternal = []", "vips.internal", "no VIP pool"),
        ];
        for (text, key, says) in table {
            let found = findings(text, &bare);
            assert!(found.iter().all(|f| !f.fatal), "{text:?} gave {found:?}");
            assert!(found.iter().any(|f| f.key == *key && f.text.contains(says)), "{text:?} gave {found:?}");
        }
    }

    #[test]
    fn without_layer_4_nothing_is_said_of_it() {
        let bare = Machine { interfaces: Some(BTreeSet::new()), root: Some(false), bpf_mounted: Some(false) };
        let found = findings("roles = ['control']\n[l4]\ninterfaces = ['eth9']", &bare);
        assert!(found.is_empty(), "{found:?}");
    }
}
