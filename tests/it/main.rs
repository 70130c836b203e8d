//! Everything that is tested from outside, in one binary.

mod lab;

mod marathon;
mod python_client;
