//! The program: loaded, attached through pinned links, and replaced atomically by the next process.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use anyhow::{Context, anyhow, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData, ProgramArray},
    programs::{
        ProgramError, Xdp, XdpMode,
        links::{FdLink, PinnedLink},
        xdp::XdpLink,
    },
};
use tidegate_ebpf::abi::map;
use tracing::{info, warn};

use crate::{
    config::{Config, Mode},
    kernel::{explain, explain_program, privileges},
    maps::{Maps, sizes, survivors},
    network::Link,
    pins,
    report::Attached,
};

/// The object that `cargo xtask ebpf` built, or nothing.
static EMBEDDED: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/balancer.o"));
const BPF_FS: &str = "/sys/fs/bpf";

/// The XDP object that is embedded in this build.
pub fn object() -> anyhow::Result<&'static [u8]> {
    if EMBEDDED.is_empty() {
        bail!("this build holds no XDP program: run `cargo xtask ebpf`, then build again");
    }
    Ok(EMBEDDED)
}

/// Loads the program on its maps, new ones or the survivors, and attaches it to the links. One that cannot be loaded
/// changes nothing of what runs.
pub fn start(object: &[u8], config: &Config, links: &[Link]) -> anyhow::Result<(Maps, Vec<Attached>)> {
    privileges()?;
    prepare(&config.pin_dir)?;
    let adopted = survivors(&config.pin_dir)?;
    let mut loader = EbpfLoader::new();
    for (name, entries) in sizes(config.local_addresses.len())? {
        loader.map_max_entries(name, entries);
    }
    for name in map::ALL {
        let path = config.pin_dir.join(name);
        // aya does not ask a pinned map for its size.
        if adopted && let Ok(data) = MapData::from_pin(&path) {
            let info = data.info().with_context(|| format!("asking for the size of {}", path.display()))?;
            loader.map_max_entries(name, info.max_entries());
        }
        loader.map_pin_path(name, path);
    }
    let mut ebpf = loader.load(object).map_err(|error| explain(error.into()))?;
    load(&mut ebpf)?;
    // The attached program ends when the map of what it goes on with does. That of the version before must last until
    // the links have the new one.
    let programs = config.pin_dir.join(map::PROGRAMS);
    // No dots: a BPF file system wants none.
    let next = config.pin_dir.join(format!("{}-next", map::PROGRAMS));
    let _ = fs::remove_file(&next);
    pin(&ebpf, map::PROGRAMS, &next)?;
    pin_explain(&mut ebpf, &config.pin_dir)?;
    let program = ebpf.program_mut("balance").context("the XDP object has no program `balance`")?;
    let program: &mut Xdp = program.try_into().context("`balance` is not an XDP program")?;
    let mut attached = Vec::new();
    for link in links {
        let mode = attach_to(program, link, config)?;
        info!(interface = link.name, mode, adopted, "the balancer is attached");
        attached.push(Attached { interface: link.name.clone(), mode });
    }
    fs::rename(&next, &programs).with_context(|| format!("putting {} in place", programs.display()))?;
    Ok((Maps::take(ebpf)?, attached))
}

/// Attaches the program to one link, native or generic as the configuration and the driver allow.
pub(crate) fn attach_to(program: &mut Xdp, link: &Link, config: &Config) -> anyhow::Result<&'static str> {
    forwarding(&link.name)?;
    attach(program, link, config)
}

/// Loads the programs, and tells `balance` where it goes on.
pub fn load(ebpf: &mut Ebpf) -> anyhow::Result<()> {
    for name in ["balance", "rest", "explain", "beat"] {
        let program = ebpf.program_mut(name).with_context(|| format!("the XDP object has no program `{name}`"))?;
        let program: &mut Xdp = program.try_into().with_context(|| format!("`{name}` is not an XDP program"))?;
        program.load().map_err(|error| explain_program(name, error))?;
    }
    let rest: &Xdp = ebpf.program("rest").context("the XDP object has no program `rest`")?.try_into()?;
    let rest = rest.fd().and_then(|fd| Ok(fd.try_clone()?)).context("duplicating a program's handle")?;
    let programs = ebpf.map_mut(map::PROGRAMS).context("the XDP object has no map of programs")?;
    let mut programs: ProgramArray<_> = programs.try_into().context("the map of programs")?;
    programs.set(0, &rest, 0).context("telling the program where it goes on")
}

