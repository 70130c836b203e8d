//! Pages for people: everything on one, and one for each ELB. They need no script and refresh themselves.

use axum::extract::{Path, State, rejection::PathRejection};
use http::StatusCode;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{
    Api,
    elbs::{dns_name, readiness},
    layer4::Layer4Status,
    reals::{Layer4Body, layer4},
    status::{AlarmBody, PlaneBody, alarms, layer4_status, planes},
};
use crate::{
    cycle::{ElbStatus, explain},
    model::elb::{Elb, ElbSpec},
    view::{MarathonSeen, Snapshot},
};

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#1b1f24}\
h1{font-size:1.4rem}h2{font-size:1.05rem;margin-top:1.8rem}a{color:#0b57a4}\
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .8rem .3rem 0;border-bottom:1px solid #dde1e6;vertical-align:top}\
th{font-weight:600;color:#57606a}code{font:13px/1.4 ui-monospace,monospace}\
.good{color:#116329}.bad{color:#a40e26;font-weight:600}.dim{color:#57606a}\
.alarm{border-left:4px solid #a40e26;padding:.3rem .8rem;margin:.5rem 0;background:#fff5f5}";

fn page(title: &str, content: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="refresh" content="2";
                title { (title) " - Tidegate" }
                style { (PreEscaped(STYLE)) }
            }
            body { (content) }
        }
    }
}

/// Everything on one page.
#[utoipa::path(get, path = "/", tag = "pages", responses((status = 200, body = String, content_type = "text/html")))]
pub(super) async fn list(State(api): State<Api>) -> Markup {
    let snapshot = api.view.now();
    let desired = &snapshot.state.desired;
    let content = html! {
        h1 { "Tidegate" }
        (alarm_list(&alarms(&api.view, &snapshot)))
        h2 { "ELBs" }
        @if desired.elbs.is_empty() {
            p { "There is none yet. Make one: " code { "tidegate elb create demo --type layer4 --app /demo --port 80:8080" } }
        } @else {
            table {
                thead { tr { th { "Name" } th { "Type" } th { "VIPs" } th { "DNS name" } th { "Jobs" } th { "Ready" } } }
                tbody {
                    @for (name, elb) in &desired.elbs {
                        tr {
                            td { a href=(format!("/elbs/{name}")) { (name) } }
                            td { (kind(elb)) }
                            td { @for vip in &elb.vips { code { (vip) } " " } }
                            td { code { (dns_name(&snapshot, name)) } }
                            td { @for app in elb.spec.apps() { code { (app) } " " } }
                            td { (yes_no(readiness(&api.view, &snapshot, name).ready)) }
                        }
                    }
                }
            }
        }
        h2 { "Marathon" }
        (marathon(&snapshot.marathon, &snapshot))
        h2 { "Planes" }
        (plane_table(&planes(&api.view, &snapshot)))
        @if let Some(layer4) = layer4_status(&api.view, &snapshot) { h2 { "Layer 4" } (layer4_summary(&layer4)) }
        p class="dim" {
            "Version " (env!("CARGO_PKG_VERSION")) ", since " (api.view.started) ". "
            a href="/v1/status" { "status" } " · " a href="/metrics" { "metrics" } " · " a href="/v1/openapi.json" { "API" }
        }
    };
    page("ELBs", &content)
}

/// One ELB: its addresses, and what stands behind each port.
#[utoipa::path(
    get, path = "/elbs/{name}", tag = "pages",
    params(("name" = String, Path, description = "The ELB's name")),
    responses(
        (status = 200, body = String, content_type = "text/html"),
        (status = 400, description = "A path that cannot be read", body = String, content_type = "text/html"),
        (status = 404, description = "No such ELB", body = String, content_type = "text/html"),
    )
)]
pub(super) async fn elb(
    State(api): State<Api>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Markup, (StatusCode, Markup)> {
    let back = html! { p { a href="/" { "all ELBs" } } };
    let Path(name) = name.map_err(|error| {
        (
            StatusCode::BAD_REQUEST,
            page("not a name", &html! { (back) h1 { "This is not a name" } p { (error.body_text()) } }),
        )
    })?;
    let snapshot = api.view.now();
    let Some(elb) = snapshot.state.desired.elbs.get(&name) else {
        let content =
            html! { (back) h1 { "There is no ELB " (name) } p { "Make it by " code { "tidegate elb create" } "." } };
        return Err((StatusCode::NOT_FOUND, page("no such ELB", &content)));
    };
    let ready = readiness(&api.view, &snapshot, &name);
    let status = explain(&snapshot.state, &name);
    let layer4 = api.view.layer4(|report| layer4(elb, status.as_ref(), report)).flatten();
    let content = html! {
        (back)
        h1 { (name) }
        (alarm_list(&alarms(&api.view, &snapshot)))
        table {
            tr { th { "Type" } td { (kind(elb)) ", " (elb.spec.scope()) } }
            tr { th { "VIPs" } td { @for vip in &elb.vips { code { (vip) } " " } } }
            tr { th { "DNS name" } td { code { (dns_name(&snapshot, &name)) } } }
            tr { th { "Jobs" } td { @for app in elb.spec.apps() { code { (app) } " " } } }
            @for (name, value) in elb.spec.settings() { tr { th { (name) } td { (value) } } }
            tr { th { "Revision" } td { (elb.revision) } }
            tr { th { "Ready" } td { (yes_no(ready.ready)) @for reason in &ready.reasons { " " (reason) } } }
        }
        h2 { "Instances" }
        @if let Some(status) = &status { (instances(status)) }
        @if let Some(layer4) = layer4 { h2 { "Layer 4" } (reals(&layer4)) }
        h2 { "Planes" }
        table {
            thead { tr { th { "Plane" } th { "The ELB needs" } th { "Desired" } th { "Applied" } } }
            tbody {
                @for plane in &ready.planes {
                    tr { td { (plane.plane) } td { (plane.needs) } td { (plane.desired) } td { (plane.applied) } }
                }
            }
        }
        p class="dim" { a href=(format!("/v1/elbs/{name}")) { "as JSON" } }
    };
    Ok(page(&name, &content))
}

fn kind(elb: &Elb) -> &'static str {
    match elb.spec {
        ElbSpec::Layer4(_) => "layer 4",
        ElbSpec::Layer7(_) => "layer 7",
    }
}

