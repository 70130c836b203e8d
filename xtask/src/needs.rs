//! What must be installed on the machine besides rustup, git and a C compiler; never installed silently.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, bail};

use crate::{command, target_dir};

/// What something is needed for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Purpose {
    /// Compiling: every verb but `down`.
    Build,
    /// Namespaces and the clients in them: `up`, `bench`, `ci`, and `test` as root.
    Lab,
    /// What other people's programs say about ours: `ci`, and `test` as root.
    Test,
    /// Kernels beside the machine's own: `ci`, `bench lvs` and `bench budgets`.
    Guest,
}

struct Need {
    package: &'static str,
    proof: Proof,
    why: &'static str,
    purpose: Purpose,
}

/// What shows that a package is there, from whatever source it came.
enum Proof {
    Program(&'static str),
    /// `python3 -c` accepts this statement.
    Python(&'static str),
}

const NEEDS: &[Need] = &[
    Need {
        package: "build-essential",
        proof: Proof::Program("cc"),
        why: "compiles the C in the crypto and compression libraries, and links",
        purpose: Purpose::Build,
    },
    Need {
        package: "cmake",
        proof: Proof::Program("cmake"),
        why: "builds zlib-ng, which pingora compresses with",
        purpose: Purpose::Build,
    },
    Need {
        package: "iproute2",
        proof: Proof::Program("ip"),
        why: "lays out links, addresses and routes in the lab's namespaces",
        purpose: Purpose::Lab,
    },
    Need {
        package: "ethtool",
        proof: Proof::Program("ethtool"),
        why: "makes virtual links compute checksums, as XDP expects of a network",
        purpose: Purpose::Lab,
    },
    Need {
        package: "nftables",
        proof: Proof::Program("nft"),
        why: "maps host ports to containers, as an agent with bridge networking does",
        purpose: Purpose::Lab,
    },
    Need {
        package: "curl",
        proof: Proof::Program("curl"),
        why: "is an HTTP client that others wrote, for tests and for you",
        purpose: Purpose::Lab,
    },
    Need {
        package: "bind9-dnsutils",
        proof: Proof::Program("dig"),
        why: "is a DNS client that others wrote, for tests and for you",
        purpose: Purpose::Lab,
    },
    Need {
        package: "nghttp2-client",
        proof: Proof::Program("h2load"),
        why: "speaks HTTP/2 with many streams to the proxy, which curl does not",
        purpose: Purpose::Test,
    },
    Need {
        package: "python3-venv",
        proof: Proof::Python("import ensurepip, venv"),
        why: "runs a Marathon client that others wrote against our Marathon stand-in",
        purpose: Purpose::Test,
    },
    Need {
        package: "nginx",
        proof: Proof::Program("nginx"),
        why: "is a server that others wrote, behind layer 4 in every mode",
        purpose: Purpose::Test,
    },
    Need {
        package: "qemu-system-x86",
        proof: Proof::Program("qemu-system-x86_64"),
        why: "boots Debian's kernels and counts what they run",
        purpose: Purpose::Guest,
    },
    Need {
        package: "kmod",
        proof: Proof::Program("depmod"),
        why: "knows which modules a guest's kernel must load",
        purpose: Purpose::Guest,
    },
    Need {
        package: "ipvsadm",
        proof: Proof::Program("ipvsadm"),
        why: "sets up LVS, which ours is measured beside",
        purpose: Purpose::Guest,
    },
];

impl Need {
    fn is_met(&self) -> bool {
        match self.proof {
            Proof::Program(name) => command::on_path(name),
            Proof::Python(statement) => Command::new("python3")
                .args(["-c", statement])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success()),
        }
    }
}

/// Says what is missing and why it is needed, then installs it if this is root on a Debian-like system. Otherwise it
/// prints the command to type, and fails.
pub(crate) fn ensure(purposes: &[Purpose]) -> anyhow::Result<()> {
    let missing: Vec<&Need> = NEEDS.iter().filter(|need| purposes.contains(&need.purpose) && !need.is_met()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("Not on this machine yet:");
    for need in &missing {
        println!("  {:<16} {}", need.package, need.why);
    }
    let packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    if !command::on_path("apt-get") {
        bail!(
            "there is no apt-get here: install what Debian calls `{}` by other means, then repeat",
            packages.join(" ")
        );
    }
    if !command::is_root() {
        bail!(
            "only root may install packages; type this, then repeat:\n  \
             sudo apt-get update && sudo apt-get install --no-install-recommends -y {}",
            packages.join(" ")
        );
    }
    install(&packages)?;
    match missing.iter().find(|need| !need.is_met()) {
        Some(need) => bail!("apt-get has installed {}, but what it should bring is still not found", need.package),
        None => Ok(()),
    }
}

fn install(packages: &[&str]) -> anyhow::Result<()> {
    // A package may start a service unless policy-rc.d forbids it; nobody asked for one.
    let _quiet = NoDaemons::start()?;
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(arguments).stdin(Stdio::null());
        command::run(&mut command)
    };
    apt(&["update", "-q"])?;
    apt(&[&["install", "-q", "-y", "--no-install-recommends"], packages].concat())
}

/// While this lives, no package may start a service.
struct NoDaemons {
    ours: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl NoDaemons {
    fn start() -> anyhow::Result<Self> {
        if Path::new(POLICY).exists() {
            return Ok(Self { ours: false });
        }
        fs::write(POLICY, "#!/bin/sh\nexit 101\n").with_context(|| format!("writing {POLICY}"))?;
        fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755)).with_context(|| format!("marking {POLICY}"))?;
        Ok(Self { ours: true })
    }
}

impl Drop for NoDaemons {
    fn drop(&mut self) {
        if self.ours && fs::remove_file(POLICY).is_err() {
            eprintln!("{POLICY} could not be removed: remove it by hand, or no package will start its service");
        }
    }
}

/// The Marathon client of PyPI that drives the stand-in, in a virtual environment of its own.
const MARATHON_CLIENT: &str = "marathon==0.13.0";

/// Makes `target/venv`, once.
pub(crate) fn python_venv() -> anyhow::Result<()> {
    let venv = target_dir().join("venv");
    // Written last: a venv without it was cut short and is made anew.
    let done = venv.join("installed");
    if fs::read_to_string(&done).is_ok_and(|text| text == MARATHON_CLIENT) {
        return Ok(());
    }
    println!("Making {}: a Marathon client that others wrote drives our stand-in.", venv.display());
    command::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
    command::run(
        Command::new(venv.join("bin/pip"))
            .args(["install", "--quiet", "--disable-pip-version-check", MARATHON_CLIENT])
            .stdin(Stdio::null()),
    )
    .context("fetching from PyPI: is the network there?")?;
    fs::write(&done, MARATHON_CLIENT).with_context(|| format!("writing {}", done.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_can_fail() {
        let need = |proof| Need { package: "none", proof, why: "", purpose: Purpose::Build };
        assert!(need(Proof::Program("sh")).is_met());
        assert!(!need(Proof::Program("no-such-program")).is_met());
        assert!(!need(Proof::Python("import no_such_module")).is_met());
    }

    #[test]
    fn every_need_says_why_and_stands_once() {
        for (at, need) in NEEDS.iter().enumerate() {
            assert!(!need.why.is_empty(), "{}", need.package);
            assert!(NEEDS[..at].iter().all(|earlier| earlier.package != need.package), "{} twice", need.package);
        }
    }
}
