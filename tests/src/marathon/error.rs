//! What the API refuses, and Marathon's JSON for it.

use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use serde::Serialize;
use serde_json::{Value, json};

/// One wrong place in what a client sent.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Detail {
    pub path: String,
    pub errors: Vec<String>,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum ApiError {
    #[error("the body is not JSON: {0}")]
    BadJson(String),
    #[error("{0}")]
    BadRequest(String),
    #[error("the object is not valid: {0:?}")]
    Invalid(Vec<Detail>),
    #[error("app '{0}' does not exist")]
    NoApp(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Conflict(String),
    #[error("locked by the deployments {0:?}")]
    Locked(Vec<String>),
    #[error("{0}")]
    Forbidden(String),
    #[error("no user or a wrong password")]
    Unauthorized,
    #[error("{0}")]
    Unavailable(String),
    #[error("no such address")]
    UnknownUri,
}

impl From<Vec<Detail>> for ApiError {
    fn from(details: Vec<Detail>) -> Self {
        ApiError::Invalid(details)
    }
}

impl ApiError {
    fn parts(&self) -> (StatusCode, Value) {
        let message = |text: &str| json!({"message": text});
        match self {
            ApiError::BadJson(why) => (
                StatusCode::BAD_REQUEST,
                json!({"message": "Invalid JSON", "details": [{"path": "", "errors": [why]}]}),
            ),
            ApiError::BadRequest(text) => (StatusCode::BAD_REQUEST, message(text)),
            ApiError::Invalid(details) => {
                (StatusCode::UNPROCESSABLE_ENTITY, json!({"message": "Object is not valid", "details": details}))
            }
            ApiError::NoApp(id) => (StatusCode::NOT_FOUND, message(&format!("App '{id}' does not exist"))),
            ApiError::NotFound(text) => (StatusCode::NOT_FOUND, message(text)),
            ApiError::Conflict(text) => (StatusCode::CONFLICT, message(text)),
            ApiError::Locked(ids) => {
                let first = ids.first().map_or("", String::as_str);
                let text = format!(
                    "App is locked by one or more deployments. Override with the option '?force=true'. \
                     View details at '/v2/deployments/{first}'."
                );
                let deployments: Vec<Value> = ids.iter().map(|id| json!({"id": id})).collect();
                (StatusCode::CONFLICT, json!({"message": text, "deployments": deployments}))
            }
            ApiError::Forbidden(text) => (StatusCode::FORBIDDEN, message(text)),
            ApiError::Unauthorized => (StatusCode::UNAUTHORIZED, message("Unauthorized")),
            ApiError::Unavailable(text) => (StatusCode::SERVICE_UNAVAILABLE, message(text)),
            ApiError::UnknownUri => (StatusCode::INTERNAL_SERVER_ERROR, message("URI not found")),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, body) = self.parts();
        let mut response = (status, axum::Json(body)).into_response();
        if status == StatusCode::UNAUTHORIZED {
            let realm = http::HeaderValue::from_static("Basic realm=\"Mesosphere\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, realm);
        }
        response
    }
}
