//! An error as every client gets it: what was wrong, and what to do.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The body of every answer that is not a success.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct ProblemBody {
    /// What was wrong.
    pub error: String,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Problem {
    pub status: StatusCode,
    pub body: ProblemBody,
}

impl Problem {
    pub fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, body: ProblemBody { error: error.into(), hint: None } }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.body.hint = Some(hint.into());
        self
    }

    pub(super) fn no_elb(name: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("there is no ELB {name}"))
            .hint("GET /v1/elbs lists those that there are")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body)).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// A JSON body, or what is wrong with it and where.
pub(super) fn parse<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    if body.trim_ascii().is_empty() {
        return Err(Problem::new(StatusCode::BAD_REQUEST, "the body is empty").hint(EXAMPLE));
    }
    serde_json::from_slice(body).map_err(|error| {
        use serde_json::error::Category;
        match error.classify() {
            Category::Syntax | Category::Eof | Category::Io => {
                Problem::new(StatusCode::BAD_REQUEST, format!("the body is not JSON: {error}")).hint(EXAMPLE)
            }
            Category::Data => {
                let text = error.to_string();
                // serde has no position for what stands inside a tagged object: look for the word that it quotes.
                let place = match text.contains(" at line ") {
                    true => String::new(),
                    false => text.split('`').nth(1).and_then(|word| locate(body, word)).unwrap_or_default(),
                };
                Problem::new(StatusCode::UNPROCESSABLE_ENTITY, format!("the ELB cannot be read: {text}{place}"))
                    .hint(EXAMPLE)
            }
        }
    })
}

fn locate(body: &[u8], word: &str) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let at = text.find(&format!("\"{word}\""))?;
    let before = &text[..at];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
    Some(format!(" at line {line} column {column}"))
}

const EXAMPLE: &str = r#"layer 4: {"type":"layer4","app":"/demo","ports":[{"listen":80,"target":8080}]}; layer 7: {"type":"layer7","rules":[{"host":"shop.example.com","app":"/demo"}]}"#;
