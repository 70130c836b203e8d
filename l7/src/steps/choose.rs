//! Pool to upstream, again for each try.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use pingora_core::{
    ErrorType,
    upstreams::peer::{HttpPeer, PeerOptions},
};

use super::{Answer, Life};
use crate::{config::Config, upgrade};

/// How long an unused connection to an upstream is kept. Shorter than the five seconds after which Node.js closes
/// its side: a POST sent on a connection that is being closed is lost and must not be sent again.
const KEEP_IDLE: Duration = Duration::from_secs(4);

/// How long an upgraded connection may be silent, as HAProxy users set their `timeout tunnel`.
pub(crate) const TUNNEL_SILENCE: Duration = Duration::from_secs(3600);

/// Picks an upstream that was not tried yet.
pub(crate) fn choose(life: &mut Life, dice: u64) -> Result<SocketAddr, Answer> {
    let Some(pool) = life.pool.as_ref().map(|visit| &visit.0) else {
        return Err(Answer::new(500, "the request has no route"));
    };
    life.attempts += 1;
    if life.attempts == 2 {
        pool.count_retry();
    }
    // Gives back the last one before the next is picked, so that it does not count as busy with this request.
    life.upstream = None;
    life.upstream = pool.pick(&life.tried, dice);
    match &life.upstream {
        Some(visit) => Ok(visit.0.address),
        None => Err(unavailable(life)),
    }
}

/// Takes note that the upstream did not take the connection. True if another one should be asked: nothing was sent
/// yet, so this is right for every method.
pub(crate) fn give_up_on_upstream(life: &mut Life, error: &ErrorType, config: &Config) -> bool {
    let Some(visit) = life.upstream.take() else { return false };
    visit.0.count_connect_failure();
    let address = visit.0.address;
    let how = match error {
        ErrorType::ConnectRefused => "refuses connections".to_owned(),
        ErrorType::ConnectTimedout => format!("did not answer within {} ms", config.connect_timeout_ms),
        ErrorType::ConnectNoRoute => "cannot be reached (no route)".to_owned(),
        other => format!("cannot be connected to ({})", other.as_str()),
    };
    tracing::debug!(%address, how, "upstream does not take the connection");
    life.last_failure = Some(format!("{address}, {how}"));
    life.tried.push(address);
    life.tried.len() < config.tries
}

/// Nobody took the connection.
pub(crate) fn unavailable(life: &Life) -> Answer {
    let Some(pool) = life.pool.as_ref().map(|visit| &visit.0) else {
        return Answer::new(500, "the request has no route");
    };
    pool.count_unavailable();
    Answer::new(503, pool.why_unavailable(life.tried.len(), life.last_failure.as_deref()))
}

/// How to connect and how long to wait. The upstreams' side is HTTP/1.1.
pub(crate) fn peer(address: SocketAddr, upgrade: bool, config: &Config) -> HttpPeer {
    let mut peer = HttpPeer::new(address, false, String::new());
    let connect = Duration::from_millis(config.connect_timeout_ms);
    let silence = Duration::from_millis(config.upstream_read_timeout_ms);
    let options: &mut PeerOptions = &mut peer.options;
    options.connection_timeout = Some(connect);
    // By default Pingora waits for ever for an upstream that does not answer, or does not read.
    options.read_timeout = Some(silence);
    options.write_timeout = Some(silence);
    options.idle_timeout = Some(KEEP_IDLE);
    if upgrade {
        options.read_timeout = Some(silence.max(TUNNEL_SILENCE));
        options.custom_l4 = Some(Arc::new(upgrade::Connect));
        // The one that holds for a connector of ours.
        options.total_connection_timeout = Some(connect);
        // A connection of its own, from and for nobody else.
        options.idle_timeout = Some(Duration::ZERO);
        peer.group_key = fastrand::u64(1..);
    }
    peer
}
