//! The packets of flows that need more than a translation: the client's address told to the real (TOA, PROXY), and
//! sequence numbers of a handshake that was ours.

use crate::balance::{Packet, Step, Tables};

/// A client's packet of the flow at `index`.
#[inline(always)]
pub(crate) fn out<P: Packet, T: Tables>(_packet: &mut P, _tables: &T, _index: u32) -> Step {
    Step::PASS
}

/// A real's packet.
#[inline(always)]
pub(crate) fn back<P: Packet, T: Tables>(_packet: &mut P, _tables: &T, _index: u32) -> Step {
    Step::PASS
}
