//! One question to the API, one answer or an error that says what to do.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use http::{Method, StatusCode};
use serde::de::DeserializeOwned;

use super::Remote;
use crate::api::ProblemBody;

/// Runs a command that talks to an API.
pub(super) fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(work)
}

#[derive(Debug)]
pub(super) struct Client {
    base: String,
    http: reqwest::Client,
    pub(super) json: bool,
}

/// An answer that was a success.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) text: String,
}

impl Answer {
    pub(super) fn read<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        serde_json::from_str(&self.text).context("reading the API's answer: is it a tidegate of another version?")
    }
}

impl Client {
    pub(super) fn new(remote: &Remote) -> anyhow::Result<Self> {
        crate::config::base_url(&remote.api).map_err(|why| anyhow!("--api (or TIDEGATE_API): {why}"))?;
        let http = crate::io::http_client(&remote.api)
            .timeout(Duration::from_secs(15))
            .build()
            .context("making an HTTP client")?;
        Ok(Self { base: remote.api.trim_end_matches('/').to_owned(), http, json: remote.json })
    }

    pub(super) async fn ask(&self, method: Method, path: &str, body: Option<String>) -> anyhow::Result<Answer> {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(body) = body {
            request = request.header(http::header::CONTENT_TYPE, "application/json").body(body);
        }
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        let text = response.text().await.with_context(|| format!("reading the answer of {}", self.base))?;
        if status.is_success() {
            return Ok(Answer { status, text });
        }
        if self.json {
            println!("{}", text.trim_end());
        }
        match serde_json::from_str::<ProblemBody>(&text) {
            Ok(ProblemBody { error, hint: Some(hint) }) => bail!("{error}\n  hint: {hint}"),
            Ok(ProblemBody { error, hint: None }) => bail!("{error}"),
            Err(_) => {
                bail!("{} answered {status}, and not as a tidegate does: does --api name the right port?", self.base)
            }
        }
    }

    fn unreachable(&self, error: &reqwest::Error) -> anyhow::Error {
        let why = match (error.is_timeout(), error.is_connect()) {
            (true, _) => "no answer within 15 s".to_owned(),
            (_, true) => "nothing answers there".to_owned(),
            _ => innermost(error),
        };
        anyhow!(
            "asking {}: {why}\n  hint: start it by `tidegate run`, or name another by --api URL (or TIDEGATE_API)",
            self.base
        )
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => innermost(source),
        None => error.to_string(),
    }
}
