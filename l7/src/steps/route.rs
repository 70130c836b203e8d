//! Host and path to pool.

use std::sync::Arc;

use pingora_http::RequestHeader;

use super::{Answer, Life};
use crate::{listen::Site, table::Miss, traffic::PoolVisit};

/// Finds the pool, or says why nobody will answer.
pub(crate) fn route(request: &RequestHeader, site: &Arc<Site>, life: &mut Life) -> Result<(), Answer> {
    let (host, path) = (host(request), request.uri.path());
    life.site = Some(site.clone());
    // CONNECT asks for a tunnel to anywhere; this proxy has only its pools.
    if request.method == http::Method::CONNECT {
        return Err(Answer::new(405, "CONNECT is not served here: this is no forward proxy"));
    }
    let routes = site.routes.load();
    let pool = match routes.find(host, path) {
        Ok(route) => {
            tracing::trace!(host, path, %route, "routed");
            &route.target
        }
        Err(miss) => {
            let host = host.unwrap_or("(none)");
            let why = match miss {
                Miss::Host => format!("no route for the host {host} (path {path}) at {}", site.address),
                Miss::Path => format!("no route for the path {path} of the host {host} at {}", site.address),
            };
            return Err(Answer::new(404, why));
        }
    };
    life.pool = Some(PoolVisit::new(pool.clone()));
    if !pool.is_usable() {
        pool.count_unavailable();
        return Err(Answer::new(503, pool.why_unavailable(0, None)));
    }
    Ok(())
}

/// The host that the request is for. Pingora has refused requests that name two different ones.
pub(super) fn host(request: &RequestHeader) -> Option<&str> {
    let of_target = || request.uri.authority().map(|authority| authority.as_str());
    let of_absolute = || absolute(request.raw_path()).map(|(authority, _)| authority);
    let of_header = || request.headers.get(http::header::HOST).and_then(|host| host.to_str().ok());
    of_target().or_else(of_absolute).or_else(of_header).filter(|host| !host.is_empty())
}

/// Takes an absolute-form target apart (RFC 9112, section 3.2.2): authority, and path with query.
pub(super) fn absolute(target: &[u8]) -> Option<(&str, &[u8])> {
    let rest = [&b"http://"[..], b"https://"].into_iter().find_map(|scheme| {
        let (start, rest) = target.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    })?;
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    Some((std::str::from_utf8(authority).ok()?, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_absolute_targets_apart() {
        let cases = [
            ("http://a.example/x?y=1", Some(("a.example", "/x?y=1"))),
            ("HTTPS://a.example:8443", Some(("a.example:8443", ""))),
            ("http://a.example?q", Some(("a.example", "?q"))),
            ("/http://a.example/", None),
            ("ftp://a.example/", None),
            ("*", None),
            ("", None),
        ];
        for (target, expected) in cases {
            let expected = expected.map(|(authority, path)| (authority, path.as_bytes()));
            assert_eq!(absolute(target.as_bytes()), expected, "{target}");
        }
    }
}
