//! The packet core: what happens to a frame, and every map that it is decided by.
//!
//! ```text
//!  anything ─► ours? ─ no ─► PASS: the host's own packet, untouched
//!                │ yes
//!                ├─ the usual packet ─► quick ─► TX, without a call
//!                └─ unusual ─► parse ─┐
//!                              ├─ to a VIP ─► guard ─┬─ FULLNAT ─► flows ─► (client, cookie) ─► nat ─► TX
//!                              │                     └─ others ─► select: ring slot, records ─► encap ─► TX
//!                              ├─ from a real ─► flows ─► (client) ─► nat ─► TX
//!                              └─ ICMP ─► echo, or the error to the right real or client
//! ```
//!
//! `no_std`, no panics, and no pointers but in `wire::inside`: the kernel's side of [`Packet`] and [`Tables`] is in
//! `bin/balancer`, the laptop's in `host`. It knows services, reals and flows by number; it does not know where they come from.
//! The real server's side ([`real`]) takes tunnels apart and reads who the client is.
//! Start reading at [`balance`](mod@balance), then [`abi`].

#![cfg_attr(not(any(test, feature = "host")), no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod abi;
pub mod balance;
pub mod checksum;
mod client;
mod cookie;
pub mod encap;
pub mod flows;
mod forget;
#[cfg(any(test, feature = "host"))]
pub mod frames;
pub mod guard;
#[cfg(any(test, feature = "host"))]
pub mod host;
mod icmp;
#[cfg(any(test, feature = "host"))]
pub mod layers;
pub mod link;
pub mod nat;
pub mod options;
pub mod parse;
pub mod probe;
pub mod proxy;
mod quick;
pub mod real;
pub mod replay;
#[cfg(any(test, feature = "host"))]
pub mod scripts;
mod segment;
pub mod select;
mod stretch;
#[cfg(test)]
mod tests;
pub mod toa;
mod unusual;
pub mod wire;

pub use balance::{Headers, Packet, Stage, Tables, Verdict, balance, quick as usual, whole};

/// Of every object that is made with this. The kernel lends some of its helpers only to programs that say so, and loaders
/// say it by themselves for an object without this section.
#[cfg(feature = "kernel")]
#[used]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
