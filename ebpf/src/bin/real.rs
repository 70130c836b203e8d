//! The real server's programs: map statics and entries. Built by `cargo xtask ebpf`.

#![no_std]
#![no_main]

#[path = "real/behind.rs"]
mod behind;
#[path = "real/toa.rs"]
mod toa;

use core::mem::offset_of;

use aya_ebpf::{
    bindings::{TC_ACT_UNSPEC, xdp_action, xdp_md},
    btf_maps::{Array, HashMap, LpmTrie, PerCpuArray, lpm_trie::Key},
    helpers::{
        bpf_xdp_adjust_head,
        generated::{bpf_xdp_load_bytes, bpf_xdp_store_bytes},
    },
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};
use tidegate_ebpf::{
    Headers, Packet,
    abi::{Address, TCP},
    options::ROOM,
    real::{
        CAPACITY, Count, Settings,
        decap::{self, Known, Look},
        options,
    },
    wire::{ETHERTYPE_V4, ETHERTYPE_V6, Ethernet, FRAGMENTED, Ipv4, Ipv6, SYN, Tcp, Wire, inside},
};

#[btf_map(name = "settings")]
static SETTINGS: Array<Settings, 1> = Array::new();
#[btf_map(name = "vips")]
static VIPS: HashMap<Address, u32, CAPACITY> = HashMap::new();
#[btf_map(name = "hosts")]
static HOSTS: HashMap<Address, u32, CAPACITY> = HashMap::new();
#[btf_map(name = "from")]
static FROM: LpmTrie<Address, u32, CAPACITY> = LpmTrie::new();
#[btf_map(name = "counts")]
static COUNTS: PerCpuArray<u64, { Count::NAMES.len() }> = PerCpuArray::new();
#[btf_map(name = "before")]
static BEFORE: HashMap<u32, u32, 16> = HashMap::new();

struct Maps;

impl Known for Maps {
    #[inline(always)]
    fn settings(&self) -> Settings {
        SETTINGS.get(0).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn is_host(&self, address: &Address) -> bool {
        // SAFETY: only whether it is there.
        unsafe { HOSTS.get(address) }.is_some()
    }

    #[inline(always)]
    fn is_vip(&self, address: &Address) -> bool {
        // SAFETY: only whether it is there.
        unsafe { VIPS.get(address) }.is_some()
    }

    #[inline(always)]
    fn is_from(&self, address: &Address) -> bool {
        FROM.get(&Key::new(128, *address)).is_some()
    }
}

#[inline(always)]
fn count(what: Count) {
    if let Some(count) = COUNTS.get_ptr_mut(what as u32) {
        // SAFETY: this CPU's own counter. A program of another kind may interrupt this one: then one of them is lost.
        unsafe { *count += 1 };
    }
}

struct Frame(*mut xdp_md);

impl Headers for Frame {
    #[inline(always)]
    fn length(&self) -> usize {
        // SAFETY: the context is the kernel's, for as long as the program runs.
        unsafe { (*self.0).data_end as usize - (*self.0).data as usize }
    }

    #[inline(always)]
    fn at<T: Wire>(&mut self, offset: usize) -> Option<&mut T> {
        // SAFETY: as above; the borrow of the only handle to the packet keeps a second reference out.
        unsafe { inside((*self.0).data as usize, (*self.0).data_end as usize, offset) }
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
    fn cut(&mut self, _length: usize) -> bool {
        false
    }
}

/// Takes tunnels apart: in the driver, or behind it where that knows no XDP.
#[xdp]
fn open(context: XdpContext) -> u32 {
    match decap::open(&mut Frame(context.ctx), &Maps) {
        Look::Other => {}
        Look::Refused(reason) => count(reason),
        Look::Peel(peel) => count(peel.count),
    }
    xdp_action::XDP_PASS
}

/// Has the clients of the VIPs send segments that still fit when the balancer has wrapped them.
#[classifier]
fn clamp(context: TcContext) -> i32 {
    if lower(&context).is_some() {
        count(Count::Clamped);
    }
    TC_ACT_UNSPEC
}

#[inline(always)]
fn lower(context: &TcContext) -> Option<()> {
    const IP: usize = size_of::<Ethernet>();
    let settings = Maps.settings();
    let (source, tcp, limit) = match context.skb.protocol() as u16 {
        ETHERTYPE_V4 => {
            let ip: Ipv4 = context.load(IP).ok()?;
            if ip.protocol != TCP || ip.fragment & FRAGMENTED != 0 {
                return None;
            }
            (Address::v4(ip.source), IP + (ip.version_ihl & 15) as usize * 4, settings.mss_v4)
        }
        ETHERTYPE_V6 => {
            let ip: Ipv6 = context.load(IP).ok()?;
            if ip.next != TCP {
                return None;
            }
            (Address(ip.source), IP + size_of::<Ipv6>(), settings.mss_v6)
        }
        _ => return None,
    };
    let header: Tcp = context.load(tcp).ok()?;
    if header.flags & SYN == 0 || limit == 0 || !Maps.is_vip(&source) {
        return None;
    }
    let at = options::mss(options::header_length(header.offset), |i| context.load::<u8>(tcp + i).ok())?;
    let old: u16 = context.load(tcp + at).ok()?;
    if u32::from(u16::from_be(old)) <= limit {
        return None;
    }
    let new = (limit as u16).to_be();
    // Where the card is to sum, the helper sees that this changes nothing yet.
    let (before, after) = (options::for_checksum(at, old), options::for_checksum(at, new));
    context.l4_csum_replace(tcp + offset_of!(Tcp, checksum), u64::from(before), u64::from(after), 2).ok()?;
    context.store(tcp + at, &new, 0).ok()
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // No panic survives into the object: the verifier would refuse this loop.
    loop {}
}
