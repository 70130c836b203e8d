//! `fuzz`: mutated bytes for every decoder. The targets and the driver are in tests/fuzz.

use std::process::Command;

use crate::{command, needs, target_dir, test};

/// What follows `fuzz` is understood by the driver.
pub(crate) fn fuzz(args: &[&str]) -> anyhow::Result<()> {
    needs::ensure(&[needs::Purpose::Build])?;
    // The dev profile: overflow and debug assertions are checked, and they are half of what fuzzing finds.
    // All targets, as `test` builds them: the driver alone would choose other features and build most crates again.
    test::build()?;
    Err(command::become_program(driver().args(args)))
}

/// The driver, once it is built.
pub(crate) fn driver() -> Command {
    Command::new(target_dir().join("debug/fuzz"))
}
