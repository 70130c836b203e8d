//! Copies of packets for `tidegate l4 capture`, as they came and as they leave.

use aya_ebpf::{
    EbpfContext,
    helpers::{
        bpf_ktime_get_ns,
        generated::{bpf_xdp_get_buff_len, bpf_xdp_load_bytes},
    },
    programs::XdpContext,
};
use tidegate_ebpf::abi::{CAPTURE_BYTES, Captured};

use crate::maps::{CAPTURE, CAPTURED, SETTINGS};

#[inline(always)]
pub(crate) fn wanted() -> bool {
    SETTINGS.get(0).is_some_and(|settings| settings.capture != 0)
}

#[inline(never)]
pub(crate) fn arriving(context: &XdpContext) -> u32 {
    copy(context, u32::MAX)
}

#[inline(never)]
pub(crate) fn leaving(context: &XdpContext, action: u32) -> u32 {
    copy(context, action)
}

/// 1: copied.
#[inline(always)]
fn copy(context: &XdpContext, action: u32) -> u32 {
    let Some(capture) = CAPTURE.get_ptr_mut(0) else { return 0 };
    // SAFETY: map memory; another CPU may count at once, and a packet more or less does no harm.
    unsafe {
        if (*capture).left == 0 {
            return 0;
        }
        (*capture).left -= 1;
    }
    // SAFETY: a helper that only reads the context.
    let length = unsafe { bpf_xdp_get_buff_len(context.as_ptr().cast()) as u32 };
    let held = if length > CAPTURE_BYTES as u32 { CAPTURE_BYTES as u32 } else { length };
    let Some(mut entry) = CAPTURED.reserve(0) else { return 0 };
    let captured: *mut Captured = entry.as_mut_ptr();
    // SAFETY: the entry is ours until it is submitted, and as long as `Captured` is.
    unsafe {
        (*captured).at = bpf_ktime_get_ns();
        (*captured).length = length;
        (*captured).held = held;
        (*captured).ifindex = context.ingress_ifindex() as u32;
        (*captured).action = action;
        // A length that is known not to be 0 is what the verifier wants.
        let held = if held == 0 { 1 } else { held };
        bpf_xdp_load_bytes(context.as_ptr().cast(), 0, (&raw mut (*captured).bytes).cast(), held);
    }
    entry.submit(0);
    1
}
