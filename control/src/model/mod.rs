//! The words of the domain.

pub mod app;
pub mod desired;
pub mod elb;
pub mod observed;
