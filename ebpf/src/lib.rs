//! The packet core: what happens to a frame, and every map that it is decided by.
//!
//! ```text
//!            client's packet                          real's reply
//!  parse ─► service? ─ yes ─► select ─► next hop ─► nat ─► TX      (flow and reverse entries)
//!              └ no ─► reverse entry? ─ yes ─► nat ─► TX
//!                           └ no ─► PASS: the host's own packet, untouched
//! ```
//!
//! `no_std`, no panics, and no pointers: the kernel's side of [`Packet`] and [`Tables`] is in `bin/balancer.rs`, the
//! laptop's in `host`. It knows services, reals and flows by number; it does not know where they come from.
//! Start reading at [`balance`](mod@balance), then [`abi`].

#![cfg_attr(not(any(test, feature = "host")), no_std)]

pub mod abi;
pub mod balance;
#[cfg(any(test, feature = "host"))]
pub mod frames;
#[cfg(any(test, feature = "host"))]
pub mod host;
pub mod nat;
pub mod parse;
pub mod probe;
pub mod select;
#[cfg(test)]
mod tests;

pub use balance::{Hop, Packet, Tables, Verdict, balance};
