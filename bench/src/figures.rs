//! What was measured: samples in turns, medians, rows, the page that is printed.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
};

use serde::Serialize;

use crate::machine::{Disturbance, Machine};

/// The name of ours among the contenders.
pub(crate) const OURS: &str = "tidegate";

/// One figure, as it is written to JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Row {
    pub(crate) bench: &'static str,
    pub(crate) case: String,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
    pub(crate) ours: f64,
    pub(crate) peers: BTreeMap<String, f64>,
    /// The figure that was promised, in `unit`. None: nothing was.
    pub(crate) goal: Option<f64>,
    pub(crate) holds: Option<bool>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    Less,
    More,
}

/// What a bench gives back.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) rows: Vec<Row>,
    /// One for each turn.
    pub(crate) disturbances: Vec<Disturbance>,
    /// Where another table begins, and what it is about. None: it is one table.
    pub(crate) titles: Vec<(usize, &'static str)>,
    /// What a reader must know: peers that are missing, turns that were not saturated.
    pub(crate) notes: Vec<String>,
}

/// The kind of a figure: a table row to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    pub(crate) case: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
    pub(crate) goal: Option<f64>,
}

/// Samples by case, then by contender.
#[derive(Debug, Default)]
pub(crate) struct Samples(BTreeMap<&'static str, BTreeMap<String, Vec<f64>>>);

impl Samples {
    pub(crate) fn add(&mut self, case: &'static str, contender: &str, value: f64) {
        self.0.entry(case).or_default().entry(contender.into()).or_default().push(value);
    }

    pub(crate) fn median(&self, case: &str, contender: &str) -> Option<f64> {
        median(self.0.get(case)?.get(contender)?)
    }

    /// The medians of a case; None when ours was not measured.
    pub(crate) fn row(&self, bench: &'static str, figure: Figure) -> Option<Row> {
        let mut peers: BTreeMap<String, f64> = BTreeMap::new();
        for (contender, samples) in self.0.get(figure.case)? {
            peers.extend(median(samples).map(|value| (contender.clone(), value)));
        }
        let ours = peers.remove(OURS)?;
        let holds = figure.goal.map(|goal| match figure.better {
            Better::Less => ours <= goal,
            Better::More => ours >= goal,
        });
        let Figure { case, unit, better, goal } = figure;
        Some(Row { bench, case: case.into(), unit, better, ours, peers, goal, holds })
    }
}

/// Gives each contender its turn in every round. Whoever begins changes, so that nobody always follows the same one.
pub(crate) fn in_turns<C>(
    contenders: &mut [C],
    rounds: usize,
    mut turn: impl FnMut(&mut C) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let count = contenders.len();
    for round in 0..rounds {
        for place in 0..count {
            turn(&mut contenders[(round + place) % count])?;
        }
    }
    Ok(())
}

/// The middle one, or the mean of the two in the middle.
pub(crate) fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        count if count % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

impl Outcome {
    /// The rows from here on have a table, and peers, of their own.
    pub(crate) fn begin(&mut self, title: &'static str) {
        self.titles.push((self.rows.len(), title));
    }

    /// Says of each contender what it did not answer well, over all turns.
    pub(crate) fn note_failures(&mut self, failures: &BTreeMap<String, u64>) {
        for (name, count) in failures.iter().filter(|(_, count)| **count > 0) {
            self.notes.push(format!("{name}: {count} lost, wrong or failed answers over all turns"));
        }
    }

    /// Says in how many turns the measured server was not the bottleneck.
    pub(crate) fn note_unsaturated(&mut self, turns: usize) {
        if turns > 0 {
            let all = self.disturbances.len();
            self.notes.push(format!(
                "in {turns} of {all} turns the server had less than 90 % of its core: rates are too low there, times per \
                 answer are not"
            ));
        }
    }

    /// The page for people.
    pub(crate) fn page(&self, bench: &str, machine: &Machine) -> String {
        let mut page = format!("bench {bench}\n");
        let (mut rows, mut at) = (self.rows.as_slice(), 0);
        let ends = self.titles.iter().skip(1).map(|(end, _)| *end).chain([self.rows.len()]);
        for (end, title) in ends.zip(self.titles.iter().map(|(_, title)| Some(title)).chain([None])) {
            let (those, rest) = rows.split_at(end - at);
            (rows, at) = (rest, end);
            let _ = write!(page, "\n{}{}", title.map(|title| format!("{title}\n")).unwrap_or_default(), table(those));
        }
        let _ = write!(page, "\n{machine}");
        if let Some(disturbance) = Disturbance::summary(&self.disturbances) {
            let _ = write!(page, "\n{disturbance}");
        }
        for note in &self.notes {
            let _ = write!(page, "\nnote: {note}");
        }
        page
    }
}

/// One line a row: ours, then each peer with ours/peer in brackets.
fn table(rows: &[Row]) -> String {
    let mut peers: Vec<&String> = rows.iter().flat_map(|row| row.peers.keys()).collect();
    peers.sort();
    peers.dedup();
    let mut lines = vec![
        ["case".into(), "unit".into(), OURS.into()]
            .into_iter()
            .chain(peers.iter().map(|peer| format!("{peer} (ours/peer)")))
            .chain(["better".into(), "goal".into()])
            .collect::<Vec<String>>(),
    ];
    for row in rows {
        let goal = match (row.goal, row.holds) {
            (Some(goal), Some(holds)) => format!("{} {}", Short(goal), if holds { "holds" } else { "MISSED" }),
            _ => "-".into(),
        };
        let better = if row.better == Better::Less { "less" } else { "more" };
        let cell = |peer: &&String| {
            let show = |value: &f64| format!("{} ({:.2}x)", Short(*value), row.ours / value);
            row.peers.get(*peer).map_or_else(|| "-".into(), show)
        };
        lines.push(
            [row.case.clone(), row.unit.into(), Short(row.ours).to_string()]
                .into_iter()
                .chain(peers.iter().map(cell))
                .chain([better.into(), goal])
                .collect(),
        );
    }
    let widths: Vec<usize> =
        (0..lines[0].len()).map(|i| lines.iter().map(|line| line[i].len()).max().unwrap_or(0)).collect();
    let mut table = String::new();
    for line in lines {
        let cells: Vec<_> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(table, "{}", cells.join("  ").trim_end());
    }
    table
}

/// A number as a person reads it: three digits that matter.
struct Short(f64);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.0.abs();
        if size >= 10_000.0 {
            write!(f, "{:.1}k", self.0 / 1000.0)
        } else if size >= 100.0 {
            write!(f, "{:.0}", self.0)
        } else if size >= 10.0 {
            write!(f, "{:.1}", self.0)
        } else {
            write!(f, "{:.2}", self.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Samples {
        let mut samples = Samples::default();
        for (contender, values) in [(OURS, [3.0, 9.0, 1.0]), ("knot", [2.0, 2.0, 4.0])] {
            values.into_iter().for_each(|value| samples.add("A", contender, value));
        }
        samples
    }

    const FIGURE: Figure = Figure { case: "A", unit: "us", better: Better::Less, goal: None };

    #[test]
    fn a_median_is_the_middle() {
        for (samples, expected) in
            [(&[][..], None), (&[1.0][..], Some(1.0)), (&[3.0, 1.0][..], Some(2.0)), (&[9.0, 1.0, 3.0][..], Some(3.0))]
        {
            assert_eq!(median(samples), expected);
        }
    }

    #[test]
    fn a_row_has_exactly_the_keys_that_others_read() {
        let row = serde_json::to_value(samples().row("dns", FIGURE)).expect("a row is plain data");
        let expected = serde_json::json!({
            "bench": "dns", "case": "A", "unit": "us", "better": "less", "ours": 3.0, "peers": {"knot": 2.0},
            "goal": null, "holds": null,
        });
        assert_eq!(row, expected);
    }

    #[test]
    fn a_goal_holds_on_the_better_side() {
        for (better, goal, holds) in [
            (Better::Less, 3.0, true),
            (Better::Less, 2.9, false),
            (Better::More, 3.0, true),
            (Better::More, 3.1, false),
        ] {
            let figure = Figure { better, goal: Some(goal), ..FIGURE };
            assert_eq!(samples().row("dns", figure).and_then(|row| row.holds), Some(holds), "{better:?} {goal}");
        }
    }

    #[test]
    fn without_ours_there_is_no_row() {
        let mut samples = Samples::default();
        samples.add("A", "knot", 1.0);
        assert_eq!(samples.row("dns", FIGURE), None);
    }

    #[test]
    fn everybody_begins_once() {
        let mut order = Vec::new();
        in_turns(&mut ["a", "b", "c"], 3, |name| {
            order.push(*name);
            Ok(())
        })
        .expect("no turn fails");
        assert_eq!(order.join(""), "abcbcacab");
    }

    #[test]
    fn each_title_begins_a_table_with_peers_of_its_own() {
        let row = |case: &str, peer: &str| Row {
            case: case.into(),
            peers: BTreeMap::from([(peer.into(), 1.0)]),
            ..samples().row("dns", FIGURE).expect("ours is there")
        };
        let mut outcome = Outcome::default();
        outcome.begin("alone");
        outcome.rows.extend([row("first", "knot"), row("second", "knot")]);
        outcome.begin("together");
        outcome.rows.push(row("third", "nsd"));
        let page = outcome.page("dns", &Machine::look());
        let at = |text: &str| page.find(text).unwrap_or_else(|| panic!("no {text} in {page}"));
        let order = ["alone", "knot", "first", "second", "together", "nsd", "third", "machine:"].map(at);
        assert!(order.is_sorted(), "{page}");
        assert_eq!(page.matches("knot").count(), 1, "{page}");

        outcome.titles.clear();
        let page = outcome.page("dns", &Machine::look());
        assert!(page.contains("knot") && page.contains("third"), "{page}");
    }

    #[test]
    fn the_table_shows_ratios_and_gaps() {
        let rows = [samples().row("dns", FIGURE).expect("ours is there")];
        let text = table(&rows);
        assert!(text.contains("knot (ours/peer)") && text.contains("2.00 (1.50x)"), "{text}");
    }
}
