//! Who the client is: learnt from TCP's headers, told to whoever asks for a socket's peer.
//!
//! The balancer writes the option into every segment of a client until the real has answered one that is no SYN: the
//! one that completes the handshake always has it. An application asks with `getpeername`, and the kernel also in
//! `accept`.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, bpf_sock_ops},
    btf_maps::SkStorage,
    helpers::bpf_sk_storage_get,
    macros::{btf_map, cgroup_sock_addr, sock_ops},
    programs::{SockAddrContext, SockOpsContext},
};
use tidegate_ebpf::{
    abi::Address,
    real::{Client, Count, decap::Known as _, options, toa},
};

use super::{Maps, count};

#[btf_map(name = "clients")]
static CLIENTS: SkStorage<Client> = SkStorage::new();

const AF_INET: u32 = 2;
/// The byte of TCP's header that says how long it is.
const OFFSET: usize = 12;
const LONGEST: usize = 60;

/// Learns the clients of the connections that are accepted in the cgroup, from the packet that completes the handshake.
/// Whoever listened before this was attached need not start again.
#[sock_ops]
pub fn learn(context: SockOpsContext) -> u32 {
    if context.op() == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB && Maps.is_from(&peer(&context)) {
        let told = match in_packet(context.ops) {
            Some(client) => remember(context.ops, client),
            None => false,
        };
        count(if told { Count::Told } else { Count::Untold });
    }
    1
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
    // SAFETY: fields of the kernel's context; both may be null, and then nothing is inside.
    let (start, end) =
        unsafe { ((*ops).__bindgen_anon_3.skb_data as usize, (*ops).__bindgen_anon_4.skb_data_end as usize) };
    let byte = |at: usize| {
        // A header has no more, and the verifier must see the bound.
        if at >= LONGEST || start + at + 1 > end {
            return None;
        }
        // SAFETY: inside the header (checked above, and by the verifier again).
        Some(unsafe { *((start + at) as *const u8) })
    };
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
pub fn peer_v4(context: SockAddrContext) -> i32 {
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
pub fn peer_v6(context: SockAddrContext) -> i32 {
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
