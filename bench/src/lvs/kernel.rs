//! Debian's kernels for virtual machines: the newest of a series, fetched by apt-get and unpacked below `target`.

use std::{
    cmp::Ordering,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail, ensure};
use nix::unistd::Uid;

/// A kernel that can be booted, with its modules.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    /// `6.12.117+deb12-cloud-amd64`.
    pub(super) release: String,
    /// Where its package was unpacked.
    root: PathBuf,
}

const PREFIX: &str = "linux-image-";
const SUFFIX: &str = "-cloud-amd64";

impl Kernel {
    /// The release that is asked for, or the newest of the series (`6.12`) that can be had.
    pub(super) fn fetch(cache: &Path, series: &str, release: Option<&str>) -> anyhow::Result<Self> {
        let mut releases = offered(series)?;
        releases.extend(unpacked(cache, series));
        if let Some(wanted) = release.filter(|wanted| releases.iter().any(|known| known == wanted)) {
            match Self::of(cache, wanted) {
                Ok(kernel) => return Ok(kernel),
                Err(error) => eprintln!("{error:#}; taking another of {series}"),
            }
        }
        releases.sort_by(|a, b| natural(a, b));
        let newest = releases.last().with_context(|| {
            format!(
                "apt knows no {PREFIX}{series}.*{SUFFIX}: `apt-get update`, or add bookworm-security to its sources"
            )
        })?;
        Self::of(cache, newest)
    }

    fn of(cache: &Path, release: &str) -> anyhow::Result<Self> {
        let root = cache.join(release);
        if !root.is_dir() {
            unpack(cache, release, &root)?;
        }
        Ok(Self { release: release.to_owned(), root })
    }

    pub(super) fn image(&self) -> PathBuf {
        self.root.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    /// The files of these modules and of all that they need, in the order to load them.
    pub(super) fn modules(&self, names: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
        let output = Command::new("/sbin/modprobe")
            .args(["--show-depends", "--all", "--set-version", &self.release, "--dirname"])
            .arg(&self.root)
            .args(names)
            .output()
            .context("running modprobe (of Debian's package kmod)")?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "modprobe: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(insmods(&text))
    }
}

/// What modprobe would load; what the kernel has built in is not named, and nothing twice.
fn insmods(text: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = Vec::new();
    for file in text.lines().filter_map(|line| line.strip_prefix("insmod ")?.split_whitespace().next()) {
        if !files.iter().any(|known| known == Path::new(file)) {
            files.push(file.into());
        }
    }
    files
}

/// The releases that apt can bring.
fn offered(series: &str) -> anyhow::Result<Vec<String>> {
    let ask = || -> anyhow::Result<Vec<String>> {
        let output = Command::new("apt-cache")
            .args(["pkgnames", &format!("{PREFIX}{series}.")])
            .output()
            .context("running apt-cache (is this Debian?)")?;
        Ok(releases(&String::from_utf8_lossy(&output.stdout)))
    };
    let known = ask()?;
    if !known.is_empty() || !Uid::effective().is_root() {
        return Ok(known);
    }
    eprintln!("apt knows no kernels yet: apt-get update");
    let status = Command::new("apt-get").args(["update", "--quiet=2"]).status().context("running apt-get")?;
    ensure!(status.success(), "apt-get update failed: {status}");
    ask()
}

fn releases(packages: &str) -> Vec<String> {
    let release = |package: &str| Some(package.strip_prefix(PREFIX)?.to_owned()).filter(|name| name.ends_with(SUFFIX));
    packages.lines().filter_map(|line| release(line.trim())).collect()
}

fn unpacked(cache: &Path, series: &str) -> Vec<String> {
    let entries = fs::read_dir(cache).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(&format!("{series}.")) && name.ends_with(SUFFIX)).collect()
}

fn unpack(cache: &Path, release: &str, root: &Path) -> anyhow::Result<()> {
    let package = format!("{PREFIX}{release}");
    eprintln!("fetching {package} ...");
    let scratch = tempfile::tempdir_in(cache).context("making a folder for a package")?;
    let run = |program: &str, arguments: &[&str]| -> anyhow::Result<()> {
        let output = Command::new(program)
            .args(arguments)
            .current_dir(scratch.path())
            .output()
            .with_context(|| format!("running {program}"))?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} {}: {}", arguments.join(" "), error.trim());
        Ok(())
    };
    // As ourselves: root's usual stand-in may not write here.
    run("apt-get", &["-q", "-o", "APT::Sandbox::User=root", "download", &package])?;
    let Some(archive) = fs::read_dir(scratch.path())?.flatten().find(|entry| entry.file_name() != "root") else {
        bail!("apt-get has downloaded {package}, but nothing is there");
    };
    let archive = archive.path();
    let archive = archive.to_str().context("a package's name is not UTF-8")?;
    run("dpkg-deb", &["--extract", archive, "root"])?;
    run("/sbin/depmod", &["--basedir", "root", release])?;
    // By a rename, so that nobody finds half a kernel.
    match fs::rename(scratch.path().join("root"), root) {
        Err(_) if root.is_dir() => Ok(()),
        renamed => renamed.with_context(|| format!("putting {} in place", root.display())),
    }
}

/// Numbers within the names are compared as numbers.
fn natural(a: &str, b: &str) -> Ordering {
    let numbers = |text: &str| -> Vec<u64> {
        text.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
    };
    numbers(a).cmp(&numbers(b)).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_release_is_found_among_what_apt_knows() {
        let mut found = releases(
            "linux-image-6.12.117+deb12-cloud-amd64\nlinux-image-6.12.117+deb12-cloud-amd64-dbg\n\
             linux-image-6.12.99+deb12-cloud-amd64\nlinux-image-6.12.99+deb12-cloud-amd64-unsigned\n\
             linux-image-6.12.101+deb12-amd64\n",
        );
        found.sort_by(|a, b| natural(a, b));
        assert_eq!(found, ["6.12.99+deb12-cloud-amd64", "6.12.117+deb12-cloud-amd64"]);
    }

    #[test]
    fn modules_are_named_once_and_in_order() {
        let text = "insmod /r/crc.ko \ninsmod /r/ip_vs.ko.xz conn_tab_bits=18\nbuiltin x\ninsmod /r/crc.ko\n";
        assert_eq!(insmods(text), [Path::new("/r/crc.ko"), Path::new("/r/ip_vs.ko.xz")]);
    }
}
