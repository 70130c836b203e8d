//! Copies of packets for `tidegate l4 capture`, as they came and as they leave.
//!
//! The functions are global ones: the verifier looks at each once, and not again after every way through the balancer.

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    helpers::{
        bpf_get_smp_processor_id, bpf_ktime_get_ns,
        generated::{bpf_xdp_get_buff_len, bpf_xdp_load_bytes},
    },
};
use tidegate_ebpf::{
    Headers,
    abi::{Address, CAPTURE_BYTES, Captured, TCP, UDP, Watch},
    parse::PLAIN_L3,
    wire::{ETHERTYPE_V4, ETHERTYPE_V6, ETHERTYPE_VLAN, Ethernet, Ipv4, Ipv6, OFFSET, Ports, Vlan},
};

use crate::{
    frame::Frame,
    maps::{ARRIVED, CAPTURED, WATCH},
};

/// Copies what is asked for. It may not look like that any more when it leaves, so that is remembered.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn arriving(context: *mut xdp_md) -> u32 {
    let fits = fits(context);
    if let Some(arrived) = ARRIVED.get_ptr_mut(0) {
        // SAFETY: this CPU's own; XDP does not interrupt itself.
        unsafe { *arrived = u32::from(fits) };
    }
    if fits {
        copy(context, Captured::CAME, 0, true);
    }
    0
}

/// What became of a packet. One that did not look like one that is asked for may do so now: a real's answer goes to its
/// client.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn leaving(context: *mut xdp_md, action: u32, detail: u32) -> u32 {
    // SAFETY: as above.
    let arrived = ARRIVED.get_ptr_mut(0).is_some_and(|arrived| unsafe { core::mem::take(&mut *arrived) } != 0);
    let sent = action == xdp_action::XDP_TX || action == xdp_action::XDP_REDIRECT;
    if arrived || (sent && fits(context)) {
        copy(context, action, detail, sent);
    }
    0
}

/// Source or destination is the address that is asked for, and one of its ports the port.
#[inline(always)]
fn fits(context: *mut xdp_md) -> bool {
    let Some(watch) = WATCH.get(0) else { return false };
    let any = watch.address == Address::default();
    (any && watch.port == 0) || matches(&mut Frame(context), watch, any).unwrap_or(false)
}

#[inline(always)]
fn matches(frame: &mut Frame, watch: &Watch, any: bool) -> Option<bool> {
    let mut ethertype = frame.at::<Ethernet>(0)?.ethertype;
    let mut l3 = PLAIN_L3;
    if ethertype == ETHERTYPE_VLAN {
        ethertype = frame.at::<Vlan>(l3)?.ethertype;
        l3 += size_of::<Vlan>();
    }
    let (source, destination, protocol, l4) = match ethertype {
        ETHERTYPE_V4 => {
            let ip = frame.at::<Ipv4>(l3)?;
            // A later fragment has no ports.
            let protocol = if ip.fragment & OFFSET == 0 { ip.protocol } else { 0 };
            let header = usize::from(ip.version_ihl & 15) * 4;
            (Address::v4(ip.source), Address::v4(ip.destination), protocol, l3 + header)
        }
        ETHERTYPE_V6 => {
            let ip = frame.at::<Ipv6>(l3)?;
            (Address(ip.source), Address(ip.destination), ip.next, l3 + size_of::<Ipv6>())
        }
        _ => return None,
    };
    if !any && source != watch.address && destination != watch.address {
        return None;
    }
    if watch.port == 0 {
        return Some(true);
    }
    if protocol != TCP && protocol != UDP {
        return None;
    }
    let ports = frame.at::<Ports>(l4)?;
    let port = watch.port.to_be();
    Some(ports.source == port || ports.destination == port)
}

#[inline(always)]
fn copy(context: *mut xdp_md, action: u32, detail: u32, bytes: bool) {
    let Some(watch) = WATCH.get_ptr_mut(0) else { return };
    // SAFETY: map memory; other CPUs may count at once, and a packet more or less does no harm.
    unsafe {
        let left = (*watch).left;
        if left == 0 {
            return;
        }
        (*watch).left = left - 1;
    }
    // SAFETY: a helper that only reads the context.
    let length = unsafe { bpf_xdp_get_buff_len(context.cast()) as u32 };
    let held = if length > CAPTURE_BYTES as u32 { CAPTURE_BYTES as u32 } else { length };
    let Some(mut entry) = CAPTURED.reserve(0) else {
        // SAFETY: as above.
        unsafe { (*watch).lost += 1 };
        return;
    };
    let captured: *mut Captured = entry.as_mut_ptr();
    // SAFETY: the entry is ours until it is submitted, and as long as `Captured` is.
    unsafe {
        (*captured).at = bpf_ktime_get_ns();
        (*captured).length = length;
        (*captured).held = 0;
        (*captured).ifindex = (*context).ingress_ifindex;
        (*captured).action = action;
        (*captured).detail = detail;
        (*captured).cpu = bpf_get_smp_processor_id();
        if bytes {
            (*captured).held = held;
            // Kernels before 6.4 lose a bound that is compared in one register and passed in another: it is masked.
            let size = (u64::from(held).wrapping_sub(1) & (CAPTURE_BYTES as u64 - 1)) + 1;
            bpf_xdp_load_bytes(context.cast(), 0, (&raw mut (*captured).bytes).cast(), size as u32);
        }
    }
    entry.submit(0);
}
