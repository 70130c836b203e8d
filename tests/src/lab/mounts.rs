//! A view of the file system in which the places where Tidegate leaves things are new and empty.
//!
//! Pinned maps and links outlive processes, and keep packets flowing through a program that nobody knows any more. Here
//! they are pinned into a BPF file system that nobody else sees, and that ends with its last user.

use std::{
    fs::File,
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::Path,
    process::Command,
    sync::Arc,
    thread,
};

use anyhow::Context;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};

/// A mount namespace with its own `/sys/fs/bpf` and its own `/var/lib`. A handle; clones stand for the same one.
#[derive(Clone, Debug)]
pub struct Mounts {
    fd: Arc<OwnedFd>,
}

impl Mounts {
    pub fn new() -> anyhow::Result<Self> {
        // A thread of its own: it leaves our file system for good, and ends.
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
            let none = None::<&Path>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
                .context("cannot part from our mounts")?;
            for (kind, place) in [("bpf", "/sys/fs/bpf"), ("tmpfs", "/var/lib")] {
                mount(Some(kind), place, Some(kind), MsFlags::empty(), none)
                    .with_context(|| format!("cannot mount a file system of type {kind} on {place}"))?;
            }
            anyhow::Ok(File::open("/proc/thread-self/ns/mnt")?)
        });
        let file = made.join().expect("mounting does not panic")?;
        Ok(Self { fd: Arc::new(file.into()) })
    }

    /// Lets a command start in this view. Its paths must be absolute.
    pub fn enter(&self, command: &mut Command) {
        let fd = self.fd.clone();
        // SAFETY: setns is a bare system call, which a child may make between fork and exec.
        unsafe { command.pre_exec(move || Ok(setns(&fd, CloneFlags::CLONE_NEWNS)?)) };
    }
}
