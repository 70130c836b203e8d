//! Pinned links, detached at once: one that only loses its pin goes on until the kernel has found the time to free it.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use anyhow::Context;
use aya::programs::links::FdLink;

/// Commands of bpf(2).
const OBJ_GET: libc::c_long = 7;
const LINK_DETACH: libc::c_long = 34;

/// Pins a link in the place of an earlier one, which is detached once the new one is there.
pub(crate) fn pin(link: FdLink, folder: &Path, name: &str) -> anyhow::Result<()> {
    // No dots: a BPF file system wants none.
    let (path, next) = (folder.join(name), folder.join(format!("{name}-next")));
    let _ = fs::remove_file(&next);
    link.pin(&next).with_context(|| format!("pinning {}", next.display()))?;
    let old = open(&path);
    fs::rename(&next, &path).with_context(|| format!("putting {name} in place"))?;
    old.into_iter().for_each(|old| detach(&old));
    Ok(())
}

/// Takes a pin away: a link's program sees no packet after this.
pub(crate) fn unpin(path: &Path) -> anyhow::Result<()> {
    open(path).into_iter().for_each(|link| detach(&link));
    fs::remove_file(path).with_context(|| format!("unpinning {}", path.display()))
}

fn open(path: &Path) -> Option<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    // The path, a descriptor and flags, none of which are asked for.
    let attributes = [path.as_ptr() as u64, 0];
    let fd = bpf(OBJ_GET, &attributes).ok()?;
    // SAFETY: a descriptor that was just opened and that nobody else has.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What is no link, or detached already, stays as it is.
fn detach(link: &OwnedFd) {
    let fd = u32::try_from(link.as_raw_fd()).expect("an open descriptor is not negative");
    // The descriptor comes first, alone in its half of the word whatever the order of bytes.
    let [a, b, c, d] = fd.to_ne_bytes();
    let _ = bpf(LINK_DETACH, &[u64::from_ne_bytes([a, b, c, d, 0, 0, 0, 0])]);
}

fn bpf(command: libc::c_long, attributes: &[u64]) -> io::Result<i32> {
    // SAFETY: the attributes are as long as is said and outlive the call, and what they point at does, too.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}
