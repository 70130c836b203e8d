//! The maps, and [`Tables`] on them.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::{
        BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH,
        BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as FibLookup, xdp_md,
    },
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf},
    helpers::{
        bpf_fib_lookup, bpf_get_smp_processor_id, bpf_jiffies64,
        generated::{
            bpf_tcp_raw_check_syncookie_ipv4, bpf_tcp_raw_check_syncookie_ipv6, bpf_tcp_raw_gen_syncookie_ipv4,
            bpf_tcp_raw_gen_syncookie_ipv6,
        },
    },
    macros::btf_map,
};
use tidegate_ebpf::{
    Tables,
    abi::{
        self, AccessKey, AccessKeyData, Address, Captured, Counters, Event, FILTER_WORDS, FilterWord, Flow, Fragment,
        FragmentKey, Frontend, Head, Hop, Limits, Move, Real, Reason, RecordLine, RingBlock, Service, ServiceKey,
        Settings, SourceKey, Trace, Watch, capacity,
    },
    balance::HOP_FOUND,
    parse::Seen,
    select::slot_of,
    wire::{ACK, Ipv4, Ipv6, Pair, Ports, SYN, Tcp},
};

const MAPPED: usize = BPF_F_MMAPABLE as usize;

#[btf_map(name = "settings")]
pub(crate) static SETTINGS: Array<Settings, 1, MAPPED> = Array::new();
#[btf_map(name = "filter")]
static FILTER: Array<FilterWord, FILTER_WORDS, MAPPED> = Array::new();
#[btf_map(name = "locals")]
static LOCALS: Array<Address, { 2 * abi::LOCALS as usize }> = Array::new();
#[btf_map(name = "local_index")]
static LOCAL_INDEX: HashMap<Address, u32, { 2 * abi::LOCALS as usize }> = HashMap::new();
#[btf_map(name = "services")]
static SERVICES: HashMap<ServiceKey, Service, { 2 * capacity::SERVICES }> = HashMap::new();
#[btf_map(name = "heads")]
static HEADS: Array<Head, { capacity::HEADS }, MAPPED> = Array::new();
#[btf_map(name = "frontends")]
static FRONTENDS: Array<Frontend, { capacity::SERVICES }> = Array::new();
#[btf_map(name = "reals")]
static REALS: Array<Real, { capacity::REALS }> = Array::new();
#[btf_map(name = "rings")]
static RINGS: Array<RingBlock, { capacity::RING_BLOCKS }, MAPPED> = Array::new();
#[btf_map(name = "moves")]
static MOVES: Array<Move, { capacity::MOVES }, MAPPED> = Array::new();
#[btf_map(name = "records")]
static RECORDS: Array<RecordLine, { capacity::RECORD_LINES }, MAPPED> = Array::new();
#[btf_map(name = "flows")]
static FLOWS: Array<Flow, { capacity::FLOWS }, MAPPED> = Array::new();
#[btf_map(name = "limits")]
static LIMITS: Array<Limits, { capacity::SERVICES }> = Array::new();
#[btf_map(name = "meters")]
static METERS: Array<u64, { 2 * capacity::SERVICES }, MAPPED> = Array::new();
#[btf_map(name = "sources")]
static SOURCES: LruHashMap<SourceKey, u64, { capacity::SOURCES }> = LruHashMap::new();
#[btf_map(name = "access")]
static ACCESS: LpmTrie<AccessKeyData, u32, { capacity::ACCESS }, { BPF_F_NO_PREALLOC as usize }> = LpmTrie::new();
#[btf_map(name = "fragments")]
static FRAGMENTS: LruHashMap<FragmentKey, Fragment, { capacity::FRAGMENTS }> = LruHashMap::new();
#[btf_map(name = "service_counts")]
static SERVICE_COUNTERS: Array<Counters, { capacity::SERVICES }, MAPPED> = Array::new();
#[btf_map(name = "real_counts")]
static REAL_COUNTERS: Array<Counters, { capacity::REALS }, MAPPED> = Array::new();
#[btf_map(name = "drops")]
static DROPS: PerCpuArray<u64, { Reason::NAMES.len() }> = PerCpuArray::new();
#[btf_map(name = "events")]
static EVENTS: RingBuf<Event, { capacity::EVENTS_BYTES }> = RingBuf::new();
#[btf_map(name = "watch")]
pub(crate) static WATCH: Array<Watch, 1, MAPPED> = Array::new();
#[btf_map(name = "captured")]
pub(crate) static CAPTURED: RingBuf<Captured, { capacity::CAPTURED_BYTES }> = RingBuf::new();
/// No state: nobody but the program knows it, and it is not pinned.
#[btf_map(name = "scratch")]
static SCRATCH: PerCpuArray<Seen, 1> = PerCpuArray::new();
/// When this CPU told of a drop. As above.
#[btf_map(name = "last_told")]
static LAST_TOLD: PerCpuArray<u64, 1> = PerCpuArray::new();
/// 1: the packet that this CPU does was copied as it came. As above.
#[btf_map(name = "arrived")]
pub(crate) static ARRIVED: PerCpuArray<u32, 1> = PerCpuArray::new();
#[btf_map(name = "trace")]
static TRACE: Array<Trace, 1> = Array::new();

