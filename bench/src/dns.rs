//! Answers of the DNS plane beside Debian's knot, nsd and gdnsd: 10,000 names, one core each.

use std::{
    collections::BTreeMap,
    fmt::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use tidegate_dns::{Config, Input, Node};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    Settings,
    dns_load::{Expect, Load},
    figures::{Better, Figure, OURS, Outcome, Samples, in_turns},
    machine::{Cores, Watch, stay_on},
    peers::{self, Peer},
    server::Server,
};

const NAMES: usize = 10_000;
const ORIGIN: &str = "mesos";

const KNOT: Peer = Peer { package: "knot", program: "/usr/sbin/knotd" };
const NSD: Peer = Peer { package: "nsd", program: "/usr/sbin/nsd" };
const GDNSD: Peer = Peer { package: "gdnsd", program: "/usr/sbin/gdnsd" };

/// The goals of DNS come with their own issue: until then the ratio is only shown.
const fn figure(case: &'static str, unit: &'static str, better: Better) -> Figure {
    Figure { case, unit, better, goal: None }
}

/// What is asked, what must come back, and the figures that it gives.
struct Case {
    name: fn(usize) -> String,
    expect: Expect,
    cost: Figure,
    rate: Figure,
}

const CASES: [Case; 2] = [
    Case {
        name: there,
        expect: Expect { code: 0, answers: 1 },
        cost: figure("A: processor time per query", "us", Better::Less),
        rate: figure("A: answers of one core", "1/s", Better::More),
    },
    Case {
        name: |n| format!("no-{n:05}.marathon.{ORIGIN}"),
        expect: Expect { code: 3, answers: 0 },
        cost: figure("NXDOMAIN: processor time per query", "us", Better::Less),
        rate: figure("NXDOMAIN: answers of one core", "1/s", Better::More),
    },
];

fn there(n: usize) -> String {
    format!("svc-{n:05}.marathon.{ORIGIN}")
}

struct Contender {
    server: Server,
    /// One for each case.
    loads: Vec<Load>,
}

pub(crate) fn run(settings: &Settings) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    peers::provide(&[KNOT, NSD, GDNSD], "to measure DNS beside them", &mut outcome.notes);
    let dir = tempfile::tempdir().context("making a directory for the servers")?;
    let cores = Cores::choose()?;
    let mut contenders = start_all(dir.path(), cores, &mut outcome.notes)?;
    stay_on(cores.load)?;

    let mut samples = Samples::default();
    let mut failures = BTreeMap::new();
    let mut unsaturated = 0;
    in_turns(&mut contenders, settings.rounds(), |Contender { server, loads }| {
        for (case, load) in CASES.iter().zip(loads) {
            let watch = Watch::start(&[server.pid()])?;
            let before = server.processor_time()?;
            let turn = load.turn(settings.turn(), case.expect)?;
            let used = server.processor_time()?.saturating_sub(before).as_secs_f64();
            outcome.disturbances.push(watch.stop()?);
            let (name, rate) = (&server.name, turn.answers as f64 / turn.took.as_secs_f64());
            *failures.entry(name.clone()).or_default() += turn.wrong + turn.lost;
            anyhow::ensure!(turn.answers > 0, "{name} answered nothing");
            samples.add(case.cost.case, name, used * 1e6 / turn.answers as f64);
            samples.add(case.rate.case, name, rate);
            unsaturated += usize::from(used / turn.took.as_secs_f64() < 0.9);
        }
        Ok(())
    })?;

    outcome.note_failures(&failures);
    outcome.note_unsaturated(unsaturated);
    outcome.rows = CASES.iter().flat_map(|case| [case.cost, case.rate]).filter_map(|f| samples.row("dns", f)).collect();
    Ok(outcome)
}

