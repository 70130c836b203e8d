//! The first process of the guest: makes a machine of it, does the work that it was booted for, and ends it.

pub(super) mod network;
mod paths;
mod peers;
mod traffic;

use std::{env, ffi::CString, fs, io, os::fd::AsRawFd};

use anyhow::{Context, bail};
use nix::mount::{MsFlags, mount};

use super::{image::MODULES, said::Said};

/// What a guest is booted for.
pub(super) const PATHS: &str = "paths";
pub(super) const PEERS: &str = "peers";

/// `finit_module`'s MODULE_INIT_COMPRESSED_FILE (linux/module.h).
const COMPRESSED: libc::c_int = 4;

/// The kernel makes a variable of what it does not know on its command line.
pub(super) const WORK: &str = "GUEST_WORK";

/// Never returns: the guest is over.
pub(crate) fn run() -> anyhow::Result<()> {
    match do_it() {
        Ok(()) => Said::Done.say(),
        Err(error) => Said::Failed { why: format!("{error:#}") }.say(),
    }
    nix::unistd::sync();
    // SAFETY: a call without pointers. The emulator takes a restart for the end.
    unsafe { libc::reboot(libc::RB_AUTOBOOT) };
    bail!("ending the guest: {}", io::Error::last_os_error())
}

fn do_it() -> anyhow::Result<()> {
    let work = env::var(WORK).context("this process is the first, but not of a guest of ours")?;
    for (kind, folder) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("bpf", "/sys/fs/bpf")] {
        mount(Some(kind), folder, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mounting {folder}"))?;
    }
    for module in fs::read_to_string(MODULES).context("reading the list of modules")?.lines() {
        load(module)?;
    }
    network::lay_out()?;
    match work.split_once(':').unwrap_or((&work, "")) {
        (PATHS, "") => paths::measure(),
        (PEERS, packets) => peers::measure(packets.parse().context("reading how many packets to send")?),
        _ => bail!("there is no such work: {work}"),
    }
}

fn load(module: &str) -> anyhow::Result<()> {
    let file = fs::File::open(module).with_context(|| format!("opening {module}"))?;
    // The kernel unpacks itself what its package has packed.
    let flags = if module.ends_with(".ko") { 0 } else { COMPRESSED };
    // IPVS has 4,096 rows for its connections unless it is told otherwise: a long list in each would be its loss.
    let parameters = if module.contains("/ip_vs.ko") { "conn_tab_bits=18" } else { "" };
    let parameters = CString::new(parameters).expect("no zero is in there");
    // SAFETY: a file and a text that live until the call returns.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), flags) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()).with_context(|| format!("loading {module}")),
    }
}
