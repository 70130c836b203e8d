//! The plane from start to stop.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use crate::{config::Config, input::Input, plane::Plane, report::Report};

/// How often counters are reported and closed ports tried again.
const TICK: Duration = Duration::from_secs(1);

/// Runs the plane until `stop`. A bad Input is refused in the report. On `stop` requests in flight finish within the
/// grace period. Without anyone left to send Inputs the last one is served for ever.
pub async fn run(
    config: Config,
    mut inputs: watch::Receiver<Arc<Input>>,
    reports: watch::Sender<Arc<Report>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut plane = Plane::new(config);
    let publish = |plane: &Plane| drop(reports.send_replace(Arc::new(plane.report().clone())));
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);

    inputs.mark_changed();
    let mut orphaned = false;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            changed = inputs.changed(), if !orphaned => match changed {
                Ok(()) => {
                    let input = inputs.borrow_and_update().clone();
                    plane.apply(input).await;
                    publish(&plane);
                }
                Err(_) => orphaned = true,
            },
            _ = ticks.tick() => {
                if plane.tick() {
                    publish(&plane);
                }
            }
        }
    }
    plane.stop().await;
    publish(&plane);
    Ok(())
}
