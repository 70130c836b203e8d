//! `bench`: builds what is measured, and hands over to the bench, which brings the peers itself.

use std::process::Command;

use anyhow::bail;

use crate::{build, command, ebpf, needs, target_dir};

/// What follows `bench` is understood by the bench itself.
pub(crate) fn bench(args: &[&str]) -> anyhow::Result<()> {
    if !command::is_root() {
        bail!("the measurements lay out network namespaces and load eBPF, which needs root: repeat in a root shell");
    }
    needs::ensure(&[needs::Purpose::Build, needs::Purpose::Lab])?;
    ebpf::build()?;
    build::for_the_lab(&["tidegate-bench", "tidegate", "marathon_standin", "demo_app"])?;
    Err(command::become_program(Command::new(target_dir().join("release/tidegate-bench")).args(args)))
}
