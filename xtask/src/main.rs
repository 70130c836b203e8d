//! `cargo xtask`: builds, lays out, tests and measures Tidegate.
//!
//! One file per verb. It imports none of the other rooms: it runs cargo, apt-get and the binaries that cargo built.

use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};

mod bench;
mod build;
mod ci;
mod command;
mod down;
mod ebpf;
mod fuzz;
mod needs;
mod test;
mod up;

/// What `cargo xtask` without an argument teaches.
const VERBS: [Verb; 8] = [
    Verb {
        usage: "up",
        about: "Builds everything, lays out a small network in namespaces (client, appliance, two hosts), starts a \
                Marathon stand-in with a demo job and `tidegate run`, creates two ELBs and prints what to type next. \
                Ctrl-C removes every trace. Needs root.",
    },
    Verb { usage: "down", about: "Removes what an `up` that was killed has left behind. Needs root." },
    Verb {
        usage: "build [--dist]",
        about: "Builds the binary `tidegate`, with its eBPF programs inside; --dist: as it is shipped (slower to build).",
    },
    Verb { usage: "ebpf", about: "Builds the eBPF programs alone: they are embedded in the binary `tidegate`." },
    Verb {
        usage: "test [FILTER]",
        about: "All tests whose name contains FILTER: those beside the code, then the stories in the lab. Without \
                root, stories that need namespaces are skipped, and listed.",
    },
    Verb {
        usage: "bench WHAT [--quick] [--json FILE]",
        about: "Measures beside the best peers in one run and prints a table; without WHAT, says what can be measured. \
                `bench budgets [--update]` checks (or renews) how many instructions each path of the balancer takes.",
    },
    Verb {
        usage: "ci",
        about: "What every change must pass: format, lints, all tests (none skipped), the balancer in other kernels \
                and within its budget, fuzzing in short, docs, licences; then the time that each step took.",
    },
    Verb {
        usage: "fuzz [TARGET] [--seconds N] [--seed S]",
        about: "Throws mutated bytes at every decoder, or at one; `fuzz TARGET FILE` repeats a find.",
    },
];

struct Verb {
    usage: &'static str,
    about: &'static str,
}

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match env::set_current_dir(root()).context("entering the repository").and_then(|()| obey(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cargo xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn obey(args: &[&str]) -> anyhow::Result<()> {
    match args {
        [] | ["help" | "--help" | "-h"] => {
            print!("{}", lesson());
            Ok(())
        }
        ["up"] => up::up(),
        ["down"] => down::down(),
        ["build"] => build::build(build::Profile::Release),
        ["build", "--dist"] => build::build(build::Profile::Dist),
        ["ebpf"] => {
            needs::ensure(&[needs::Purpose::Build])?;
            ebpf::build()
        }
        ["test"] => test::test(None),
        ["test", filter] if !filter.starts_with('-') => test::test(Some(filter)),
        ["bench", rest @ ..] => bench::bench(rest),
        ["ci"] => ci::ci(),
        ["fuzz", rest @ ..] => fuzz::fuzz(rest),
        [verb, rest @ ..] => match VERBS.iter().find(|known| known.name() == *verb) {
            Some(known) => bail!("`{}` is not understood; usage: cargo xtask {}", rest.join(" "), known.usage),
            None => bail!("there is no verb `{verb}`; `cargo xtask` alone lists them"),
        },
    }
}

impl Verb {
    fn name(&self) -> &str {
        self.usage.split(' ').next().expect("split gives at least one part")
    }
}

fn lesson() -> String {
    let mut text = String::from("cargo xtask VERB\n");
    for verb in &VERBS {
        text += &format!("\n  {}\n", verb.usage);
        for line in wrap(verb.about, 92) {
            text += &format!("      {line}\n");
        }
    }
    text
}

/// Breaks a text at spaces into lines of at most `width` characters.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("it starts with one line");
        match line.len() {
            0 => line.push_str(word),
            used if used + 1 + word.len() <= width => *line += &format!(" {word}"),
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// The repository.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the repository")
}

/// Where cargo puts what it builds.
fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lesson_names_every_verb_and_stays_within_a_terminal() {
        let lesson = lesson();
        for verb in &VERBS {
            assert!(lesson.contains(verb.usage), "{} is not taught", verb.usage);
        }
        assert!(lesson.lines().all(|line| line.len() <= 100), "{lesson}");
    }

    #[test]
    fn a_wrong_word_is_answered_with_the_right_usage() {
        let cases: [(&[&str], &str); 4] = [
            (&["biuld"], "there is no verb `biuld`"),
            (&["build", "--fast"], "usage: cargo xtask build [--dist]"),
            (&["test", "--nocapture"], "usage: cargo xtask test [FILTER]"),
            (&["ci", "now"], "usage: cargo xtask ci"),
        ];
        for (args, expected) in cases {
            let error = obey(args).expect_err("a wrong word").to_string();
            assert!(error.contains(expected), "{args:?}: {error}");
        }
    }

    #[test]
    fn text_is_broken_at_spaces_and_nothing_is_lost() {
        let text = "one two three four five";
        let lines = wrap(text, 9);
        assert_eq!(lines, ["one two", "three", "four five"]);
        assert_eq!(lines.join(" "), text);
    }
}