/// `rest`, for `balance` to go on with. Of each load its own: the next version's program must not be this one's rest.
#[btf_map(name = "programs")]
pub(crate) static PROGRAMS: ProgramArray<1> = ProgramArray::new();
#[btf_map(name = "clock")]
pub(crate) static CLOCK: Array<u64, 1, MAPPED> = Array::new();

/// The maps as a packet sees them; `DRY` ones are only looked at.
pub(crate) struct Maps<const DRY: bool> {
    context: *mut xdp_md,
    settings: Option<&'static Settings>,
    watch: Option<&'static Watch>,
}

impl<const DRY: bool> Maps<DRY> {
    /// What every packet needs is looked up here, once.
    #[inline(always)]
    pub(crate) fn new(context: *mut xdp_md) -> Self {
        Self { context, settings: SETTINGS.get(0), watch: WATCH.get(0) }
    }

    /// Somebody wants copies of packets.
    #[inline(always)]
    pub(crate) fn capturing(&self) -> bool {
        self.watch.is_some_and(|watch| watch.capture != 0 && watch.left != 0)
    }
}

impl<const IS_DRY: bool> Tables for Maps<IS_DRY> {
    const DRY: bool = IS_DRY;

    #[inline(always)]
    fn now(&self) -> u64 {
        now(self.settings)
    }

    #[inline(always)]
    fn settings(&self) -> Option<&Settings> {
        self.settings
    }

    #[inline(always)]
    fn filter(&self, word: u32) -> FilterWord {
        match FILTER.get(word) {
            Some(word) => *word,
            None => FilterWord { vips: 0, locals: 0 },
        }
    }

    #[inline(always)]
    fn local(&self, index: u32) -> Option<Address> {
        LOCALS.get(index).copied()
    }

    #[inline(always)]
    fn local_index(&self, address: &Address) -> Option<u32> {
        // SAFETY: copied at once.
        unsafe { LOCAL_INDEX.get(address) }.copied()
    }

    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<Service> {
        // SAFETY: copied at once; an entry is replaced as a whole, never written in place.
        unsafe { SERVICES.get(key) }.copied()
    }

    #[inline(always)]
    fn head(&self, place: u32) -> Option<&Head> {
        HEADS.get(place)
    }

    #[inline(always)]
    fn frontend(&self, id: u32) -> Option<Frontend> {
        FRONTENDS.get(id).copied()
    }

    #[inline(always)]
    fn slot(&self, block: u32, slot: u32) -> Option<u32> {
        RINGS.get(block).and_then(|block| slot_of(block, slot))
    }

    #[inline(always)]
    fn moving(&self, index: u32) -> Option<Move> {
        MOVES.get(index).copied()
    }

    #[inline(always)]
    fn real(&self, id: u32) -> Option<&Real> {
        REALS.get(id)
    }

    #[inline(always)]
    fn records<R>(&self, line: u32, look: impl FnOnce(&mut RecordLine) -> R) -> Option<R> {
        let line = RECORDS.get_ptr_mut(line)?;
        if IS_DRY {
            // SAFETY: map memory is never unmapped while the program runs; copied at once.
            let mut copy = unsafe { *line };
            return Some(look(&mut copy));
        }
        // SAFETY: as above. Other CPUs may write the same line: each record is one store wide.
        Some(look(unsafe { &mut *line }))
    }