fn pin(ebpf: &Ebpf, name: &str, path: &Path) -> anyhow::Result<()> {
    let Some(Map::ProgramArray(data)) = ebpf.map(name) else { bail!("the XDP object has no map of programs") };
    data.pin(path).with_context(|| format!("pinning {}", path.display()))
}

/// The program that says what `balance` would do, pinned beside the maps that both look at.
pub(crate) const EXPLAIN: &str = "explain";

/// By a rename: whoever asks finds the old one or the new one.
fn pin_explain(ebpf: &mut Ebpf, folder: &Path) -> anyhow::Result<()> {
    let program = ebpf.program_mut(EXPLAIN).context("the XDP object has no program `explain`")?;
    let (next, path) = (folder.join(format!("{EXPLAIN}-next")), folder.join(EXPLAIN));
    // One that was left behind half-way.
    let _ = fs::remove_file(&next);
    program.pin(&next).with_context(|| format!("pinning {}", next.display()))?;
    fs::rename(&next, &path).with_context(|| format!("putting {} in place", path.display()))
}

/// The interfaces that the program is attached to, by the pins of its links.
pub(crate) fn attached(folder: &Path) -> anyhow::Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            // link-NAME-INDEX-MODE, and NAME may have hyphens.
            Some(name.strip_prefix(LINK_PREFIX)?.rsplitn(3, '-').nth(2)?.to_owned())
        })
        .collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// Detaches the program and takes the maps away.
pub fn remove(folder: &Path) -> anyhow::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("reading {}", folder.display()))?,
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        // Only what this room pinned.
        if map::ALL.contains(&&*name)
            || name.starts_with(map::PROGRAMS)
            || name.starts_with(EXPLAIN)
            || name.starts_with(LINK_PREFIX)
        {
            pins::unpin(&entry.path())?;
        }
    }
    fs::remove_dir(folder).with_context(|| format!("removing {}", folder.display()))
}

/// A folder for the pins, on a mounted bpffs.
pub(crate) fn prepare(folder: &Path) -> anyhow::Result<()> {
    // Two tests or planes of one process may start at once.
    static MOUNT: OnceLock<Result<(), String>> = OnceLock::new();
    if folder.starts_with(BPF_FS) && !on_bpf_fs(Path::new(BPF_FS)) {
        let mounted = MOUNT.get_or_init(|| {
            info!("mounting a BPF file system at {BPF_FS}, where maps and programs outlive this process");
            nix::mount::mount(Some("bpf"), BPF_FS, Some("bpf"), nix::mount::MsFlags::empty(), None::<&str>)
                .map_err(|error| error.to_string())
        });
        if let Err(error) = mounted {
            bail!("mounting a BPF file system at {BPF_FS}: {error}; try `mount -t bpf bpf {BPF_FS}`");
        }
    }
    fs::create_dir_all(folder).with_context(|| format!("making {} for the pinned maps", folder.display()))?;
    if !on_bpf_fs(folder) {
        bail!("{} is not on a BPF file system: choose an l4.pin_dir under {BPF_FS}", folder.display());
    }
    Ok(())
}

fn on_bpf_fs(folder: &Path) -> bool {
    nix::sys::statfs::statfs(folder).is_ok_and(|stat| stat.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC)
}

