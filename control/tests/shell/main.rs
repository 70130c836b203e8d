//! The shell around `step`, from outside: the API over a real socket, followers, the store under kill -9, the binary.

mod api;
mod binary;
mod follow;
mod node;
mod store;
