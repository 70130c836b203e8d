//! `tidegate real ...`: on a host of instances, which has no other part of tidegate, no configuration and no daemon.

use std::{fs, net::IpAddr, path::PathBuf, str::FromStr};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use ipnet::IpNet;
use tidegate_l4::real::{GUE_PORT, Join, Standing, Tunnel, folder, join, leave, show};

use super::table::pairs;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Makes this host a real of VIPs: it owns them silently, takes tunnels apart and answers clients itself.
    #[command(after_help = "Examples:
  tidegate real join --vip 10.77.100.1                     whatever way the ELB forwards
  tidegate real join --vip 10.77.100.1 --vip fd77:0:100::1 --from 10.77.101.1 --from fd77:0:101::1
                                                           tunnels from that appliance alone
  tidegate real join --vip 10.77.100.1 --tunnel none       for ELBs that forward `direct`
  tidegate real join --vip 10.77.100.1 --toa --from 10.77.101.0/24
                                                           under `fullnat`: also who the client is

The application must listen on the port that clients connect to, at the VIP or at all addresses.
--from names the appliance's l4.local_addresses: tunnels come from the first of them.

Nothing goes on running: the kernel has it until `tidegate real leave` or a restart of the
machine, so let the service manager join at start (a unit with Type=oneshot). Join again, with all
VIPs, to change something, after this host's addresses have changed, or when in doubt: it is the
same then, and connections go on.")]
    Join(JoinArgs),
    /// Takes away what `join` did, and nothing else.
    Leave,
    /// Says what this host has joined, and what has come.
    Show,
}

#[derive(Args, Debug)]
pub(super) struct JoinArgs {
    /// A VIP to own; say it once for each. Those of an earlier join that are not named are given up.
    #[arg(long = "vip", value_name = "ADDRESS", required = true)]
    vips: Vec<IpAddr>,
    /// Where packets come [default: the interface of the default route].
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// What the balancer puts around packets: `ipip`, `gue` (or `gue:PORT`), `none` [default: whichever comes; 6080].
    #[arg(long, value_name = "ipip|gue[:PORT]|none")]
    tunnel: Option<Way>,
    /// Where tunnels (and told clients) are believed from: the balancer's addresses [default: tunnels from anywhere].
    #[arg(long, value_name = "CIDR")]
    from: Vec<Prefix>,
    /// The largest TCP segment that clients may send [default: the interface's MTU, less the tunnel and headers].
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(88..))]
    mss: Option<u16>,
    /// Under `fullnat` with `--client-address toa`: applications see the client's address, not the balancer's.
    #[arg(long, requires = "from")]
    toa: bool,
    /// For applications of this cgroup (version 2) and those below [default: all].
    #[arg(long, value_name = "FOLDER", requires = "toa")]
    cgroup: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug)]
struct Way(Tunnel);

impl FromStr for Way {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |text: &str| match text.parse() {
            Ok(0) | Err(_) => Err(format!("{text:?} is no port")),
            Ok(port) => Ok(port),
        };
        match text.split_once(':') {
            None if text == "none" => Ok(Self(Tunnel::None)),
            None if text == "ipip" => Ok(Self(Tunnel::IpIp)),
            None if text == "gue" => Ok(Self(Tunnel::Gue(GUE_PORT))),
            Some(("gue", at)) => Ok(Self(Tunnel::Gue(port(at)?))),
            _ => Err("it is ipip, gue, gue:PORT or none".to_owned()),
        }
    }
}

/// A prefix, or an address that stands for itself.
#[derive(Clone, Copy, Debug)]
struct Prefix(IpNet);

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        net.map(Self).map_err(|_| "it is an address, or one with a prefix length: 10.77.101.0/24".to_owned())
    }
}

pub(super) async fn main(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Join(args) => {
            let standing = join(&args.join()?).await.context("joining")?;
            println!("{}", text(&standing));
        }
        Verb::Leave => match leave(&folder()).await.context("leaving")? {
            true => println!("this host owns no VIP any more, and is as it was before"),
            false => println!("this host had not joined"),
        },
        Verb::Show => match show(&folder()).await.context("looking")? {
            Some(standing) => println!("{}", text(&standing)),
            None => println!("this host has not joined: tidegate real join --vip ADDRESS"),
        },
    }
    Ok(())
}

impl JoinArgs {
    fn join(self) -> anyhow::Result<Join> {
        let toa = match (self.toa, self.cgroup) {
            (false, _) => None,
            (true, Some(folder)) => Some(folder),
            (true, None) => Some(cgroups()?),
        };
        let default = Join::default();
        Ok(Join {
            vips: self.vips.into_iter().collect(),
            interface: self.interface,
            tunnel: self.tunnel.map_or(default.tunnel, |way| way.0),
            from: self.from.into_iter().map(|prefix| prefix.0).collect(),
            mss: self.mss,
            toa,
            ..default
        })
    }
}

