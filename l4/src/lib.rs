//! The layer-4 plane: VIP:port in, real:port out, by an XDP program and the maps that it reads.
//!
//! ```text
//! Input ─► tables (what every map must hold) ─► diff ─► maps (ordered writes, pinned) ─► XDP program
//!                                                         │
//! Report ◄─ stats (per VIP, per real, drops, drains) ◄──────┘
//! ```
//!
//! It knows VIPs, reals and rings. It does not know what an ELB, an app or Marathon is.
//! [`real`] is the other end: what a real that answers clients itself does, on its own machine and by itself.
//! Start reading at [`input`], then `tables`, then `run`.

pub mod config;
pub mod input;
pub mod report;

// Pure.
pub mod census;
mod locals;
pub mod maglev;
mod regions;
pub mod ring;
pub mod tables;

// With the kernel. (Of `hops`, `way`, `book` and `message` are pure.)
mod announce;
mod drains;
mod heads;
pub mod health;
pub mod hops;
mod kernel;
mod links;
mod mapped;
pub mod maps;
pub mod network;
mod pins;
pub mod real;
pub mod see;
mod stats;
pub mod xdp;

mod run;

pub use census::Census;
pub use config::Config;
pub use input::{
    ClientAddress, Forward, Frontend, Input, Probe, ProbeKind, Protection, Protocol, Rate, Real, RealState, Refused,
    Service, SourceRate,
};
pub use report::Report;
pub use run::{remove, run};
