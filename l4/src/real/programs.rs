//! The programs of a real: loaded, told what was joined, and attached by links that are pinned.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    net::IpAddr,
    path::Path,
};

use anyhow::{Context, bail};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, HashMap, LpmTrie, Map, MapData, PerCpuArray, lpm_trie::Key},
    programs::{
        CgroupAttachMode, CgroupSockAddr, ProgramError, SchedClassifier, SockOps, TcAttachType, Xdp,
        links::{FdLink, LinkOrder, PinnedLink},
        tc::{self, SchedClassifierLink, TcAttachOptions},
    },
    util::KernelVersion,
};
use ipnet::IpNet;
use tidegate_ebpf::{
    abi::Address,
    real::{CAPACITY, Count, Settings, map, program},
};
use tracing::info;

use super::{Join, Tunnel, net, prefix};
use crate::{
    config::{Config, Mode},
    kernel,
    network::Link,
    pins, xdp,
};

/// The object that `cargo xtask ebpf` built, or nothing.
static EMBEDDED: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/real.o"));
/// No flags: by links a cgroup has as many programs as come.
const MODE: CgroupAttachMode = CgroupAttachMode::Single;
const CGROUP: [&str; 3] = [program::LEARN, program::PEER_V4, program::PEER_V6];

pub(super) struct Programs<'a> {
    ebpf: Ebpf,
    folder: &'a Path,
}

/// What the pinned maps say.
pub(super) struct Told {
    pub(super) settings: Settings,
    pub(super) vips: Vec<IpAddr>,
    pub(super) from: Vec<IpNet>,
    pub(super) counts: Vec<u64>,
}

/// Loads the programs on new maps, but for those that are kept. What is attached goes on with the old ones.
pub(super) fn load(folder: &Path) -> anyhow::Result<Programs<'_>> {
    if EMBEDDED.is_empty() {
        bail!("this build holds no programs for a real: run `cargo xtask ebpf`, then build again");
    }
    let mut loader = EbpfLoader::new();
    for name in map::ALL {
        let path = folder.join(name);
        if !map::KEPT.contains(&name) || name == map::COUNTS && !counts_fit(&path) {
            let _ = fs::remove_file(&path);
        }
        loader.map_pin_path(name, path);
    }
    let ebpf = loader.load(EMBEDDED).map_err(|error| kernel::explain(error.into()))?;
    Ok(Programs { ebpf, folder })
}

/// Another version may count other things.
fn counts_fit(path: &Path) -> bool {
    let info = MapData::from_pin(path).and_then(|data| data.info());
    info.is_ok_and(|info| info.max_entries() as usize == Count::NAMES.len())
}

