//! The words of the domain.

pub mod app;
mod change;
pub mod desired;
pub mod elb;
pub mod observed;
pub mod ports;
pub mod traffic;
