//! Everything that is tested from outside, in one binary.

mod bad_input;
mod demo;
mod lab;
mod oracle;
mod stories;
