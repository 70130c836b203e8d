//! One file for each party outside.

pub mod follow;
pub mod marathon;
pub mod probe;
pub mod resolve;
pub mod store;

/// The time, for whatever must be told it.
#[allow(clippy::disallowed_methods, reason = "the edge is where the time comes from")]
pub(crate) fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

/// An HTTP client for another tidegate: straight to it, and without the system's certificates where none are needed (a
/// bare container has none).
pub(crate) fn http_client(base: &str) -> reqwest::ClientBuilder {
    let builder = reqwest::Client::builder().no_proxy().connect_timeout(std::time::Duration::from_secs(3));
    if base.starts_with("http://") { builder.tls_certs_only([]) } else { builder }
}