    #[inline(always)]
    fn flow<R>(&self, index: u32, look: impl FnOnce(&mut Flow) -> R) -> Option<R> {
        let flow = FLOWS.get_ptr_mut(index)?;
        if IS_DRY {
            // SAFETY: map memory is never unmapped while the program runs; copied at once.
            let mut copy = unsafe { *flow };
            return Some(look(&mut copy));
        }
        // SAFETY: as above. Other CPUs may write the same flow: each field that changes is one store wide, and any
        // mixture of two writers is a state that a next packet mends.
        Some(look(unsafe { &mut *flow }))
    }

    /// A dry run's copy of a flow, which is aligned to 64, is more than LLVM can copy for BPF where many fields are read.
    #[inline(always)]
    fn peek<R>(&self, index: u32, look: impl FnOnce(&Flow) -> R) -> Option<R> {
        FLOWS.get(index).map(look)
    }

    #[inline(always)]
    fn lock(&self, index: u32) -> bool {
        let Some(flow) = FLOWS.get_ptr_mut(index) else { return false };
        // SAFETY: an aligned word of map memory, which other CPUs touch by the same instruction alone.
        unsafe { add(&raw mut (*flow).lock, 1) & Flow::LOCKED == 0 }
    }

    #[inline(always)]
    fn unlock(&self, index: u32, from: u32) {
        if let Some(flow) = FLOWS.get_ptr_mut(index) {
            // SAFETY: an aligned word of map memory, and this CPU's own as long as it is locked.
            unsafe { (&raw mut (*flow).lock).write_volatile(Flow::unlocked(from)) };
        }
    }

    #[inline(always)]
    fn spill(&self, index: u32, more: bool) {
        const WORD: usize = offset_of!(Flow, client_end);
        const ONE: u32 = u32::from_ne_bytes([0, 0, 0, 1]);
        const { assert!(WORD.is_multiple_of(4) && offset_of!(Flow, spilled) == WORD + 3) };
        if let Some(flow) = FLOWS.get_ptr_mut(index) {
            // There is no instruction that counts in a byte: the word's other bytes stay as they are, and stores of other
            // CPUs into them come before or after, as a whole.
            // SAFETY: an aligned word of map memory, the flow's four bytes from `client_end` on.
            unsafe { add(flow.cast::<u8>().add(WORD).cast(), if more { ONE } else { ONE.wrapping_neg() }) };
        }
    }

    #[inline(always)]
    fn scratch<R>(&self, look: impl FnOnce(&mut Seen) -> R) -> Option<R> {
        // SAFETY: this CPU's own; XDP does not interrupt itself.
        SCRATCH.get_ptr_mut(0).map(|seen| look(unsafe { &mut *seen }))
    }

    #[inline(always)]
    fn barrier(&self) {
        // SAFETY: nothing is done. The compiler keeps stores on their side of it (LLVM has no fences for BPF);
        // x86 keeps the order of stores, and the lock's atomic instructions order the rest.
        unsafe { core::arch::asm!("") };
    }

    #[inline(always)]
    fn limits(&self, service: u32) -> Option<&Limits> {
        LIMITS.get(service)
    }

    #[inline(always)]
    fn meter<R>(&self, service: u32, which: u32, look: impl FnOnce(&mut u64) -> R) -> Option<R> {
        // SAFETY: map memory; one store wide.
        METERS.get_ptr_mut(service.wrapping_mul(2).wrapping_add(which)).map(|meter| look(unsafe { &mut *meter }))
    }

    #[inline(always)]
    fn source<R>(&self, key: &SourceKey, look: impl FnOnce(&mut u64) -> R) -> Option<R> {
        let bucket = match SOURCES.get_ptr_mut(key) {
            Some(bucket) => bucket,
            None => {
                let _ = SOURCES.insert(key, 0_u64, 0);
                SOURCES.get_ptr_mut(key)?
            }
        };
        // SAFETY: map memory; one store wide.
        Some(look(unsafe { &mut *bucket }))
    }

