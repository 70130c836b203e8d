//! `ci`: what every change must pass, in one go, with the time of each step.

use std::{
    fmt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use crate::{command, ebpf, fuzz, needs, target_dir, test};

/// Seconds of fuzzing per target: enough to run every seed through every kind of mutation thousands of times.
const FUZZ_SECONDS: &str = "5";

/// The same inputs in every run: a change is judged by what it changes. `cargo xtask fuzz` alone tries new ones.
const FUZZ_SEED: &str = "20161001";

/// There while a demo is up.
const DEMO: &str = "/run/tidegate-demo";

pub(crate) fn ci() -> anyhow::Result<()> {
    if !command::is_root() {
        bail!("the stories need root, and a run that skips them proves nothing: repeat this in a root shell");
    }
    if Path::new(DEMO).exists() {
        bail!(
            "a demo is up, or was killed, and its story needs to be the only one: `cargo xtask down` where it was started, and \
             repeat this"
        );
    }
    let mut steps = Steps::default();
    steps.take("packages", || {
        use needs::Purpose::{Build, Guest, Lab, Test};
        needs::ensure(&[Build, Lab, Test, Guest])?;
        needs::python_venv()
    });
    // Locked: a Cargo.lock that does not fit the manifests fails here and is not mended in passing.
    steps.take("crates", || command::run(&mut command::cargo("fetch --locked")));
    steps.take("format", || command::run(&mut command::cargo("fmt --all --check")));
    steps.take("ebpf", ebpf::build);
    steps.take("lints", || command::run(&mut command::cargo("clippy --workspace --all-targets -- -D warnings")));
    if steps.take("build", test::build) {
        steps.take("tests", || none_skipped(test::beside_the_code(None, true)));
        steps.take("doc tests", test::in_the_docs);
        steps.take("stories", || none_skipped(test::stories(None, true)));
        steps.take("guest", guest);
        steps.take("fuzz", || command::run(fuzz::driver().args(["--seconds", FUZZ_SECONDS, "--seed", FUZZ_SEED])));
    }
    steps.take("docs", || command::run(command::cargo("doc --workspace --no-deps").env("RUSTDOCFLAGS", "-D warnings")));
    steps.take("licences", licences);
    steps.close()
}

/// The balancer in the kernels that we promise, and how many instructions it takes in one of them. They count the same
/// in every build and on every machine.
fn guest() -> anyhow::Result<()> {
    let bench = || Command::new(target_dir().join("debug/tidegate-bench"));
    command::run(bench().args(["budgets", "--oldest"]))?;
    command::run(bench().arg("budgets"))
}

fn none_skipped(skipped: anyhow::Result<Vec<String>>) -> anyhow::Result<()> {
    match skipped?.as_slice() {
        [] => Ok(()),
        skipped => bail!("tests were skipped: {}", skipped.join("; ")),
    }
}

/// cargo-deny checks more than the house test does (sources, wildcards). It takes minutes to build, so it is used
/// where it is and not installed. Its advisories need the network and change without us: they are no part of this.
fn licences() -> anyhow::Result<()> {
    if command::cargo_tool("cargo-deny") {
        command::run(&mut command::cargo("deny --all-features check licenses bans sources"))
    } else {
        println!(
            "cargo-deny is not installed: the story `house` has checked the licences, nobody the rest of deny.toml."
        );
        Ok(())
    }
}

/// Goes on after a failure, so that one run tells all that is wrong.
#[derive(Default)]
struct Steps(Vec<Step>);

struct Step {
    name: &'static str,
    took: Duration,
    failure: Option<String>,
}

impl Steps {
    fn take(&mut self, name: &'static str, step: impl FnOnce() -> anyhow::Result<()>) -> bool {
        println!("\n==== {name}");
        let start = Instant::now();
        let failure = step().context(name).err().map(|error| format!("{error:#}"));
        if let Some(failure) = &failure {
            println!("\n==== FAILED: {failure}");
        }
        self.0.push(Step { name, took: start.elapsed(), failure });
        self.0.last().is_some_and(|step| step.failure.is_none())
    }

    fn close(self) -> anyhow::Result<()> {
        println!("\n{self}");
        let failures: Vec<&str> = self.0.iter().filter_map(|step| step.failure.as_deref()).collect();
        if !failures.is_empty() {
            bail!("{} of {} steps failed:\n  {}", failures.len(), self.0.len(), failures.join("\n  "));
        }
        println!("ci: all {} steps passed.", self.0.len());
        Ok(())
    }
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut whole = Duration::ZERO;
        for step in &self.0 {
            let verdict = if step.failure.is_none() { "passed" } else { "FAILED" };
            writeln!(f, "{:<12} {:>8}  {verdict}", step.name, clock(step.took))?;
            whole += step.took;
        }
        writeln!(f, "{:<12} {:>8}", "in all", clock(whole))
    }
}

/// Minutes and seconds.
fn clock(took: Duration) -> String {
    format!("{}:{:02}", took.as_secs() / 60, took.as_secs() % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failed_step_fails_the_whole_and_the_others_still_run() {
        let mut steps = Steps::default();
        assert!(steps.take("first", || Ok(())));
        assert!(!steps.take("second", || bail!("something broke")));
        assert!(steps.take("third", || Ok(())));
        let summary = steps.to_string();
        assert!(summary.contains("second") && summary.contains("FAILED") && summary.contains("third"), "{summary}");
        let error = steps.close().unwrap_err().to_string();
        assert_eq!(error, "1 of 3 steps failed:\n  second: something broke");
    }

    #[test]
    fn a_skipped_test_fails_the_step() {
        assert!(none_skipped(Ok(Vec::new())).is_ok());
        let error = none_skipped(Ok(vec!["no BTF".to_owned()])).unwrap_err().to_string();
        assert_eq!(error, "tests were skipped: no BTF");
    }

    #[test]
    fn time_is_told_in_minutes_and_seconds() {
        assert_eq!(clock(Duration::from_secs(605)), "10:05");
    }
}
