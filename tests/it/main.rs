//! Everything that is tested from outside, in one binary.

mod bad_input;
mod demo;
mod house;
mod lab;
mod marathon;
mod oracle;
mod python_client;
mod stories;
