//! The ELBs: made, changed, shown, removed.

use axum::{
    Json,
    body::Bytes,
    extract::{
        Path, Query, State,
        rejection::{BytesRejection, PathRejection, QueryRejection},
    },
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Access, Api, Problem, ProblemBody,
    problem::parse,
    reals::{Layer4Body, layer4},
};
use crate::{
    config::Role,
    cycle::{ElbStatus, explain},
    model::{
        desired::{Change, Outcome},
        elb::{Elb, ElbSpec},
    },
    view::{Snapshot, View},
    writer::{Precondition, WriteError},
};

/// An ELB: what was asked for, what it was given, and how far it is.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ElbBody {
    pub name: String,
    /// What was asked for, with every default filled in. Can be sent back by PUT as it is.
    pub spec: ElbSpec,
    /// The addresses that the ELB was given; they never change while it lives.
    #[schema(value_type = Vec<String>)]
    pub vips: Vec<std::net::IpAddr>,
    /// The name that clients find the addresses by.
    pub dns_name: String,
    /// Also the ETag.
    pub revision: u64,
    pub readiness: Readiness,
    /// What stands behind each port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<ElbStatus>,
    /// What layer 4 says of the instances; only of a layer-4 ELB, and where this machine runs layer 4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer4: Option<Layer4Body>,
    /// What the operator should know about this change; only after a PUT.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Whether the planes of this machine do what the ELB asks for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Readiness {
    /// Every plane has applied the ELB's last change.
    pub ready: bool,
    /// Why not, one line for each plane that lags.
    pub reasons: Vec<String>,
    pub planes: Vec<PlaneReadiness>,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct PlaneReadiness {
    /// `l4`, `l7` or `dns`.
    pub plane: String,
    /// The generation in which the ELB's part changed last; 0: the plane has no part of it.
    pub needs: u64,
    /// The newest generation that was given to the plane.
    pub desired: u64,
    /// The newest generation that the plane has applied.
    pub applied: u64,
}

pub(super) fn readiness(view: &View, snapshot: &Snapshot, name: &str) -> Readiness {
    let since = snapshot.state.generations.get(name).copied().unwrap_or_default();
    let mut reasons = Vec::new();
    if !snapshot.state.published() {
        reasons.push("the planes were given nothing yet: neither Marathon nor the store has told what runs".to_owned());
    }
    let mut planes = Vec::new();
    for plane in view.planes(snapshot) {
        let needs = match plane.plane {
            Role::L4 => since.l4,
            Role::L7 => since.l7,
            Role::Dns => since.dns,
            Role::Control => continue,
        };
        if snapshot.state.published() && plane.applied < needs {
            let why =
                (plane.refused.iter().chain(&plane.problems).next()).map_or(String::new(), |why| format!(": {why}"));
            reasons
                .push(format!("{} has applied generation {}, the ELB needs {needs}{why}", plane.plane, plane.applied));
        }
        planes.push(PlaneReadiness {
            plane: plane.plane.to_string(),
            needs,
            desired: plane.desired,
            applied: plane.applied,
        });
    }
    let vips = snapshot.state.desired.elbs.get(name).map_or(&[][..], |elb| &elb.vips);
    let unopened = view.unopened();
    for listener in unopened.iter().filter(|listener| vips.contains(&listener.ip())) {
        reasons.push(format!("l7 cannot listen at {listener}: the status of the plane says why"));
    }
    Readiness { ready: reasons.is_empty(), reasons, planes }
}

pub(super) fn body(view: &View, snapshot: &Snapshot, name: &str, elb: &Elb) -> ElbBody {
    let status = explain(&snapshot.state, name);
    ElbBody {
        name: name.to_owned(),
        spec: elb.spec.clone(),
        vips: elb.vips.clone(),
        dns_name: dns_name(snapshot, name),
        revision: elb.revision,
        readiness: readiness(view, snapshot, name),
        layer4: view.layer4(|report| layer4(elb, status.as_ref(), report)).flatten(),
        status,
        warnings: Vec::new(),
    }
}

pub(super) fn dns_name(snapshot: &Snapshot, name: &str) -> String {
    format!("{name}.elb.{}", snapshot.state.policy.domain)
}

/// All ELBs by name.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub struct ElbList {
    /// The revision of the newest change.
    pub revision: u64,
    pub elbs: Vec<ElbSummary>,
}

