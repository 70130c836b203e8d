//! The flows that are alive: FULLNAT's one by one, those on moving slots by number.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use serde::Serialize;
use tidegate_ebpf::abi::{self, Flow, Record, RecordLine, map};

use super::{Real, View, program::Program};
use crate::input::{Frontend, Protocol};

/// Which flows are listed: those that fit all that is said.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter {
    pub vip: Option<IpAddr>,
    pub port: Option<u16>,
    pub real: Option<IpAddr>,
    pub client: Option<IpAddr>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Flows {
    /// FULLNAT flows that are alive.
    pub alive: usize,
    /// Those that fit.
    pub fitting: usize,
    /// Those that fit, as many as were asked for.
    pub shown: Vec<Line>,
    /// Flows that are recorded on moving slots, by real (those that fit).
    pub recorded: Vec<Recorded>,
}

/// A FULLNAT flow.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    pub protocol: &'static str,
    pub client: SocketAddr,
    pub vip: SocketAddr,
    pub local: SocketAddr,
    pub real: SocketAddr,
    /// The real's.
    pub real_state: &'static str,
    pub state: &'static str,
    pub idle_s: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Recorded {
    pub vip: SocketAddr,
    pub protocol: &'static str,
    pub real: Real,
    pub flows: usize,
}

/// Reads the tables once, as memory: nothing waits for it.
pub fn list(folder: &Path, filter: &Filter, limit: usize) -> anyhow::Result<Flows> {
    let view = View::open(folder)?;
    let now = Program::open(&view)?.now()?;
    let mut listing = Flows { alive: 0, fitting: 0, shown: Vec::new(), recorded: Vec::new() };
    for (index, flow) in (0..).zip(view.mapped::<Flow>(map::FLOWS)?.iter()) {
        if flow.over(now) {
            continue;
        }
        listing.alive += 1;
        let Some(line) = line(&view, index, &flow, now).filter(|line| filter.fits(line)) else { continue };
        listing.fitting += 1;
        if listing.shown.len() < limit {
            listing.shown.push(line);
        }
    }
    // Records do not name their clients.
    if filter.client.is_none() {
        listing.recorded = recorded(&view, filter, now)?;
    }
    Ok(listing)
}

/// `None`: of a service or a real that is just going.
fn line(view: &View, index: u32, flow: &Flow, now: u64) -> Option<Line> {
    let Frontend { vip, port, protocol } = view.frontend(flow.service)?;
    let real = view.real(flow.real())?;
    Some(Line {
        protocol: name(protocol),
        client: SocketAddr::new(flow.client.into(), flow.client_port),
        vip: SocketAddr::new(vip, port),
        local: view.local(index)?,
        real: real.address,
        real_state: real.state,
        state: state(flow),
        idle_s: flow.idle(now) / abi::SECOND,
    })
}

fn recorded(view: &View, filter: &Filter, now: u64) -> anyhow::Result<Vec<Recorded>> {
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    for line in view.mapped::<RecordLine>(map::RECORDS)?.iter() {
        for record in line.0.map(Record::unpack) {
            if !record.over(now) {
                *counts.entry(record.real).or_default() += 1;
            }
        }
    }
    let named = counts.into_iter().filter_map(|(id, flows)| {
        let service = view.raw_real(id)?.service;
        let Frontend { vip, port, protocol } = view.frontend(service)?;
        Some(Recorded { vip: SocketAddr::new(vip, port), protocol: name(protocol), real: view.real(id)?, flows })
    });
    Ok(named.filter(|recorded| filter.at(recorded.vip, recorded.real.address)).collect())
}

/// How far the connection is.
#[must_use]
pub fn state(flow: &Flow) -> &'static str {
    if flow.protocol == 0 {
        "gone"
    } else if flow.closed() {
        "closed"
    } else if flow.closing() {
        "closing"
    } else if flow.protocol == abi::TCP && flow.answered < Flow::HEARD || flow.answered == 0 {
        "opening"
    } else {
        "open"
    }
}

pub(super) fn name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

impl Filter {
    fn fits(&self, line: &Line) -> bool {
        self.client.is_none_or(|client| line.client.ip() == client) && self.at(line.vip, line.real)
    }

    fn at(&self, vip: SocketAddr, real: SocketAddr) -> bool {
        self.vip.is_none_or(|wanted| vip.ip() == wanted)
            && self.port.is_none_or(|wanted| vip.port() == wanted)
            && self.real.is_none_or(|wanted| real.ip() == wanted)
    }
}
