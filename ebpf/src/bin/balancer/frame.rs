//! The kernel's frame.

use aya_ebpf::{
    bindings::xdp_md,
    helpers::{
        bpf_xdp_adjust_head, bpf_xdp_adjust_tail,
        generated::{bpf_xdp_load_bytes, bpf_xdp_store_bytes},
    },
};
use tidegate_ebpf::{
    Headers, Packet, Stage, Tables,
    options::ROOM,
    wire::{Wire, inside},
};

use crate::stages;

pub(crate) struct Frame(pub(crate) *mut xdp_md);

impl Frame {
    #[inline(always)]
    fn start(&self) -> usize {
        // SAFETY: the context is the kernel's, for as long as the program runs.
        unsafe { (*self.0).data as usize }
    }

    #[inline(always)]
    fn end(&self) -> usize {
        // SAFETY: as above.
        unsafe { (*self.0).data_end as usize }
    }
}

impl Headers for Frame {
    #[inline(always)]
    fn length(&self) -> usize {
        self.end() - self.start()
    }

    #[inline(always)]
    fn at<T: Wire>(&mut self, offset: usize) -> Option<&mut T> {
        // SAFETY: as above; the borrow of the only handle to the packet keeps a second reference out.
        unsafe { inside(self.start(), self.end(), offset) }
    }
}

impl Packet for Frame {
    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0).ingress_ifindex }
    }

    #[inline(always)]
    fn load(&mut self, offset: usize, to: &mut [u8; ROOM], length: usize) -> bool {
        // SAFETY: the helper checks the packet's bounds, the verifier those of the buffer.
        unsafe { bpf_xdp_load_bytes(self.0, offset as u32, to.as_mut_ptr().cast(), length as u32) == 0 }
    }

    #[inline(always)]
    fn store(&mut self, offset: usize, from: &[u8; ROOM], length: usize) -> bool {
        // SAFETY: as above; the helper does not write to the buffer.
        unsafe { bpf_xdp_store_bytes(self.0, offset as u32, from.as_ptr().cast_mut().cast(), length as u32) == 0 }
    }

    #[inline(always)]
    fn grow(&mut self, bytes: i32) -> bool {
        // SAFETY: the helper checks the bounds; every pointer into the packet is made anew afterwards, by `at`.
        unsafe { bpf_xdp_adjust_head(self.0, -bytes) == 0 }
    }

    #[inline(always)]
    fn cut(&mut self, length: usize) -> bool {
        let more = length as i32 - self.length() as i32;
        // SAFETY: as above.
        more == 0 || (more < 0 && unsafe { bpf_xdp_adjust_tail(self.0, more) == 0 })
    }

    #[inline(always)]
    fn stage<T: Tables>(&mut self, _tables: &T, stage: Stage, value: u64) -> u64 {
        stages::call(self.0, T::DRY, stage, value)
    }
}