/// Ours must start; a peer that does not is left out aloud.
fn start_all(dir: &Path, cores: Cores, notes: &mut Vec<String>) -> anyhow::Result<Vec<Contender>> {
    let us = std::env::current_exe().context("looking for this program")?;
    let mut contenders = vec![start(OURS, dir, cores, |_, address| {
        Ok((us, vec!["serve-dns".into(), address.to_string(), NAMES.to_string()]))
    })?];
    let starts: [(Peer, Prepare); 3] = [(KNOT, knot), (NSD, nsd), (GDNSD, gdnsd)];
    for (peer, prepare) in starts {
        if !peer.is_there() {
            continue;
        }
        match start(peer.package, dir, cores, prepare) {
            Ok(contender) => contenders.push(contender),
            Err(problem) => notes.push(format!("{} is not measured: {problem:#}", peer.package)),
        }
    }
    Ok(contenders)
}

/// Writes what a server needs into its directory; gives its program and arguments.
type Prepare = fn(&Path, SocketAddr) -> anyhow::Result<(PathBuf, Vec<String>)>;

fn start(
    name: &str,
    dir: &Path,
    cores: Cores,
    prepare: impl FnOnce(&Path, SocketAddr) -> anyhow::Result<(PathBuf, Vec<String>)>,
) -> anyhow::Result<Contender> {
    let (mut server, address) = Server::start_at_a_port(name, dir, cores.server, prepare)?;
    let mut loads = Vec::new();
    for case in &CASES {
        let mut load = Load::new(address, (0..NAMES).map(case.name))?;
        server.wait_until(|| load.answers(case.expect))?;
        loads.push(load);
    }
    Ok(Contender { server, loads })
}

fn knot(dir: &Path, address: SocketAddr) -> anyhow::Result<(PathBuf, Vec<String>)> {
    std::fs::write(dir.join("zone"), zone())?;
    let file = configure(dir, address, "knot.conf", include_str!("../peers/knot.conf"))?;
    Ok((KNOT.program.into(), vec!["-c".into(), file]))
}

fn nsd(dir: &Path, address: SocketAddr) -> anyhow::Result<(PathBuf, Vec<String>)> {
    std::fs::write(dir.join("zone"), zone())?;
    let file = configure(dir, address, "nsd.conf", include_str!("../peers/nsd.conf"))?;
    Ok((NSD.program.into(), vec!["-d".into(), "-c".into(), file]))
}

fn gdnsd(dir: &Path, address: SocketAddr) -> anyhow::Result<(PathBuf, Vec<String>)> {
    std::fs::create_dir_all(dir.join("zones"))?;
    std::fs::write(dir.join("zones").join(ORIGIN), zone())?;
    configure(dir, address, "config", include_str!("../peers/gdnsd.conf"))?;
    Ok((GDNSD.program.into(), vec!["-c".into(), dir.display().to_string(), "start".into()]))
}

fn configure(dir: &Path, address: SocketAddr, file: &str, template: &str) -> anyhow::Result<String> {
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    peers::configure(dir, file, template, &[("ip", &ip), ("port", &port), ("origin", ORIGIN)])
}

/// The same names for the peers, as a master file.
fn zone() -> String {
    let mut text = format!("$ORIGIN {ORIGIN}.\n$TTL 5\n@ SOA ns hostmaster 1 60 10 86400 5\n@ NS ns\nns A 127.0.0.1\n");
    for n in 0..NAMES {
        let _ = writeln!(text, "{}. A {}", there(n), address(n));
    }
    text
}

fn address(n: usize) -> std::net::Ipv4Addr {
    std::net::Ipv4Addr::from_bits(0x0A4D_8000 + n as u32)
}

/// Ours, on one thread as the peers are.
pub(crate) fn serve(address: SocketAddr, names: usize) -> anyhow::Result<()> {
    let node = |n| Arc::new(Node { addresses: vec![self::address(n).into()], services: vec![], ttl: 5 });
    let names = (0..names).map(|n| (tidegate_dns::Name::from(there(n)), node(n))).collect();
    let input = Arc::new(Input { generation: 1, origin: ORIGIN.into(), names });
    let (_inputs, inputs) = watch::channel(input);
    let (reports, _reports) = watch::channel(Arc::default());
    let config = Config { listen: vec![address], ..Config::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(tidegate_dns::run(config, inputs, reports, CancellationToken::new()))
}
