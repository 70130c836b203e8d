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
