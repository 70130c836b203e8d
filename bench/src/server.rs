//! A measured server: a process in the foreground, on one core, in a directory of its own, ended by its id.

use std::{
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{machine::processor_time, peers::free_port};

/// How long a server may take to end by itself, and to begin.
const PATIENCE: Duration = Duration::from_secs(15);

/// Ended when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) name: String,
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Starts `program` with `arguments` on `core`; what it says goes to `dir/<name>.log`.
    pub(crate) fn start(
        name: &str,
        dir: &Path,
        core: usize,
        program: &Path,
        arguments: &[&str],
    ) -> anyhow::Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        // Both replace themselves by what they start, so the id is the server's. Should this process be killed,
        // the server goes with it.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "taskset", "-c", &core.to_string()])
            .arg(program)
            .args(arguments)
            .current_dir(dir)
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {name} by setpriv and taskset (package util-linux)"))?;
        Ok(Self { name: name.into(), child, log })
    }

    /// Starts one that listens at a port of 127.0.0.1. What it needs is put into `dir/<name>` by `prepare`, which gives its
    /// program and arguments.
    pub(crate) fn start_at_a_port(
        name: &str,
        dir: &Path,
        core: usize,
        prepare: impl FnOnce(&Path, SocketAddr) -> anyhow::Result<(PathBuf, Vec<String>)>,
    ) -> anyhow::Result<(Self, SocketAddr)> {
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir)?;
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let (program, arguments) = prepare(&dir, address)?;
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        Ok((Self::start(name, &dir, core, &program, &arguments)?, address))
    }

    /// Waits until `answers` says yes.
    pub(crate) fn wait_until(&mut self, mut answers: impl FnMut() -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !answers() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}): {}", self.name, self.last_words());
            }
            if Instant::now() > deadline {
                bail!("{} did not answer within {PATIENCE:?}: {}", self.name, self.last_words());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    pub(crate) fn processor_time(&self) -> anyhow::Result<Duration> {
        processor_time(self.pid()).with_context(|| format!("{} is gone: {}", self.name, self.last_words()))
    }

    fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().rev().take(5).collect();
        if lines.is_empty() {
            "it said nothing".into()
        } else {
            lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
        }
    }

    /// Asks it to end, so that it ends its workers; then ends it.
    fn end(&mut self) -> std::io::Result<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        let _gone_already = kill(self.pid(), Signal::SIGTERM);
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.child.kill()?;
        self.child.wait()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(e) = self.end() {
            eprintln!("ending {} (process {}): {e}", self.name, self.child.id());
        }
    }
}
