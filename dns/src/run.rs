//! The only place of the plane that spawns.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{config::Config, input::Input, report::Report};

/// Runs the plane until `stop`. Fails only at start (a port that is taken ...); a bad Input is
/// refused in the report.
pub async fn run(
    config: Config,
    inputs: watch::Receiver<Arc<Input>>,
    reports: watch::Sender<Arc<Report>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let _ = (config, inputs, reports, stop);
    anyhow::bail!("not there yet")
}
