//! Who the client is: learnt from TCP's headers, told to whoever asks for a socket's peer.
//!
//! Our balancer writes the option into every segment of a client until the real has answered one that is no SYN: the
//! one that completes the handshake always has it. Others write it into the SYN alone, or there is room for it in the
//! SYN alone. An application asks with `getpeername`, and the kernel also in `accept`.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    bindings::{
        BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_TCP_LISTEN_CB, bpf_sock_ops,
    },
    btf_maps::SkStorage,
    helpers::{bpf_getsockopt, bpf_setsockopt, bpf_sk_storage_get},
    macros::{btf_map, cgroup_sock_addr, sock_ops},
    programs::{SockAddrContext, SockOpsContext},
};
use tidegate_ebpf::{
    abi::Address,
    real::{
        Client, Count,
        decap::Known as _,
        options::{self, LONGEST, OFFSET},
        toa,
    },
};

use super::{Maps, count};

#[btf_map(name = "clients")]
static CLIENTS: SkStorage<Client> = SkStorage::new();

const AF_INET: u32 = 2;
// tcp.h; the second is for programs like this alone (Linux 5.10).
const SOL_TCP: i32 = 6;
const TCP_SAVE_SYN: i32 = 27;
const TCP_BPF_SYN: i32 = 1005;

/// Learns the clients of the connections that are accepted in the cgroup, from the packet that completes the handshake.
/// Whoever listened before this was attached need not start again, unless the option stands in the SYN alone.
#[sock_ops]
fn learn(context: SockOpsContext) -> u32 {
    match context.op() {
        BPF_SOCK_OPS_TCP_LISTEN_CB => keep_syns(context.ops),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB if Maps.is_from(&peer(&context)) => {
            let client = in_packet(context.ops).or_else(|| in_syn(context.ops));
            let told = client.is_some_and(|client| remember(context.ops, client));
            count(if told { Count::Told } else { Count::Untold });
        }
        _ => {}
    }
    1
}

/// Has a server that begins to listen keep the SYN of each of its connections.
#[inline(always)]
fn keep_syns(ops: *mut bpf_sock_ops) {
    let mut on = 1_i32;
    // SAFETY: the context is the kernel's, and the value lives as long as the call.
    unsafe { bpf_setsockopt(ops.cast(), SOL_TCP, TCP_SAVE_SYN, (&raw mut on).cast(), size_of::<i32>() as i32) };
}

#[inline(always)]
fn peer(context: &SockOpsContext) -> Address {
    let ops = context.ops;
    // Both, and then one is chosen: the verifier takes no address of a field that depends on something.
    // SAFETY: fields of the kernel's context, each read whole.
    let (v4, v6) = unsafe {
        let word = |at: usize| ptr::read_volatile(&raw const (*ops).remote_ip6[at]);
        (ptr::read_volatile(&raw const (*ops).remote_ip4), [word(0), word(1), word(2), word(3)])
    };
    if context.family() == AF_INET { Address::v4(v4) } else { Address(v6) }
}

/// The kernel shows the packet's TCP header and nothing else. (Its own search for options wants to know what follows
/// the kind of an experimental one: that is the client's port.)
#[inline(always)]
fn in_packet(ops: *mut bpf_sock_ops) -> Option<Client> {
    let byte = |at: usize| {
        // SAFETY: fields of the kernel's context; both may be null, and then nothing is inside. Read anew for each byte,
        // so that the verifier need not carry along how much of the packet was found to be there.
        let (start, end) = unsafe {
            (
                ptr::read_volatile(&raw const (*ops).__bindgen_anon_3.skb_data) as usize,
                ptr::read_volatile(&raw const (*ops).__bindgen_anon_4.skb_data_end) as usize,
            )
        };
        // A header has no more, and the verifier must see the bound.
        if at >= LONGEST || start + at + 1 > end {
            return None;
        }
        // SAFETY: inside the header (checked above, and by the verifier again).
        Some(unsafe { *((start + at) as *const u8) })
    };
    toa::read(options::header_length(byte(OFFSET)?), byte)
}

/// Aligned, so that it is zeroed by words.
#[repr(C, align(8))]
struct Syn([u8; LONGEST]);

/// The SYN's TCP header, which a server keeps that was told to, and which no SYN cookie leaves.
#[inline(always)]
fn in_syn(ops: *mut bpf_sock_ops) -> Option<Client> {
    let mut syn = Syn([0; LONGEST]);
    // SAFETY: the context is the kernel's, and the buffer is as long as the helper is told.
    let length = unsafe { bpf_getsockopt(ops.cast(), SOL_TCP, TCP_BPF_SYN, (&raw mut syn).cast(), LONGEST as i32) };
    if length <= 0 {
        return None;
    }
    let byte = |at: usize| syn.0.get(at).copied();
    toa::read(options::header_length(byte(OFFSET)?), byte)
}

#[inline(always)]
fn remember(ops: *mut bpf_sock_ops, mut client: Client) -> bool {
    // SAFETY: a field of the kernel's context.
    let socket = unsafe { (*ops).__bindgen_anon_2.sk };
    if socket.is_null() {
        return false;
    }
    let map = (&raw const CLIENTS).cast_mut().cast::<c_void>();
    let value = (&raw mut client).cast::<c_void>();
    // SAFETY: the map is the kernel's, the socket was checked, and the value lives as long as the call.
    let stored = unsafe { bpf_sk_storage_get(map, socket.cast(), value, u64::from(BPF_SK_STORAGE_GET_F_CREATE)) }
        .cast::<Client>();
    !stored.is_null()
}

/// Answers for IPv4 sockets.
#[cgroup_sock_addr(getpeername4)]
fn peer_v4(context: SockAddrContext) -> i32 {
    if let Some(client) = client(&context)
        && client.address.is_v4()
    {
        let answer = context.sock_addr;
        // SAFETY: fields of the kernel's context, each written whole as the verifier demands.
        unsafe {
            ptr::write_volatile(&raw mut (*answer).user_ip4, client.address.0[3]);
            ptr::write_volatile(&raw mut (*answer).user_port, u32::from(client.port.to_be()));
        }
    }
    1
}

/// Answers for IPv6 sockets, those that take IPv4 too among them.
#[cgroup_sock_addr(getpeername6)]
fn peer_v6(context: SockAddrContext) -> i32 {
    if let Some(client) = client(&context) {
        let answer = context.sock_addr;
        let [a, b, c, d] = client.address.0;
        // SAFETY: fields of the kernel's context, each written whole as the verifier demands.
        unsafe {
            ptr::write_volatile(&raw mut (*answer).user_ip6[0], a);
            ptr::write_volatile(&raw mut (*answer).user_ip6[1], b);
            ptr::write_volatile(&raw mut (*answer).user_ip6[2], c);
            ptr::write_volatile(&raw mut (*answer).user_ip6[3], d);
            ptr::write_volatile(&raw mut (*answer).user_port, u32::from(client.port.to_be()));
        }
    }
    1
}

#[inline(always)]
fn client(context: &SockAddrContext) -> Option<Client> {
    // SAFETY: the socket is that of the call, which holds it.
    let stored = unsafe { CLIENTS.get_ptr_mut(context) };
    if stored.is_null() {
        return None;
    }
    // SAFETY: not null; storage lives as long as its socket, and is written before anybody can ask.
    Some(unsafe { *stored })
}
