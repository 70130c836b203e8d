//! Layer 4 beside nft, HAProxy in TCP mode and nginx's stream module, in four tables: ns per packet by path, packets
//! through a link, requests end to end, and what a change of the reals costs.
//!
//! Each table answers another question, and only the second and third have peers: [`packet`] says what the program itself
//! takes, [`live`] what a packet takes from the driver to the driver, [`ends`] what is left of that between a client and a
//! server, where their own work is most of it, and [`control`] how quick the maps obey.

mod control;
mod cpu;
mod ends;
mod harness;
mod live;
mod ours;
mod packet;
mod paths;
mod peers;
mod world;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::bail;
use tidegate_tests::lab;

use self::{
    ours::Ours,
    packet::{Desk, Scale},
    paths::{PATHS, Path},
};
use crate::{
    Settings,
    figures::{Better, Figure, OURS, Outcome, Row, Samples, in_turns},
    machine::{Cores, Watch, stay_on},
};

const KATRAN: &str = "katran*";
/// What was subtracted: how quick this machine is beside the one where Katran was measured.
const LAYING: &str = "laying a frame, already subtracted";
/// On processors whose returns must be guarded against speculation, this is several times what it is on others.
const CALL: &str = "one call of a helper, as in each look-up";
/// What a flow costs that is one of very many: its line of the table comes from memory, and where that is found too.
const FAR: &str = "one look at 128 MB, as for a flow of very many";
const KATRAN_LAYING: f64 = 7.0;
/// A flow that Katran remembers takes so many bytes of its LRU map.
const KATRAN_BYTES: f64 = 121.0;

const BY_PATH: &str = "The program alone, by path";

type Measure = fn(&Settings, &mut Outcome) -> anyhow::Result<()>;

const TABLES: &[(&str, Measure)] = &[
    (BY_PATH, by_path),
    ("Packets through a link", live::measure),
    ("Requests end to end", ends::measure),
    ("A change of the reals", control::measure),
];

pub(crate) fn run(settings: &Settings) -> anyhow::Result<Outcome> {
    anyhow::ensure!(
        lab::require() && harness::Harness::is_built(),
        "this bench lays out a network: it needs root, network namespaces and BPF, and what `cargo xtask ebpf` builds"
    );
    let tables: Vec<_> = TABLES.iter().filter(|(title, _)| table_wanted(settings, title)).collect();
    if tables.is_empty() {
        let titles: Vec<_> = TABLES.iter().map(|(title, _)| format!("  {title}")).collect();
        bail!("no table and no row by path has --only's text in its name; the tables are:\n{}", titles.join("\n"));
    }
    let mut outcome = Outcome::default();
    peers::provide(&mut outcome.notes);
    for (title, measure) in tables {
        outcome.begin(title);
        measure(settings, &mut outcome)?;
    }
    Ok(outcome)
}

fn table_wanted(settings: &Settings, title: &str) -> bool {
    settings.wants(title) || (title == BY_PATH && PATHS.iter().any(|path| settings.wants(path.case)))
}

/// A row of this bench with a figure that has no turns, or has had them.
fn row(case: String, unit: &'static str, ours: f64, peers: BTreeMap<String, f64>, goal: Option<f64>) -> Row {
    Row { bench: "l4", case, unit, better: Better::Less, ours, peers, goal, holds: goal.map(|goal| ours <= goal) }
}

fn by_path(settings: &Settings, outcome: &mut Outcome) -> anyhow::Result<()> {
    eprintln!("ns per packet by path ...");
    let scale = Scale { runs: if settings.quick { 200_000 } else { 1_000_000 }, flows: 1_000_000 };
    let link = world::Link::lay()?;
    link.balancer.run(|| -> anyhow::Result<()> {
        stay_on(Cores::choose()?.load)?;
        let row_wanted = |path: &Path| settings.wants(BY_PATH) || settings.wants(path.case);
        let mut desk = Desk::set(scale, &row_wanted)?;
        let mut left_out: BTreeMap<&str, String> = BTreeMap::new();
        let mut rows: Vec<usize> = Vec::new();
        for (row, path) in PATHS.iter().enumerate().filter(|(_, path)| row_wanted(path)) {
            if let Err(problem) = desk.look(path) {
                left_out.insert(path.case, format!("{problem:#}"));
            } else {
                rows.push(row);
            }
        }
        let mut samples = Samples::default();
        let mut dropped: BTreeMap<&str, f64> = BTreeMap::new();
        let watch = Watch::start(&[])?;
        in_turns(&mut rows, settings.rounds(), |row| {
            let path = &PATHS[*row];
            match desk.turn(*row) {
                Ok(turn) => {
                    samples.add(path.case, OURS, turn.ns);
                    samples.add(LAYING, OURS, turn.laying);
                    samples.add(CALL, OURS, desk.helper_call()?);
                    samples.add(FAR, OURS, desk.far_look()?);
                    dropped.insert(path.case, turn.dropped);
                }
                Err(problem) => _ = left_out.insert(path.case, format!("{problem:#}")),
            }
            Ok(())
        })?;
        outcome.disturbances.push(watch.stop()?);
        for path in PATHS.iter().filter(|path| !left_out.contains_key(path.case)) {
            let figure = Figure { case: path.case, unit: "ns", better: Better::Less, goal: path.goal };
            let Some(mut row) = samples.row("l4", figure) else { continue };
            row.peers.extend(path.katran.map(|ns| (KATRAN.to_owned(), ns)));
            outcome.rows.push(row);
        }
        for (case, katran) in [(LAYING, Some(KATRAN_LAYING)), (CALL, None), (FAR, None)] {
            let figure = Figure { case, unit: "ns", better: Better::Less, goal: None };
            let Some(mut row) = samples.row("l4", figure) else { continue };
            row.peers.extend(katran.map(|ns| (KATRAN.to_owned(), ns)));
            outcome.rows.push(row);
        }
        let reasons: BTreeSet<&String> = left_out.values().collect();
        for reason in reasons {
            let cases: Vec<&str> = left_out.iter().filter(|(_, why)| *why == reason).map(|(case, _)| *case).collect();
            outcome.notes.push(format!("left out: {}: {reason}", cases.join("; ")));
        }
        for (case, share) in dropped.into_iter().filter(|(_, share)| *share > 0.0) {
            outcome.notes.push(format!("{case}: {:.1} % were dropped in the last turn", 100.0 * share));
        }
        Ok(())
    })?;
    let peers = BTreeMap::from([(KATRAN.to_owned(), KATRAN_BYTES)]);
    outcome.rows.push(row("FULLNAT, memory of a flow".into(), "B", Ours::BYTES_PER_FLOW as f64, peers, Some(64.0)));
    outcome.notes.push(
        "ns by path: the program alone on frames of 64 bytes (IPv6: 74), 100 reals, less what laying the frame costs; \
         processor time of the thread"
            .into(),
    );
    outcome.notes.push(
        "katran*: not of this run, but measured before by the same method (IPIP, 100 reals) on two cores of an Intel Xeon \
         with Linux 6.18"
            .into(),
    );
    Ok(())
}
