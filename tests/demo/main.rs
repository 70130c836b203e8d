//! A cluster to look at and to play with: what `cargo xtask up` starts.
//!
//! The lab's network, with names that `ip netns exec` knows; the Marathon stand-in with one job; a real Tidegate on its
//! embedded defaults; two ELBs made through the public API; and a page of commands to type. Everything that is made
//! ends with this process, but for the names, which are removed at the end, by `down`, or by the next `up`.

mod names;
mod page;
mod tidegate;

use std::{
    fs,
    net::IpAddr,
    path::Path,
    process::{Command, ExitCode},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use tidegate_tests::{
    cluster::{Cluster, demo_app},
    lab,
    oracle::{self, Lifetime, Target},
};

use self::{names::Names, page::Page, tidegate::Tidegate};

/// What a running demo keeps: its process id, Tidegate's, Tidegate's log.
const RUN: &str = "/run/tidegate-demo";
const APP: &str = "/demo";
const HOST: &str = "demo.example.com";

/// A cluster in network namespaces with a Tidegate in front.
#[derive(Parser)]
#[command(name = "tidegate-demo", version)]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Subcommand)]
enum Verb {
    /// Starts it, prints what to type, and runs until Ctrl-C.
    Up {
        /// Run every command of the page instead of waiting, and say which fail.
        #[arg(long)]
        check: bool,
    },
    /// Ends a running one, and removes what a killed one left.
    Down,
}

fn main() -> ExitCode {
    let done = match Cli::parse().verb {
        None => up(false),
        Some(Verb::Up { check }) => up(check),
        Some(Verb::Down) => down(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tidegate-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn up(check: bool) -> anyhow::Result<()> {
    if let Some(pid) = running() {
        bail!("a demo is up already (process {pid}): `cargo xtask down` ends it");
    }
    let interrupts = interrupts()?;
    if !lab::require() {
        bail!("this machine cannot have a demo (the reason is above)");
    }
    names::remove();
    let _run = RunDir::new()?;
    step(&interrupts, "Laying out the network: a client, the appliance, two Marathons, two hosts ...")?;
    let cluster = Cluster::start()?;
    let _names = Names::give(&cluster)?;
    step(&interrupts, "Starting the job /demo with 3 instances ...")?;
    cluster.deploy(&demo_app(APP, 3))?;
    step(&interrupts, "Starting tidegate on its embedded defaults ...")?;
    let mut tidegate = Tidegate::start(&cluster.appliance, Path::new(RUN))?;
    step(&interrupts, "Creating a layer-4 and a layer-7 ELB through the API ...")?;
    tidegate.wait_for_instances(3)?;
    let layer4 = json!({"type": "layer4", "app": APP, "ports": [{"listen": 80, "target": "http"}]});
    let layer7 = json!({"type": "layer7", "rules": [{"host": HOST, "app": APP}]});
    let (layer4, layer7) = (tidegate.create("demo-l4", &layer4)?, tidegate.create("demo-l7", &layer7)?);
    step(&interrupts, "Waiting until both ELBs and DNS answer a client ...")?;
    serves(&cluster, &layer4, &layer7)?;
    let page = Page::new(&cluster, &layer4, &layer7, &tidegate);
    if check {
        return page.check();
    }
    println!("{page}");
    // Tidegate is started again when somebody kills it, as the page invites to do.
    while let Err(RecvTimeoutError::Timeout) = interrupts.recv_timeout(Duration::from_millis(200)) {
        tidegate.revive()?;
    }
    println!("\nRemoving everything ...");
    Ok(())
}

fn serves(cluster: &Cluster, layer4: &[IpAddr], layer7: &[IpAddr]) -> anyhow::Result<()> {
    let dns = (IpAddr::from(cluster.appliance.v4), 53).into();
    let mut targets = vec![
        Target::dns("the job's name", dns, "demo.marathon.mesos."),
        Target::dns("the ELB's name", dns, "demo-l4.elb.mesos."),
    ];
    for vip in layer4.iter().chain(layer7) {
        targets.push(Target::http(&vip.to_string(), (*vip, 80).into(), HOST, Lifetime::Request).workers(1));
    }
    let served = oracle::serves(&cluster.client.ns, &targets, Duration::from_secs(20));
    served.map_err(|account| anyhow::anyhow!("the ELBs do not serve; {RUN}/tidegate.log says more\n{account}"))
}

fn down() -> anyhow::Result<()> {
    match running() {
        None => println!("No demo is up."),
        Some(pid) => {
            println!("Ending the demo (process {pid}) ...");
            kill(Pid::from_raw(pid), Signal::SIGTERM).with_context(|| format!("cannot end process {pid}"))?;
            let deadline = Instant::now() + Duration::from_secs(30);
            while running().is_some() {
                if Instant::now() > deadline {
                    bail!("process {pid} does not end: kill -9 {pid}, and repeat this");
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
    }
    names::remove();
    let _ = fs::remove_dir_all(RUN);
    println!("Nothing is left of it.");
    Ok(())
}

/// The process id of the demo that is up.
fn running() -> Option<i32> {
    let pid: i32 = fs::read_to_string(format!("{RUN}/pid")).ok()?.trim().parse().ok()?;
    // An id is used again by others.
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    (name.trim() == "tidegate-demo" && pid != std::process::id() as i32).then_some(pid)
}

/// A line of progress; an error once somebody has interrupted.
fn step(interrupts: &Receiver<()>, what: &str) -> anyhow::Result<()> {
    if interrupts.try_recv().is_ok() {
        bail!("interrupted; everything is removed");
    }
    println!("{what}");
    Ok(())
}

/// Ctrl-C, SIGTERM, and the end of the terminal.
fn interrupts() -> anyhow::Result<Receiver<()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (sender, receiver) = mpsc::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let guard = runtime.enter();
    let mut signals = Vec::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        signals.push(signal(kind).context("cannot listen for signals")?);
    }
    drop(guard);
    thread::spawn(move || {
        runtime.block_on(async {
            loop {
                futures_util::future::select_all(signals.iter_mut().map(|signal| Box::pin(signal.recv()))).await;
                if sender.send(()).is_err() {
                    return;
                }
            }
        });
    });
    Ok(receiver)
}

/// The directory of the running demo.
struct RunDir;

impl RunDir {
    fn new() -> anyhow::Result<Self> {
        let _ = fs::remove_dir_all(RUN);
        fs::create_dir_all(RUN).with_context(|| format!("cannot make {RUN}"))?;
        fs::write(format!("{RUN}/pid"), format!("{}\n", std::process::id()))?;
        Ok(Self)
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(RUN);
    }
}

/// Runs a line of shell; whether it succeeded, and what it printed.
fn shell(line: &str) -> anyhow::Result<(bool, String)> {
    let result = Command::new("sh").args(["-c", line]).output().context("cannot run sh")?;
    let said = [result.stdout, result.stderr].concat();
    Ok((result.status.success(), String::from_utf8_lossy(&said).into_owned()))
}
