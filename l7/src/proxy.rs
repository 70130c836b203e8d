//! The life of a request: each of Pingora's phases calls one step.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use pingora_core::{
    Error, ErrorSource, ErrorType, Result, apps::HttpServerOptions, modules::http::HttpModules, protocols::Digest,
    server::configuration::ServerConf, upstreams::peer::HttpPeer,
};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, HttpProxy, ProxyHttp, ProxyWarnLogContext, Session, http_proxy};

use crate::{
    config::Config,
    listen::Site,
    steps::{Answer, Life, answer, choose, forward, route},
};

/// Longest silence of a client within a request or an answer. Pingora's default for reading is the same; for writing
/// it has none, and a client that stops reading would hold its upstream for ever.
const CLIENT_SILENCE: Duration = Duration::from_secs(60);

/// An HTTP/2 connection without streams is closed after this time; Pingora by default keeps it.
const H2_IDLE: Duration = Duration::from_secs(60);

/// Connections to upstreams that are kept for the next request, per thread.
const KEPT_CONNECTIONS: usize = 1024;

/// How often a request may be begun again beyond `tries`, because a kept connection turned out to be dead.
const STALE_RETRIES: usize = 3;

pub(crate) struct Proxy {
    config: Config,
}

impl Proxy {
    /// The proxy in Pingora's harness, ready for connections.
    pub(crate) fn start(config: Config) -> Arc<HttpProxy<Self>> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let conf = ServerConf {
            threads,
            upstream_keepalive_pool_size: KEPT_CONNECTIONS,
            max_retries: config.tries.max(1) + STALE_RETRIES,
            ..ServerConf::default()
        };
        let mut proxy = http_proxy(&Arc::new(conf), Self { config });
        let mut options = HttpServerOptions::default();
        options.h2c = true;
        options.h2_idle_timeout = Some(H2_IDLE);
        // So that `route` refuses it in our words.
        options.allow_connect_method_proxying = true;
        proxy.server_options = Some(options);
        Arc::new(proxy)
    }
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = Life;

    fn new_ctx(&self) -> Life {
        Life::default()
    }

    /// No compression module: bodies pass as they are.
    fn init_downstream_modules(&self, _: &mut HttpModules) {}

    async fn request_filter(&self, session: &mut Session, life: &mut Life) -> Result<bool> {
        let silence = if session.is_upgrade_req() { choose::TUNNEL_SILENCE } else { CLIENT_SILENCE };
        session.set_read_timeout(Some(silence));
        session.set_write_timeout(Some(CLIENT_SILENCE));
        session.set_total_drain_timeout(Some(CLIENT_SILENCE));

        let site = session.digest().and_then(|digest| digest.proxy_digest.as_deref()).and_then(Site::of).cloned();
        let site = site.ok_or_else(|| Error::explain(ErrorType::InternalError, "a connection without a listener"))?;
        match route::route(session.req_header(), &site, life) {
            Ok(()) => Ok(false),
            Err(answer) => {
                tracing::debug!(listener = %site.address, status = answer.status, why = answer.text, "refused");
                close_if_closing(session, life);
                answer.send(session).await?;
                Ok(true)
            }
        }
    }

    async fn upstream_peer(&self, session: &mut Session, life: &mut Life) -> Result<Box<HttpPeer>> {
        match choose::choose(life, fastrand::u64(..)) {
            Ok(address) => Ok(Box::new(choose::peer(address, session.is_upgrade_req(), &self.config))),
            Err(answer) => {
                let status = answer.status;
                life.answer = Some(answer);
                Err(Error::new(ErrorType::HTTPStatus(status)))
            }
        }
    }

    fn fail_to_connect(&self, _: &mut Session, _: &HttpPeer, life: &mut Life, mut error: Box<Error>) -> Box<Error> {
        error.set_retry(choose::give_up_on_upstream(life, error.etype(), &self.config));
        error
    }

    async fn connected_to_upstream(
        &self,
        _: &mut Session,
        _reused: bool,
        _: &HttpPeer,
        _: std::os::fd::RawFd,
        _: Option<&Digest>,
        life: &mut Life,
    ) -> Result<()> {
        if let Some(visit) = &life.upstream {
            visit.0.count_request();
        }
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        _: &mut Life,
    ) -> Result<()> {
        let client = session.client_addr().and_then(|address| address.as_inet()).map(|address| address.ip());
        forward::forward(request, client)
    }

    async fn response_filter(&self, session: &mut Session, _: &mut ResponseHeader, life: &mut Life) -> Result<()> {
        close_if_closing(session, life);
        Ok(())
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, life: &mut Life) -> FailToProxy {
        let upstream = life.upstream.as_ref().map(|visit| visit.0.address);
        let answer = answer::explain(error, life, &self.config);
        log(error, answer.as_ref(), upstream);
        let Some(answer) = answer else { return FailToProxy { error_code: 0, can_reuse_downstream: false } };
        if let Err(error) = answer.send_last(session).await {
            tracing::debug!(%error, "the client is gone");
        }
        FailToProxy { error_code: answer.status, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, _: Option<&Error>, life: &mut Life) {
        if let (Some(pool), Some(response)) = (&life.pool, session.response_written()) {
            pool.0.count_status(response.status.as_u16());
        }
    }

    // Ours is the one line per failure.
    fn suppress_error_log(&self, _: &Session, _: &Life, _: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(&self, _: &Session, _: &Life, _: &Error, _: ProxyWarnLogContext) -> bool {
        true
    }
}

/// Tells an HTTP/1 client that the listener is going away; HTTP/2 has GOAWAY for it.
fn close_if_closing(session: &mut Session, life: &Life) {
    if life.site.as_ref().is_some_and(|site| site.closing.is_cancelled()) {
        session.set_keepalive(None);
    }
}

/// An upstream that breaks off is worth a warning. A client's fault is not, and neither is an empty pool: it would be
/// a line per request, and the counters tell it.
fn log(error: &Error, answer: Option<&Answer>, upstream: Option<std::net::SocketAddr>) {
    match answer {
        Some(Answer { status: status @ (502 | 504), text }) => {
            tracing::warn!(status, ?upstream, cause = %error, "{text}");
        }
        Some(Answer { status, text }) if *error.esource() == ErrorSource::Internal && *status == 500 => {
            tracing::warn!(status, ?upstream, cause = %error, "{text}");
        }
        Some(Answer { status, text }) => tracing::debug!(status, ?upstream, cause = %error, "{text}"),
        None => tracing::debug!(?upstream, cause = %error, "the client broke off"),
    }
}
