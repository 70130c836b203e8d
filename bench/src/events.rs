//! From a Marathon event to the first packet, request and DNS answer that obeys it.

use crate::{Settings, figures::Outcome};

pub(crate) fn run(_settings: &Settings) -> anyhow::Result<Outcome> {
    anyhow::bail!("the bench events is not written yet: its place is bench/src/events.rs")
}
