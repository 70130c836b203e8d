//! Requests through the proxy beside Debian's nginx and haproxy: one core each, 64 connections, answers of 128 bytes.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use imbl::OrdMap;
use tidegate_l7::{Config, Input, Listener, Pool, Route, Upstream, UpstreamState};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    Settings,
    figures::{Better, Figure, OURS, Outcome, Samples, in_turns},
    machine::{Cores, Watch},
    peers::{self, Peer},
    server::Server,
    wrk::{Load, WRK},
};

const BODY: usize = 128;

const NGINX: Peer = Peer { package: "nginx", program: "/usr/sbin/nginx" };
const HAPROXY: Peer = Peer { package: "haproxy", program: "/usr/sbin/haproxy" };

/// The goals of layer 7 come with their own issue: until then the ratio is only shown.
const fn figure(case: &'static str, unit: &'static str, better: Better) -> Figure {
    Figure { case, unit, better, goal: None }
}

const COST: Figure = figure("HTTP/1.1: processor time per request", "us", Better::Less);
const RATE: Figure = figure("HTTP/1.1: requests of one core", "1/s", Better::More);
const TAIL: Figure = figure("HTTP/1.1: 99 % of requests within, at saturation", "us", Better::Less);

struct Contender {
    server: Server,
    address: SocketAddr,
}

pub(crate) fn run(settings: &Settings) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    peers::provide(&[NGINX, HAPROXY, WRK], "to measure layer 7 beside them, by wrk", &mut outcome.notes);
    anyhow::ensure!(
        NGINX.is_there() && WRK.is_there(),
        "layer 7 is measured by wrk, with nginx behind the proxies: apt-get install nginx wrk"
    );
    let dir = tempfile::tempdir().context("making a directory for the servers")?;
    let cores = Cores::choose()?;
    let backend = start_nginx("backend", dir.path(), cores.load, include_str!("../peers/backend.conf"), &[])?;
    let mut contenders = start_all(dir.path(), cores, backend.address, &mut outcome.notes)?;

    let mut samples = Samples::default();
    let mut failures = BTreeMap::new();
    let mut unsaturated = 0;
    in_turns(&mut contenders, settings.rounds(), |Contender { server, address }| {
        let watch = Watch::start(&[server.pid(), backend.server.pid()])?;
        let before = server.processor_time()?;
        let load = Load { core: cores.load, time: settings.turn(), ..Load::of(&format!("http://{address}/")) };
        let turn = load.run(|command| command.output())?;
        let used = server.processor_time()?.saturating_sub(before).as_secs_f64();
        outcome.disturbances.push(watch.stop()?);
        anyhow::ensure!(turn.requests > 0, "{} answered nothing", server.name);
        *failures.entry(server.name.clone()).or_default() += turn.failed;
        samples.add(COST.case, &server.name, used * 1e6 / turn.requests as f64);
        samples.add(RATE.case, &server.name, turn.requests as f64 / turn.took.as_secs_f64());
        samples.add(TAIL.case, &server.name, turn.p99_us as f64);
        unsaturated += usize::from(used / turn.took.as_secs_f64() < 0.9);
        Ok(())
    })?;

    outcome.note_failures(&failures);
    outcome.note_unsaturated(unsaturated);
    outcome.rows = [COST, RATE, TAIL].into_iter().filter_map(|figure| samples.row("l7", figure)).collect();
    Ok(outcome)
}

/// Ours must start; a peer that does not is left out aloud.
fn start_all(dir: &Path, cores: Cores, backend: SocketAddr, notes: &mut Vec<String>) -> anyhow::Result<Vec<Contender>> {
    let us = std::env::current_exe().context("looking for this program")?;
    let upstream = backend.to_string();
    let mut contenders = vec![start(OURS, dir, cores.server, |_, address| {
        Ok((us, vec!["serve-l7".into(), address.to_string(), upstream.clone()]))
    })?];
    let template = include_str!("../peers/nginx.conf");
    let mut add = |name: &str, started: anyhow::Result<Contender>| match started {
        Ok(contender) => contenders.push(contender),
        Err(problem) => notes.push(format!("{name} is not measured: {problem:#}")),
    };
    add("nginx", start_nginx("nginx", dir, cores.server, template, &[("upstream", &upstream)]));
    if HAPROXY.is_there() {
        let haproxy = start("haproxy", dir, cores.server, |dir, address| {
            let template = include_str!("../peers/haproxy.cfg");
            let file = configure(dir, address, "haproxy.cfg", template, &[("upstream", &upstream)])?;
            // In the foreground, without a master process.
            Ok((HAPROXY.program.into(), vec!["-db".into(), "-f".into(), file]))
        });
        add("haproxy", haproxy);
    }
    Ok(contenders)
}

fn start_nginx(
    name: &str,
    dir: &Path,
    core: usize,
    template: &str,
    values: &[(&str, &str)],
) -> anyhow::Result<Contender> {
    start(name, dir, core, |dir, address| {
        let file = configure(dir, address, "nginx.conf", template, values)?;
        // What it writes before it has read its configuration goes to the directory too.
        let early = dir.join("early.log").display().to_string();
        Ok((NGINX.program.into(), vec!["-c".into(), file, "-p".into(), dir.display().to_string(), "-e".into(), early]))
    })
}

fn start(
    name: &str,
    dir: &Path,
    core: usize,
    prepare: impl FnOnce(&Path, SocketAddr) -> anyhow::Result<(PathBuf, Vec<String>)>,
) -> anyhow::Result<Contender> {
    let (mut server, address) = Server::start_at_a_port(name, dir, core, prepare)?;
    server.wait_until(|| answers(address))?;
    Ok(Contender { server, address })
}

fn configure(
    dir: &Path,
    address: SocketAddr,
    file: &str,
    template: &str,
    more: &[(&str, &str)],
) -> anyhow::Result<String> {
    let (ip, port, body) = (address.ip().to_string(), address.port().to_string(), "x".repeat(BODY));
    let values = [&[("ip", ip.as_str()), ("port", &port), ("body", &body)], more].concat();
    peers::configure(dir, file, template, &values)
}

/// Whether one request is answered by the server behind.
fn answers(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: bench.test\r\nConnection: close\r\n\r\n")?;
        let mut text = Vec::new();
        stream.read_to_end(&mut text)?;
        Ok(text.starts_with(b"HTTP/1.1 200") && text.ends_with(&[b'x'; BODY]))
    };
    ask().unwrap_or(false)
}

/// Ours, before one upstream.
pub(crate) fn serve(address: SocketAddr, upstream: SocketAddr) -> anyhow::Result<()> {
    let pool: Arc<str> = "bench".into();
    let upstream = Upstream { address: upstream, weight: 1, state: UpstreamState::Active };
    let route = Route { host: None, path: "/".into(), pool: pool.clone() };
    let input = Input {
        generation: 1,
        listeners: OrdMap::unit(address, Arc::new(Listener { routes: vec![route] })),
        pools: OrdMap::unit(pool, Arc::new(Pool { upstreams: vec![upstream] })),
    };
    let (_inputs, inputs) = watch::channel(Arc::new(input));
    let (reports, _reports) = watch::channel(Arc::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(tidegate_l7::run(Config::default(), inputs, reports, CancellationToken::new()))
}
