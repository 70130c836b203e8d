//! The lab: a network in namespaces, a Marathon stand-in that runs real processes, and an oracle that counts every
//! request of a client, so that a story can say "0 lost" and be believed.

pub mod appliance;
pub mod http1;
pub mod lab;
pub mod oracle;