/// An ELB in a list.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub struct ElbSummary {
    pub name: String,
    pub spec: ElbSpec,
    #[schema(value_type = Vec<String>)]
    pub vips: Vec<std::net::IpAddr>,
    pub dns_name: String,
    pub revision: u64,
    /// Every plane has applied the ELB's last change.
    pub ready: bool,
}

/// All ELBs, by name.
#[utoipa::path(get, path = "/v1/elbs", tag = "elbs", responses((status = 200, body = ElbList)))]
pub(super) async fn list(State(api): State<Api>) -> Json<ElbList> {
    let snapshot = api.view.now();
    let desired = &snapshot.state.desired;
    let elbs = desired.elbs.iter().map(|(name, elb)| ElbSummary {
        name: name.clone(),
        spec: elb.spec.clone(),
        vips: elb.vips.clone(),
        dns_name: dns_name(&snapshot, name),
        revision: elb.revision,
        ready: readiness(&api.view, &snapshot, name).ready,
    });
    Json(ElbList { revision: desired.revision, elbs: elbs.collect() })
}

/// One ELB with everything that stands behind it.
#[utoipa::path(
    get, path = "/v1/elbs/{name}", tag = "elbs",
    params(("name" = String, Path, description = "The ELB's name")),
    responses(
        (status = 200, body = ElbBody, headers(("ETag" = String, description = "The revision, for If-Match"))),
        (status = 400, description = "A path that cannot be read", body = ProblemBody),
        (status = 404, description = "No such ELB", body = ProblemBody),
    )
)]
pub(super) async fn show(
    State(api): State<Api>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let name = named(name)?;
    let snapshot = api.view.now();
    let elb = snapshot.state.desired.elbs.get(&name).ok_or_else(|| Problem::no_elb(&name))?;
    Ok(tagged(StatusCode::OK, body(&api.view, &snapshot, &name, elb)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PutOptions {
    #[serde(default)]
    allow_missing: bool,
}

/// Makes an ELB, or changes it to what the body says. The same PUT again changes nothing.
#[utoipa::path(
    put, path = "/v1/elbs/{name}", tag = "elbs",
    params(
        ("name" = String, Path, description = "1 to 40 of a-z, 0-9 and -: the ELB's name and its DNS label"),
        ("allow_missing" = Option<bool>, Query, description = "Take jobs that Marathon does not run yet"),
        ("If-Match" = Option<String>, Header, description = "Only if the ELB is at this revision"),
        ("If-None-Match" = Option<String>, Header, description = "`*`: only if there is no such ELB yet"),
    ),
    request_body = ElbSpec,
    responses(
        (status = 200, description = "Changed, or the same as before", body = ElbBody, headers(("ETag" = String, description = "The revision"))),
        (status = 201, description = "Made", body = ElbBody, headers(("ETag" = String, description = "The revision"))),
        (status = 400, description = "Not JSON, or a query or header that cannot be read", body = ProblemBody),
        (status = 403, description = "This machine follows another", body = ProblemBody),
        (status = 412, description = "If-Match or If-None-Match does not hold", body = ProblemBody),
        (status = 413, description = "A body of more than 2 MB", body = ProblemBody),
        (status = 422, description = "Refused: the reason says what to change", body = ProblemBody),
        (status = 503, description = "The store cannot be written", body = ProblemBody),
    )
)]
pub(super) async fn put(
    State(api): State<Api>,
    name: Result<Path<String>, PathRejection>,
    options: Result<Query<PutOptions>, QueryRejection>,
    headers: HeaderMap,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let name = named(name)?;
    let Query(options) = options.map_err(|error| {
        Problem::new(StatusCode::BAD_REQUEST, error.body_text()).hint("the only option is ?allow_missing=true")
    })?;
    let bytes = bytes.map_err(|error| Problem::new(error.status(), error.body_text()))?;
    let spec: ElbSpec = parse(&bytes)?;
    let written = change(&api, Change::Put { name: name.clone(), spec }, &headers, options.allow_missing).await?;
    let snapshot = api.view.now();
    // Somebody may have removed it in between.
    let elb = snapshot.state.desired.elbs.get(&name).ok_or_else(|| Problem::no_elb(&name))?;
    let mut shown = body(&api.view, &snapshot, &name, elb);
    shown.warnings = written.warnings;
    for app in elb.spec.apps() {
        if options.allow_missing && !snapshot.state.observed.apps.contains_key(&app) {
            shown.warnings.push(format!("Marathon runs no {app} yet: the ELB serves as soon as it does"));
        }
    }
    let status = if written.outcome == Outcome::Created { StatusCode::CREATED } else { StatusCode::OK };
    Ok(tagged(status, shown))
}

/// Removes an ELB: its addresses are withdrawn first.
#[utoipa::path(
    delete, path = "/v1/elbs/{name}", tag = "elbs",
    params(
        ("name" = String, Path, description = "The ELB's name"),
        ("If-Match" = Option<String>, Header, description = "Only if the ELB is at this revision"),
    ),
    responses(
        (status = 204, description = "Removed"),
        (status = 400, description = "A path or header that cannot be read", body = ProblemBody),
        (status = 403, description = "This machine follows another", body = ProblemBody),
        (status = 404, description = "No such ELB: nothing to remove", body = ProblemBody),
        (status = 412, description = "If-Match does not hold", body = ProblemBody),
        (status = 503, description = "The store cannot be written", body = ProblemBody),
    )
)]
pub(super) async fn delete(
    State(api): State<Api>,
    name: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    let name = named(name)?;
    let written = change(&api, Change::Delete { name: name.clone() }, &headers, false).await?;
    match written.outcome {
        Outcome::Unchanged => Err(Problem::no_elb(&name)),
        _ => Ok(StatusCode::NO_CONTENT),
    }
}

