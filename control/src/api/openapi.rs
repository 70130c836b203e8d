//! The API's description, made from the handlers themselves.

use axum::{Json, response::IntoResponse};
use utoipa::OpenApi;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Tidegate",
        description = "ELBs for jobs of a Marathon cluster: declarative, so that a change may be sent twice. Every answer \
                       that is not a success has a JSON body with `error` (what was wrong) and usually `hint` (what to do)."
    ),
    paths(
        super::elbs::list,
        super::elbs::show,
        super::elbs::put,
        super::elbs::delete,
        super::status::status,
        super::status::healthz,
        super::status::readyz,
        super::desired::desired,
        super::metrics::metrics,
        super::pages::list,
        super::pages::elb,
        openapi,
    ),
    tags(
        (name = "elbs", description = "What operators want"),
        (name = "status", description = "How it goes"),
        (name = "cluster", description = "Between machines"),
        (name = "pages", description = "For people"),
    )
)]
struct Document;

/// The description as a value.
pub fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

/// This document.
#[utoipa::path(
    get, path = "/v1/openapi.json", tag = "status",
    responses((status = 200, description = "An OpenAPI document", body = Object))
)]
pub(super) async fn openapi() -> impl IntoResponse {
    Json(document())
}