impl Programs<'_> {
    /// Writes the maps.
    pub(super) fn tell(
        &mut self,
        settings: Settings,
        vips: &BTreeSet<IpAddr>,
        hosts: &BTreeSet<IpAddr>,
        from: &[IpNet],
    ) -> anyhow::Result<()> {
        if vips.len().max(hosts.len()).max(from.len()) > CAPACITY {
            bail!("there is room for {CAPACITY} VIPs, {CAPACITY} addresses of this host and {CAPACITY} prefixes");
        }
        for (name, addresses) in [(map::VIPS, vips), (map::HOSTS, hosts)] {
            let mut map: HashMap<_, Address, u32> = self.map(name)?.try_into().context("a map of addresses")?;
            for address in addresses {
                map.insert(Address::from(*address), 1, 0).with_context(|| format!("writing {address} to {name}"))?;
            }
        }
        let mut map: LpmTrie<_, Address, u32> = self.map(map::FROM)?.try_into().context("the map of prefixes")?;
        for net in from {
            let (length, address) = prefix(net);
            map.insert(&Key::new(length, address), 1, 0).with_context(|| format!("writing {net}"))?;
        }
        let mut map: Array<_, Settings> = self.map(map::SETTINGS)?.try_into().context("the map of settings")?;
        map.set(0, settings, 0).context("writing the settings")
    }

    fn map(&mut self, name: &str) -> anyhow::Result<&mut Map> {
        self.ebpf.map_mut(name).with_context(|| format!("the object has no map {name}"))
    }

    /// Attaches what is needed in the place of what was there, and takes away the rest.
    pub(super) fn attach(&mut self, join: &Join, link: &Link) -> anyhow::Result<()> {
        let mut wanted = vec![tc_pin(program::CLAMP, link)];
        self.clamp(link)?;
        if join.tunnel != Tunnel::None {
            wanted.push(self.open(link)?);
        }
        if let Some(cgroup) = &join.toa {
            self.toa(cgroup)?;
            wanted.extend(CGROUP.map(str::to_owned));
        }
        for entry in fs::read_dir(self.folder).context("listing what is pinned")?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !wanted.contains(&name) && !map::ALL.contains(&name.as_str()) {
                pins::unpin(&entry.path())?;
            }
        }
        Ok(())
    }

    /// In the driver, or behind it where that knows no XDP, or behind the XDP program of somebody else. A packet that two
    /// of ours see for a moment, while one takes over from the other, is opened once: what was inside is no tunnel of ours.
    fn open(&mut self, link: &Link) -> anyhow::Result<String> {
        let config = Config { pin_dir: self.folder.to_path_buf(), mode: Mode::Auto, ..Config::default() };
        let program: &mut Xdp = self.program(program::OPEN)?;
        program.load().map_err(|error| kernel::explain_program(program::OPEN, error))?;
        let refused = match xdp::attach(program, link, &config) {
            Ok(mode) => {
                info!(interface = link.name, mode, "tunnels are taken apart");
                return Ok(format!("{}{}-{}-{mode}", xdp::LINK_PREFIX, link.name, link.index));
            }
            Err(refused) => refused,
        };
        let nowhere =
            || format!("there is no place on {} to take tunnels apart; XDP was refused: {refused:#}", link.name);
        if old_tc() {
            bail!("{}; and behind XDP there is one since Linux 6.6 alone", nowhere());
        }
        self.tcx(program::OPEN_TC, link, TcAttachType::Ingress).with_context(nowhere)?;
        info!(interface = link.name, "tunnels are taken apart at tcx, as XDP was refused: {refused:#}");
        Ok(tc_pin(program::OPEN_TC, link))
    }

    fn clamp(&mut self, link: &Link) -> anyhow::Result<()> {
        if !old_tc() {
            return self.tcx(program::CLAMP, link, TcAttachType::Egress);
        }
        let program: &mut SchedClassifier = self.program(program::CLAMP)?;
        program.load().map_err(|error| kernel::explain_program(program::CLAMP, error))?;
        // There already, or nothing to detach: as good.
        let _ = tc::qdisc_add_clsact(&link.name);
        let _ = tc::qdisc_detach_program(&link.name, TcAttachType::Egress, program::CLAMP);
        let id = program
            .attach(&link.name, TcAttachType::Egress)
            .with_context(|| format!("attaching to {} (is sch_ingress in this kernel?)", link.name))?;
        // A filter is no link: it stays until it is detached by name.
        std::mem::forget(program.take_link(id).context("taking the new link")?);
        Ok(())
    }

    fn tcx(&mut self, name: &str, link: &Link, side: TcAttachType) -> anyhow::Result<()> {
        let folder = self.folder;
        let pin = tc_pin(name, link);
        let program: &mut SchedClassifier = self.program(name)?;
        program.load().map_err(|error| kernel::explain_program(name, error))?;
        // The program in the link of an earlier join: no packet sees both.
        if let Ok(pinned) = PinnedLink::from_pin(folder.join(&pin))
            && let Ok(earlier) = SchedClassifierLink::try_from(FdLink::from(pinned))
            && let Ok(id) = program.attach_to_link(earlier)
        {
            // The handle may go: the pin holds the link.
            return program.take_link(id).map(drop).context("taking the link");
        }
        // What others do there is meant for what is inside the tunnel.
        let id = program
            .attach_with_options(&link.name, side, TcAttachOptions::TcxOrder(LinkOrder::first()))
            .with_context(|| format!("attaching to {} (is tcx in this kernel?)", link.name))?;
        let taken = program.take_link(id).context("taking the new link")?;
        pins::pin(taken.try_into().context("a link of tcx")?, folder, &pin)
    }

    fn toa(&mut self, cgroup: &Path) -> anyhow::Result<()> {
        let folder = self.folder;
        let group = File::open(cgroup).with_context(|| format!("opening the cgroup {}", cgroup.display()))?;
        let wrong =
            || format!("attaching to {}: it must be a folder of cgroup v2 (`mount -t cgroup2`)", cgroup.display());
        for name in CGROUP {
            let link: FdLink = if name == program::LEARN {
                let program: &mut SockOps = self.program(name)?;
                program.load().map_err(|error| kernel::explain_program(name, error))?;
                let id = program.attach(&group, MODE).with_context(wrong)?;
                program.take_link(id)?.try_into().context("this kernel has no links for cgroups (Linux 5.7)")?
            } else {
                let program: &mut CgroupSockAddr = self.program(name)?;
                program.load().map_err(|error| kernel::explain_program(name, error))?;
                let id = program.attach(&group, MODE).with_context(wrong)?;
                program.take_link(id)?.try_into().context("this kernel has no links for cgroups (Linux 5.7)")?
            };
            pins::pin(link, folder, name)?;
        }
        Ok(())
    }

    fn program<'p, P>(&'p mut self, name: &str) -> anyhow::Result<P>
    where
        P: TryFrom<&'p mut aya::programs::Program, Error = ProgramError>,
    {
        let program = self.ebpf.program_mut(name).with_context(|| format!("the object has no program `{name}`"))?;
        program.try_into().with_context(|| format!("`{name}` is a program of another kind"))
    }
}

