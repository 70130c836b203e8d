//! A network of namespaces without names: one switch, and machines that hang on it.
//!
//! ```text
//!   client ─┐      ┌─ appliance (eth0 is ready for XDP_TX)
//!           switch
//! marathon ─┘      ├─ agent ─ bridged containers (172.17.0.0/16, mapped ports)
//!                  └─ containers with addresses of their own
//! ```
//!
//! Nothing in it has a name outside the process: when the process ends, however it ends, the kernel takes everything
//! away. Any number of labs live side by side with the same addresses. Start reading at [`Fabric`].

mod agent;
mod bpf;
mod fabric;
mod mounts;
mod ns;
mod process;
mod require;

pub use agent::{Agent, Mapping, Protocol, Running, Task};
pub use fabric::{Fabric, Host, addresses};
pub use mounts::Mounts;
pub use ns::Ns;
pub use process::Process;
pub use require::{require, skip};
