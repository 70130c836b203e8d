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
