//! How this process is: for people, for load balancers of the API, for supervisors.

use axum::{Json, extract::State, response::IntoResponse};
use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Access, Api, Problem, ProblemBody,
    layer4::{Layer4Status, layer4},
};
use crate::{
    config::Role,
    view::{MarathonSeen, Snapshot, View},
};

/// The whole process on one page.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub struct StatusBody {
    pub version: String,
    pub roles: Vec<Role>,
    #[schema(value_type = String, format = DateTime)]
    pub started_at: Timestamp,
    /// The node that the ELBs are pulled from, if this one follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follows: Option<String>,
    /// The revision of the newest change of the ELBs.
    pub revision: u64,
    pub elbs: usize,
    pub apps: usize,
    pub instances: usize,
    pub marathon: MarathonSeen,
    pub planes: Vec<PlaneBody>,
    /// Only where this machine runs layer 4, once it has counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer4: Option<Layer4Status>,
    /// What is wrong now.
    pub alarms: Vec<AlarmBody>,
}

#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub struct PlaneBody {
    /// `l4`, `l7` or `dns`.
    pub plane: String,
    /// The newest generation that was given to the plane.
    pub desired: u64,
    /// The newest generation that the plane has applied.
    pub applied: u64,
    /// Why the newest generation was not taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    pub problems: Vec<String>,
}

#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub struct AlarmBody {
    /// A stable name, such as `marathon-unreachable`.
    pub key: String,
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// What is wrong, what Tidegate does meanwhile, what to do.
    pub text: String,
}

pub(super) fn alarms(view: &View, snapshot: &Snapshot) -> Vec<AlarmBody> {
    let alarms = view.alarms(snapshot).into_iter();
    alarms.map(|(key, alarm)| AlarmBody { key, since: alarm.since, text: alarm.text }).collect()
}

pub(super) fn planes(view: &View, snapshot: &Snapshot) -> Vec<PlaneBody> {
    let planes = view.planes(snapshot).into_iter();
    planes
        .map(|state| PlaneBody {
            plane: state.plane.to_string(),
            desired: state.desired,
            applied: state.applied,
            refused: state.refused,
            problems: state.problems,
        })
        .collect()
}

/// Where this machine runs it, from its first count on: until then nobody knows whether it is attached.
pub(super) fn layer4_status(view: &View, snapshot: &Snapshot) -> Option<Layer4Status> {
    let desired = &snapshot.state.desired;
    let told = view.layer4(|report| {
        let counted = !report.drops.is_empty();
        counted.then(|| view.lately(|lately| layer4(report, lately, desired)))
    });
    told.flatten()
}

/// The whole process on one page.
#[utoipa::path(get, path = "/v1/status", tag = "status", responses((status = 200, body = StatusBody)))]
pub(super) async fn status(State(api): State<Api>) -> Json<StatusBody> {
    let snapshot = api.view.now();
    let state = &snapshot.state;
    Json(StatusBody {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        roles: api.view.roles.clone(),
        started_at: api.view.started,
        follows: match &api.access {
            Access::Write(_) => None,
            Access::Follows(node) => Some(node.clone()),
        },
        revision: state.desired.revision,
        elbs: state.desired.elbs.len(),
        apps: state.observed.apps.len(),
        instances: state.observed.apps.values().map(|app| app.instances.len()).sum(),
        marathon: snapshot.marathon.clone(),
        planes: planes(&api.view, &snapshot),
        layer4: layer4_status(&api.view, &snapshot),
        alarms: alarms(&api.view, &snapshot),
    })
}

/// The process is alive.
#[utoipa::path(get, path = "/healthz", tag = "status", responses((status = 200, body = String, content_type = "text/plain")))]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Every plane has applied what it was given, and what is given rests on knowledge.
#[utoipa::path(
    get, path = "/readyz", tag = "status",
    responses(
        (status = 200, body = String, content_type = "text/plain"),
        (status = 503, description = "Not yet, and why", body = ProblemBody),
    )
)]
pub(super) async fn readyz(State(api): State<Api>) -> Result<impl IntoResponse, Problem> {
    let snapshot = api.view.now();
    let mut reasons: Vec<String> = Vec::new();
    if snapshot.marathon.snapshot_at.is_none() && snapshot.state.observed.apps.is_empty() {
        reasons.push("Marathon has not been reached, and nothing is remembered from before".to_owned());
    }
    for plane in api.view.planes(&snapshot) {
        // Behind by what arrives now is not unready: a plane that has never applied anything, or refuses, is.
        if plane.applied == 0 && plane.desired > 0 {
            reasons.push(format!("{} has not applied anything yet", plane.plane));
        }
        if let Some(refused) = plane.refused {
            reasons.push(format!("{}: {refused}", plane.plane));
        }
    }
    match reasons.is_empty() {
        true => Ok("ready\n"),
        false => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, reasons.join("; "))
            .hint("GET /v1/status says more; this is asked again in a second")),
    }
}
