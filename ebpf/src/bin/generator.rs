//! Packets out of nothing, for measurements: `BPF_PROG_TEST_RUN` runs [`generate`] on live frames, each of which leaves
//! for a device as if it had been received there. Built by `cargo xtask ebpf`, loaded by the bench alone.

#![no_std]
#![no_main]

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::Array,
    helpers::bpf_redirect,
    macros::{btf_map, xdp},
    programs::XdpContext,
};

/// A frame in words.
type Frame = [u64; 8];

/// The frame to send, followed by the numbers below. The bench says in `lvs/guest/traffic.rs` what each of them is.
#[btf_map(name = "order")]
static ORDER: Array<[u64; 16], 1> = Array::new();
const NEXT: usize = 8;
const FLOWS: usize = 9;
const DEVICE: usize = 10;
const PORT: usize = 11;
const HOST: usize = 12;
const IP_SUM: usize = 13;
const UDP_SUM: usize = 14;

/// The beginning of the frame that `catch` saw last.
#[btf_map(name = "caught")]
static CAUGHT: Array<Frame, 1> = Array::new();

/// So many ports of a client before the next client's turn comes.
const PORTS_BITS: u64 = 14;

/// Writes the whole header anew: the kernel hands out the same few pages again and again, with what the balancer made
/// of them.
#[xdp]
fn generate(context: XdpContext) -> u32 {
    let (Some(order), Some(frame)) = (ORDER.get_ptr_mut(0), words(&context)) else { return xdp_action::XDP_ABORTED };
    // SAFETY: the only entry, which nobody else uses while packets are made.
    let order = unsafe { &mut *order };
    let number = order[NEXT];
    order[NEXT] = number + 1;
    let flow = match order[FLOWS] {
        0 => number,
        flows => number % flows,
    };
    let port = order[PORT] + (flow & ((1 << PORTS_BITS) - 1));
    let host = order[HOST] + (flow >> PORTS_BITS & 0xffff);
    let start = frame.cast::<u8>();
    // SAFETY: 64 bytes are inside the packet (`words`), the map's value begins with as many, and all offsets are below.
    unsafe {
        let mut at = 0;
        while at < 8 {
            frame.add(at).write_unaligned(order[at]);
            at += 1;
        }
        start.add(24).cast::<u16>().write_unaligned(checksum(order[IP_SUM] + host));
        start.add(28).cast::<u16>().write_unaligned((host as u16).to_be());
        start.add(34).cast::<u16>().write_unaligned((port as u16).to_be());
        start.add(40).cast::<u16>().write_unaligned(checksum(order[UDP_SUM] + host + port));
    }
    // SAFETY: a helper without pointers.
    unsafe { bpf_redirect(order[DEVICE] as u32, 0) as u32 }
}

/// Where measured packets end.
#[xdp]
fn sink(_context: XdpContext) -> u32 {
    xdp_action::XDP_DROP
}

/// Sends packets back as they came: the way through both ends of a cable, without anybody's thinking.
#[xdp]
fn reflect(_context: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// Where the packets end that are looked at.
#[xdp]
fn catch(context: XdpContext) -> u32 {
    if let (Some(caught), Some(frame)) = (CAUGHT.get_ptr_mut(0), words(&context)) {
        // SAFETY: both are 64 bytes long; the frame may begin anywhere.
        unsafe { caught.write(frame.cast::<Frame>().read_unaligned()) };
    }
    xdp_action::XDP_DROP
}

/// What running a program costs without the program.
#[xdp]
fn empty(_context: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[inline(always)]
fn words(context: &XdpContext) -> Option<*mut u64> {
    let start = context.data();
    (start + size_of::<Frame>() <= context.data_end()).then_some(start as *mut u64)
}

/// Of a sum of 16-bit words in host order; as it stands in a header.
#[inline(always)]
fn checksum(sum: u64) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    (!(sum as u16)).to_be()
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // No panic survives into the object: the verifier would refuse this loop.
    loop {}
}
