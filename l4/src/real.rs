//! A real server's side, once and without a process that stays: it owns the VIPs, takes tunnels apart and answers
//! clients itself.
//!
//! ```text
//! Join ─► sysctls (no ARP for the VIPs) ─► programs (pinned: XDP, tc, cgroup) ─► the VIPs on `lo`
//! ```
//!
//! All of it is in the kernel, and nothing outlives a restart of the machine: then it is joined again.

mod programs;
mod sysctls;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use ipnet::IpNet;
use tidegate_ebpf::{
    abi::Address,
    real::{Count, Settings, map},
};
use tracing::info;

use crate::{
    kernel,
    network::{Link, Network},
    pins, xdp,
};

/// Where GUE comes by default (the port that the kernel's own documentation uses).
pub const GUE_PORT: u16 = 6080;

/// What a real wants. Joining once more with something else is how it is changed.
#[derive(Clone, Debug)]
pub struct Join {
    pub vips: BTreeSet<IpAddr>,
    /// `None`: that of the default route.
    pub interface: Option<String>,
    pub tunnel: Tunnel,
    /// Where tunnels and told clients are believed from. Empty: tunnels from anywhere, no told clients.
    pub from: Vec<IpNet>,
    /// The largest segment that clients may send; `None`: what fits into the interface's MTU with the tunnel.
    pub mss: Option<u16>,
    /// Who connects is told by TOA to everything in this cgroup.
    pub toa: Option<PathBuf>,
    /// Where the maps and links are pinned.
    pub folder: PathBuf,
}

impl Default for Join {
    fn default() -> Self {
        Self {
            vips: BTreeSet::new(),
            interface: None,
            tunnel: Tunnel::Any(GUE_PORT),
            from: Vec::new(),
            mss: None,
            toa: None,
            folder: folder(),
        }
    }
}

/// Where a real's maps and links are pinned, unless it is said otherwise.
#[must_use]
pub fn folder() -> PathBuf {
    PathBuf::from("/sys/fs/bpf/tidegate-real")
}

/// What is taken apart.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Tunnel {
    /// The balancer rewrites the hardware address alone.
    None,
    IpIp,
    Gue(u16),
    /// Both.
    Any(u16),
}

impl Tunnel {
    fn ipip(self) -> bool {
        matches!(self, Self::IpIp | Self::Any(_))
    }

    fn gue(self) -> Option<u16> {
        match self {
            Self::Gue(port) | Self::Any(port) => Some(port),
            Self::None | Self::IpIp => None,
        }
    }

    /// The most that it puts around a packet: the outer header may be IPv6's.
    fn overhead(self) -> u32 {
        match self {
            Self::None => 0,
            Self::IpIp => 40,
            Self::Gue(_) | Self::Any(_) => 48,
        }
    }
}

/// How a real stands.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Standing {
    /// The VIPs, and whether `lo` has them.
    pub vips: BTreeMap<IpAddr, bool>,
    pub interface: Option<String>,
    /// How the tunnels' program runs: `native` or `generic` as XDP, or `tcx`, where XDP was refused.
    pub mode: Option<String>,
    pub ipip: bool,
    pub gue: Option<u16>,
    pub from: Vec<IpNet>,
    /// The largest segments that clients may send, by address family; 0: what the server says.
    pub mss: (u32, u32),
    pub toa: bool,
    pub counts: Vec<(&'static str, u64)>,
}

/// Makes this machine a real of these VIPs, and of no others.
pub async fn join(join: &Join) -> anyhow::Result<Standing> {
    if join.vips.is_empty() {
        bail!("no VIP was given to join: name at least one");
    }
    if join.toa.is_some() && join.from.is_empty() {
        bail!(
            "anybody who connects can write the TCP option that tells a client: say with --from which addresses \
             are the balancer's"
        );
    }
    kernel::privileges()?;
    let network = Network::open()?;
    let links = network.links().await?;
    let lo = loopback(&links)?;
    let link = interface(&network, &links, join.interface.as_deref()).await?;
    let hosts = hosts(&network, &links, &join.vips).await?;
    let settings = settings(join, link);

    xdp::prepare(&join.folder)?;
    if let Some(before) = sysctls::interface(&join.folder)
        && before != link.index
    {
        programs::leave_interface(&links, before);
        sysctls::restore(&join.folder, &links)?;
    }
    let mut programs = programs::load(&join.folder)?;
    // First the silence, then the addresses.
    sysctls::set(&join.folder, link, join.tunnel != Tunnel::None)?;
    programs.tell(settings, &join.vips, &hosts, &join.from)?;
    programs.attach(join, link)?;
    let gone: BTreeSet<IpAddr> = network.ours(lo).await?.difference(&join.vips).copied().collect();
    network.remove_addresses(lo, &gone).await?;
    for vip in &join.vips {
        network.add_address(lo, *vip).await?;
    }
    info!(interface = link.name, vips = join.vips.len(), "joined");
    show(&join.folder).await?.context("what was just joined is gone: does something else clean up /sys/fs/bpf?")
}