/// Where all cgroups of version 2 are.
fn cgroups() -> anyhow::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("looking for the cgroups")?;
    let mut mounts = mounts.lines().map(|line| line.split(' '));
    let found = mounts.find_map(|mut fields| match (fields.nth(1), fields.next()) {
        (Some(folder), Some("cgroup2")) => Some(PathBuf::from(folder)),
        _ => None,
    });
    match found {
        Some(folder) => Ok(folder),
        None => {
            bail!("no cgroup file system of version 2 is mounted: `mount -t cgroup2 cgroup2 FOLDER`, then --cgroup")
        }
    }
}

fn text(standing: &Standing) -> String {
    let vip = |(vip, there): (&IpAddr, &bool)| {
        if *there { vip.to_string() } else { format!("{vip} (not on lo any more: join again)") }
    };
    let vips: Vec<String> = standing.vips.iter().map(vip).collect();
    let gue = standing.gue.map(|port| format!("GUE at port {port}"));
    let tunnels: Vec<String> = standing.ipip.then(|| "IP in IP".to_owned()).into_iter().chain(gue).collect();
    let from: Vec<String> = standing.from.iter().map(ToString::to_string).collect();
    let or = |list: Vec<String>, none: &str| if list.is_empty() { none.to_owned() } else { list.join(", ") };
    let interface = standing.interface.clone().unwrap_or_else(|| "gone: join again".to_owned());
    let mode = match standing.mode.as_deref() {
        None => String::new(),
        Some("tcx") => " (tcx: XDP was refused, as where another program has it)".to_owned(),
        Some(mode) => format!(" ({mode} XDP)"),
    };
    let mss = match standing.mss {
        (0, 0) => "as servers say".to_owned(),
        (v4, v6) => format!("at most {v4} over IPv4, {v6} over IPv6"),
    };
    let toa = if standing.toa { "are told to applications" } else { "as they connect" };
    let mut rows = vec![
        ("VIPs", vips.join(", ")),
        ("interface", format!("{interface}{mode}")),
        ("tunnels", or(tunnels, "none")),
        ("believed from", or(from, "anywhere")),
        ("MSS", mss),
        ("clients", toa.to_owned()),
    ];
    let counts = standing.counts.iter().filter(|(_, count)| *count > 0);
    rows.extend(counts.map(|(name, count)| (*name, count.to_string())));
    pairs(&rows)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: JoinArgs,
    }

    fn read(line: &str) -> Result<Join, String> {
        let words = std::iter::once("join").chain(line.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        line.args.join().map_err(|error| error.to_string())
    }

    #[test]
    fn a_vip_is_enough() {
        let join = read("--vip 10.77.100.1").unwrap();
        assert_eq!((join.tunnel, join.toa, join.from.len()), (Tunnel::Any(6080), None, 0));
        assert!(read("").unwrap_err().contains("--vip"));
    }

    #[test]
    fn tunnels_and_balancers_are_named() {
        let tunnel = |text: &str| read(&format!("--vip fd77::1 --tunnel {text}")).map(|join| join.tunnel);
        assert_eq!(tunnel("none"), Ok(Tunnel::None));
        assert_eq!(tunnel("ipip"), Ok(Tunnel::IpIp));
        assert_eq!(tunnel("gue"), Ok(Tunnel::Gue(6080)));
        assert_eq!(tunnel("gue:5555"), Ok(Tunnel::Gue(5555)));
        for wrong in ["gue:0", "gue:x", "ipip:1", "gre"] {
            assert!(tunnel(wrong).is_err(), "{wrong}");
        }
        let join = read("--vip 10.77.100.1 --from 10.77.0.1 --from fd77::/16").unwrap();
        assert_eq!(join.from.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.77.0.1/32", "fd77::/16"]);
    }

    #[test]
    fn a_told_client_needs_somebody_to_believe() {
        assert!(read("--vip 10.77.100.1 --toa").unwrap_err().contains("--from"));
        let told = read("--vip 10.77.100.1 --toa --from 10.77.101.1 --cgroup /x").unwrap();
        assert_eq!(told.toa, Some("/x".into()));
    }

    #[test]
    fn what_is_missing_is_shown() {
        let standing = Standing { vips: [("10.77.100.1".parse().unwrap(), false)].into(), ..Standing::default() };
        let text = text(&standing);
        assert!(text.contains("not on lo any more") && text.contains("gone: join again"), "{text}");
    }

    #[test]
    fn where_tunnels_are_taken_apart_is_shown() {
        let at = |mode: &str| {
            let standing = Standing { interface: Some("eth0".into()), mode: Some(mode.into()), ..Standing::default() };
            text(&standing)
        };
        assert!(at("native").contains("eth0 (native XDP)"));
        assert!(at("tcx").contains("eth0 (tcx: XDP was refused"), "{}", at("tcx"));
    }
}
