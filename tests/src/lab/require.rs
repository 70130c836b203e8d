//! Whether this machine can have a lab at all.

use std::{path::Path, process::Command, sync::OnceLock};

use super::{bpf, mounts::Mounts, ns::Ns};

/// The first line of every lab test: `if !lab::require() { return; }`. Prints why a test is skipped; with
/// `LAB_REQUIRE=1` a test that cannot run fails.
pub fn require() -> bool {
    static MISSING: OnceLock<Result<(), String>> = OnceLock::new();
    match MISSING.get_or_init(probe) {
        Ok(()) => true,
        Err(reason) => skip(reason),
    }
}

/// Skips a test, or fails it where skipping is forbidden. Always `false`.
pub fn skip(reason: &str) -> bool {
    assert!(std::env::var_os("LAB_REQUIRE").is_none_or(|value| value != "1"), "LAB_REQUIRE=1, but {reason}");
    println!("SKIP: {reason}");
    false
}

fn probe() -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("a lab needs root (namespaces and BPF): run the tests as root".to_owned());
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Err("this kernel has no BTF (/sys/kernel/btf/vmlinux)".to_owned());
    }
    for (program, package) in [("ip", "iproute2"), ("ethtool", "ethtool"), ("nft", "nftables")] {
        if Command::new(program).arg("--version").output().is_err() {
            return Err(format!("{program} is not installed: apt install {package}"));
        }
    }
    Ns::new().map_err(|error| format!("{error:#}"))?;
    bpf::load_pass().map_err(|error| format!("no BPF program can be loaded: {error}"))?;
    Mounts::new().map_err(|error| format!("{error:#}"))?;
    Ok(())
}
