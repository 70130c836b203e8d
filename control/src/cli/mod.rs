//! The command line: what can be said, and who does it.

mod client;
mod elb;
mod l4;
mod log;
mod real;
mod status;
mod table;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};

use crate::config::{Finding, Loaded, Machine, Role, check};

/// Balances, routes and names the jobs of a Marathon cluster.
#[derive(Debug, Parser)]
#[command(
    name = "tidegate",
    version,
    after_help = "Start here:
  tidegate run                                            everything, on the embedded defaults (needs root for layer 4)
  tidegate run --roles l7,dns,control                     without layer 4
  tidegate elb create shop --type layer4 --app /shop/web --port 80:8080
  tidegate elb show shop
  tidegate status

`tidegate VERB --help` says more about each."
)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Runs the appliance until SIGTERM or Ctrl-C. Layer 4 goes on serving after that.
    #[command(after_help = "Examples:
  tidegate run                                       the embedded defaults (print them: tidegate check --defaults)
  tidegate run --config /etc/tidegate.toml
  tidegate run --config node.toml --roles l4,l7      a node that follows another: set `follow` under [api]
  TIDEGATE_LOG=debug tidegate run                    more to read")]
    Run(Run),
    /// Says what a configuration file would run, and what is wrong or odd about it.
    #[command(after_help = "Examples:
  tidegate check tidegate.toml       exit code 0: it can run (warnings may be printed); 1: it cannot
  tidegate check --defaults          prints every key with its default and what it is for")]
    Check(Check),
    /// How a running tidegate is: Marathon, planes, alarms.
    Status(Remote),
    /// Makes, shows and removes ELBs.
    #[command(subcommand)]
    Elb(elb::Verb),
    /// What layer 4 does and leaves in the kernel: explain, capture, flows, log, remove.
    #[command(subcommand)]
    L4(l4::Verb),
    /// On a host of instances: makes it answer clients itself (ELBs that forward `direct`, `ipip` or `gue`).
    #[command(subcommand)]
    Real(real::Verb),
}

#[derive(Debug, Args)]
struct Run {
    /// The configuration file; without it the embedded defaults.
    #[arg(long, short, value_name = "FILE", env = "TIDEGATE_CONFIG")]
    config: Option<PathBuf>,
    /// What this machine does, instead of what the file says.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "ROLE,...")]
    roles: Vec<Role>,
    /// Log as one JSON object in each line.
    #[arg(long, env = "TIDEGATE_LOG_JSON")]
    log_json: bool,
}

#[derive(Debug, Args)]
struct Check {
    /// The configuration file.
    #[arg(required_unless_present = "defaults")]
    file: Option<PathBuf>,
    /// Print the embedded defaults, which explain every key.
    #[arg(long, conflicts_with = "file")]
    defaults: bool,
}

/// Which tidegate is talked to, and how its answer is printed.
#[derive(Args, Clone, Debug)]
struct Remote {
    /// The API of a running tidegate.
    #[arg(long, value_name = "URL", env = "TIDEGATE_API", default_value = "http://127.0.0.1:7070", global = true)]
    api: String,
    /// Print the API's answer as it is.
    #[arg(long, global = true)]
    json: bool,
}

/// Does what was said.
pub fn main(cli: Cli) -> ExitCode {
    let done = match cli.verb {
        Verb::Run(args) => run(args),
        Verb::Check(args) => return check_file(&args),
        Verb::Status(remote) => client::block_on(status::status(&remote)),
        Verb::Elb(verb) => client::block_on(elb::main(verb)),
        Verb::L4(verb) => match client::block_on(l4::main(verb)) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Verb::Real(verb) => client::block_on(real::main(verb)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tidegate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Run) -> anyhow::Result<()> {
    log::start(args.log_json);
    // Every TLS client of the process uses this one; a second call would say so, and there is none.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let loaded = Loaded::read(args.config.as_deref())?;
    let roles = (!args.roles.is_empty()).then(|| args.roles.iter().copied().collect());
    let config = crate::run::ready(loaded, roles)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("tidegate")
        .build()
        .context("starting the runtime's threads")?;
    let ended = runtime.block_on(crate::run::run(config));
    // A plane that was left behind must not hold the process.
    runtime.shutdown_background();
    ended
}

fn check_file(args: &Check) -> ExitCode {
    let Some(file) = &args.file else {
        print!("{}", crate::config::DEFAULT);
        return ExitCode::SUCCESS;
    };
    let loaded = match Loaded::read(Some(file)) {
        Ok(loaded) => loaded,
        Err(error) => {
            eprintln!("tidegate: {error}");
            return ExitCode::FAILURE;
        }
    };
    let (fatal, odd): (Vec<Finding>, Vec<Finding>) =
        check(&loaded.config, &Machine::here()).into_iter().partition(|finding| finding.fatal);
    let print = |title: &str, findings: &[Finding]| {
        for finding in findings {
            println!("{title}: {}: {}: {}", loaded.place_of(finding.key), finding.key, finding.text);
        }
    };
    print("error", &fatal);
    print("warning", &odd);
    if !fatal.is_empty() {
        println!("{} cannot run: {} to correct", file.display(), table::count(fatal.len(), "error"));
        return ExitCode::FAILURE;
    }
    println!("{}", table::pairs(&what_runs(&loaded.config)));
    println!("{} can run: tidegate run --config {}", file.display(), file.display());
    ExitCode::SUCCESS
}

fn what_runs(config: &crate::config::Config) -> Vec<(&'static str, String)> {
    fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
        let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
        if items.is_empty() { "-".to_owned() } else { items.join(", ") }
    }
    let mut rows = vec![
        ("roles", list(&config.roles)),
        ("Marathon", list(&config.marathon.urls)),
        ("zone", config.domain.clone()),
        ("API", list(&config.api.listen)),
        ("store", config.store.path.display().to_string()),
    ];
    match &config.api.follow {
        Some(node) => rows.push(("follows", node.clone())),
        None => {
            rows.push(("internal VIPs", list(&config.vips.internal)));
            rows.push(("external VIPs", list(&config.vips.external)));
        }
    }
    if config.roles.contains(&Role::L4) {
        let interfaces = match config.l4.interfaces.is_empty() {
            true => "that of the default route".to_owned(),
            false => list(&config.l4.interfaces),
        };
        rows.push(("layer 4 on", interfaces));
        rows.push(("layer 4 from", list(&config.l4.local_addresses)));
    }
    if config.roles.contains(&Role::Dns) {
        rows.push(("DNS at", list(&config.dns.listen)));
    }
    rows
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn roles_are_given_with_commas() {
        let cli = Cli::try_parse_from(["tidegate", "run", "--roles", "l7,dns,control"]).unwrap();
        let Verb::Run(run) = cli.verb else { panic!("{cli:?}") };
        assert_eq!(run.roles, [Role::L7, Role::Dns, Role::Control]);
    }

    #[test]
    fn an_unknown_role_is_answered_with_the_known_ones() {
        let error = Cli::try_parse_from(["tidegate", "run", "--roles", "l5"]).unwrap_err().to_string();
        assert!(error.contains("l5") && error.contains("control"), "{error}");
    }
}
