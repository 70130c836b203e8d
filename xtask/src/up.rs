//! `up`: a cluster in namespaces with everything running, to look at and to play with.

use std::process::Command;

use anyhow::bail;

use crate::{build, command, ebpf, needs, target_dir};

pub(crate) fn up() -> anyhow::Result<()> {
    if !command::is_root() {
        bail!("network namespaces and eBPF need root: repeat this in a root shell (`sudo -E -s` keeps your PATH)");
    }
    needs::ensure(&[needs::Purpose::Build, needs::Purpose::Lab])?;
    ebpf::build()?;
    build::for_the_lab(&["tidegate", "tidegate-demo", "marathon_standin", "demo_app"])?;
    // The demo takes this process's place: Ctrl-C and signals reach it directly, and it removes every trace.
    Err(command::become_program(Command::new(target_dir().join("release/tidegate-demo")).arg("up")))
}
