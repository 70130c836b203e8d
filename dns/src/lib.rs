//! The DNS plane: names of one zone, answered from data that is swapped live.
//!
//! It knows names, addresses and services (SRV). It does not know what an ELB, an app or Marathon is.
//! Start reading at [`input`], then `zone`, then `serve`.

pub mod config;
pub mod input;
pub mod report;
mod run;

pub use config::Config;
pub use input::{Input, Name, Node, Refused, Srv};
pub use report::Report;
pub use run::run;
