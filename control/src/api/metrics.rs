//! Numbers for Prometheus. Labels are bounded by what operators make: ELB, VIP and port, pool, alarm; never an instance.

use std::fmt::{Display, Write};

use axum::{extract::State, response::IntoResponse};
use http::header;

mod layer4;

use layer4::layer4;

use super::{Api, layer4::owners};
use crate::{
    config::Role,
    view::{Snapshot, View},
};

/// Numbers in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "status", responses((status = 200, body = String, content_type = "text/plain")))]
pub(super) async fn metrics(State(api): State<Api>) -> impl IntoResponse {
    let text = render(&api.view, &api.view.now());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

fn render(view: &View, snapshot: &Snapshot) -> String {
    let mut page = Page::default();
    process(&mut page, view, snapshot);
    if view.has(Role::L4) {
        let report = view.reports.l4.borrow().clone();
        layer4(&mut page, &report, &owners(&snapshot.state.desired));
    }
    if view.has(Role::L7) {
        layer7(&mut page, &view.reports.l7.borrow().clone());
    }
    if view.has(Role::Dns) {
        dns(&mut page, &view.reports.dns.borrow().clone());
    }
    page.0
}

fn process(page: &mut Page, view: &View, snapshot: &Snapshot) {
    let state = &snapshot.state;
    let marathon = &snapshot.marathon;
    page.gauge("tidegate_info", "The running version.").row(&[("version", &env!("CARGO_PKG_VERSION"))], 1);
    page.gauge("tidegate_start_time_seconds", "When the process started.").row(&[], view.started.as_second());
    page.gauge("tidegate_control_elbs", "ELBs that are wanted.").row(&[], state.desired.elbs.len());
    page.gauge("tidegate_control_revision", "The newest change of the ELBs.").row(&[], state.desired.revision);
    page.gauge("tidegate_control_apps", "Apps as last believed.").row(&[], state.observed.apps.len());
    page.gauge("tidegate_marathon_attached", "1 while the event stream is attached.")
        .row(&[], u8::from(marathon.attached));
    page.counter("tidegate_marathon_events_total", "Messages of the event stream.").row(&[], marathon.events);
    page.counter("tidegate_marathon_snapshots_total", "Times that all apps were read.").row(&[], marathon.snapshots);
    page.counter(
        "tidegate_marathon_missed_events_total",
        "Differences that a full answer showed and no event had announced.",
    )
    .row(&[], state.missed_events);
    let alarms = view.alarms(snapshot);
    let mut rows = page.gauge("tidegate_control_alarm", "1 for each alarm that is raised now.");
    // An app's alarm is told by the part before the first colon, so that labels stay few.
    let mut kinds: std::collections::BTreeMap<&str, u64> = std::collections::BTreeMap::new();
    for key in alarms.keys() {
        *kinds.entry(key.split(':').next().unwrap_or(key)).or_default() += 1;
    }
    for (kind, count) in kinds {
        rows = rows.row(&[("alarm", &kind)], count);
    }
    let planes = view.planes(snapshot);
    let mut rows =
        page.gauge("tidegate_plane_generation_desired", "The newest generation that was given to the plane.");
    for plane in &planes {
        rows = rows.row(&[("plane", &plane.plane)], plane.desired);
    }
    let mut rows = page.gauge("tidegate_plane_generation_applied", "The newest generation that the plane has applied.");
    for plane in &planes {
        rows = rows.row(&[("plane", &plane.plane)], plane.applied);
    }
    let mut rows =
        page.gauge("tidegate_plane_problems", "Things that are wrong in the plane now; the status says which.");
    for plane in &planes {
        rows = rows.row(&[("plane", &plane.plane)], plane.problems.len() + usize::from(plane.refused.is_some()));
    }
}

fn layer7(page: &mut Page, report: &tidegate_l7::Report) {
    type Read = fn(&tidegate_l7::report::PoolCounters) -> u64;
    let counters: [(&str, &str, Read); 3] = [
        ("tidegate_l7_requests_total", "Requests.", |counters| counters.requests),
        ("tidegate_l7_retries_total", "Requests that were tried on another upstream.", |counters| counters.retries),
        ("tidegate_l7_unavailable_total", "Requests answered 503: no upstream was usable.", |counters| {
            counters.unavailable
        }),
    ];
    for (name, help, read) in counters {
        let mut rows = page.counter(name, help);
        for (pool, counters) in &report.pools {
            rows = rows.row(&[("pool", pool)], read(counters));
        }
    }
    let mut rows = page.gauge("tidegate_l7_in_flight_requests", "Requests that are being answered now.");
    for (pool, counters) in &report.pools {
        rows = rows.row(&[("pool", pool)], counters.in_flight);
    }
    let mut rows = page.counter("tidegate_l7_responses_total", "Answers, by class of status.");
    for (pool, counters) in &report.pools {
        for (class, count) in (1..).zip(&counters.status) {
            rows = rows.row(&[("pool", pool), ("class", &format_args!("{class}xx"))], count);
        }
    }
}

fn dns(page: &mut Page, report: &tidegate_dns::Report) {
    let counters = &report.counters;
    page.counter("tidegate_dns_queries_total", "Questions.").row(&[], counters.queries);
    page.counter("tidegate_dns_answers_total", "Answers, by kind.")
        .row(&[("kind", &"answered")], counters.answered)
        .row(&[("kind", &"no_data")], counters.no_data)
        .row(&[("kind", &"no_such_name")], counters.no_such_name)
        .row(&[("kind", &"refused")], counters.refused)
        .row(&[("kind", &"failed")], counters.failed);
    page.counter("tidegate_dns_truncated_total", "Answers that were too long for UDP.").row(&[], counters.truncated);
}

/// The text as it grows.
#[derive(Default)]
struct Page(String);

/// One metric's rows.
struct Rows<'a> {
    page: &'a mut String,
    name: &'static str,
}

impl Page {
    fn counter(&mut self, name: &'static str, help: &str) -> Rows<'_> {
        self.metric(name, help, "counter")
    }

    fn gauge(&mut self, name: &'static str, help: &str) -> Rows<'_> {
        self.metric(name, help, "gauge")
    }

    fn metric(&mut self, name: &'static str, help: &str, kind: &str) -> Rows<'_> {
        writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}").expect("a String takes everything");
        Rows { page: &mut self.0, name }
    }
}

impl Rows<'_> {
    fn row(self, labels: &[(&str, &dyn Display)], value: impl Display) -> Self {
        self.page.push_str(self.name);
        for (i, (label, text)) in labels.iter().enumerate() {
            let text = text.to_string().replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
            let before = if i == 0 { '{' } else { ',' };
            write!(self.page, "{before}{label}=\"{text}\"").expect("a String takes everything");
        }
        let after = if labels.is_empty() { "" } else { "}" };
        writeln!(self.page, "{after} {value}").expect("a String takes everything");
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let mut page = Page::default();
        page.counter("a_total", "A.").row(&[("x", &"q\"b\\n\n")], 3).row(&[], 4);
        assert_eq!(page.0, "# HELP a_total A.\n# TYPE a_total counter\na_total{x=\"q\\\"b\\\\n\\n\"} 3\na_total 4\n");
    }
}
