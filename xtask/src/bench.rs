//! `bench`: builds what is measured, and hands over to the bench, which brings the peers itself.

use std::process::Command;

use anyhow::bail;

use crate::{build, command, ebpf, needs, target_dir};

/// What runs in a guest of its own: nothing of this machine is touched, so anybody may.
const IN_A_GUEST: [&str; 2] = ["lvs", "budgets"];

/// What follows `bench` is understood by the bench itself.
pub(crate) fn bench(args: &[&str]) -> anyhow::Result<()> {
    let guest = args.first().is_some_and(|what| IN_A_GUEST.contains(what));
    if !guest && !command::is_root() {
        bail!("the measurements lay out network namespaces and load eBPF, which needs root: repeat in a root shell");
    }
    let last = if guest { needs::Purpose::Guest } else { needs::Purpose::Lab };
    needs::ensure(&[needs::Purpose::Build, needs::Purpose::Lab, last])?;
    ebpf::build()?;
    build::for_the_lab(&["tidegate-bench", "tidegate", "marathon_standin", "demo_app"])?;
    Err(command::become_program(Command::new(target_dir().join("release/tidegate-bench")).args(args)))
}
