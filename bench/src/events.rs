//! From a Marathon event to the first packet, request and DNS answer that obeys it, with tables of three sizes; and
//! what it takes to load the table from nothing.
//!
//! The whole of Tidegate runs as it is shipped. Marathon is the stand-in: an app `/probe` has two instances, of which
//! one is healthy, and an event says that it is now the other one. The clock starts when the event's bytes are handed
//! to the kernel, and stops when a client that asks all the time has the first answer from the other instance.

mod probe;
mod world;

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;

use self::{
    probe::{Plane, Prober},
    world::World,
};
use crate::{
    Settings,
    figures::{Better, Outcome, Row},
    machine::Watch,
};

/// Apps in the table; each has ten instances and an ELB.
const SIZES: [usize; 3] = [10, 1_000, 10_000];
/// The promise: 99 of 100 events are obeyed within so many ms, whatever the size of the table.
const GOAL_MS: f64 = 10.0;

pub(crate) fn run(settings: &Settings) -> anyhow::Result<Outcome> {
    anyhow::ensure!(
        tidegate_tests::appliance::require(),
        "this bench lays out a network: it needs root, network namespaces and BPF, and what `cargo xtask bench` builds"
    );
    let samples = if settings.quick { 40 } else { 400 };
    let mut outcome = Outcome::default();
    for size in SIZES {
        eprintln!("laying out {size} apps of {} instances ...", world::INSTANCES);
        let world = World::lay_out(size)?;
        if size == SIZES[SIZES.len() - 1] {
            outcome.rows.extend(load_rows(&world, size));
        }
        let elbs = world.make_elbs()?;
        outcome.notes.push(format!("{size} apps: {} instances, {elbs} ELBs", size * world::INSTANCES));
        for plane in Plane::ALL {
            eprintln!("{size} apps: {samples} events until the {plane} obeys ...");
            let watch = Watch::start(&[world.pid()?])?;
            let histogram = measure(&world, plane, samples)?;
            outcome.disturbances.push(watch.stop()?);
            outcome.rows.extend(latency_rows(plane, size, &histogram));
        }
    }
    outcome.notes.push("events carry both changes at once; the clock includes the client's way there and back".into());
    Ok(outcome)
}

/// In µs.
fn measure(world: &World, plane: Plane, samples: usize) -> anyhow::Result<Histogram<u64>> {
    let mut histogram = Histogram::<u64>::new(3)?;
    let prober = Prober::start(world, plane)?;
    for sample in 0..samples {
        let (written, heir) = world.switch_over()?;
        let obeyed = prober.first_answer_of(heir, written, Duration::from_secs(10))?;
        histogram.record(u64::try_from(obeyed.saturating_duration_since(written).as_micros())?.max(1))?;
        prober.settle(heir, Duration::from_secs(10))?;
        // Not always at the same place of anybody's timer.
        std::thread::sleep(Duration::from_micros(2_000 + (sample as u64 * 7_919) % 5_000));
    }
    Ok(histogram)
}

fn latency_rows(plane: Plane, size: usize, histogram: &Histogram<u64>) -> Vec<Row> {
    let row = |percentile: f64, goal: Option<f64>| {
        let ours = histogram.value_at_quantile(percentile / 100.0) as f64 / 1_000.0;
        Row {
            bench: "events",
            case: format!("event to {plane}, {size} apps, p{percentile}"),
            unit: "ms",
            better: Better::Less,
            ours,
            peers: BTreeMap::new(),
            goal,
            holds: goal.map(|goal| ours <= goal),
        }
    };
    vec![row(50.0, None), row(99.0, Some(GOAL_MS))]
}

fn load_rows(world: &World, size: usize) -> Vec<Row> {
    let row = |what: &str, unit, ours| Row {
        bench: "events",
        case: format!("load {size} apps x {}, {what}", world::INSTANCES),
        unit,
        better: Better::Less,
        ours,
        peers: BTreeMap::new(),
        goal: None,
        holds: None,
    };
    vec![
        row("start to answering for all", "s", world.loaded.after.as_secs_f64()),
        row("resident memory then", "MB", world.loaded.resident_mb),
        row("CPU time", "s", world.loaded.cpu_s),
    ]
}
