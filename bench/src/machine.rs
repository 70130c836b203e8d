//! What the machine is, and what it was doing while we measured.

use std::{
    fmt, fs,
    time::{Duration, Instant},
};

use anyhow::Context;
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::resource::{UsageWho, getrusage},
    unistd::{Pid, SysconfVar, sysconf},
};

/// What stays the same over a bench.
#[derive(Debug)]
pub(crate) struct Machine {
    cores: usize,
    model: String,
    kernel: String,
    load_before: String,
    /// What the kernel does against speculation in its jumps and returns, which costs each of its calls.
    guards: String,
    build: &'static str,
}

impl Machine {
    pub(crate) fn look() -> Self {
        let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
        let model = read("/proc/cpuinfo")
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, model)| model.trim().into()))
            .unwrap_or_else(|| "a processor that does not say its name".into());
        Self {
            cores: cores(),
            model,
            kernel: read("/proc/sys/kernel/osrelease").trim().into(),
            load_before: load_average(),
            guards: ["spectre_v2", "retbleed", "spec_rstack_overflow"]
                .map(|name| read(&format!("/sys/devices/system/cpu/vulnerabilities/{name}")))
                .iter()
                .map(|text| first(text))
                .filter(|guard| !guard.is_empty() && *guard != "Not affected")
                .collect::<Vec<_>>()
                .join(", "),
            build: if cfg!(debug_assertions) { "not optimised" } else { "optimised" },
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cores, model, kernel, load_before, guards, build } = self;
        write!(f, "machine: {cores} cores, {model}, Linux {kernel} (speculation: {guards}); our build is {build}; ")?;
        write!(f, "load average {load_before} before, {} after", load_average())
    }
}

/// Of a list, what comes first.
fn first(text: &str) -> &str {
    let (_, after) = text.trim().split_once(": ").unwrap_or(("", text.trim()));
    after.split([';', ',']).next().unwrap_or(after)
}

fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("?").into()
}

/// All of the machine's: not only those that this thread keeps to.
fn cores() -> usize {
    sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten().and_then(|n| n.try_into().ok()).unwrap_or(1)
}

/// Where the measured server runs, and where the load comes from: never the same core, if there are two.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cores {
    pub(crate) server: usize,
    pub(crate) load: usize,
}

impl Cores {
    pub(crate) fn choose() -> anyhow::Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0)).context("asking which cores may be used")?;
        let mut ours = (0..CpuSet::count()).filter(|&core| allowed.is_set(core).unwrap_or(false));
        let server = ours.next().context("no core may be used")?;
        Ok(Self { server, load: ours.next_back().unwrap_or(server) })
    }
}

/// Keeps the calling thread on a core.
pub(crate) fn stay_on(core: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("moving to core {core}"))
}

/// Processor time that others took during a turn, as a share of all cores.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Disturbance {
    foreign: f64,
    stolen: f64,
}

impl Disturbance {
    /// What the reader must know of all turns.
    pub(crate) fn summary(turns: &[Self]) -> Option<String> {
        let foreign: Vec<f64> = turns.iter().map(|turn| turn.foreign).collect();
        let most = foreign.iter().copied().fold(0.0, f64::max);
        let stolen = turns.iter().map(|turn| turn.stolen).fold(0.0, f64::max);
        let middle = crate::figures::median(&foreign)?;
        // Between quiet runs the medians agree within 2 %; with a sixth of the machine taken, rates do not.
        let verdict =
            if middle > 0.15 { ": too much to believe the rates; run again when the machine is quiet" } else { "" };
        Some(format!(
            "other processes took {:.0} % of the machine in the middle turn, {:.0} % in the worst; the hypervisor kept \
             {:.0} % in the worst{verdict}",
            100.0 * middle,
            100.0 * most,
            100.0 * stolen
        ))
    }
}

/// Watches one turn.
#[derive(Debug)]
pub(crate) struct Watch {
    began: Instant,
    known: Vec<Pid>,
    busy: Duration,
    stolen: Duration,
    ours: Duration,
}

impl Watch {
    /// `known`: the processes whose time is not foreign, with their children, beside this one and its ended children.
    pub(crate) fn start(known: &[Pid]) -> anyhow::Result<Self> {
        let (busy, stolen) = machine_time()?;
        Ok(Self { began: Instant::now(), known: known.to_vec(), busy, stolen, ours: our_time(known)? })
    }

