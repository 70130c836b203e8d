//! The XDP programs: map statics and entries, no decisions. Built by `cargo xtask ebpf`.

#![no_std]
#![no_main]

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, BPF_NOEXIST,
        bpf_fib_lookup as FibLookup, xdp_action, xdp_md,
    },
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray},
    helpers::{bpf_fib_lookup, bpf_ktime_get_coarse_ns, bpf_redirect},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use tidegate_ebpf::{
    Hop, Packet, Tables, Verdict,
    abi::{
        self, Address, Counters, Flow, Real, Reason, Reverse, RingBlock, Service, ServiceKey, Settings, Tuple, capacity,
    },
    parse::Wire,
    select::slot_of,
};

#[btf_map(name = "settings")]
static SETTINGS: Array<Settings, 1> = Array::new();
#[btf_map(name = "locals")]
static LOCALS: Array<Address, { 2 * abi::LOCALS as usize }> = Array::new();
#[btf_map(name = "services")]
static SERVICES: HashMap<ServiceKey, Service, { capacity::SERVICES }> = HashMap::new();
#[btf_map(name = "reals")]
static REALS: Array<Real, { capacity::REALS }> = Array::new();
#[btf_map(name = "rings")]
static RINGS: Array<RingBlock, { capacity::RING_BLOCKS }> = Array::new();
#[btf_map(name = "flows")]
static FLOWS: LruHashMap<Tuple, Flow, { capacity::FLOWS }> = LruHashMap::new();
#[btf_map(name = "reverses")]
static REVERSES: LruHashMap<Tuple, Reverse, { capacity::FLOWS }> = LruHashMap::new();
#[btf_map(name = "service_counts")]
static SERVICE_COUNTERS: PerCpuArray<Counters, { capacity::SERVICES }> = PerCpuArray::new();
#[btf_map(name = "real_counts")]
static REAL_COUNTERS: PerCpuArray<Counters, { capacity::REALS }> = PerCpuArray::new();
#[btf_map(name = "drops")]
static DROPS: PerCpuArray<u64, { Reason::NAMES.len() }> = PerCpuArray::new();

/// The balancer.
#[xdp]
pub fn balance(context: XdpContext) -> u32 {
    let maps = Maps { context: context.ctx };
    match tidegate_ebpf::balance(&mut Frame(context), &maps) {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Drop(_) => xdp_action::XDP_DROP,
        Verdict::Transmit => xdp_action::XDP_TX,
        // SAFETY: a helper without pointers; an interface that is gone makes it answer XDP_ABORTED.
        Verdict::Redirect(ifindex) => unsafe { bpf_redirect(ifindex, 0) as u32 },
    }
}

