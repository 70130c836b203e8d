//! The HTTP face: who may ask, which endpoint answers how, and which file handles which path.

mod apps;
mod faults;
mod groups;
mod info;
mod tasks;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{ConnectInfo, Query, Request, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    core::Core,
    deploy::Begun,
    error::{ApiError, Detail},
    leader::Role,
    serve::Connection,
    stream,
};

const VIA: HeaderName = HeaderName::from_static("x-marathon-via");
const LEADER: HeaderName = HeaderName::from_static("x-marathon-leader");
const DEPLOYMENT: HeaderName = HeaderName::from_static("marathon-deployment-id");
/// A standby asks this often, and waits this long each time, who the leader is.
const LEADER_TRIES: (u32, Duration) = (10, Duration::from_millis(250));
/// Larger than any group that a test puts.
const MAX_BODY: usize = 256 << 20;

#[derive(Clone, Debug)]
struct Face {
    core: Arc<Core>,
    node: usize,
}

/// The routes of one endpoint.
pub(crate) fn router(core: Arc<Core>, node: usize) -> Router {
    Router::new().fallback(front).with_state(Face { core, node })
}

/// A request, read.
struct Call {
    core: Arc<Core>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    query: Vec<(String, String)>,
    body: Bytes,
    connection: Connection,
}

type Answer = Result<Response, ApiError>;

impl Call {
    fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.query.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.values(name).next()
    }

    /// As JAX-RS reads it; clients in Python write `True`.
    fn flag(&self, name: &str) -> bool {
        self.value(name).is_some_and(|v| v.eq_ignore_ascii_case("true"))
    }

    fn flag_or(&self, name: &str, default: bool) -> bool {
        self.value(name).map_or(default, |v| v.eq_ignore_ascii_case("true"))
    }

    fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, ApiError> {
        let value: Value = serde_json::from_slice(&self.body).map_err(|e| ApiError::BadJson(e.to_string()))?;
        serde_json::from_value(value)
            .map_err(|e| ApiError::Invalid(vec![Detail { path: "/".into(), errors: vec![e.to_string()] }]))
    }

    fn client(&self) -> String {
        self.connection.remote.ip().to_string()
    }
}

async fn front(
    State(face): State<Face>,
    ConnectInfo(connection): ConnectInfo<Connection>,
    request: Request,
) -> Response {
    let Face { core, node } = face;
    let path = request.uri().path().to_owned();
    if path == "/stand-in/faults" {
        // Not Marathon's: for whoever runs the test, whatever state the rest is in.
        return answer(core, connection, request).await;
    }
    let faults = core.faults();
    if faults.hangs(&path) {
        return std::future::pending().await;
    }
    tokio::time::sleep(faults.lateness(&path)).await;
    if let Some(status) = faults.status_for(&path).and_then(|s| StatusCode::from_u16(s).ok()) {
        return (status, axum::Json(json!({"message": "made to fail"}))).into_response();
    }
    if !authorized(&core, request.headers()) {
        return ApiError::Unauthorized.into_response();
    }
    // Every endpoint answers these for itself.
    if matches!(path.as_str(), "/ping" | "/metrics") {
        return answer(core, connection, request).await;
    }
    let (tries, pause) = LEADER_TRIES;
    let mut role = core.role(node);
    for _ in 0..tries {
        if role != Role::Nobody {
            break;
        }
        tokio::time::sleep(pause).await;
        role = core.role(node);
    }
    let events = path == "/v2/events";
    match role {
        Role::Nobody => (StatusCode::BAD_GATEWAY, "Could not determine the current leader").into_response(),
        Role::Warming if events => stream::closed_at_once(),
        Role::Warming => ApiError::Unavailable("The leader is not ready yet".into()).into_response(),
        Role::Leader => {
            let mut response = answer(core.clone(), connection, request).await;
            set(&mut response, LEADER, &format!("http://{}", core.nodes[node]));
            response
        }
        Role::Standby(leader) if events => {
            let query = request.uri().query().map(|q| format!("?{q}")).unwrap_or_default();
            let mut response = StatusCode::FOUND.into_response();
            set(&mut response, header::LOCATION, &format!("http://{leader}/v2/events{query}"));
            response
        }
        Role::Standby(leader) => {
            // By proxy, as far as the client can see.
            let ready = core.leadership.borrow().ready;
            let mut response = match ready {
                true => answer(core.clone(), connection, request).await,
                false => ApiError::Unavailable("The leader is not ready yet".into()).into_response(),
            };
            set(&mut response, LEADER, &format!("http://{leader}"));
            set(&mut response, VIA, &format!("1.1 {}", core.nodes[node]));
            response
        }
    }
}

fn set(response: &mut Response, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

fn authorized(core: &Core, headers: &HeaderMap) -> bool {
    let Some((user, password)) = &core.settings.credentials else { return true };
    let given = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|v| v.strip_prefix("Basic "));
    given.is_some_and(|given| given.trim_end() == base64(format!("{user}:{password}").as_bytes()))
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0u32, |all, b| all << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for n in 0..4 {
            let letter = LETTERS[(group >> (18 - 6 * n)) as usize & 63];
            text.push(if n <= chunk.len() { letter as char } else { '=' });
        }
    }
    text
}

async fn answer(core: Arc<Core>, connection: Connection, request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, MAX_BODY).await else {
        return ApiError::BadRequest("cannot read the body".into()).into_response();
    };
    let query = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri).map(|q| q.0).unwrap_or_default();
    let call = Call { core, method: parts.method, uri: parts.uri, headers: parts.headers, query, body, connection };
    let path: Vec<String> = call.uri.path().split('/').filter(|s| !s.is_empty()).map(decode).collect();
    let path: Vec<&str> = path.iter().flat_map(|s| s.split('/')).filter(|s| !s.is_empty()).collect();
    let result = match path.as_slice() {
        ["v2", "apps", rest @ ..] => apps::route(&call, rest).await,
        ["v2", "groups", rest @ ..] => groups::route(&call, rest),
        ["v2", "tasks", rest @ ..] => tasks::route(&call, rest),
        ["v2", "events"] if call.method == Method::GET => {
            let types: BTreeSet<String> = call.values("event_type").map(str::to_owned).collect();
            Ok(stream::attach(&call.core, &call.headers, types, &call.connection))
        }
        ["stand-in", "faults"] => faults::route(&call).await,
        rest => info::route(&call, rest),
    };
    result.unwrap_or_else(IntoResponse::into_response)
}

/// Percent-decoding; what is not a valid escape stays.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn json_response(status: StatusCode, body: &impl Serialize) -> Response {
    let bytes = serde_json::to_vec(body).expect("text, numbers and JSON");
    (status, [(header::CONTENT_TYPE, "application/json")], bytes).into_response()
}

fn ok(body: &impl Serialize) -> Answer {
    Ok(json_response(StatusCode::OK, body))
}

/// `{"version", "deploymentId"}` and the header.
fn begun(status: StatusCode, begun: &Begun) -> Answer {
    let mut response = json_response(status, &json!({"version": begun.version, "deploymentId": begun.id}));
    set(&mut response, DEPLOYMENT, &begun.id);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_pads_as_the_rfc_says() {
        for (plain, encoded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("user:päss", "dXNlcjpww6Rzcw==")]
        {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }

    #[test]
    fn decodes_what_is_escaped_and_leaves_the_rest() {
        for (text, expect) in [("a%2Fb", "a/b"), ("100%", "100%"), ("%zz", "%zz"), ("%C3%A4", "ä"), ("a+b", "a+b")] {
            assert_eq!(decode(text), expect);
        }
    }
}
