//! Programs for measurements alone (`cargo xtask bench l4`): they lay a frame before the balancer, again and again, and
//! make and count traffic. What they lay is said in [`Replay`].

#![no_std]
#![no_main]

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{Array, PerCpuArray, ProgramArray},
    helpers::{bpf_ktime_get_coarse_ns, bpf_xdp_adjust_head},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use tidegate_ebpf::replay::{CALLS, FAR_LINES, PAD, Replay, WORDS};

/// Words that every frame has wholly: the smallest of Ethernet takes 64 bytes.
const LEAST: usize = 8;

#[btf_map(name = "replay")]
static REPLAY: Array<Replay, 1> = Array::new();
/// Who gets the frame.
#[btf_map(name = "target")]
static TARGET: ProgramArray<1> = ProgramArray::new();
/// More memory than caches hold, in lines of the cache.
#[btf_map(name = "far")]
static FAR: Array<[u64; 8], { FAR_LINES as usize }> = Array::new();
#[btf_map(name = "arrived")]
static ARRIVED: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Lays the frame, whatever the run before has made of it, and hands it to the target.
#[xdp]
fn restore(context: XdpContext) -> u32 {
    if lay(&context).is_some() {
        // SAFETY: the target is a program of the same type; it does not come back here.
        unsafe { TARGET.tail_call(&context, 0) };
    }
    xdp_action::XDP_ABORTED
}

/// Lays the frame and sends it out.
#[xdp]
fn generate(context: XdpContext) -> u32 {
    match lay(&context) {
        Some(()) => xdp_action::XDP_TX,
        None => xdp_action::XDP_ABORTED,
    }
}

/// A target that does nothing: what remains is the price of laying frames.
#[xdp]
fn nothing(_context: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// A target that makes room for outer headers, and does no more: the next run has to take it away.
#[xdp]
fn grow(context: XdpContext) -> u32 {
    let Some(replay) = REPLAY.get_ptr(0) else { return xdp_action::XDP_ABORTED };
    // SAFETY: map memory; the context is the kernel's, and no pointer into the packet is held.
    match unsafe { bpf_xdp_adjust_head(context.ctx, ((*replay).growth as i32).wrapping_neg()) } {
        0 => xdp_action::XDP_TX,
        _ => xdp_action::XDP_ABORTED,
    }
}

/// A target that calls a helper which does nearly nothing, [`CALLS`] times.
#[xdp]
fn calls(_context: XdpContext) -> u32 {
    let mut call = 0;
    while call < CALLS {
        // SAFETY: a helper without arguments.
        unsafe { bpf_ktime_get_coarse_ns() };
        call += 1;
    }
    xdp_action::XDP_PASS
}

/// A target that looks at one line of [`FAR`], and at another one for each client. Which one depends on what the look
/// before found (zeros, which the processor cannot know): looks do not overlap.
#[xdp]
fn far_look(_context: XdpContext) -> u32 {
    let Some(replay) = REPLAY.get_ptr_mut(0) else { return xdp_action::XDP_ABORTED };
    // SAFETY: map memory, and one CPU runs this.
    let replay = unsafe { &mut *replay };
    let place = replay.client.wrapping_add(replay.growth).wrapping_mul(0x9e37_79b1) & (FAR_LINES - 1);
    let Some(line) = FAR.get(place) else { return xdp_action::XDP_ABORTED };
    replay.growth = line[0] as u32;
    xdp_action::XDP_PASS
}

/// Where traffic ends.
#[xdp]
fn sink(_context: XdpContext) -> u32 {
    if let Some(arrived) = ARRIVED.get_ptr_mut(0) {
        // SAFETY: this CPU's own counter; XDP does not interrupt itself.
        unsafe { *arrived += 1 };
    }
    xdp_action::XDP_DROP
}

#[inline(always)]
fn lay(context: &XdpContext) -> Option<()> {
    let replay = REPLAY.get_ptr_mut(0)?;
    // SAFETY: map memory is never unmapped while the program runs, and the one who measures runs it on one CPU.
    let replay = unsafe { &mut *replay };
    let length = (context.data_end() - context.data()) as i32;
    let wanted = replay.length as i32;
    if length != wanted {
        // SAFETY: the context is the kernel's; no pointer into the packet is held.
        if unsafe { bpf_xdp_adjust_head(context.ctx, length - wanted) } != 0 {
            return None;
        }
    }
    let words = replay.lay();
    let start = context.data();
    let end = context.data_end();
    if start + LEAST * size_of::<u64>() - PAD > end {
        return None;
    }
    // SAFETY: inside the packet (checked above, and by the verifier again), as are all that follow. XDP's packets begin
    // at a multiple of 8, so these are aligned; the words below are not, and are one instruction all the same.
    unsafe {
        *(start as *mut u32) = (words[0] >> 16) as u32;
        *((start + 4) as *mut u16) = (words[0] >> 48) as u16;
    }
    let mut word = 1;
    while word < LEAST {
        // SAFETY: as above.
        unsafe { *((start + word * size_of::<u64>() - PAD) as *mut u64) = words[word] };
        word += 1;
    }
    // The rest by halves of words: the frame may end within a word.
    let rest = (start + LEAST * size_of::<u64>() - PAD) as *mut u16;
    let mut half = 0;
    while half < 4 * (WORDS - LEAST) {
        // SAFETY: a pointer one past the half word, compared and not followed.
        if unsafe { rest.add(half + 1) } as usize > end {
            break;
        }
        // SAFETY: as above.
        unsafe { *rest.add(half) = (words[LEAST + half / 4] >> (16 * (half % 4))) as u16 };
        half += 1;
    }
    Some(())
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // No panic survives into the object: the verifier would refuse this loop.
    loop {}
}