    pub(crate) fn stop(self) -> anyhow::Result<Disturbance> {
        let all = self.began.elapsed().as_secs_f64() * cores() as f64;
        let (busy, stolen) = machine_time()?;
        let busy = busy.saturating_sub(self.busy);
        let ours = our_time(&self.known)?.saturating_sub(self.ours);
        Ok(Disturbance {
            foreign: busy.saturating_sub(ours).as_secs_f64() / all,
            stolen: stolen.saturating_sub(self.stolen).as_secs_f64() / all,
        })
    }
}

fn our_time(known: &[Pid]) -> anyhow::Result<Duration> {
    let mut sum = Duration::ZERO;
    for who in [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN] {
        let usage = getrusage(who)?;
        for time in [usage.user_time(), usage.system_time()] {
            sum += Duration::new(time.tv_sec().try_into()?, u32::try_from(time.tv_usec())? * 1000);
        }
    }
    for &pid in known {
        sum += processor_time(pid)?;
    }
    Ok(sum)
}

/// User and system time of a process and everything below it.
pub(crate) fn processor_time(pid: Pid) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid} has ended"))?;
    // The second field is a name in brackets, in which spaces and brackets may stand.
    let (_, rest) = stat.rsplit_once(") ").context("a stat line has a name")?;
    let ticks: u64 = rest.split(' ').skip(11).take(2).map(|field| field.parse().unwrap_or(0)).sum();
    let mut sum = ticks_to_time(ticks)?;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may have ended since it was listed.
        let children = fs::read_to_string(task?.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace() {
            sum += processor_time(Pid::from_raw(child.parse()?)).unwrap_or_default();
        }
    }
    Ok(sum)
}

/// Busy and stolen time of all cores since boot.
fn machine_time() -> anyhow::Result<(Duration, Duration)> {
    let stat = fs::read_to_string("/proc/stat").context("reading what the machine does")?;
    let line = stat.lines().next().unwrap_or_default();
    let fields: Vec<u64> = line.split_whitespace().skip(1).map(|field| field.parse().unwrap_or(0)).collect();
    let &[user, nice, system, _idle, _wait, irq, softirq, steal, ..] = fields.as_slice() else {
        anyhow::bail!("/proc/stat begins with {line:?}");
    };
    Ok((ticks_to_time(user + nice + system + irq + softirq)?, ticks_to_time(steal)?))
}

fn ticks_to_time(ticks: u64) -> anyhow::Result<Duration> {
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("the kernel has no clock tick")?;
    Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_of_this_process_is_seen_and_not_foreign() {
        let me = Pid::this();
        let before = processor_time(me).expect("we run");
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut n = 0u64;
        while processor_time(me).expect("we run") < before + Duration::from_millis(50) {
            assert!(Instant::now() < deadline, "no processor time was counted in 20 s");
            for _ in 0..1_000_000 {
                n = std::hint::black_box(n.wrapping_mul(3) + 1);
            }
        }
        let watch = Watch::start(&[]).expect("a watch");
        let turn = watch.stop().expect("a turn");
        assert!((0.0..=1.5).contains(&turn.stolen), "{turn:?}");
    }

    #[test]
    fn of_what_the_kernel_says_about_a_flaw_the_guard_remains() {
        for (text, guard) in [
            ("Mitigation: Retpolines; STIBP: disabled; RSB filling", "Retpolines"),
            ("Vulnerable: Safe RET, no microcode\n", "Safe RET"),
            ("Not affected\n", "Not affected"),
            ("", ""),
        ] {
            assert_eq!(first(text), guard);
        }
    }

    #[test]
    fn a_summary_warns_when_others_took_too_much() {
        let turn = |foreign| Disturbance { foreign, stolen: 0.0 };
        assert_eq!(Disturbance::summary(&[]), None);
        let quiet = Disturbance::summary(&[turn(0.01), turn(0.5), turn(0.02)]).expect("turns");
        assert!(quiet.contains("2 % of the machine in the middle turn, 50 % in the worst") && !quiet.contains("quiet"));
        assert!(Disturbance::summary(&[turn(0.3)]).expect("a turn").contains("run again"));
    }
}
