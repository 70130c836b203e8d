//! The life of one client connection: HTTP/1.1 with keep-alive, or HTTP/2 by prior knowledge on the same port.
//!
//! Pingora can tell the two apart and keep connections alive too. It waits for 24 bytes first, which a short HTTP/1.0
//! request never sends, and it does not let go of idle connections when their listener closes; so that part is here.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::BytesMut;
use pingora_core::{
    apps::{HttpServerApp, ServerApp},
    protocols::http::ServerSession,
};
use pingora_proxy::HttpProxy;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    net::TcpStream,
    time::sleep,
};

use crate::{client::Client, listen::Site, proxy::Proxy};

/// RFC 9113, section 3.4.
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a client may be silent between requests. As nginx and Pingora have it by default, near enough.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// A request that was on its way when the listener closed is still answered if it arrives within this time.
const LAST_CALL: Duration = Duration::from_millis(100);

/// Room for a usual request header; grows.
const HEAD_BYTES: usize = 4096;

/// Serves the connection until either side ends it, or until `grace` after the listener closed.
pub(crate) async fn serve(
    tcp: TcpStream,
    peer: SocketAddr,
    site: Arc<Site>,
    proxy: Arc<HttpProxy<Proxy>>,
    grace: Duration,
) {
    let overdue = async {
        site.closing.cancelled().await;
        sleep(grace).await;
    };
    tokio::select! {
        () = converse(tcp, peer, &site, &proxy) => {}
        () = overdue => tracing::debug!(%peer, listener = %site.address, "cut: its listener is gone and the grace period over"),
    }
}

async fn converse(mut tcp: TcpStream, peer: SocketAddr, site: &Arc<Site>, proxy: &Arc<HttpProxy<Proxy>>) {
    let mut head = BytesMut::with_capacity(HEAD_BYTES);
    let is_h2 = loop {
        if !more(&mut tcp, &mut head, site).await {
            return;
        }
        let seen = head.len().min(H2_PREFACE.len());
        if head[..seen] != H2_PREFACE[..seen] {
            break false;
        } else if seen == H2_PREFACE.len() {
            break true;
        }
    };
    let shutdown = site.shutdown.subscribe();
    if is_h2 {
        // The proxy is set to plaintext HTTP/2, and a stream that cannot be peeked at is taken to be that.
        proxy.process_new(Box::new(Client::new(tcp, peer, head, site.digest())), &shutdown).await;
        return;
    }
    let mut session = ServerSession::new_http1(Box::new(Client::new(tcp, peer, BytesMut::new(), site.digest())));
    session.set_keepalive(Some(KEEP_ALIVE.as_secs()));
    loop {
        // What was read to notice the request is handed over as the start of it.
        session.set_pipelined_prefix(head);
        let Some(done) = proxy.process_new_http(session, &shutdown).await else { return };
        let (mut stream, settings) = done.consume();
        head = BytesMut::with_capacity(HEAD_BYTES);
        if !more(&mut stream, &mut head, site).await {
            stream.shutdown().await;
            return;
        }
        session = ServerSession::new_http1(stream);
        if let Some(settings) = settings {
            settings.apply_to_session(&mut session);
        }
    }
}

/// Waits for bytes from the client. False when it said goodbye, was silent for too long or is not wanted any more.
async fn more(stream: &mut (impl AsyncRead + Unpin), head: &mut BytesMut, site: &Site) -> bool {
    let last_call = async {
        site.closing.cancelled().await;
        sleep(LAST_CALL).await;
    };
    tokio::select! {
        biased;
        read = stream.read_buf(head) => read.is_ok_and(|length| length > 0),
        () = last_call => false,
        () = sleep(KEEP_ALIVE) => false,
    }
}
