//! Packets through the XDP balancer.

use crate::{Settings, figures::Outcome};

pub(crate) fn run(_settings: &Settings) -> anyhow::Result<Outcome> {
    anyhow::bail!("the bench l4 is not written yet: its place is bench/src/l4.rs")
}
