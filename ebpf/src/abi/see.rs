//! What can be seen from outside: sampled events, captured packets, and the explanation of one packet.

use super::Address;

/// Bytes of a packet that a capture or an event holds.
pub const CAPTURE_BYTES: usize = 256;

/// A new flow that was sampled, or a packet that was dropped (at most one in each millisecond and CPU is told).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Event {
    /// ns of the program's clock.
    pub at: u64,
    pub client: Address,
    pub vip: Address,
    pub client_port: u16,
    pub vip_port: u16,
    pub protocol: u8,
    /// 1: dropped.
    pub dropped: u8,
    pub pad: u16,
    /// The service's id; `u32::MAX`: none.
    pub service: u32,
    /// The real's id, or the drop's [`super::Reason`].
    pub detail: u32,
}

/// What whoever looks wants to see; all zeros: nothing. In a map of its own, since the process that serves writes
/// `settings`, and another one this: single words, each of which has one writer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Watch {
    /// All zeros: any. Otherwise the source or the destination of the outermost header, of the packet as it comes or,
    /// if that is somebody else's, as it leaves.
    pub address: Address,
    /// 0: any. As `address`.
    pub port: u16,
    pub pad: u16,
    /// 1: packets are captured.
    pub capture: u32,
    /// Copies that may still be taken; counted down by the program, so that a capture that nobody reads any more ends.
    pub left: u32,
    /// Copies for which there was no room, counted up.
    pub lost: u32,
    /// One of so many new flows is told (a power of two); 0: none.
    pub log_every: u32,
    pub pad2: u32,
}

/// A packet as XDP saw it, or as it sent it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Captured {
    /// ns of the monotonic clock.
    pub at: u64,
    /// Of the whole packet.
    pub length: u32,
    /// How much of it follows. 0 where what became of it is no packet: it passed unchanged, or was dropped.
    pub held: u32,
    /// The interface that it came by.
    pub ifindex: u32,
    /// What became of it: an `xdp_action`; [`Captured::CAME`]: this is the packet as it came.
    pub action: u32,
    /// The drop's [`super::Reason`], or the interface that it was redirected to.
    pub detail: u32,
    /// A CPU does one packet after the other: what became of one is told next by the same CPU.
    pub cpu: u32,
    pub bytes: [u8; CAPTURE_BYTES],
}

impl Captured {
    pub const CAME: u32 = u32::MAX;
}

/// How a decision came about.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Trace {
    /// [`Why`], as a number.
    pub why: u32,
    /// `u32::MAX`: none was asked or found.
    pub service: u32,
    pub slot: u32,
    /// The slot's word as it stands in the ring.
    pub word: u32,
    pub real: u32,
    /// The flow's index; `u32::MAX`: it has none.
    pub flow: u32,
    /// The drop's [`super::Reason`]; `u32::MAX`: it is not dropped.
    pub reason: u32,
    /// 1: the next hop was known from `reals`; 2: the kernel was asked.
    pub hop: u32,
    /// The program's clock, ns.
    pub at: u64,
}

/// Why a real was chosen.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Why {
    /// None was.
    Nothing = 0,
    /// The slot is stable: its real.
    Slot = 1,
    /// The slot moves, and the packet opens a flow: the new real.
    MovingNew = 2,
    /// The slot moves, and the flow was recorded.
    Recorded = 3,
    /// The slot moves, and the flow is from before: the previous real.
    MovingPrevious = 4,
    /// A FULLNAT flow that is there.
    Flow = 5,
    /// A FULLNAT flow that would be made.
    NewFlow = 6,
    /// An answer of a real to a FULLNAT flow.
    Answer = 7,
    /// An ICMP error about a flow.
    Error = 8,
    /// Answered by the balancer itself.
    Echo = 9,
}

const _: () = {
    assert!(size_of::<Event>() == 56);
    assert!(size_of::<Watch>() == 40);
    assert!(size_of::<Captured>() == 32 + CAPTURE_BYTES);
    assert!(size_of::<Trace>() == 40);
};