/// Lets everything pass. A veth's far end needs a program for its own side to be able to transmit from XDP.
#[xdp]
pub fn pass(_context: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

struct Frame(XdpContext);

impl Packet for Frame {
    #[inline(always)]
    fn length(&self) -> usize {
        self.0.data_end() - self.0.data()
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        self.0.ingress_ifindex() as u32
    }

    #[inline(always)]
    fn head<T: Wire>(&mut self) -> Option<&mut T> {
        let start = self.0.data();
        if start + size_of::<T>() > self.0.data_end() {
            return None;
        }
        // SAFETY: the bytes are inside the packet (checked above, and by the verifier again), `Wire` takes any bytes,
        // and the borrow of the only handle to the packet keeps a second reference out.
        Some(unsafe { &mut *(start as *mut T) })
    }
}

struct Maps {
    context: *mut xdp_md,
}

impl Tables for Maps {
    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_ktime_get_coarse_ns() }
    }

    #[inline(always)]
    fn settings(&self) -> Settings {
        SETTINGS.get(0).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn local(&self, index: u32) -> Option<Address> {
        LOCALS.get(index).copied()
    }

    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<Service> {
        // SAFETY: copied at once; an entry is replaced as a whole, never written in place.
        unsafe { SERVICES.get(key) }.copied()
    }

    #[inline(always)]
    fn slot(&self, block: u32, slot: u32) -> Option<u32> {
        RINGS.get(block).and_then(|block| slot_of(block, slot))
    }

    #[inline(always)]
    fn real(&self, id: u32) -> Option<Real> {
        REALS.get(id).copied()
    }

    #[inline(always)]
    fn flow(&self, tuple: &Tuple) -> Option<Flow> {
        // SAFETY: copied at once. An entry that is evicted and used anew meanwhile yields a flow whose reverse entry
        // is not this client's, which is noticed.
        unsafe { FLOWS.get(tuple) }.copied()
    }

    #[inline(always)]
    fn set_flow(&self, tuple: &Tuple, flow: &Flow) -> bool {
        FLOWS.insert(tuple, flow, 0).is_ok()
    }

    #[inline(always)]
    fn reverse<R>(&self, tuple: &Tuple, look: impl FnOnce(&mut Reverse) -> R) -> Option<R> {
        // SAFETY: map memory is never unmapped while the program runs. Other CPUs may write the same entry: each field
        // that changes is one store wide, and any mixture of two writers is a state that a next packet mends.
        REVERSES.get_ptr_mut(tuple).map(|reverse| look(unsafe { &mut *reverse }))
    }

    #[inline(always)]
    fn insert_reverse(&self, tuple: &Tuple, reverse: &Reverse) -> bool {
        REVERSES.insert(tuple, reverse, u64::from(BPF_NOEXIST)).is_ok()
    }

    #[inline(always)]
    fn forget_reverse(&self, tuple: &Tuple) {
        let _ = REVERSES.remove(tuple);
    }

    #[inline(always)]
    fn hop(&self, v4: bool, source: &Address, destination: &Address, ifindex: u32) -> Result<Hop, Reason> {
        // SAFETY: integers and unions of integers, for which zero is a value.
        let mut fib: FibLookup = unsafe { core::mem::zeroed() };
        fib.ifindex = ifindex;
        if v4 {
            fib.family = 2;
            fib.__bindgen_anon_3.ipv4_src = source.0[3];
            fib.__bindgen_anon_4.ipv4_dst = destination.0[3];
        } else {
            fib.family = 10;
            fib.__bindgen_anon_3.ipv6_src = source.0;
            fib.__bindgen_anon_4.ipv6_dst = destination.0;
        }
        // SAFETY: the context is the kernel's, and `fib` is as long as the helper is told.
        let answer = unsafe { bpf_fib_lookup(self.context.cast(), &raw mut fib, size_of::<FibLookup>() as i32, 0) };
        match answer as u32 {
            BPF_FIB_LKUP_RET_SUCCESS => {
                Ok(Hop { ifindex: fib.ifindex, source_mac: fib.smac, destination_mac: fib.dmac })
            }
            BPF_FIB_LKUP_RET_NO_NEIGH => Err(Reason::NoNeighbour),
            BPF_FIB_LKUP_RET_FWD_DISABLED => Err(Reason::ForwardingOff),
            _ => Err(Reason::NoRoute),
        }
    }

    #[inline(always)]
    fn count_service(&self, id: u32, bytes: u64, new_flow: bool) {
        count(SERVICE_COUNTERS.get_ptr_mut(id), bytes, new_flow);
    }

    #[inline(always)]
    fn count_real(&self, id: u32, bytes: u64, new_flow: bool) {
        count(REAL_COUNTERS.get_ptr_mut(id), bytes, new_flow);
    }

    #[inline(always)]
    fn count_drop(&self, reason: Reason) {
        if let Some(count) = DROPS.get_ptr_mut(reason as u32) {
            // SAFETY: this CPU's own counter; XDP does not interrupt itself.
            unsafe { *count += 1 };
        }
    }
}

#[inline(always)]
fn count(counters: Option<*mut Counters>, bytes: u64, new_flow: bool) {
    if let Some(counters) = counters {
        // SAFETY: this CPU's own counters; XDP does not interrupt itself.
        unsafe {
            (*counters).packets += 1;
            (*counters).bytes += bytes;
            (*counters).flows += u64::from(new_flow);
        }
    }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // No panic survives into the object: the verifier would refuse this loop.
    loop {}
}
