//! Requests end to end: wrk in one namespace, a balancer in another, two nginx behind it in two more.
//!
//! What is measured is the processor time of everybody together: load, balancer, servers and the kernel between them. On
//! virtual links that is nearly all that there is, so a balancer in the kernel and one in the driver differ little here;
//! what a balancer in user space adds is plain to see.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};

use self::network::{
    Contender, DIRECT_TO_SERVER, HAPROXY_TCP, NFT_RULES, NGINX_STREAM, Network, OURS_DIRECT, OURS_IPIP, OURS_NAT,
};
use super::{
    cpu::{Softirqs, of_children, of_process},
    peers::NGINX,
    row,
};
use crate::{
    Settings,
    figures::{Outcome, Samples, in_turns},
    machine::{Cores, Watch},
    wrk::{Load, WRK},
};

mod network;

/// Of what the peers take for the same.
const GOAL_KERNEL: f64 = 1.1;
const GOAL_USER: f64 = 0.55;
const MEGABYTE: usize = 1_000_000;

/// A kind of request.
struct Case {
    name: &'static str,
    path: &'static str,
    close: bool,
    upload: usize,
    connections: u32,
    /// Which of our ways of forwarding are promised to be level with the peers.
    promised: &'static [&'static str],
}

/// Native XDP on a virtual link costs large bodies their segmentation offload wherever they pass the balancer, which no
/// card's driver does: no promise is made there. Nor for tunnels, which a program at the real takes apart.
const CASES: [Case; 4] = [
    Case {
        name: "request on a kept connection",
        path: "/",
        close: false,
        upload: 0,
        connections: 64,
        promised: &[OURS_NAT, OURS_DIRECT],
    },
    Case {
        name: "new connection and request",
        path: "/",
        close: true,
        upload: 0,
        connections: 64,
        promised: &[OURS_NAT, OURS_DIRECT],
    },
    Case { name: "1 MB down", path: "/megabyte", close: false, upload: 0, connections: 8, promised: &[OURS_DIRECT] },
    Case { name: "1 MB up", path: "/put/it", close: false, upload: MEGABYTE, connections: 8, promised: &[] },
];

pub(super) fn measure(settings: &Settings, outcome: &mut Outcome) -> anyhow::Result<()> {
    eprintln!("requests end to end ...");
    ensure!(NGINX.is_there() && WRK.is_there(), "requests are made by wrk, of nginx: apt-get install nginx wrk");
    let dir = tempfile::tempdir().context("making a directory for the servers")?;
    let cores = Cores::choose()?;
    let mut network = Network::lay(dir.path(), cores)?;
    let mut contenders = network.contenders(dir.path(), cores, &mut outcome.notes)?;
    for contender in &contenders {
        wait_for(&network, contender)?;
    }
    let softirqs = Softirqs::find()?;
    let mut samples = Samples::default();
    let mut failures = BTreeMap::new();
    in_turns(&mut contenders, settings.rounds(), |contender| {
        let processes: Vec<u32> = network.servers().chain(contender.process.as_ref().map(|it| it.pid())).collect();
        for case in &CASES {
            let load = Load {
                core: cores.load,
                time: settings.turn(),
                close: case.close,
                upload: case.upload,
                connections: case.connections,
                ..Load::of(&format!("http://{}:80{}", contender.vip, case.path))
            };
            let pids: Vec<_> = processes.iter().map(|id| nix::unistd::Pid::from_raw(id.cast_signed())).collect();
            let watch = Watch::start(&pids)?;
            let before = used(&processes, &softirqs)?;
            let turn = load.run(|command| network.client.run(|| command.output()))?;
            let time = used(&processes, &softirqs)?.saturating_sub(before);
            outcome.disturbances.push(watch.stop()?);
            ensure!(turn.requests > 0, "{}: nothing came of {}", contender.name, case.name);
            *failures.entry(contender.name.to_owned()).or_default() += turn.failed;
            samples.add(case.name, contender.name, time.as_secs_f64() * 1e6 / turn.requests as f64);
        }
        Ok(())
    })?;
    outcome.note_failures(&failures);
    for case in &CASES {
        for mode in [OURS_NAT, OURS_DIRECT, OURS_IPIP] {
            let Some(ours) = samples.median(case.name, mode) else { continue };
            let peers: BTreeMap<String, f64> = [DIRECT_TO_SERVER, NFT_RULES, HAPROXY_TCP, NGINX_STREAM]
                .into_iter()
                .filter_map(|name| Some((name.to_owned(), samples.median(case.name, name)?)))
                .collect();
            let goal = case.promised.contains(&mode).then(|| goal(&peers)).flatten();
            outcome.rows.push(row(format!("{}, {mode}", case.name), "us", ours, peers, goal));
        }
    }
    outcome.notes.push(
        "end to end: processor time of load, balancer, servers and kernel together; \"no balancer\" is the client at a \
         server's own address"
            .into(),
    );
    outcome.notes.push(
        "1 MB through native XDP on a virtual link lacks segmentation offload, which a network card's driver keeps: it \
         is shown and not promised"
            .into(),
    );
    Ok(())
}

/// The tightest of what is promised beside each peer that is there.
fn goal(peers: &BTreeMap<String, f64>) -> Option<f64> {
    [(NFT_RULES, GOAL_KERNEL), (HAPROXY_TCP, GOAL_USER), (NGINX_STREAM, GOAL_USER)]
        .into_iter()
        .filter_map(|(name, share)| peers.get(name).map(|time| share * time))
        .min_by(f64::total_cmp)
}

fn used(processes: &[u32], softirqs: &Softirqs) -> anyhow::Result<Duration> {
    let processes: Duration = processes.iter().map(|&id| of_process(id)).sum::<anyhow::Result<_>>()?;
    Ok(processes + of_children()? + softirqs.time()?)
}

fn wait_for(network: &Network, contender: &Contender) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !network.client.run(|| answers(contender.vip)) {
        ensure!(Instant::now() < deadline, "{} did not answer at {} within 15 s", contender.name, contender.vip);
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn answers(vip: Ipv4Addr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((vip, 80)), Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: bench.test\r\nConnection: close\r\n\r\n")?;
        let mut text = Vec::new();
        stream.read_to_end(&mut text)?;
        Ok(text.starts_with(b"HTTP/1.1 200"))
    };
    ask().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_goal_is_the_tightest_promise() {
        let peers = |list: &[(&str, f64)]| list.iter().map(|&(name, time)| (name.to_owned(), time)).collect();
        assert_eq!(goal(&peers(&[(NFT_RULES, 10.0), (HAPROXY_TCP, 30.0)])), Some(11.0));
        assert_eq!(goal(&peers(&[(NFT_RULES, 10.0), (NGINX_STREAM, 18.0)])), Some(9.9));
        assert_eq!(goal(&peers(&[(DIRECT_TO_SERVER, 1.0)])), None);
    }
}
