//! `/v2/events`: server-sent events exactly as Marathon writes them.

use std::{collections::BTreeSet, convert::Infallible, sync::Arc};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::{HeaderMap, StatusCode, header};
use tokio::time::{Instant, Interval, interval_at};

use super::{
    core::Core,
    events::{self, Bus, Subscription},
    serve::Connection,
};

/// Events that are waiting together go out in one write, up to this many.
const COALESCE: usize = 16;

/// Answers a request for the stream.
pub(crate) fn attach(
    core: &Arc<Core>,
    headers: &HeaderMap,
    types: BTreeSet<String>,
    connection: &Connection,
) -> Response {
    let accepts = headers.get_all(header::ACCEPT).iter().filter_map(|a| a.to_str().ok());
    if !accepts.into_iter().any(|a| a.contains("text/event-stream")) {
        return not_allowed();
    }
    let remote = connection.remote.ip().to_string();
    let filter = (!types.is_empty()).then_some(types);
    // Subscribed first, announced then: the client hears of its own attachment, and from there misses nothing.
    let subscription = core.bus.subscribe(filter, connection.cut.clone());
    core.bus.publish(events::attached(&remote));
    let period = core.settings.keep_alive;
    let open = Open {
        bus: core.bus.clone(),
        subscription,
        connection: connection.clone(),
        remote,
        keep_alive: interval_at(Instant::now() + period, period),
    };
    opened(Body::from_stream(stream::unfold(open, |mut open| async {
        let bytes = open.next().await?;
        Some((Ok::<_, Infallible>(bytes), open))
    })))
}

/// A stream that ends at once: a new leader that is not ready.
pub(crate) fn closed_at_once() -> Response {
    opened(Body::empty())
}

fn opened(body: Body) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream;charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache, no-store, must-revalidate"),
        (header::CONNECTION, "close"),
    ];
    (StatusCode::OK, headers, body).into_response()
}

/// Jetty's page for a GET without `Accept: text/event-stream`.
fn not_allowed() -> Response {
    let page = "<html>\n<head>\n<meta http-equiv=\"Content-Type\" content=\"text/html;charset=ISO-8859-1\"/>\n\
                <title>Error 405 </title>\n</head>\n<body>\n<h2>HTTP ERROR: 405</h2>\n\
                <p>Problem accessing /v2/events. Reason:\n<pre>    HTTP method GET is not supported by this URL</pre></p>\n\
                </body>\n</html>\n";
    let kind = [(header::CONTENT_TYPE, "text/html;charset=iso-8859-1")];
    (StatusCode::METHOD_NOT_ALLOWED, kind, page).into_response()
}

struct Open {
    bus: Arc<Bus>,
    subscription: Subscription,
    connection: Connection,
    remote: String,
    keep_alive: Interval,
}

impl Open {
    async fn next(&mut self) -> Option<Bytes> {
        let first = tokio::select! {
            biased;
            () = self.connection.cut.cancelled() => return None,
            frame = self.subscription.frames.recv() => frame?,
            // An empty line, whether events come or not.
            _ = self.keep_alive.tick() => return Some(Bytes::from_static(b"\r\n")),
        };
        let mut bytes = BytesMut::from(&first.bytes[..]);
        let mut receipts = Vec::from_iter(first.receipt);
        for _ in 1..COALESCE {
            let Ok(frame) = self.subscription.frames.try_recv() else { break };
            bytes.extend_from_slice(&frame.bytes);
            receipts.extend(frame.receipt);
        }
        self.connection.receipts.lock().expect("nobody panics with it").append(&mut receipts);
        Some(bytes.freeze())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.bus.unsubscribe(self.subscription.id);
        self.bus.publish(events::detached(&self.remote));
    }
}
