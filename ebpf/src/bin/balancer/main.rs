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
use tidegate_ebpf::{Tables, Verdict};

use crate::{frame::Frame, maps::Maps};

/// The balancer: the usual packets itself, the others by `rest`.
#[xdp]
#[inline(always)]
fn balance(context: XdpContext) -> u32 {
    let maps = Maps::<false>::new(context.ctx);
    let capturing = maps.capturing();
    if capturing {
        capture::arriving(context.ctx);
    }
    let Some(verdict) = tidegate_ebpf::usual(&mut Frame(context.ctx), &maps) else {
        // SAFETY: user space has put `rest` there before the program was attached.
        unsafe { maps::PROGRAMS.tail_call(&context, 0) };
        return xdp_action::XDP_PASS;
    };
    let action = act(verdict);
    if capturing {
        capture::leaving(context.ctx, action, detail(verdict));
    }
    action
}

/// The packets that are not usual. A program of its own, since it needs all the stack that the kernel gives.
#[xdp]
#[inline(always)]
fn rest(context: XdpContext) -> u32 {
    let maps = Maps::<false>::new(context.ctx);
    let verdict = tidegate_ebpf::whole(&mut Frame(context.ctx), &maps);
    let action = act(verdict);
    if maps.capturing() {
        capture::leaving(context.ctx, action, detail(verdict));
    }
    action
}

/// Decides as the balancer would, writes nothing but `trace`, and leaves in the packet what would be sent.
#[xdp]
#[inline(always)]
fn explain(context: XdpContext) -> u32 {
    let maps = Maps::<true>::new(context.ctx);
    maps.trace(|trace| trace.at = maps.now());
    let mut frame = Frame(context.ctx);
    // What is not ours goes no further.
    act(tidegate_ebpf::usual(&mut frame, &maps).unwrap_or_else(|| tidegate_ebpf::whole(&mut frame, &maps)))
}

/// Writes the clock to `clock`, and lets the next hops be believed for as long as the frame's first 8 bytes say, ns;
/// for user space to run by itself.
#[xdp]
#[inline(always)]
fn beat(context: XdpContext) -> u32 {
    let now = Maps::<false>::new(context.ctx).now();
    if let Some(clock) = maps::CLOCK.get_ptr_mut(0) {
        // SAFETY: map memory; one store.
        unsafe { clock.write_volatile(now) };
    }
    let start = context.data();
    if start + size_of::<u64>() <= context.data_end()
        && let Some(settings) = maps::SETTINGS.get_ptr_mut(0)
    {
        // SAFETY: inside the frame (checked above), which begins at an aligned address; map memory, one store.
        unsafe { (&raw mut (*settings).hops_until).write_volatile(now + *(start as *const u64)) };
    }
    xdp_action::XDP_PASS
}

/// Lets everything pass. A veth's far end needs a program for its own side to be able to transmit from XDP.
#[xdp]
#[inline(always)]
fn pass(_context: XdpContext) -> u32 {
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