/// `bpf_fib_lookup` answers only for interfaces that forward.
fn forwarding(interface: &str) -> anyhow::Result<()> {
    let set = |path: String, value: &str| -> anyhow::Result<()> {
        match fs::read_to_string(&path) {
            Ok(now) if now.trim() == value => Ok(()),
            // No IPv6 in this kernel or on this interface.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            _ => {
                info!("setting {path} to {value}: route look-ups from XDP need it");
                fs::write(&path, value).with_context(|| format!("writing {value} to {path}"))
            }
        }
    };
    // A forwarding interface ignores router advertisements unless it is told to take them all the same.
    let accept = format!("/proc/sys/net/ipv6/conf/{interface}/accept_ra");
    if fs::read_to_string(&accept).is_ok_and(|value| value.trim() == "1") {
        set(accept, "2")?;
    }
    set(format!("/proc/sys/net/ipv4/conf/{interface}/forwarding"), "1")?;
    set(format!("/proc/sys/net/ipv6/conf/{interface}/forwarding"), "1")
}

pub(crate) const LINK_PREFIX: &str = "link-";

fn pin_path(folder: &Path, link: &Link, mode: &str) -> PathBuf {
    folder.join(format!("{LINK_PREFIX}{}-{}-{mode}", link.name, link.index))
}

pub(crate) fn attach(program: &mut Xdp, link: &Link, config: &Config) -> anyhow::Result<&'static str> {
    let modes: &[(XdpMode, &'static str)] = match config.mode {
        Mode::Auto => &[(XdpMode::Driver, "native"), (XdpMode::Skb, "generic")],
        Mode::Native => &[(XdpMode::Driver, "native")],
        Mode::Generic => &[(XdpMode::Skb, "generic")],
    };
    for (_, name) in modes {
        if replace(program, &pin_path(&config.pin_dir, link, name)) {
            return Ok(name);
        }
    }
    unpin_others(&config.pin_dir, link)?;
    let mut refused = None;
    for (mode, name) in modes {
        match program.attach_to_if_index(link.index, *mode) {
            Ok(id) => {
                let taken = program.take_link(id).context("taking the new link")?;
                let taken: FdLink = taken.try_into().context("this kernel has no BPF links for XDP (Linux 5.9)")?;
                taken.pin(pin_path(&config.pin_dir, link, name)).context("pinning the program's link")?;
                return Ok(name);
            }
            Err(error) => {
                if *name != "generic" {
                    warn!(interface = link.name, "no {name} XDP here: {}", chain(&error));
                }
                refused = Some(error);
            }
        }
    }
    let error = refused.expect("every mode was refused");
    let hint = match &error {
        ProgramError::SyscallError(call) if call.io_error.raw_os_error() == Some(libc::EBUSY) => {
            "another XDP program is attached there; detach it first (`ip link set dev IF xdp off`)"
        }
        ProgramError::SyscallError(call) if call.io_error.raw_os_error() == Some(libc::ERANGE) => {
            "the MTU is too large for native XDP; lower it, or set l4.mode to \"generic\""
        }
        _ => "the driver may know no XDP; set l4.mode to \"auto\" or \"generic\"",
    };
    Err(anyhow!(error).context(format!("attaching to {}: {hint}", link.name)))
}

/// Puts the program into a link that an earlier process left. No packet sees neither.
fn replace(program: &mut Xdp, path: &Path) -> bool {
    let Ok(pinned) = PinnedLink::from_pin(path) else { return false };
    let link = match XdpLink::try_from(FdLink::from(pinned)) {
        Ok(link) => link,
        Err(error) => {
            warn!("{} is no XDP link: {error}", path.display());
            return false;
        }
    };
    match program.attach_to_link(link) {
        // The handle may go: the pin holds the link.
        Ok(id) => program.take_link(id).is_ok(),
        Err(error) => {
            // The interface went and came back.
            info!("the link {} is dead: {}", path.display(), chain(&error));
            false
        }
    }
}

/// Links of this interface in another mode or of an earlier life of it.
fn unpin_others(folder: &Path, link: &Link) -> anyhow::Result<()> {
    let prefix = format!("{LINK_PREFIX}{}-", link.name);
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?.flatten() {
        let name = entry.file_name();
        let rest = name.to_str().and_then(|name| name.strip_prefix(&prefix)).and_then(|rest| rest.split_once('-'));
        if rest.is_some_and(|(index, _)| index.parse::<u32>().is_ok()) {
            pins::unpin(&entry.path())?;
        }
    }
    Ok(())
}

fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
