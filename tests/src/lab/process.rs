//! A process that is killed and reaped when its handle is dropped.

use std::{
    io,
    process::{Child, ExitStatus},
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, waitid},
    },
    unistd::Pid,
};
use tokio::sync::watch;

/// A running (or ended) process.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    /// Locked while the process is reaped or signalled, so that no signal reaches a stranger with a reused id.
    child: Arc<Mutex<Child>>,
    ended: watch::Receiver<Option<ExitStatus>>,
}

impl Process {
    pub(super) fn new(child: Child) -> io::Result<Self> {
        let pid = Pid::from_raw(child.id().try_into().expect("process ids are below 2^22"));
        let child = Arc::new(Mutex::new(child));
        let (sender, ended) = watch::channel(None);
        let reaped = child.clone();
        thread::Builder::new().name("lab-reaper".to_owned()).stack_size(64 * 1024).spawn(move || {
            // First only look (WNOWAIT): the id stays taken until the lock is held.
            while let Err(nix::errno::Errno::EINTR) = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)
            {
            }
            let mut child = lock(&reaped);
            sender.send_replace(child.wait().ok());
        })?;
        Ok(Self { pid, child, ended })
    }

    pub fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// Sends a signal; `false` if the process has ended already.
    pub fn signal(&self, signal: Signal) -> bool {
        let _held = lock(&self.child);
        self.status().is_none() && kill(self.pid, signal).is_ok()
    }

    /// How it ended, or `None` while it runs.
    pub fn status(&self) -> Option<ExitStatus> {
        *self.ended.borrow()
    }

    /// Resolves when it has ended.
    pub async fn ended(&self) -> Option<ExitStatus> {
        let mut ended = self.ended.clone();
        ended.wait_for(Option::is_some).await.ok().and_then(|status| *status)
    }

    /// Waits for the end, at most `limit`.
    pub fn wait(&self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        while self.status().is_none() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
        self.status()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.signal(Signal::SIGKILL) {
            self.wait(Duration::from_secs(5));
        }
    }
}

fn lock(child: &Mutex<Child>) -> MutexGuard<'_, Child> {
    child.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
