//! `down`: removes what an `up` has left behind.

use std::process::Command;

use anyhow::bail;

use crate::{command, target_dir};

pub(crate) fn down() -> anyhow::Result<()> {
    if !command::is_root() {
        bail!("only root can remove namespaces and pinned maps: repeat this in a root shell");
    }
    let demo = target_dir().join("release/tidegate-demo");
    if !demo.exists() {
        println!("Nothing was ever up: {} was not built.", demo.display());
        return Ok(());
    }
    Err(command::become_program(Command::new(demo).arg("down")))
}
