//! Processor time to the ns: what holds on a machine that others use too.

use std::{fs, time::Duration};

use anyhow::Context;
use nix::sys::resource::{UsageWho, getrusage};

/// User and system time of the calling thread, and whatever interrupted it.
pub(super) fn of_this_thread() -> anyhow::Result<Duration> {
    of_usage(UsageWho::RUSAGE_THREAD)
}

/// Of this process's ended children.
pub(super) fn of_children() -> anyhow::Result<Duration> {
    of_usage(UsageWho::RUSAGE_CHILDREN)
}

fn of_usage(who: UsageWho) -> anyhow::Result<Duration> {
    let usage = getrusage(who)?;
    let micros = |time: nix::sys::time::TimeVal| time.tv_sec() * 1_000_000 + time.tv_usec();
    Ok(Duration::from_micros((micros(usage.user_time()) + micros(usage.system_time())).try_into()?))
}

/// Of a process, its threads and everything below it.
pub(super) fn of_process(id: u32) -> anyhow::Result<Duration> {
    let mut sum = Duration::ZERO;
    for task in fs::read_dir(format!("/proc/{id}/task")).with_context(|| format!("process {id} has ended"))? {
        let task = task?.path();
        sum += run_time(&task.join("schedstat"))?;
        let children = fs::read_to_string(task.join("children")).unwrap_or_default();
        for child in children.split_whitespace() {
            sum += of_process(child.parse()?)?;
        }
    }
    Ok(sum)
}

/// Of the kernel's threads that take over when packets come faster than they are handled in passing.
pub(super) struct Softirqs(Vec<std::path::PathBuf>);

impl Softirqs {
    pub(super) fn find() -> anyhow::Result<Self> {
        let processes = fs::read_dir("/proc").context("looking for ksoftirqd")?.flatten().map(|entry| entry.path());
        let is_one = |path: &std::path::PathBuf| {
            fs::read_to_string(path.join("comm")).is_ok_and(|name| name.starts_with("ksoftirqd/"))
        };
        Ok(Self(processes.filter(is_one).map(|path| path.join("schedstat")).collect()))
    }

    pub(super) fn time(&self) -> anyhow::Result<Duration> {
        self.0.iter().map(|file| run_time(file)).sum()
    }
}

/// The first field of a schedstat file.
fn run_time(file: &std::path::Path) -> anyhow::Result<Duration> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let first = text.split(' ').next().and_then(|field| field.parse().ok());
    Ok(Duration::from_nanos(first.with_context(|| format!("{} says {text:?}", file.display()))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_and_its_thread_have_used_time() {
        let own = of_process(std::process::id()).expect("this process runs");
        assert!(own >= of_this_thread().expect("this thread runs") / 2 && own > Duration::ZERO);
        Softirqs::find().expect("/proc is there").time().expect("kernel threads live for ever");
    }
}
