//! A network namespace that lives as long as its handle, with a thread and a runtime inside it.
//!
//! The kernel keeps a namespace per *thread*. The thread of an [`Ns`] entered it for good: it polls the async tasks, and
//! it is the parent of every process started inside, because a child's death signal is tied to the thread that forked
//! it (`prctl(2)`): when the handle is dropped or the process dies, the thread ends, and the kernel kills the children.

use std::{
    fmt,
    fs::File,
    future::Future,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    panic::{AssertUnwindSafe, resume_unwind},
    process::Command,
    sync::{Arc, mpsc},
    thread,
};

use anyhow::{Context, bail};
use futures_util::FutureExt;
use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::{prctl, signal::Signal},
};
use tokio::{runtime, sync::oneshot, task::JoinHandle};

use super::process::Process;

/// A handle; clones stand for the same namespace. A task spawned inside must not hold one, or neither ever ends.
#[derive(Clone)]
pub struct Ns {
    inner: Arc<Inner>,
}

struct Inner {
    fd: Arc<OwnedFd>,
    runtime: runtime::Handle,
    /// Dropped to end the thread.
    alive: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Ns {
    /// A new namespace, empty but for a loopback interface that is up.
    pub fn new() -> anyhow::Result<Self> {
        let (alive, ended) = oneshot::channel::<()>();
        let (ready, made) = mpsc::sync_channel(1);
        let thread = thread::Builder::new().name("lab-ns".to_owned()).spawn(move || {
            let (fd, runtime) = match enter_new() {
                Ok(made) => made,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            let _ = ready.send(Ok((fd, runtime.handle().clone())));
            let _ = runtime.block_on(ended);
            runtime.shutdown_background();
        })?;
        let (fd, runtime) = made.recv().context("the namespace's thread ended at once")??;
        let ns = Self { inner: Arc::new(Inner { fd, runtime, alive: Some(alive), thread: Some(thread) }) };
        ns.ip("link set lo up")?;
        Ok(ns)
    }

    /// Runs a closure in the namespace, on a thread of its own; a panic in it goes on here.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let fd = &self.inner.fd;
        let inside = move || {
            setns(fd, CloneFlags::CLONE_NEWNET).expect("we hold the namespace open, and are root");
            work()
        };
        thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(result) => result,
            Err(panic) => resume_unwind(panic),
        })
    }

    /// Starts an async task in the namespace: sockets that it opens are in it, wherever they are used later.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.inner.runtime.spawn(task)
    }

    /// Runs an async task in the namespace and waits for it; a panic in it goes on here. Not for use inside a task.
    pub fn block_on<F>(&self, task: F) -> F::Output
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let (sender, result) = mpsc::sync_channel(1);
        self.spawn(async move {
            let _ = sender.send(AssertUnwindSafe(task).catch_unwind().await);
        });
        match result.recv().expect("the namespace's thread lives as long as its handle") {
            Ok(result) => result,
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Starts a process in the namespace. It is killed when the handle it returns, or the namespace, is dropped.
    pub fn start(&self, mut command: Command) -> io::Result<Process> {
        // SAFETY: prctl is async-signal-safe and touches no memory of the parent.
        unsafe { command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGKILL)?)) };
        if self.inner.thread.as_ref().is_some_and(|thread| thread.thread().id() == thread::current().id()) {
            return Process::new(command.spawn()?);
        }
        let (sender, child) = mpsc::sync_channel(1);
        self.spawn(async move {
            let _ = sender.send(command.spawn());
        });
        Process::new(child.recv().expect("the namespace's thread lives as long as its handle")?)
    }

    /// Runs a command in the namespace to its end; its standard output, or an error that shows what it said.
    pub fn output(&self, command: &mut Command) -> anyhow::Result<String> {
        let result = self.run(|| command.output()).with_context(|| format!("cannot run {command:?}"))?;
        if !result.status.success() {
            bail!("{command:?} failed: {}", String::from_utf8_lossy(&result.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&result.stdout).into_owned())
    }

    /// Runs lines of `ip` commands (without the word `ip`) in the namespace, as one batch.
    pub fn ip(&self, lines: &str) -> anyhow::Result<()> {
        batch(self, Command::new("ip").args(["-batch", "-"]), lines)
    }

    /// Runs a script of nftables in the namespace, as one transaction.
    pub fn nft(&self, script: &str) -> anyhow::Result<()> {
        batch(self, Command::new("nft").args(["-f", "-"]), script)
    }

    /// Sets a variable below `/proc/sys/net`.
    pub fn sysctl(&self, name: &str, value: &str) -> anyhow::Result<()> {
        let path = format!("/proc/sys/net/{name}");
        self.run(|| std::fs::write(&path, value)).with_context(|| format!("cannot write {value} to {path}"))
    }

    /// A path that other processes can open: for `ip link ... netns PATH`, and to give the namespace a name.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.inner.fd.as_raw_fd())
    }
}

fn enter_new() -> anyhow::Result<(Arc<OwnedFd>, runtime::Runtime)> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    let fd: Arc<OwnedFd> = Arc::new(File::open("/proc/thread-self/ns/net")?.into());
    let inside = fd.clone();
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        // Threads for blocking calls may be started by a thread outside.
        .on_thread_start(move || setns(&inside, CloneFlags::CLONE_NEWNET).expect("we hold the namespace open"))
        .build()?;
    Ok((fd, runtime))
}

fn batch(ns: &Ns, command: &mut Command, lines: &str) -> anyhow::Result<()> {
    // A file rather than a pipe: nothing to write while the command runs.
    let mut input = tempfile::tempfile()?;
    io::Write::write_all(&mut input, lines.as_bytes())?;
    io::Seek::rewind(&mut input)?;
    ns.output(command.stdin(input)).with_context(|| format!("in the batch\n{lines}")).map(drop)
}

impl Drop for Inner {
    fn drop(&mut self) {
        drop(self.alive.take());
        let thread = self.thread.take().expect("taken only here");
        if thread.thread().id() != thread::current().id() {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Ns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ns").field(&self.path()).finish()
    }
}
