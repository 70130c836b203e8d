//! Boots a guest and hears what it says. It has one processor without hardware's help, and a clock that ticks once an
//! instruction: what takes a nanosecond in there is an instruction, whatever the host is doing meanwhile.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use super::{
    guest::WORK,
    image::{self, INIT, Outfit},
    kernel::Kernel,
    said::{self, Said},
};

const QEMU: &str = "qemu-system-x86_64";

/// By what the guest's clock goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Clock {
    /// One instruction is a nanosecond.
    Instructions,
    /// The host's: several times as fast, and nothing in there can be measured.
    Host,
}

/// `work` is what the guest's first process finds to do.
pub(super) fn boot(
    cache: &Path,
    kernel: &Kernel,
    outfit: &Outfit,
    work: &str,
    clock: Clock,
    patience: Duration,
) -> anyhow::Result<Vec<Said>> {
    let initrd = tempfile::NamedTempFile::new_in(cache).context("making a file for the guest's file system")?;
    fs::write(initrd.path(), image::build(kernel, outfit)?).context("writing the guest's file system")?;
    let mut command = Command::new(QEMU);
    if clock == Clock::Instructions {
        // `sleep=off`: while the guest has nothing to do its clock jumps ahead, and nobody waits.
        command.args(["-icount", "shift=0,sleep=off"]);
    }
    command
        .args(["-accel", "tcg,thread=single", "-smp", "1", "-m", "2048"])
        // The kernel must not draw from the host's dice: two runs are the same.
        .args(["-cpu", "max,-rdrand,-rdseed", "-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio"])
        .arg("-kernel")
        .arg(kernel.image())
        .arg("-initrd")
        .arg(initrd.path())
        .args(["-append", &line(work)])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    let child = command.spawn().with_context(|| format!("starting {QEMU} (of Debian's qemu-system-x86)"))?;
    let console = Guest(child).console(patience)?;
    let log = cache.join(format!("console-{}.log", kernel.release));
    fs::write(&log, console.join("\n")).with_context(|| format!("writing {}", log.display()))?;
    said::listen(console.iter().map(String::as_str))
        .with_context(|| format!("Linux {} ({})", kernel.release, log.display()))
}

/// The kernel's command line.
fn line(work: &str) -> String {
    // The time stamp counter is the instruction counter; any other clock costs the guest instructions to read.
    let kernel = "console=ttyS0 quiet loglevel=4 panic=-1 nokaslr clocksource=tsc tsc=reliable";
    format!("{kernel} PATH=/usr/sbin {WORK}={work} rdinit={INIT}")
}

struct Guest(Child);

impl Guest {
    /// All lines until it ends.
    fn console(mut self, patience: Duration) -> anyhow::Result<Vec<String>> {
        let output = self.0.stdout.take().context("the guest has no console")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for bytes in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&bytes).into_owned()).is_err() {
                    return;
                }
            }
        });
        let until = Instant::now() + patience;
        let mut console: Vec<String> = Vec::new();
        loop {
            match lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => console.push(line),
                Err(RecvTimeoutError::Disconnected) => return Ok(console),
                Err(RecvTimeoutError::Timeout) => {
                    let from = console.len().saturating_sub(30);
                    bail!(
                        "the guest has not ended within {} s; its console's last lines:\n  {}",
                        patience.as_secs(),
                        console[from..].join("\n  ")
                    )
                }
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_process_is_this_program_and_finds_its_work() {
        let line = line("peers:100");
        assert!(line.ends_with("GUEST_WORK=peers:100 rdinit=/tidegate-bench"), "{line}");
    }
}
