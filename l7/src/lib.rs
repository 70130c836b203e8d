//! The layer-7 plane: requests in, the right upstream out, with routes and upstreams that are swapped live.
//!
//! It knows listeners, routes, pools and upstreams. It does not know what an ELB, an app or Marathon is.
//! Start reading at [`input`], then `table` and `pool`, then `proxy`.

pub mod config;
pub mod input;
pub mod report;
mod run;

pub use config::Config;
pub use input::{Input, Listener, Pool, Refused, Route, Upstream, UpstreamState};
pub use report::Report;
pub use run::run;