async fn change(
    api: &Api,
    change: Change,
    headers: &HeaderMap,
    allow_missing: bool,
) -> Result<crate::writer::Written, Problem> {
    let writer = match &api.access {
        Access::Write(writer) => writer,
        Access::Follows(node) => {
            return Err(Problem::new(
                StatusCode::FORBIDDEN,
                format!("this machine follows {node} and takes no changes"),
            )
            .hint(format!("send the same request to {node}")));
        }
    };
    let precondition = precondition(headers)?;
    writer.write(change, precondition, allow_missing).await.map_err(|error| match &error {
        WriteError::Refused(refused) => {
            let (what, hint) = split(&refused.to_string());
            let problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, what);
            match hint {
                Some(hint) => problem.hint(hint),
                None => problem,
            }
        }
        WriteError::Precondition(text) => Problem::new(StatusCode::PRECONDITION_FAILED, text.clone())
            .hint("GET it again, see what has changed, and send the change with the new ETag"),
        WriteError::Store(_) => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()).hint("nothing has changed; try again")
        }
        WriteError::Stopping => Problem::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
    })
}

/// `what is wrong: what to do`, as the pure rules write it.
fn split(text: &str) -> (String, Option<String>) {
    match text.rsplit_once(": ") {
        Some((what, hint)) => (what.to_owned(), Some(hint.to_owned())),
        None => (text.to_owned(), None),
    }
}

fn named(name: Result<Path<String>, PathRejection>) -> Result<String, Problem> {
    match name {
        Ok(Path(name)) => Ok(name),
        Err(error) => {
            Err(Problem::new(StatusCode::BAD_REQUEST, error.body_text())
                .hint("an ELB's name is 1 to 40 of a-z, 0-9 and -"))
        }
    }
}

fn precondition(headers: &HeaderMap) -> Result<Precondition, Problem> {
    let mut precondition = Precondition::default();
    let bad = |header: &str, value: &HeaderValue| {
        Problem::new(StatusCode::BAD_REQUEST, format!("{header}: {value:?} is not an ETag of this API"))
            .hint("send the ETag of the last GET or PUT as it is, with its quotes, or *")
    };
    for value in headers.get_all(header::IF_MATCH) {
        let text = value.to_str().map_err(|_| bad("If-Match", value))?;
        if text.trim() == "*" {
            precondition.exists = true;
            continue;
        }
        for tag in text.split(',') {
            let revision = tag.trim().strip_prefix('"').and_then(|tag| tag.strip_suffix('"')?.parse().ok());
            precondition.revisions.get_or_insert_default().push(revision.ok_or_else(|| bad("If-Match", value))?);
        }
    }
    for value in headers.get_all(header::IF_NONE_MATCH) {
        match value.to_str().map(str::trim) {
            Ok("*") => precondition.absent = true,
            _ => {
                return Err(bad("If-None-Match", value).hint("If-None-Match takes only *: make it, but change nothing"));
            }
        }
    }
    Ok(precondition)
}

fn tagged(status: StatusCode, body: ElbBody) -> Response {
    let tag = HeaderValue::try_from(format!("\"{}\"", body.revision)).expect("digits are a header's text");
    (status, [(header::ETAG, tag)], Json(body)).into_response()
}