    #[inline(always)]
    fn access(&self, key: &AccessKey) -> Option<u32> {
        let key = aya_ebpf::btf_maps::lpm_trie::Key::new(key.prefix, key.data);
        ACCESS.get(&key).copied()
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        // SAFETY: copied at once; of another packet with the same identifier at worst, as fragments are.
        unsafe { FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn set_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        let _ = FRAGMENTS.insert(key, fragment, 0);
    }

    #[inline(never)]
    fn hop(&self, to: &Address, ifindex: u32, hop: &mut Hop) -> u32 {
        // SAFETY: integers and unions of integers, for which zero is a value.
        let mut fib: FibLookup = unsafe { core::mem::zeroed() };
        fib.ifindex = ifindex;
        if to.is_v4() {
            fib.family = 2;
            fib.__bindgen_anon_4.ipv4_dst = to.0[3];
        } else {
            fib.family = 10;
            fib.__bindgen_anon_4.ipv6_dst = to.0;
        }
        // SAFETY: the context is the kernel's, and `fib` is as long as the helper is told.
        let answer = unsafe { bpf_fib_lookup(self.context.cast(), &raw mut fib, size_of::<FibLookup>() as i32, 0) };
        match answer as u32 {
            BPF_FIB_LKUP_RET_SUCCESS => {
                hop.ifindex = fib.ifindex;
                hop.source_mac = fib.smac.into();
                hop.destination_mac = fib.dmac.into();
                HOP_FOUND
            }
            BPF_FIB_LKUP_RET_NO_NEIGH => Reason::NoNeighbour as u32,
            BPF_FIB_LKUP_RET_FWD_DISABLED => Reason::ForwardingOff as u32,
            _ => Reason::NoRoute as u32,
        }
    }

    #[inline(always)]
    fn count_service(&self, id: u32, bytes: u64, new_flow: bool, opens: bool) {
        if !IS_DRY && let Some(settings) = self.settings {
            count(SERVICE_COUNTERS.get_ptr_mut(own_entry(settings.services, id)), bytes, new_flow, opens);
        }
    }

    #[inline(always)]
    fn count_real(&self, id: u32, bytes: u64, new_flow: bool, opens: bool) {
        if !IS_DRY && let Some(settings) = self.settings {
            count(REAL_COUNTERS.get_ptr_mut(own_entry(settings.reals, id)), bytes, new_flow, opens);
        }
    }

    #[inline(always)]
    fn count_answer(&self, id: u32, answer: bool, reset: bool) {
        if !IS_DRY
            && let Some(settings) = self.settings
            && let Some(counters) = REAL_COUNTERS.get_ptr_mut(own_entry(settings.reals, id))
        {
            // SAFETY: this CPU's own counters; XDP does not interrupt itself.
            unsafe {
                (*counters).answers += u64::from(answer);
                (*counters).resets += u64::from(reset);
            }
        }
    }

    #[inline(always)]
    fn count_drop(&self, reason: Reason) {
        if !IS_DRY && let Some(count) = DROPS.get_ptr_mut(reason as u32) {
            // SAFETY: this CPU's own counter; XDP does not interrupt itself.
            unsafe { *count += 1 };
        }
    }

    #[inline(always)]
    fn log_every(&self) -> u32 {
        self.watch.map_or(0, |watch| watch.log_every)
    }

    #[inline(always)]
    fn log(&self, event: &Event) {
        if IS_DRY || (event.dropped != 0 && !may_tell(event.at)) {
            return;
        }
        let _ = EVENTS.output(event, 0);
    }

    #[inline(always)]
    fn trace(&self, note: impl FnOnce(&mut Trace)) {
        if IS_DRY && let Some(trace) = TRACE.get_ptr_mut(0) {
            // SAFETY: map memory; whoever asks for an explanation asks for one at a time.
            note(unsafe { &mut *trace });
        }
    }

    #[inline(always)]
    fn make_cookie(&self, seen: &Seen, sequence: u32, mss: u16) -> i64 {
        // The helper wants a whole header, of exactly the length that it says it has.
        let first = Tcp { sequence: sequence.to_be(), offset: 6 << 4, flags: SYN, ..tcp(seen) };
        let mut syn = Pair { first, second: [u16::from_ne_bytes([2, 4]), mss.to_be()] };
        let length = size_of::<Pair<Tcp, [u16; 2]>>() as u32;
        // SAFETY: both headers are only read, the other one as far as is said.
        unsafe {
            if seen.v4 {
                let mut ip = ipv4(seen);
                bpf_tcp_raw_gen_syncookie_ipv4((&raw mut ip).cast(), (&raw mut syn).cast(), length)
            } else {
                let mut ip = ipv6(seen);
                bpf_tcp_raw_gen_syncookie_ipv6((&raw mut ip).cast(), (&raw mut syn).cast(), length)
            }
        }
    }

    #[inline(always)]
    fn check_cookie(&self, seen: &Seen, sequence: u32, acknowledgement: u32) -> bool {
        let (sequence, acknowledgement) = (sequence.to_be(), acknowledgement.to_be());
        let mut tcp = Tcp { sequence, acknowledgement, offset: 5 << 4, flags: ACK, ..tcp(seen) };
        // SAFETY: as above.
        let answer = unsafe {
            if seen.v4 {
                let mut ip = ipv4(seen);
                bpf_tcp_raw_check_syncookie_ipv4((&raw mut ip).cast(), (&raw mut tcp).cast())
            } else {
                let mut ip = ipv6(seen);
                bpf_tcp_raw_check_syncookie_ipv6((&raw mut ip).cast(), (&raw mut tcp).cast())
            }
        };
        answer == 0
    }
}

/// Jiffies, as ns: the verifier puts a load in the call's place, where the kernel's clocks are calls of calls.
#[inline(always)]
fn now(settings: Option<&Settings>) -> u64 {
    let jiffy = settings.map_or(0, |settings| settings.jiffy);
    // SAFETY: a helper without arguments.
    unsafe { bpf_jiffies64() * u64::from(jiffy) }
}

/// Drops come in floods: one in each millisecond and CPU is told of, and all are counted.
#[inline(always)]
fn may_tell(now: u64) -> bool {
    let Some(last) = LAST_TOLD.get_ptr_mut(0) else { return false };
    // SAFETY: this CPU's own; XDP does not interrupt itself.
    unsafe {
        if now.wrapping_sub(*last) < MILLISECOND {
            return false;
        }
        *last = now;
    }
    true
}

const MILLISECOND: u64 = 1_000_000;

/// The headers that cookies are made of. Written anew: what is known need not be looked for in the packet.
#[inline(always)]
fn tcp(seen: &Seen) -> Tcp {
    let ports = Ports { source: seen.tuple.source_port.to_be(), destination: seen.tuple.destination_port.to_be() };
    Tcp { ports, ..Tcp::default() }
}

#[inline(always)]
fn ipv4(seen: &Seen) -> Ipv4 {
    let (source, destination) = (seen.tuple.source.0[3], seen.tuple.destination.0[3]);
    Ipv4 { version_ihl: 0x45, protocol: abi::TCP, source, destination, ..Ipv4::default() }
}

#[inline(always)]
fn ipv6(seen: &Seen) -> Ipv6 {
    let (source, destination) = (seen.tuple.source.0, seen.tuple.destination.0);
    Ipv6 { version_class: 0x6000_u16.to_be(), next: abi::TCP, source, destination, ..Ipv6::default() }
}

/// Adds, whoever else does, and returns what was there.
///
/// # Safety
/// An aligned word of map memory.
#[inline(always)]
unsafe fn add(word: *mut u32, more: u32) -> u32 {
    use core::intrinsics::{AtomicOrdering::SeqCst, atomic_xadd};
    // SAFETY: the caller's.
    unsafe { atomic_xadd::<u32, u32, { SeqCst }>(word, more) }
}

/// This CPU's entry of a counter.
#[inline(always)]
fn own_entry(stride: u32, id: u32) -> u32 {
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    cpu.wrapping_mul(stride).wrapping_add(id)
}

#[inline(always)]
fn count(counters: Option<*mut Counters>, bytes: u64, new_flow: bool, opens: bool) {
    if let Some(counters) = counters {
        // SAFETY: this CPU's own counters; XDP does not interrupt itself.
        unsafe {
            (*counters).packets += 1;
            (*counters).bytes += bytes;
            if opens {
                (*counters).opens += 1;
            }
            if new_flow {
                (*counters).flows += 1;
            }
        }
    }
}
