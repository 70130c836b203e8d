//! The Ethernet header, with or without an 802.1Q tag.

use crate::{
    abi::{Hop, Reason},
    balance::{Packet, Step},
    parse::Seen,
    wire::{ETHERTYPE_V4, ETHERTYPE_V6, ETHERTYPE_VLAN, Ethernet, Vlan},
};

/// Sends a packet whose headers are done to its next hop.
#[inline(always)]
pub(crate) fn send<P: Packet>(packet: &mut P, seen: &Seen, hop: &Hop, ifindex: u32) -> Step {
    if hop.vlan == 0 && seen.l3 as usize == size_of::<Ethernet>() {
        let Some(ethernet) = packet.at::<Ethernet>(0) else { return Step::drop(Reason::Malformed) };
        ethernet.destination.set(&hop.destination_mac);
        ethernet.source.set(&hop.source_mac);
        return Step::leave(ifindex, hop);
    }
    if header(packet, &{ *seen }, &{ *hop }) == 0 {
        return Step::drop(Reason::NoRoom);
    }
    Step::leave(ifindex, hop)
}

/// Gives the frame a header of another length: 1, or 0 where there is no room.
#[inline(never)]
fn header<P: Packet>(packet: &mut P, seen: &Seen, hop: &Hop) -> u32 {
    let ethertype = if seen.v4 { ETHERTYPE_V4 } else { ETHERTYPE_V6 };
    u32::from(begin(packet, seen.l3 as usize, 0, hop, ethertype).is_some())
}

/// Puts the Ethernet header of `hop`, and room for `wrap` bytes after it, before the network header at `l3`. Returns
/// where that room begins.
#[inline(always)]
pub fn begin<P: Packet>(packet: &mut P, l3: usize, wrap: usize, hop: &Hop, ethertype: u16) -> Option<usize> {
    let tag = if hop.vlan == 0 { 0 } else { size_of::<Vlan>() };
    let grow = (size_of::<Ethernet>() + tag + wrap) as i32 - l3 as i32;
    if grow != 0 && !packet.grow(grow) {
        return None;
    }
    if hop.vlan == 0 {
        // Field by field: a whole struct would be copied by way of the stack.
        let ethernet = packet.at::<Ethernet>(0)?;
        ethernet.destination.set(&hop.destination_mac);
        ethernet.source.set(&hop.source_mac);
        ethernet.ethertype = ethertype;
        return Some(size_of::<Ethernet>());
    }
    packet.at::<Vlan>(size_of::<Ethernet>())?;
    let ethernet = packet.at::<Ethernet>(0)?;
    ethernet.destination.set(&hop.destination_mac);
    ethernet.source.set(&hop.source_mac);
    ethernet.ethertype = ETHERTYPE_VLAN;
    let vlan = packet.at::<Vlan>(size_of::<Ethernet>())?;
    vlan.control = (hop.vlan & 0xfff).to_be();
    vlan.ethertype = ethertype;
    Some(size_of::<Ethernet>() + size_of::<Vlan>())
}
