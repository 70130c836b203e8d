//! What layer 4 counted lately: its counters only grow, and what an operator asks is whether they do so now.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use tidegate_l4::{Report, tables::Moved};

/// Between two counts that are kept.
const STEP: Duration = Duration::from_secs(5);
/// Drops come and go: what counts is the last minute.
const MINUTE: Duration = Duration::from_secs(60);
/// Connections that were lost stay a problem for so long that somebody sees it.
const SEEN: Duration = Duration::from_secs(600);

/// The counts of the last ten minutes.
#[derive(Debug, Default)]
pub struct Lately {
    /// The oldest first, [`STEP`] apart, and the newest.
    kept: VecDeque<(Instant, Counts)>,
}

#[derive(Clone, Debug, Default)]
struct Counts {
    drops: Vec<(&'static str, u64)>,
    moved: Moved,
}

impl Lately {
    pub fn note(&mut self, report: &Report, now: Instant) {
        // Until the counters were read there are none, and they do not begin at 0: the maps may be older than the process.
        if report.drops.is_empty() {
            return;
        }
        let counts = Counts { drops: report.drops.clone(), moved: report.moves };
        // The newest is replaced until it is far enough from the one before it.
        if let [.., (before, _), (last, _)] = self.kept.make_contiguous()
            && last.duration_since(*before) < STEP
        {
            self.kept.pop_back();
        }
        self.kept.push_back((now, counts));
        while self.kept.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= SEEN) {
            self.kept.pop_front();
        }
    }

    /// What was dropped in the last minute, by reason; reasons without a drop are left out.
    pub fn drops(&self) -> Vec<(&'static str, u64)> {
        let Some((before, now)) = self.between(MINUTE) else { return Vec::new() };
        let grown = |(reason, count): &(&'static str, u64)| {
            let (_, old) = before.drops.iter().find(|(known, _)| known == reason)?;
            count.checked_sub(*old).filter(|grown| *grown > 0).map(|grown| (*reason, grown))
        };
        now.drops.iter().filter_map(grown).collect()
    }

    /// Connections that lost their instance to a change, with what to do.
    pub fn problems(&self) -> Vec<String> {
        let Some((before, now)) = self.between(SEEN) else { return Vec::new() };
        let (old, new) = (before.moved, now.moved);
        let mut problems = Vec::new();
        let lost = new.lost.saturating_sub(old.lost);
        if lost > 0 {
            problems.push(format!(
                "in the last ten minutes {lost} connections lost their instances: they outlived a change of their ELB's \
                 instances by more than an hour, and the modes without translation remember no longer; use forward \
                 fullnat for connections that last for hours, or let clients reconnect now and then"
            ));
        }
        let at_once = new.at_once.saturating_sub(old.at_once);
        if at_once > 0 {
            problems.push(format!(
                "in the last ten minutes {at_once} ring slots changed hands at once, and connections on them lost their \
                 instances: more changes are under way ({} moves) than can be remembered; change fewer instances at \
                 once, or use forward fullnat, which needs no moves",
                new.now
            ));
        }
        problems
    }

    /// The newest counts, and those from before the window, or the oldest.
    fn between(&self, window: Duration) -> Option<(&Counts, &Counts)> {
        let (now, newest) = self.kept.back()?;
        let old = self.kept.iter().rev().find(|(at, _)| now.duration_since(*at) >= window);
        let (_, before) = old.or(self.kept.front())?;
        Some((before, newest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(drops: &[(&'static str, u64)], lost: u64, at_once: u64) -> Report {
        Report { drops: drops.to_vec(), moves: Moved { lost, at_once, ..Moved::default() }, ..Report::default() }
    }

    #[test]
    fn drops_are_told_for_a_minute_and_only_those_that_grew() {
        let start = Instant::now();
        let mut lately = Lately::default();
        assert_eq!(lately.drops(), []);
        // Before the first reading a report has no drops, and what is read then may be from long ago.
        lately.note(&report(&[], 0, 0), start);
        let second = Duration::from_secs(1);
        lately.note(&report(&[("denied", 490), ("ttl", 3)], 0, 0), start + second);
        assert_eq!(lately.drops(), []);
        lately.note(&report(&[("denied", 500), ("ttl", 3)], 0, 0), start + 2 * second);
        assert_eq!(lately.drops(), [("denied", 10)], "the first minute is told too");
        lately.kept.clear();
        let at = |second: u64, denied| {
            (start + Duration::from_secs(second), report(&[("denied", denied), ("ttl", 3)], 0, 0))
        };
        let mut told = Vec::new();
        for second in 2..400 {
            let (now, report) = at(second, if second < 200 { 500 } else { 510 });
            lately.note(&report, now);
            told.push(lately.drops());
        }
        let growing: Vec<usize> =
            (2..).zip(&told).filter(|(_, drops)| !drops.is_empty()).map(|(second, _)| second).collect();
        assert_eq!(growing.first(), Some(&200));
        assert!((255..=270).contains(growing.last().unwrap()), "{growing:?}");
        assert_eq!(told[200], [("denied", 10)]);
        assert!(lately.kept.len() <= 130, "{}", lately.kept.len());
    }

    #[test]
    fn lost_connections_are_a_problem_for_ten_minutes() {
        let start = Instant::now();
        let mut lately = Lately::default();
        lately.note(&report(&[("ttl", 0)], 7, 9), start);
        assert!(lately.problems().is_empty(), "what was before is old");
        let mut seconds = Vec::new();
        for second in 1..1000 {
            let (lost, at_once) = if second < 100 { (7, 9) } else { (12, 10) };
            lately.note(&report(&[("ttl", 0)], lost, at_once), start + Duration::from_secs(second));
            let problems = lately.problems();
            if !problems.is_empty() {
                assert!(
                    problems[0].contains("5 connections lost") && problems[1].contains("1 ring slots"),
                    "{problems:?}"
                );
                seconds.push(second);
            }
        }
        assert_eq!(seconds.first(), Some(&100));
        assert!((690..=710).contains(seconds.last().unwrap()), "{:?}", seconds.last());
    }
}
