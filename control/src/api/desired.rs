//! What followers pull.

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
};
use http::StatusCode;
use serde::Deserialize;

use super::{Api, Problem};
use crate::io::follow::{DesiredBody, LONG_POLL};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Since {
    since: Option<u64>,
}

/// Every ELB, for machines that follow this one.
///
/// With `since` the answer waits until the revision is another one, at most 25 seconds.
#[utoipa::path(
    get,
    path = "/v1/desired",
    tag = "cluster",
    params(("since" = Option<u64>, Query, description = "The revision that the asker has")),
    responses(
        (status = 200, description = "The ELBs", body = DesiredBody),
        (status = 400, description = "A query that cannot be read", body = super::ProblemBody),
    )
)]
pub(super) async fn desired(
    State(api): State<Api>,
    query: Result<Query<Since>, QueryRejection>,
) -> Result<Json<DesiredBody>, Problem> {
    let Query(query) = query.map_err(|error| {
        Problem::new(StatusCode::BAD_REQUEST, error.body_text()).hint("ask for /v1/desired?since=REVISION")
    })?;
    let mut changed = api.view.changed();
    let moved = changed.wait_for(|revision| Some(*revision) != query.since);
    tokio::select! {
        _ = tokio::time::timeout(LONG_POLL, moved) => {}
        () = api.stop.cancelled() => {}
    }
    Ok(Json(DesiredBody::from(&api.view.now().state.desired)))
}
