//! The HTTP face: one file for each noun. It reads the [`View`], and changes things through the [`Writer`] only.

mod desired;
mod elbs;
mod layer4;
mod metrics;
mod openapi;
mod pages;
mod problem;
mod reals;
mod status;

use std::sync::Arc;

use axum::{
    Router,
    extract::Request,
    response::{IntoResponse, Response},
    routing::get,
};
use http::StatusCode;
use tokio_util::sync::CancellationToken;

pub use elbs::{ElbBody, ElbList, ElbSummary, Readiness};
pub use layer4::{FailOpenBody, Layer4Status, MovesBody};
pub use openapi::document;
pub use problem::{Problem, ProblemBody};
pub use reals::{DrainBody, Layer4Body, RealBody};
pub use status::StatusBody;

use crate::{view::View, writer::Writer};

/// What every handler may use.
#[derive(Clone, Debug)]
pub struct Api {
    pub view: Arc<View>,
    pub access: Access,
    /// Ends the long polls.
    pub stop: CancellationToken,
}

/// Whether changes are taken here.
#[derive(Clone, Debug)]
pub enum Access {
    Write(Writer),
    /// Changes go to this node.
    Follows(String),
}

/// Every route. `openapi.rs` describes them, and a test holds the two together.
pub fn router(api: Api) -> Router {
    Router::new()
        .route("/", get(pages::list))
        .route("/elbs/{name}", get(pages::elb))
        .route("/v1/elbs", get(elbs::list))
        .route("/v1/elbs/{name}", get(elbs::show).put(elbs::put).delete(elbs::delete))
        .route("/v1/status", get(status::status))
        .route("/v1/desired", get(desired::desired))
        .route("/v1/openapi.json", get(openapi::openapi))
        .route("/healthz", get(status::healthz))
        .route("/readyz", get(status::readyz))
        .route("/metrics", get(metrics::metrics))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(api)
}

async fn unknown_path(request: Request) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, format!("there is no {}", request.uri().path()))
        .hint("the ELBs are at /v1/elbs, the description of everything is at /v1/openapi.json")
}

async fn wrong_method(request: Request) -> Response {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{} is not something that {} can do", request.method(), request.uri().path()),
    )
    .hint("ELBs are made and changed by PUT /v1/elbs/{name} and removed by DELETE; the Allow header says what can be done here")
    .into_response()
}
