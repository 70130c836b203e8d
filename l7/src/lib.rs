//! The layer-7 plane: requests in, the right upstream out, with routes and upstreams that are swapped live.
//!
//! ```text
//! client ─► listen ─► connection ─► proxy ─► upstream
//!           (accept)  (h1 or h2c)   │ route    host and path -> pool       (table)
//!                                   │ choose   pool -> upstream, per try   (pool)
//!                                   │ forward  what the upstream is told
//!                                   ▼ answer   when there is nobody to ask
//! Input ─► run ─► plane ── swaps tables and pools under the requests; counters ─► Report
//! ```
//!
//! It knows listeners, routes, pools and upstreams. It does not know what an ELB, an app or Marathon is.
//! Pingora reads and writes HTTP; its types stay inside this crate. Start reading at [`input`], then `table` and
//! `pool`, then `proxy`.
#![forbid(unsafe_code)]

pub mod config;
pub mod input;
pub mod report;

// Pure: no clock, socket, file or dice.
mod pool;
mod table;

mod client;
mod connection;
mod listen;
mod plane;
mod proxy;
mod run;
mod steps;
mod traffic;
mod upgrade;

pub use config::Config;
pub use input::{Input, Listener, Pool, Refused, Route, Upstream, UpstreamState};
pub use report::Report;
pub use run::run;
