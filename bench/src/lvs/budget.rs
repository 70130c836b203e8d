//! The budget of every path of the balancer: instructions that a change may not exceed unseen (`budget.toml`).

use std::{
    collections::BTreeMap,
    fmt::Write,
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde::Deserialize;

use super::said::Said;

/// What rewrites the file.
const UPDATE: &str = "cargo xtask bench budgets --update";

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub(super) struct Budget {
    /// The kernel that the figures are of: its helpers run too.
    pub(super) kernel: String,
    /// How many instructions a path may grow before anybody must look.
    pub(super) allowed_growth: i64,
    pub(super) paths: BTreeMap<String, i64>,
}

impl Budget {
    pub(super) fn read() -> anyhow::Result<Self> {
        let file = file();
        let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        toml::from_str(&text).with_context(|| format!("understanding {}", file.display()))
    }

    /// With the figures of now.
    pub(super) fn renewed(&self, kernel: &str, paths: BTreeMap<String, i64>) -> Self {
        Self { kernel: kernel.to_owned(), allowed_growth: self.allowed_growth, paths }
    }

    pub(super) fn write(&self) -> anyhow::Result<()> {
        let file = file();
        std::fs::write(&file, self.text()).with_context(|| format!("writing {}", file.display()))
    }

    fn text(&self) -> String {
        let mut text = format!(
            "# Instructions that the balancer runs for one packet, without those of an empty program. `cargo xtask ci` \
             fails\n# when a path takes more than `allowed_growth` above its figure. Written by `{UPDATE}`.\n\
             kernel = \"{}\"\nallowed_growth = {}\n\n[paths]\n",
            self.kernel, self.allowed_growth
        );
        for (path, instructions) in &self.paths {
            let _ = writeln!(text, "{path:?} = {instructions}");
        }
        text
    }

    /// What is over budget or not in it, in words.
    pub(super) fn judge(&self, measured: &BTreeMap<String, i64>) -> Vec<String> {
        let mut complaints = Vec::new();
        for (path, &instructions) in measured {
            match self.paths.get(path) {
                Some(&budget) if instructions > budget + self.allowed_growth => complaints.push(format!(
                    "{path}: {instructions} instructions, {} more than the budget of {budget}",
                    instructions - budget
                )),
                Some(_) => {}
                None => complaints.push(format!("{path}: {instructions} instructions, but it has no budget")),
            }
        }
        for path in self.paths.keys().filter(|path| !measured.contains_key(*path)) {
            complaints.push(format!("{path}: has a budget, but was not measured"));
        }
        if !complaints.is_empty() {
            complaints.push(format!("if this is what was meant: `{UPDATE}`, and say in the commit why"));
        }
        complaints
    }

    /// All paths with their figures, budgets and differences, for people.
    pub(super) fn table(&self, measured: &BTreeMap<String, i64>) -> String {
        let mut text = format!("{:<28} {:>12} {:>8} {:>6}\n", "path", "instructions", "budget", "");
        for (path, instructions) in measured {
            let (budget, difference) = match self.paths.get(path) {
                Some(budget) => (budget.to_string(), format!("{:+}", instructions - budget)),
                None => ("-".into(), String::new()),
            };
            let _ = writeln!(text, "{path:<28} {instructions:>12} {budget:>8} {difference:>6}");
        }
        text
    }
}

pub(super) fn paths(said: &[Said]) -> BTreeMap<String, i64> {
    let path = |said: &Said| match said {
        Said::Path { name, instructions } => Some((name.clone(), *instructions)),
        _ => None,
    };
    said.iter().filter_map(path).collect()
}

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("budget.toml")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(list: &[(&str, i64)]) -> BTreeMap<String, i64> {
        list.iter().map(|(path, instructions)| ((*path).to_owned(), *instructions)).collect()
    }

    fn budget() -> Budget {
        Budget { kernel: "6.12".into(), allowed_growth: 25, paths: paths(&[("new", 2000), ("reply", 600)]) }
    }

    #[test]
    fn within_its_budget_a_path_may_grow_a_little_and_shrink() {
        assert!(budget().judge(&paths(&[("new", 2025), ("reply", 1)])).is_empty());
    }

    #[test]
    fn what_is_above_its_budget_without_one_or_gone_is_named_with_the_way_out() {
        let complaints = budget().judge(&paths(&[("new", 2026), ("other", 5)])).join("\n");
        for part in ["new: 2026 instructions, 26 more", "other: 5 instructions, but", "reply: has a budget", UPDATE] {
            assert!(complaints.contains(part), "{complaints}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let budget = budget();
        assert_eq!(toml::from_str::<Budget>(&budget.text()).expect("it is well formed"), budget);
    }

    #[test]
    fn the_file_in_the_repository_is_well_formed() {
        let budget = Budget::read().expect("it is there");
        assert!(!budget.paths.is_empty() && budget.allowed_growth < 100);
    }
}
