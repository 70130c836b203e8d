//! `test`: the tests beside the code, then the stories in the lab.

use std::{fs, process::Command};

use anyhow::Context;

use crate::{command, ebpf, needs, root};

/// The binary of the stories: tests/it/main.rs.
const STORIES: &str = "it";

pub(crate) fn test(filter: Option<&str>) -> anyhow::Result<()> {
    let root_user = command::is_root();
    if root_user {
        needs::ensure(&[needs::Purpose::Build, needs::Purpose::Lab, needs::Purpose::Test])?;
        needs::python_venv()?;
    } else {
        needs::ensure(&[needs::Purpose::Build])?;
    }
    ebpf::build()?;
    build()?;
    let mut skipped = beside_the_code(filter, false)?;
    skipped.extend(stories(filter, false)?);
    report(&skipped, root_user);
    Ok(())
}

/// Builds everything that the tests run, once and with one set of features: what follows finds all of it fresh.
pub(crate) fn build() -> anyhow::Result<()> {
    command::run(&mut command::cargo("build --workspace --all-targets"))
}

/// The tests beside the code of every crate, and those in a crate's own tests/ folder. Returns as [`stories`].
pub(crate) fn beside_the_code(filter: Option<&str>, require: bool) -> anyhow::Result<Vec<String>> {
    let mut command = command::cargo("test --workspace --lib --bins");
    // All packages are named in every call: another choice would change the features and build everything again.
    for name in integration_tests()? {
        command.args(["--test", &name]);
    }
    command.args(filter).args(["--", "--show-output"]);
    watch(command, require)
}

/// The code in the documentation.
pub(crate) fn in_the_docs() -> anyhow::Result<()> {
    command::run(&mut command::cargo("test --workspace --doc"))
}

/// The stories. Returns why tests were skipped, each reason once; with `require`, a test that would skip fails.
pub(crate) fn stories(filter: Option<&str>, require: bool) -> anyhow::Result<Vec<String>> {
    let mut command = command::cargo("test --workspace --test");
    command.arg(STORIES).args(filter);
    // One at a time: each lays out a network and loads both cores, and measures what it loses meanwhile.
    command.args(["--", "--test-threads=1", "--show-output"]);
    watch(command, require)
}

fn watch(mut command: Command, require: bool) -> anyhow::Result<Vec<String>> {
    if require {
        command.env("LAB_REQUIRE", "1");
    }
    let mut skipped = Vec::new();
    command::run_watched(command, |line| skipped.extend(skip(line)))?;
    skipped.sort();
    skipped.dedup();
    Ok(skipped)
}

/// The reason, if the line says that a test was skipped.
fn skip(line: &str) -> Option<String> {
    let (_, reason) = line.split_once("SKIP")?;
    Some(reason.trim_start_matches(':').trim().to_owned())
}

fn report(skipped: &[String], root_user: bool) {
    if skipped.is_empty() {
        println!("\nAll tests have run and passed.");
        return;
    }
    println!("\nWhat ran has passed. Skipped:");
    for reason in skipped {
        println!("  {reason}");
    }
    if !root_user {
        println!("Stories lay out network namespaces and load eBPF: run `cargo xtask test` as root for all of them.");
    }
}

/// The names of the tests in `<crate>/tests/`, where a file or a folder with a main.rs is one.
fn integration_tests() -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for room in fs::read_dir(root()).context("listing the repository")? {
        let room = room.context("listing the repository")?.path();
        let folder = room.join("tests");
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        if !room.join("Cargo.toml").is_file() {
            continue;
        }
        for entry in entries {
            let path = entry.with_context(|| format!("listing {}", folder.display()))?.path();
            if path.extension().is_some_and(|extension| extension == "rs") || path.join("main.rs").is_file() {
                names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
            }
        }
    }
    names.sort();
    names.dedup();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skipped_story_is_noticed_wherever_its_line_begins() {
        let cases = [
            ("SKIP: not root", Some("not root")),
            ("test scale ... SKIP scale: not root", Some("scale: not root")),
            ("test skips_nothing ... ok", None),
        ];
        for (line, reason) in cases {
            assert_eq!(skip(line).as_deref(), reason, "{line}");
        }
    }
}
