//! What makes a health probe's packets look like a client's: at the interface's way out and way in (tcx or clsact).
//! Built by `cargo xtask ebpf`.
//!
//! Checksums are changed by the kernel's helpers alone: those of packets on their way out are often still to be
//! computed by the device, and the helpers know which part of them is there already.

#![no_std]
#![no_main]

use core::mem::offset_of;

use aya_ebpf::{
    bindings::{
        BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_MARK_MANGLED_0,
        BPF_F_PSEUDO_HDR, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_adj_room_mode,
    },
    btf_maps::HashMap,
    helpers::{bpf_csum_diff, bpf_csum_update},
    macros::{btf_map, classifier},
    programs::TcContext,
};
use tidegate_ebpf::{
    abi::{TCP, UDP},
    probe::{FIRST_PORT, LAST_PORT, WAYS_CAPACITY, Way, WayKey, gue, outer_v4, outer_v6},
    wire::{Ethernet, Ipv4, Ipv6, Tcp, Udp},
};

#[btf_map(name = "ways")]
static WAYS: HashMap<WayKey, Way, WAYS_CAPACITY> = HashMap::new();

const IPV4: u16 = 0x0800_u16.to_be();
const IPV6: u16 = 0x86dd_u16.to_be();
const NETWORK: usize = size_of::<Ethernet>();

/// From a probe's socket to the real.
#[classifier]
fn probe_out(context: TcContext) -> i32 {
    let Some((packet, way)) = seen(&context, true) else { return TC_ACT_UNSPEC };
    if packet.peer != way.real.0 || packet.peer_port != way.real_port {
        return TC_ACT_UNSPEC;
    }
    let done = rewrite(&context, &packet, true, way.vip.0, way.vip_port)
        .and_then(|()| if way.mode == Way::DIRECT { Some(()) } else { wrap(&context, &packet, &way) });
    // Half of it would be a probe of something else.
    if done.is_some() { TC_ACT_UNSPEC } else { TC_ACT_SHOT as i32 }
}

/// From the real, in the VIP's name, to a probe's socket.
#[classifier]
fn probe_in(context: TcContext) -> i32 {
    let Some((packet, way)) = seen(&context, false) else { return TC_ACT_UNSPEC };
    if packet.peer == way.vip.0 && packet.peer_port == way.vip_port {
        rewrite(&context, &packet, false, way.real.0, way.real_port);
    }
    TC_ACT_UNSPEC
}

/// A packet of a probe: its other end, as `Address` has it.
struct Seen {
    v4: bool,
    protocol: u8,
    port: u16,
    peer: [u32; 4],
    peer_port: u16,
}

impl Seen {
    #[inline(always)]
    fn transport(&self) -> usize {
        NETWORK + if self.v4 { size_of::<Ipv4>() } else { size_of::<Ipv6>() }
    }

    #[inline(always)]
    fn peer_at(&self, out: bool) -> usize {
        NETWORK
            + match (self.v4, out) {
                (true, true) => offset_of!(Ipv4, destination),
                (true, false) => offset_of!(Ipv4, source),
                (false, true) => offset_of!(Ipv6, destination),
                (false, false) => offset_of!(Ipv6, source),
            }
    }
}

#[inline(always)]
fn seen(context: &TcContext, out: bool) -> Option<(Seen, Way)> {
    let (v4, protocol, peer) = match context.skb.protocol() as u16 {
        IPV4 => {
            let header: Ipv4 = context.load(NETWORK).ok()?;
            // Options and fragments are none of ours.
            if header.version_ihl != 0x45 || u16::from_be(header.fragment) & 0x3fff != 0 {
                return None;
            }
            let peer = if out { header.destination } else { header.source };
            (true, header.protocol, tidegate_ebpf::abi::Address::v4(peer).0)
        }
        IPV6 => {
            let header: Ipv6 = context.load(NETWORK).ok()?;
            (false, header.next, if out { header.destination } else { header.source })
        }
        _ => return None,
    };
    if protocol != TCP && protocol != UDP {
        return None;
    }
    let transport = NETWORK + if v4 { size_of::<Ipv4>() } else { size_of::<Ipv6>() };
    let [source, destination]: [u16; 2] = context.load(transport).ok()?;
    let (port, peer_port) = if out { (source, destination) } else { (destination, source) };
    let (port, peer_port) = (u16::from_be(port), u16::from_be(peer_port));
    // All other traffic of the host passes here too.
    if !(FIRST_PORT..=LAST_PORT).contains(&port) {
        return None;
    }
    let key = WayKey { port, protocol, v4: u8::from(v4) };
    // SAFETY: copied at once; an entry is replaced as a whole, never written in place.
    let way = unsafe { WAYS.get(&key) }.copied()?;
    Some((Seen { v4, protocol, port, peer, peer_port }, way))
}