fn tc_pin(name: &str, link: &Link) -> String {
    format!("{name}-{}-{}", link.name, link.index)
}

/// Before Linux 6.6 a filter has no link.
fn old_tc() -> bool {
    KernelVersion::current().is_ok_and(|version| version < KernelVersion::new(6, 6, 0))
}

/// Detaches what no pin holds.
pub(super) fn leave_interface(links: &[Link], index: u32) {
    if old_tc()
        && let Some(link) = links.iter().find(|link| link.index == index)
    {
        // Nothing there is as good.
        let _ = tc::qdisc_detach_program(&link.name, TcAttachType::Egress, program::CLAMP);
    }
}

/// How the tunnels' program is attached, by its pin.
pub(super) fn mode(folder: &Path) -> Option<String> {
    let names = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.into_iter().find_map(|name| {
        if name.starts_with(program::OPEN_TC) {
            return Some("tcx".to_owned());
        }
        name.strip_prefix(xdp::LINK_PREFIX)?.rsplit_once('-').map(|(_, mode)| mode.to_owned())
    })
}

pub(super) fn toa(folder: &Path) -> bool {
    folder.join(program::LEARN).exists()
}

pub(super) fn read(folder: &Path) -> anyhow::Result<Told> {
    let open = |name: &str| {
        let path = folder.join(name);
        MapData::from_pin(&path).with_context(|| format!("opening {} (it needs root)", path.display()))
    };
    let settings: Array<_, Settings> = Map::Array(open(map::SETTINGS)?).try_into()?;
    let vips: HashMap<_, Address, u32> = Map::HashMap(open(map::VIPS)?).try_into()?;
    let from: LpmTrie<_, Address, u32> = Map::LpmTrie(open(map::FROM)?).try_into()?;
    let counts: PerCpuArray<_, u64> = Map::PerCpuArray(open(map::COUNTS)?).try_into()?;
    let mut nets: Vec<IpNet> =
        keys(from.keys())?.into_iter().filter_map(|key| net(key.prefix_len(), key.data())).collect();
    nets.sort_unstable();
    let count = |index| counts.get(&index, 0).map(|values| values.iter().sum());
    Ok(Told {
        settings: settings.get(&0, 0).context("reading the settings")?,
        vips: keys(vips.keys())?.into_iter().map(IpAddr::from).collect(),
        from: nets,
        counts: (0..Count::NAMES.len() as u32).map(count).collect::<Result<_, _>>().context("reading the counts")?,
    })
}

fn keys<K: Pod>(keys: impl Iterator<Item = Result<K, aya::maps::MapError>>) -> anyhow::Result<Vec<K>> {
    keys.collect::<Result<_, _>>().context("reading a map of addresses")
}
