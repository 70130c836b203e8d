//! The only place of the plane that spawns.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    config::Config,
    input::Input,
    report::Report,
    serve::{Listening, Source},
};

/// How often counters are published and new addresses looked for.
const PERIOD: Duration = Duration::from_secs(1);
/// A look takes long where there are thousands of VIPs, and changes wait meanwhile: at most so small a part of the time.
const REST: u32 = 200;

/// Runs the plane until `stop`. Fails only at start (a port that is taken ...); a bad Input is
/// refused in the report. When nobody gives Inputs any more, the last one goes on being answered.
pub async fn run(
    config: Config,
    mut inputs: watch::Receiver<Arc<Input>>,
    reports: watch::Sender<Arc<Report>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let source = Arc::new(Source::new(config.udp_payload));
    let mut listening = Listening::start(&config.listen, source.clone())?;
    let mut period = tokio::time::interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next_look = Instant::now();
    let mut report = Report::default();
    let mut given = true;
    inputs.mark_changed();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            changed = inputs.changed(), if given => match changed {
                Ok(()) => {
                    let input = inputs.borrow_and_update().clone();
                    apply(&source, input, &mut report).await;
                }
                Err(_) => given = false,
            },
            _ = period.tick() => if next_look <= Instant::now() {
                let began = Instant::now();
                report.problems = listening.open_missing().iter().map(|e| format!("{e:#}")).collect();
                next_look = Instant::now() + began.elapsed() * REST;
            }
        }
        report.listening = listening.addresses();
        report.counters = source.counters();
        reports.send_replace(Arc::new(report.clone()));
    }
    listening.stop().await;
    Ok(())
}

async fn apply(source: &Source, input: Arc<Input>, report: &mut Report) {
    let generation = input.generation;
    let old = source.zone.load_full();
    // What a watch holds before anybody has said anything.
    if old.apex.is_none() && generation == 0 && input.origin.is_empty() {
        return;
    }
    // The first zone takes a while to build: not on a thread that answers.
    match tokio::task::spawn_blocking(move || old.patch(input)).await {
        Ok(Ok(zone)) => {
            info!(generation, names = zone.input.names.len(), "the zone is answered");
            source.zone.store(Arc::new(zone));
            report.generation = generation;
            report.refused = None;
        }
        Ok(Err(why)) => {
            warn!(generation, "the zone is refused: {why}");
            report.refused = Some((generation, why));
        }
        // A defect of ours: the old zone answers on, which is better than nothing.
        Err(defect) => {
            error!(generation, "building the zone failed: {defect}");
            report.problems.push(format!("generation {generation} could not be built, the last one answers: {defect}"));
        }
    }
}
