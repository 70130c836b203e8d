//! The DNS plane: names of one zone, answered from data that is swapped live.
//!
//! ```text
//!  Input ──▶ zone (patched by what changed) ──▶ ArcSwap
//!                                                  │
//!  query ──▶ serve (UDP, TCP) ──▶ wire (message) ──▶ lookup ──▶ wire (fit to size) ──▶ answer
//! ```
//!
//! It knows names, addresses and services (SRV). It does not know what an ELB, an app or Marathon is; it asks no other
//! server and keeps no cache. Start reading at [`input`], then `zone`, then `serve`.

#![forbid(unsafe_code)]

pub mod config;
pub mod input;
mod lookup;
pub mod report;
mod run;
mod serve;
mod wire;
mod zone;

pub use config::Config;
pub use input::{Input, Name, Node, Refused, Srv};
pub use report::Report;
pub use run::run;

/// The datagram that answers `query` from `input` alone, as the running plane would: for tests, fuzzing and what-if
/// questions. None: the plane would be silent.
///
/// # Errors
/// The input is not one that the plane would take.
pub fn answer(query: &[u8], input: std::sync::Arc<Input>, udp_payload: u16) -> Result<Option<Vec<u8>>, Refused> {
    let zone = zone::Zone::default().patch(input)?;
    Ok(wire::reply(query, &zone, udp_payload, 0).and_then(wire::Reply::datagram))
}
