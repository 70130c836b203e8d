//! The one thing that the lab itself needs of BPF: a program that passes everything.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// The start of `union bpf_attr` for BPF_PROG_LOAD (linux/bpf.h); the kernel takes what is missing as zero.
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
}

/// The start of `union bpf_attr` for BPF_LINK_CREATE.
#[repr(C)]
struct LinkCreate {
    prog_fd: i32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
/// `r0 = XDP_PASS; exit`.
const PASS: [u64; 2] = [0x0000_0002_0000_00b7, 0x95];

/// Loads the program that passes every packet: no object file, no maps.
pub(super) fn load_pass() -> io::Result<OwnedFd> {
    let attr = ProgLoad {
        prog_type: BPF_PROG_TYPE_XDP,
        insn_cnt: 2,
        insns: PASS.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
    };
    bpf(BPF_PROG_LOAD, &attr)
}

/// Attaches a program to an interface of the calling thread's namespace, until the link is dropped.
pub(super) fn attach(program: &OwnedFd, interface: &str) -> io::Result<OwnedFd> {
    let target_ifindex = nix::net::if_::if_nametoindex(interface)?;
    let prog_fd = program.as_raw_fd();
    bpf(BPF_LINK_CREATE, &LinkCreate { prog_fd, target_ifindex, attach_type: BPF_XDP, flags: XDP_FLAGS_DRV_MODE })
}

fn bpf<T>(command: libc::c_int, attr: &T) -> io::Result<OwnedFd> {
    // SAFETY: `attr` is a prefix of the kernel's union, given with its size; the pointers in it are to statics.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both commands return a new file descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd.try_into().expect("file descriptors are small")) })
}
