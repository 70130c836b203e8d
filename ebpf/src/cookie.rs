//! SYN cookies: under a flood the balancer answers SYNs itself, and opens a flow only for clients that prove that they
//! have their address.

use crate::{
    abi::Reason,
    balance::{Packet, Step, Tables},
};

/// Answers a SYN.
#[inline(always)]
pub(crate) fn challenge<P: Packet, T: Tables>(_packet: &mut P, _tables: &T) -> Step {
    Step::drop(Reason::Cookie)
}

/// An acknowledgement of no flow that is known.
#[inline(always)]
pub(crate) fn accept<P: Packet, T: Tables>(_packet: &mut P, _tables: &T) -> Step {
    Step::drop(Reason::Cookie)
}