fn yes_no(yes: bool) -> Markup {
    html! { @if yes { span class="good" { "yes" } } @else { span class="bad" { "no" } } }
}

fn alarm_list(alarms: &[AlarmBody]) -> Markup {
    html! {
        @for alarm in alarms {
            div class="alarm" { strong { (alarm.key) } " " span class="dim" { "since " (alarm.since) } br; (alarm.text) }
        }
    }
}

fn marathon(seen: &MarathonSeen, snapshot: &Snapshot) -> Markup {
    let observed = &snapshot.state.observed;
    html! {
        p {
            @match (&seen.unreachable, seen.attached) {
                (Some(why), _) => { span class="bad" { "unreachable" } ": " (why) }
                (None, true) => { span class="good" { "attached" } }
                (None, false) => { span class="dim" { "not attached yet" } }
            }
            @match seen.snapshot_at {
                Some(at) => { "; all apps were read at " (at) }
                None => { "; the apps have not been read since the start" }
            }
            "; " (observed.apps.len()) " apps are known, " (seen.events) " events were received."
        }
    }
}

fn plane_table(planes: &[PlaneBody]) -> Markup {
    html! {
        table {
            thead { tr { th { "Plane" } th { "Desired" } th { "Applied" } th { "Problems" } } }
            tbody {
                @for plane in planes {
                    tr {
                        td { (plane.plane) }
                        td { (plane.desired) }
                        td { (plane.applied) }
                        td {
                            @for problem in plane.refused.iter().chain(&plane.problems) { span class="bad" { (problem) } br; }
                        }
                    }
                }
            }
        }
    }
}

fn instances(status: &ElbStatus) -> Markup {
    html! {
        @for port in &status.ports {
            p {
                strong { (port.listen) } " → " code { (port.app) } " port " code { (port.target) } ": "
                (port.serving) " serving, " (port.draining) " draining, " (port.held) " held. "
                @if let Some(problem) = &port.problem { span class="bad" { (problem) } }
            }
            @if !port.instances.is_empty() {
                table {
                    thead { tr { th { "Instance" } th { "Agent" } th { "Answers at" } th { "Verdict" } th { "Why" } } }
                    tbody {
                        @for instance in &port.instances {
                            tr {
                                td { code { (instance.id) } }
                                td { (instance.host) }
                                td { @for address in &instance.addresses { code { (address) } " " } }
                                td { span class=(if instance.verdict == "serve" { "good" } else { "bad" }) { (instance.verdict) } }
                                td { (instance.reason) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn layer4_summary(layer4: &Layer4Status) -> Markup {
    let Layer4Status { attached, reals, fail_open, drops, drains, .. } = layer4;
    html! {
        p {
            @if attached.is_empty() { span class="bad" { "not attached" } "; " }
            @for at in attached { code { (at.interface) } " (" (at.mode) "); " }
            (layer4.front_ends) " front ends, " (reals.all) " reals (" (reals.down) " down, " (reals.ejected) " ejected), "
            (reals.live) " connections known to be live; " (drains.ended) " drains ended, " (drains.cut) " connections cut."
        }
        @for open in fail_open {
            p { span class="bad" { "fail-open" } " " a href=(format!("/elbs/{}", open.elb)) { (open.elb) } " " (open.listen) }
        }
        @for drops in drops.iter().filter(|drops| drops.last_minute > 0) {
            p { span class="bad" { "dropped in the last minute" } ": " (drops.last_minute) " (" (drops.reason) "): " (drops.advice) }
        }
    }
}

fn reals(layer4: &Layer4Body) -> Markup {
    html! {
        @for listen in &layer4.fail_open {
            p { span class="bad" { (listen) } ": nearly all instances look bad, so all get new connections" }
        }
        table {
            thead { tr { th { "Listens at" } th { "Real" } th { "Instance" } th { "Health" } th { "Live" } th { "Why" } } }
            tbody {
                @for real in &layer4.reals {
                    tr {
                        td { (real.listen) }
                        td { code { (real.real) } }
                        td { @if let Some(instance) = &real.instance { code { (instance) } } }
                        td { span class=(if matches!(real.health.as_str(), "down" | "ejected") { "bad" } else { "good" }) { (real.health) } }
                        td { @if let Some(live) = real.live { (live) } }
                        td { (real.says()) }
                    }
                }
            }
        }
        @for drain in layer4.drains.iter().rev() { p class="dim" { (drain.says()) } }
    }
}
