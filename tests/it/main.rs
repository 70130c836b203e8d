//! Everything that is tested from outside, in one binary.
#![allow(clippy::unwrap_used, reason = "all of this is test code; clippy knows only functions that are marked #[test]")]

mod bad_input;
mod demo;
mod house;
mod lab;
mod marathon;
mod oracle;
mod python_client;
mod stories;