/// Gives the packet another peer: its destination on the way out, its source on the way in.
#[inline(always)]
fn rewrite(context: &TcContext, packet: &Seen, out: bool, peer: [u32; 4], port: u16) -> Option<()> {
    let (checksum, flags) = if packet.protocol == TCP {
        (packet.transport() + offset_of!(Tcp, checksum), 0)
    } else {
        // UDP's 0 means "none", so a sum of 0 is written as its other self.
        (packet.transport() + offset_of!(Udp, checksum), u64::from(BPF_F_MARK_MANGLED_0))
    };
    let address = flags | u64::from(BPF_F_PSEUDO_HDR) | 4;
    if packet.v4 {
        let (from, to) = (u64::from(packet.peer[3]), u64::from(peer[3]));
        context.l4_csum_replace(checksum, from, to, address).ok()?;
        context.l3_csum_replace(NETWORK + offset_of!(Ipv4, checksum), from, to, 4).ok()?;
        context.store(packet.peer_at(out), &peer[3], 0).ok()?;
    } else {
        for (from, to) in packet.peer.into_iter().zip(peer) {
            context.l4_csum_replace(checksum, u64::from(from), u64::from(to), address).ok()?;
        }
        let (mut from, mut to) = (packet.peer, peer);
        // A sum of the whole packet, which some devices make, is taken by the helper to change with an address, as it
        // does in IPv4, whose own header's sum stands against it. In IPv6 it does not: back.
        // SAFETY: both arrays are as long as is said.
        let change = unsafe { bpf_csum_diff(from.as_mut_ptr(), 16, to.as_mut_ptr(), 16, 0) };
        // SAFETY: a helper on the context; without such a sum it refuses, and there is nothing to do.
        unsafe { bpf_csum_update(context.skb.skb, change as u32) };
        context.store(packet.peer_at(out), &peer, 0).ok()?;
    }
    let (from, to) = (packet.peer_port.to_be(), port.to_be());
    context.l4_csum_replace(checksum, u64::from(from), u64::from(to), flags | 2).ok()?;
    context.store(packet.transport() + if out { 2 } else { 0 }, &to, 0).ok()
}

/// Puts the outer headers of a tunnel before it.
#[inline(always)]
fn wrap(context: &TcContext, packet: &Seen, way: &Way) -> Option<()> {
    let udp = if way.mode == Way::GUE { size_of::<Udp>() } else { 0 };
    let (network, family) = if packet.v4 {
        (size_of::<Ipv4>(), BPF_F_ADJ_ROOM_ENCAP_L3_IPV4)
    } else {
        (size_of::<Ipv6>(), BPF_F_ADJ_ROOM_ENCAP_L3_IPV6)
    };
    let flags = family | if udp == 0 { 0 } else { BPF_F_ADJ_ROOM_ENCAP_L4_UDP };
    let room = (network + udp) as i32;
    let mac = bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
    let length = if packet.v4 {
        let inner: Ipv4 = context.load(NETWORK).ok()?;
        let length = u16::from_be(inner.length).wrapping_add(udp as u16);
        context.skb.adjust_room(room, mac, u64::from(flags)).ok()?;
        context.store(NETWORK, &outer_v4(&inner, length, way.real.0[3], way.mode), 0).ok()?;
        length
    } else {
        let inner: Ipv6 = context.load(NETWORK).ok()?;
        let length = u16::from_be(inner.length).wrapping_add((size_of::<Ipv6>() + udp) as u16);
        context.skb.adjust_room(room, mac, u64::from(flags)).ok()?;
        context.store(NETWORK, &outer_v6(&inner, length, way.real.0, way.mode), 0).ok()?;
        length
    };
    if udp != 0 {
        context.store(NETWORK + network, &gue(way.gue_port, packet.port, length), 0).ok()?;
    }
    Some(())
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // No panic survives into the object: the verifier would refuse this loop.
    loop {}
}
