//! Tunnels taken apart where another XDP program has the interface: behind it, and behind GRO, which may have made one
//! packet of several.

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6, BPF_F_ADJ_ROOM_FIXED_GSO, TC_ACT_UNSPEC,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    macros::classifier,
    programs::TcContext,
};
use core::mem::offset_of;
use tidegate_ebpf::{
    Headers,
    real::decap::{self, LOOKED_AT, Look, Peel},
    wire::{ETHERTYPE_V4, Ethernet, Wire, inside},
};

use super::{Maps, count};

/// A packet of which only the beginning lies in one piece.
struct Front(*mut __sk_buff);

impl Headers for Front {
    #[inline(always)]
    fn length(&self) -> usize {
        // SAFETY: the context is the kernel's, for as long as the program runs.
        unsafe { (*self.0).len as usize }
    }

    #[inline(always)]
    fn at<T: Wire>(&mut self, offset: usize) -> Option<&mut T> {
        // SAFETY: as above; the borrow of the only handle to the packet keeps a second reference out.
        unsafe { inside((*self.0).data as usize, (*self.0).data_end as usize, offset) }
    }
}

#[classifier]
fn open_tc(context: TcContext) -> i32 {
    let length = context.len() as usize;
    let wanted = if length < LOOKED_AT { length } else { LOOKED_AT };
    // The headers may lie in another piece.
    if context.data_end() - context.data() < wanted {
        let _ = context.pull_data(wanted as u32);
    }
    match decap::look(&mut Front(context.skb.skb), &Maps) {
        Look::Other => {}
        Look::Refused(reason) => count(reason),
        Look::Peel(peel) => {
            if take_away(&context, &peel).is_ok() {
                count(peel.count);
            }
        }
    }
    // Whoever comes next in this place sees what is inside.
    TC_ACT_UNSPEC
}

#[inline(always)]
fn take_away(context: &TcContext, peel: &Peel) -> Result<(), i64> {
    // Of another family inside, the kernel has to be told (Linux 6.3).
    let family = match (context.skb.protocol() as u16 == ETHERTYPE_V4, peel.inner_v4) {
        (true, false) => BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
        (false, true) => BPF_F_ADJ_ROOM_DECAP_L3_IPV4,
        _ => 0,
    };
    // What GRO made of several segments keeps their size.
    let flags = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO | family);
    context.adjust_room(-(peel.length as i32), BPF_ADJ_ROOM_MAC, flags)?;
    context.store(offset_of!(Ethernet, ethertype), &peel.ethertype(), 0)
}
