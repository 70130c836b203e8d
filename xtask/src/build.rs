//! `build`: the binary `tidegate`, with the eBPF programs inside.

use crate::{command, ebpf, needs, target_dir};

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Profile {
    Release,
    /// As it is shipped: link-time optimised, stripped of debug information.
    Dist,
}

impl Profile {
    /// cargo's name of the profile, which is also its folder below target/.
    fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Dist => "dist",
        }
    }
}

pub(crate) fn build(profile: Profile) -> anyhow::Result<()> {
    needs::ensure(&[needs::Purpose::Build])?;
    ebpf::build()?;
    // This package alone, so that no test's wish for a feature gets into what is shipped.
    let words = format!("build --locked --profile {} --package tidegate-control", profile.name());
    command::run(&mut command::cargo(&words))?;
    println!("\nBuilt: {}", target_dir().join(profile.name()).join("tidegate").display());
    Ok(())
}

/// Optimised binaries for `up` and `bench`: the same packages for both, since another choice of packages would change the
/// features and build most crates again.
pub(crate) fn for_the_lab(bins: &[&str]) -> anyhow::Result<()> {
    let mut command =
        command::cargo("build --release --package tidegate-control --package tidegate-tests --package tidegate-bench");
    for bin in bins {
        command.args(["--bin", bin]);
    }
    command::run(&mut command)
}
