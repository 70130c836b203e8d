//! Everything that is tested from outside, in one binary.

mod house;
mod lab;
mod oracle;