/// Takes away what [`join`] did, and nothing else. False: there was nothing.
pub async fn leave(folder: &Path) -> anyhow::Result<bool> {
    kernel::privileges()?;
    let network = Network::open()?;
    let links = network.links().await?;
    let lo = loopback(&links)?;
    let ours = network.ours(lo).await?;
    network.remove_addresses(lo, &ours).await?;
    if let Some(before) = sysctls::interface(folder) {
        programs::leave_interface(&links, before);
    }
    sysctls::restore(folder, &links)?;
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(!ours.is_empty()),
        entries => entries.with_context(|| format!("reading {}", folder.display()))?,
    };
    for entry in entries.flatten() {
        pins::unpin(&entry.path())?;
    }
    fs::remove_dir(folder).with_context(|| format!("removing {}", folder.display()))?;
    Ok(true)
}

/// How this machine stands; `None`: it has not joined.
pub async fn show(folder: &Path) -> anyhow::Result<Option<Standing>> {
    if !folder.join(map::SETTINGS).exists() {
        return Ok(None);
    }
    let network = Network::open()?;
    let links = network.links().await?;
    let told = programs::read(folder)?;
    let have = network.addresses(loopback(&links)?).await?;
    let name = |index| links.iter().find(|link| link.index == index).map(|link| link.name.clone());
    Ok(Some(Standing {
        vips: told.vips.into_iter().map(|vip| (vip, have.contains(&vip))).collect(),
        interface: sysctls::interface(folder).and_then(name),
        mode: programs::mode(folder),
        ipip: told.settings.ipip != 0,
        gue: u16::try_from(told.settings.gue_port).ok().filter(|port| *port != 0),
        from: told.from,
        mss: (told.settings.mss_v4, told.settings.mss_v6),
        toa: programs::toa(folder),
        counts: Count::NAMES.into_iter().zip(told.counts).collect(),
    }))
}

fn loopback(links: &[Link]) -> anyhow::Result<u32> {
    let lo = links.iter().find(|link| link.loopback).context("this machine has no loopback interface")?;
    Ok(lo.index)
}

async fn interface<'a>(network: &Network, links: &'a [Link], name: Option<&str>) -> anyhow::Result<&'a Link> {
    let names = || links.iter().map(|link| link.name.as_str()).collect::<Vec<_>>().join(", ");
    match name {
        Some(name) => links
            .iter()
            .find(|link| link.name == name)
            .with_context(|| format!("there is no interface {name}; there are {}", names())),
        None => {
            let index = network.default_interface().await?;
            links.iter().find(|link| Some(link.index) == index).with_context(|| {
                format!("there is no default route: say with --interface where packets come ({})", names())
            })
        }
    }
}

/// The host's own addresses, to which tunnels lead.
async fn hosts(network: &Network, links: &[Link], vips: &BTreeSet<IpAddr>) -> anyhow::Result<BTreeSet<IpAddr>> {
    let mut hosts = BTreeSet::new();
    for link in links {
        // Those that an earlier join added are VIPs too.
        let ours = network.ours(link.index).await?;
        let addresses = network.addresses(link.index).await?.into_iter();
        hosts.extend(addresses.filter(|address| !vips.contains(address) && !ours.contains(address)));
    }
    Ok(hosts)
}

fn settings(join: &Join, link: &Link) -> Settings {
    const HEADERS_V4: u32 = 40;
    const HEADERS_V6: u32 = 60;
    let around = join.tunnel.overhead();
    let mss = |headers| match join.mss {
        Some(mss) => u32::from(mss),
        // Nothing is put around: the kernel's own is right.
        None if around == 0 => 0,
        None => link.mtu.saturating_sub(around + headers).min(u32::from(u16::MAX)),
    };
    Settings {
        ipip: u32::from(join.tunnel.ipip()),
        gue_port: join.tunnel.gue().map_or(0, u32::from),
        only_from: u32::from(!join.from.is_empty()),
        mss_v4: mss(HEADERS_V4),
        mss_v6: mss(HEADERS_V6),
    }
}

fn prefix(net: &IpNet) -> (u32, Address) {
    let offset = if net.addr().is_ipv4() { 96 } else { 0 };
    (offset + u32::from(net.prefix_len()), Address::from(net.network()))
}

fn net(prefix: u32, address: Address) -> Option<IpNet> {
    let address = IpAddr::from(address);
    let offset = if address.is_ipv4() { 96 } else { 0 };
    IpNet::new(address, u8::try_from(prefix.checked_sub(offset)?).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(mtu: u32) -> Link {
        Link { name: "eth0".into(), index: 2, up: true, loopback: false, mac: None, mtu }
    }

    #[test]
    fn clients_send_what_fits_into_the_tunnel() {
        for (tunnel, mss, expected) in [
            (Tunnel::None, None, (0, 0)),
            (Tunnel::IpIp, None, (1420, 1400)),
            (Tunnel::Gue(6080), None, (1412, 1392)),
            (Tunnel::Any(6080), None, (1412, 1392)),
            (Tunnel::None, Some(1300), (1300, 1300)),
            (Tunnel::IpIp, Some(1300), (1300, 1300)),
        ] {
            let join = Join { tunnel, mss, ..Join::default() };
            let settings = settings(&join, &link(1500));
            assert_eq!((settings.mss_v4, settings.mss_v6), expected, "{tunnel:?} {mss:?}");
        }
        assert_eq!(settings(&Join::default(), &link(68)).mss_v6, 0);
    }

    #[test]
    fn prefixes_come_back_as_they_were() {
        for text in ["10.77.101.0/24", "0.0.0.0/0", "fd77:0:101::1/128", "fd77::/16"] {
            let given: IpNet = text.parse().unwrap();
            let (length, address) = prefix(&given);
            assert_eq!(net(length, address), Some(given), "{text}");
        }
    }
}
