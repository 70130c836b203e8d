//! The shell around `step`, from outside: the API over a real socket, followers, the store under kill -9, the binary.

#![allow(clippy::unwrap_used, reason = "all of this is tests; clippy knows only functions marked so")]

mod api;
mod binary;
mod follow;
mod layer4;
mod node;
mod store;
