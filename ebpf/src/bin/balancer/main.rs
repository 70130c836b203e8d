//! The XDP programs: map statics and entries, no decisions. Built by `cargo xtask ebpf`.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![allow(internal_features, reason = "the BPF target has no atomic types, only their instructions")]

mod capture;
mod frame;
mod maps;
mod stages;

use aya_ebpf::{bindings::xdp_action, helpers::bpf_redirect, macros::xdp, programs::XdpContext};
use tidegate_ebpf::Verdict;

use crate::{frame::Frame, maps::Maps};

/// The balancer.
#[xdp]
pub fn balance(context: XdpContext) -> u32 {
    let capturing = capture::wanted();
    let arrived = if capturing { capture::arriving(context.ctx) } else { 0 };
    let maps = Maps::<false> { context: context.ctx };
    let verdict = tidegate_ebpf::balance(&mut Frame(context.ctx), &maps);
    let action = act(verdict);
    if capturing {
        capture::leaving(context.ctx, action, detail(verdict), arrived);
    }
    action
}

/// Decides as the balancer would, writes nothing but `trace`, and leaves in the packet what would be sent.
#[xdp]
pub fn explain(context: XdpContext) -> u32 {
    let maps = Maps::<true> { context: context.ctx };
    act(tidegate_ebpf::balance(&mut Frame(context.ctx), &maps))
}

/// Lets everything pass. A veth's far end needs a program for its own side to be able to transmit from XDP.
#[xdp]
pub fn pass(_context: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[inline(always)]
fn act(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Drop(_) => xdp_action::XDP_DROP,
        Verdict::Transmit => xdp_action::XDP_TX,
        // SAFETY: a helper without pointers; an interface that is gone makes it answer XDP_ABORTED.
        Verdict::Redirect(ifindex) => unsafe { bpf_redirect(ifindex, 0) as u32 },
    }
}

/// What a capture tells beside the action.
#[inline(always)]
fn detail(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Drop(reason) => reason as u32,
        Verdict::Redirect(ifindex) => ifindex,
        Verdict::Pass | Verdict::Transmit => 0,
    }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // No panic survives into the object: the verifier would refuse this loop.
    loop {}
}
