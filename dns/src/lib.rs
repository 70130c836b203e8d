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
