//! Layer 4's numbers.

use std::fmt::Display;

use tidegate_l4::{
    Frontend, Protocol, Report,
    report::{RealCounters, ServiceCounters, Verdict},
};

use super::Page;
use crate::api::layer4::{Owners, owner};

pub(super) fn layer4(page: &mut Page, report: &Report, owners: &Owners<'_>) {
    services(page, report, owners);
    reals(page, report, owners);
    let mut rows = page.gauge(
        "tidegate_l4_fail_open",
        "1 for each front end whose bad reals get new flows all the same, since nearly all of them look bad.",
    );
    for frontend in &report.fail_open {
        rows = rows.row(&labels(&owner(owners, frontend), frontend, &protocol(frontend)), 1);
    }
    totals(page, report);
}

/// Of the whole plane.
fn totals(page: &mut Page, report: &Report) {
    let mut rows = page.counter(
        "tidegate_l4_drops_total",
        "Packets dropped, by reason: `tidegate status` says what each means and what to do.",
    );
    for (reason, count) in &report.drops {
        rows = rows.row(&[("reason", reason)], count);
    }
    let mut rows = page.gauge("tidegate_l4_attached", "1 for each interface that the program is attached to.");
    for attached in &report.attached {
        rows = rows.row(&[("interface", &attached.interface), ("mode", &attached.mode)], 1);
    }
    let moves = &report.moves;
    page.gauge("tidegate_l4_moves", "Moves of ring slots from one real to another that go on now.").row(&[], moves.now);
    page.counter(
        "tidegate_l4_moves_total",
        "Moves that ended, by how: `settled` cost nobody a connection; `at_once` counts slots that could not move.",
    )
    .row(&[("end", &"settled")], moves.ended)
    .row(&[("end", &"forced")], moves.forced)
    .row(&[("end", &"at_once")], moves.at_once);
    page.counter("tidegate_l4_move_lost_flows_total", "Flows that lost their real when their move was ended by force.")
        .row(&[], moves.lost);
    page.counter("tidegate_l4_drains_total", "Drains that ended.").row(&[], report.drained.ended);
    page.counter(
        "tidegate_l4_drain_cut_connections_total",
        "Connections that were alive when their instance left: 0 is the proof that no drain cost one.",
    )
    .row(&[], report.drained.cut);
    let probes = &report.probes;
    page.counter("tidegate_l4_probes_total", "Health probes, by outcome; `unable` ones could not be sent.")
        .row(&[("outcome", &"good")], probes.sent.saturating_sub(probes.failed))
        .row(&[("outcome", &"failed")], probes.failed)
        .row(&[("outcome", &"unable")], probes.unable);
    page.counter("tidegate_l4_late_probes_total", "Health probes that were sent an interval or more after their time.")
        .row(&[], probes.late);
}

fn services(page: &mut Page, report: &Report, owners: &Owners<'_>) {
    type Read = fn(&ServiceCounters) -> u64;
    let counters: [(&str, &str, Read); 4] = [
        ("tidegate_l4_packets_total", "Packets from clients.", |counters| counters.packets),
        ("tidegate_l4_bytes_total", "Bytes from clients.", |counters| counters.bytes),
        ("tidegate_l4_flows_total", "Flows that were given a real.", |counters| counters.flows),
        ("tidegate_l4_syns_total", "SYNs from clients, repeated ones too.", |counters| counters.opens),
    ];
    for (name, help, read) in counters {
        let mut rows = page.counter(name, help);
        for (frontend, counters) in &report.services {
            rows = rows.row(&labels(&owner(owners, frontend), frontend, &protocol(frontend)), read(counters));
        }
    }
}

/// Summed over the reals of a front end: instances come and go, and labels must not.
fn reals(page: &mut Page, report: &Report, owners: &Owners<'_>) {
    type Read = fn(&RealCounters) -> u64;
    let gauges: [(&str, &str, Read); 3] = [
        ("tidegate_l4_reals", "Reals, those that drain too.", |_| 1),
        ("tidegate_l4_reals_down", "Reals that fail their probes.", |real| {
            u64::from(real.health.verdict == Verdict::Down)
        }),
        ("tidegate_l4_reals_ejected", "Reals that their traffic speaks against, for a while.", |real| {
            u64::from(real.health.verdict == Verdict::Ejected)
        }),
    ];
    for (name, help, read) in gauges {
        let mut rows = page.gauge(name, help);
        for (frontend, counters) in &report.services {
            let sum: u64 = counters.reals.iter().map(read).sum();
            rows = rows.row(&labels(&owner(owners, frontend), frontend, &protocol(frontend)), sum);
        }
    }
    let mut rows = page.gauge(
        "tidegate_l4_live_flows",
        "Flows alive, where they are known: in the modes without translation only those of reals that drain are.",
    );
    for (frontend, counters) in &report.services {
        // No row is better than a 0 that nobody counted.
        let known = counters.reals.iter().filter_map(|real| real.live);
        if let Some(sum) = known.reduce(|sum, live| sum + live) {
            rows = rows.row(&labels(&owner(owners, frontend), frontend, &protocol(frontend)), sum);
        }
    }
}

fn protocol(frontend: &Frontend) -> &'static str {
    match frontend.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

fn labels<'a>(elb: &'a &str, frontend: &'a Frontend, protocol: &'a &'static str) -> [(&'a str, &'a dyn Display); 4] {
    [("elb", elb), ("vip", &frontend.vip), ("port", &frontend.port), ("protocol", protocol)]
}
