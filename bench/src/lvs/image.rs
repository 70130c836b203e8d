//! The guest's file system: this very program as its first process, the tools of its host, and modules.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};

use super::{cpio::Archive, kernel::Kernel};

/// Where this program lies in the guest.
pub(super) const INIT: &str = "/tidegate-bench";
/// Lists the modules to load, in order, a file a line.
pub(super) const MODULES: &str = "/modules/list";

/// What a guest can do.
#[derive(Debug)]
pub(super) struct Outfit {
    modules: &'static [&'static str],
    /// The host's, whatever its version.
    tools: &'static [&'static str],
}

/// All that the balancer needs.
pub(super) const BALANCER: Outfit = Outfit { modules: &["veth"], tools: &["ip"] };
/// And what its peers need.
pub(super) const PEERS: Outfit = Outfit {
    modules: &["veth", "dummy", "ip_vs", "ip_vs_rr", "ip_tunnel", "nft_chain_nat", "nft_nat", "nft_hash"],
    tools: &["ip", "ethtool", "nft", "ipvsadm"],
};

pub(super) fn build(kernel: &Kernel, outfit: &Outfit) -> anyhow::Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["proc", "sys", "dev", "tmp", "run"] {
        archive.folder(folder);
    }
    let own = env::current_exe().context("asking for this program's path")?;
    archive.file(INIT, &stripped(&own)?);
    let mut libraries = needed(&own)?;
    for tool in outfit.tools {
        let path = find(tool)?;
        archive.file(&format!("/usr/sbin/{tool}"), &read(&path)?);
        libraries.extend(needed(&path)?);
    }
    libraries.sort();
    libraries.dedup();
    for library in libraries {
        archive.file(&library.to_string_lossy(), &read(&library)?);
    }
    let mut list = String::new();
    for module in kernel.modules(outfit.modules)? {
        let name = module.file_name().context("a module has no name")?.to_string_lossy();
        let path = format!("/modules/{name}");
        archive.file(&path, &read(&module)?);
        list += &format!("{path}\n");
    }
    archive.file(MODULES, list.as_bytes());
    Ok(archive.finish())
}

/// Without what debuggers read: two thirds of it, which the guest's kernel would have to unpack.
fn stripped(program: &Path) -> anyhow::Result<Vec<u8>> {
    let folder = tempfile::tempdir().context("making a folder for a stripped program")?;
    let copy = folder.path().join("stripped");
    let status = Command::new("strip").arg("-o").arg(&copy).arg(program).status();
    if status.is_ok_and(|status| status.success()) { read(&copy) } else { read(program) }
}

fn find(tool: &str) -> anyhow::Result<PathBuf> {
    let folders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let found = folders.iter().map(|folder| Path::new(folder).join(tool)).find(|path| path.is_file());
    found.with_context(|| format!("{tool} is not there: `cargo xtask bench lvs` as root installs what is missing"))
}

/// The libraries of a program, the loader included.
fn needed(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("running ldd")?;
    ensure!(output.status.success(), "ldd {}: {}", program.display(), String::from_utf8_lossy(&output.stderr).trim());
    Ok(libraries(&String::from_utf8_lossy(&output.stdout)))
}

fn libraries(ldd: &str) -> Vec<PathBuf> {
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    ldd.lines().filter_map(path).collect()
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_taken_from_ldd() {
        let text = "\tlinux-vdso.so.1 (0x00007f)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(
            libraries(text),
            [Path::new("/lib/x86_64-linux-gnu/libc.so.6"), Path::new("/lib64/ld-linux-x86-64.so.2")]
        );
    }
}
