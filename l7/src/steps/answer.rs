//! What the client hears when no upstream answers: a status and one line that helps.

use bytes::Bytes;
use pingora_core::{Error, ErrorSource, ErrorType, Result, protocols::http::ServerSession};
use pingora_http::ResponseHeader;

use super::{Life, choose};
use crate::config::Config;

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn new(status: u16, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    /// Writes it; the connection may be used again.
    pub(crate) async fn send(&self, session: &mut ServerSession) -> Result<()> {
        let (header, body) = self.response()?;
        let wants_body = session.req_header().method != http::Method::HEAD;
        session.write_response_header(Box::new(header)).await?;
        session.write_response_body(if wants_body { body } else { Bytes::new() }, true).await
    }

    /// Writes it if nothing was written yet; the connection ends.
    pub(crate) async fn send_last(&self, session: &mut ServerSession) -> Result<()> {
        let (header, body) = self.response()?;
        let wants_body = session.req_header().method != http::Method::HEAD;
        session.write_error_response(header, if wants_body { body } else { Bytes::new() }).await
    }

    fn response(&self) -> Result<(ResponseHeader, Bytes)> {
        let body = Bytes::from(format!("{} {}\n", self.status, self.text));
        let mut header = ResponseHeader::build(self.status, Some(4))?;
        header.insert_header(http::header::CONTENT_TYPE, "text/plain; charset=utf-8")?;
        header.insert_header(http::header::CACHE_CONTROL, "no-store")?;
        header.set_content_length(body.len())?;
        if self.status == 503 {
            header.insert_header(http::header::RETRY_AFTER, "1")?;
        }
        Ok((header, body))
    }
}

/// What to say about a failure, or nothing when the client is gone.
pub(crate) fn explain(error: &Error, life: &mut Life, config: &Config) -> Option<Answer> {
    if let Some(answer) = life.answer.take() {
        return Some(answer);
    }
    let pool = life.pool.as_ref().map_or("?", |visit| &visit.0.name);
    let upstream = life.upstream.as_ref().map_or_else(|| "?".to_owned(), |visit| visit.0.address.to_string());
    match (error.esource(), error.etype()) {
        (_, ErrorType::HTTPStatus(status)) => Some(Answer::new(*status, "the request was refused")),
        // The connection was not made: every try failed.
        (ErrorSource::Upstream, _) if life.upstream.is_none() => Some(choose::unavailable(life)),
        (ErrorSource::Upstream, ErrorType::ReadTimedout) => {
            let limit = config.upstream_read_timeout_ms;
            Some(Answer::new(504, format!("{upstream} of the pool {pool} did not answer within {limit} ms")))
        }
        (ErrorSource::Upstream, kind) => {
            let kind = kind.as_str();
            Some(Answer::new(502, format!("{upstream} of the pool {pool} broke off before it answered ({kind})")))
        }
        (ErrorSource::Downstream, ErrorType::ReadTimedout) => {
            Some(Answer::new(408, "the request did not arrive in time"))
        }
        (
            ErrorSource::Downstream,
            ErrorType::ReadError | ErrorType::WriteError | ErrorType::WriteTimedout | ErrorType::ConnectionClosed,
        ) => None,
        (ErrorSource::Downstream, kind) => {
            Some(Answer::new(400, format!("the request is not well-formed ({})", kind.as_str())))
        }
        (ErrorSource::Internal | ErrorSource::Unset, kind) => {
            Some(Answer::new(500, format!("the proxy could not handle the request ({})", kind.as_str())))
        }
    }
}
