//! The plane alone, on loopback, between hand-written clients and upstreams.
//!
//! `LAB_REQUIRE=1` turns a test that would be skipped for want of a tool into a failure.

mod change;
mod lab;
mod protocols;
mod robust;
mod routing;
