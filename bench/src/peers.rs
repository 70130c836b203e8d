//! The peers from Debian: found, or installed when that is allowed, or left out aloud.

use std::{
    net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context;
use nix::unistd::Uid;

/// A program of a Debian package.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    pub(crate) package: &'static str,
    /// Its absolute path: whatever else is called so is something else.
    pub(crate) program: &'static str,
}

impl Peer {
    pub(crate) fn program(&self) -> &'static Path {
        Path::new(self.program)
    }

    pub(crate) fn is_there(&self) -> bool {
        self.program().exists()
    }
}

/// Makes `peers` available, and says in `notes` which are not.
pub(crate) fn provide(peers: &[Peer], why: &str, notes: &mut Vec<String>) {
    let missing: Vec<&str> = peers.iter().filter(|peer| !peer.is_there()).map(|peer| peer.package).collect();
    if missing.is_empty() {
        return;
    }
    let command = format!("apt-get install --yes --no-install-recommends {}", missing.join(" "));
    if Uid::effective().is_root() {
        eprintln!("installing {} {why}: {command}", missing.join(", "));
        if let Err(problem) = install(&missing) {
            notes.push(format!("{problem:#}"));
        }
    }
    for peer in peers.iter().filter(|peer| !peer.is_there()) {
        notes.push(format!("{} is not measured: {} is missing; as root: {command}", peer.package, peer.program));
    }
}

fn install(packages: &[&str]) -> anyhow::Result<()> {
    let _quiet = NoServices::begin();
    for arguments in [&["update", "--quiet=2"][..], &["install", "--yes", "--quiet=2", "--no-install-recommends"][..]] {
        let packages = if arguments[0] == "install" { packages } else { &[] };
        let output = Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(arguments)
            .args(packages)
            .output()
            .context("running apt-get (is this Debian?)")?;
        anyhow::ensure!(
            output.status.success(),
            "apt-get {} failed: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// While it lives, packages that are installed do not start their services (which would take ports 53 and 80): Debian
/// asks `policy-rc.d`, and 101 means no.
struct NoServices(Option<PathBuf>);

impl NoServices {
    fn begin() -> Self {
        use std::os::unix::fs::PermissionsExt;
        let policy = PathBuf::from("/usr/sbin/policy-rc.d");
        if policy.exists() {
            return Self(None);
        }
        let written = std::fs::write(&policy, "#!/bin/sh\nexit 101\n")
            .and_then(|()| std::fs::set_permissions(&policy, std::fs::Permissions::from_mode(0o755)));
        if let Err(e) = written {
            eprintln!("installed services will start: {} could not be written: {e}", policy.display());
        }
        Self(Some(policy))
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(policy) = &self.0
            && let Err(e) = std::fs::remove_file(policy)
        {
            eprintln!("{} was for the time of installing and should go, but: {e}", policy.display());
        }
    }
}

/// A peer's configuration from its template: `{name}` becomes the value of that name.
fn fill(template: &str, values: &[(&str, &str)]) -> String {
    values.iter().fold(template.to_owned(), |text, (name, value)| text.replace(&format!("{{{name}}}"), value))
}

/// Writes `file` into `dir` from its template, for which `{dir}` is known too; its path, as an argument.
pub(crate) fn configure(dir: &Path, file: &str, template: &str, values: &[(&str, &str)]) -> anyhow::Result<String> {
    let place = dir.display().to_string();
    let path = dir.join(file);
    let text = fill(template, &[&[("dir", place.as_str())], values].concat());
    std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(path.display().to_string())
}

/// A port of 127.0.0.1 that nobody has, for UDP and TCP.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    for _ in 0..100 {
        let tcp = TcpListener::bind((loopback, 0)).context("looking for a free port")?;
        let port = tcp.local_addr()?.port();
        if UdpSocket::bind((loopback, port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no port of 127.0.0.1 is free for both UDP and TCP")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_takes_its_values_and_keeps_other_brackets() {
        let text = fill("zone {name} { port {port}; at {name} }", &[("name", "mesos"), ("port", "53")]);
        assert_eq!(text, "zone mesos { port 53; at mesos }");
    }
}
