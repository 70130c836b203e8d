//! Measurements beside the best peers: `tidegate-bench <what> [--quick] [--json FILE]`.
//!
//! A bench is a file: it starts ours and the peers, measures them in turns, and gives rows. `README.md` of this crate
//! explains how to read them. Start at [`BENCHES`].

mod dns;
mod dns_load;
mod events;
mod figures;
mod l4;
mod l7;
mod lvs;
mod machine;
mod peers;
mod server;
mod wrk;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};

use crate::{figures::Outcome, machine::Machine};

/// Everything that can be measured. A new bench is a file and a line here.
const BENCHES: &[Bench] = &[
    Bench { name: "events", about: "a Marathon event until the first answer that obeys it", run: events::run },
    Bench { name: "l4", about: "packets through the balancer, beside nft, haproxy and nginx", run: l4::run },
    Bench { name: "l7", about: "requests through the proxy, beside nginx and haproxy", run: l7::run },
    Bench { name: "dns", about: "answers of the DNS plane, beside knot, nsd and gdnsd", run: dns::run },
    Bench { name: "lvs", about: "instructions of a packet, beside IPVS and nft in one guest", run: lvs::run },
];

struct Bench {
    name: &'static str,
    about: &'static str,
    run: fn(&Settings) -> anyhow::Result<Outcome>,
}

/// How much to measure.
pub(crate) struct Settings {
    quick: bool,
    only: Option<String>,
}

impl Settings {
    /// How often each contender has its turn: odd, so that a median is a run that was.
    pub(crate) fn rounds(&self) -> usize {
        if self.quick { 3 } else { 9 }
    }

    /// Whether what has this name is to be measured.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|part| name.to_lowercase().contains(&part.to_lowercase()))
    }

    /// How long a turn is.
    pub(crate) fn turn(&self) -> Duration {
        Duration::from_secs(if self.quick { 1 } else { 3 })
    }
}

/// Measures ours beside the best peers.
#[derive(Parser)]
#[command(name = "tidegate-bench", args_conflicts_with_subcommands = true)]
struct Arguments {
    /// What to measure.
    #[arg(default_value = "")]
    what: String,
    /// A minute or two: fewer and shorter turns.
    #[arg(long)]
    quick: bool,
    /// Of layer 4's tables, and of the rows by path, only those whose names contain this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Also write the rows as a JSON array.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

/// Ours, as a process of its own: a bench starts itself again with one of these. And what is no comparison.
#[derive(Subcommand)]
enum Verb {
    #[command(hide = true)]
    ServeDns { address: SocketAddr, names: usize },
    #[command(hide = true)]
    ServeL7 { address: SocketAddr, upstream: SocketAddr },
    /// Checks how many instructions each path of the balancer takes against `budget.toml`.
    Budgets {
        /// Write the figures of now into it.
        #[arg(long)]
        update: bool,
        /// Only ask whether the oldest kernel that is promised (6.1) takes the balancer, and run each path there.
        #[arg(long, conflicts_with = "update")]
        oldest: bool,
    },
}

fn main() -> anyhow::Result<()> {
    if std::process::id() == 1 {
        return lvs::guest();
    }
    let arguments = Arguments::parse();
    match arguments.verb {
        Some(Verb::ServeDns { address, names }) => return dns::serve(address, names),
        Some(Verb::ServeL7 { address, upstream }) => return l7::serve(address, upstream),
        Some(Verb::Budgets { update, oldest }) => return lvs::budgets(update, oldest),
        None => {}
    }
    let Some(bench) = BENCHES.iter().find(|bench| bench.name == arguments.what) else {
        let list: Vec<_> = BENCHES.iter().map(|bench| format!("  {:8} {}", bench.name, bench.about)).collect();
        let said = if arguments.what.is_empty() {
            "nothing was named".into()
        } else {
            format!("no bench is called {}", arguments.what)
        };
        bail!("{said}; there are:\n{}", list.join("\n"));
    };
    if arguments.only.is_some() && bench.name != "l4" {
        bail!("--only is for `l4`, whose tables are long: `{}` measures all that it has", bench.name);
    }
    // What runs in a kernel is the same in every build.
    if cfg!(debug_assertions) && bench.name != "lvs" {
        eprintln!(
            "this build is not optimised: ours comes out too slow. `cargo xtask bench {}` builds what is shipped",
            bench.name
        );
    }
    let machine = Machine::look();
    let outcome = (bench.run)(&Settings { quick: arguments.quick, only: arguments.only })?;
    println!("{}", outcome.page(bench.name, &machine));
    if let Some(file) = arguments.json {
        write_json(&file, &outcome)?;
    }
    Ok(())
}

fn write_json(file: &Path, outcome: &Outcome) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(&outcome.rows)?;
    text.push('\n');
    std::fs::write(file, text).with_context(|| format!("writing the rows to {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_begins_with_a_row_for_each_bench() {
        let readme = include_str!("../README.md");
        let rows =
            readme.lines().skip_while(|line| !line.starts_with("| `")).take_while(|line| line.starts_with("| `"));
        let named: Vec<&str> = rows.filter_map(|row| row.split('`').nth(1)).collect();
        // The last is no comparison: a verb of its own.
        let there: Vec<&str> = BENCHES.iter().map(|bench| bench.name).chain(["budgets"]).collect();
        assert_eq!(named, there, "`cargo xtask bench` knows what it may be asked for by the README");
    }
}
