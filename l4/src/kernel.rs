//! What this process may do and what this kernel can, and what is said when that is not enough.

use std::{fs, io};

use anyhow::{Context, bail};
use aya::programs::ProgramError;

/// The oldest kernel that takes the programs; CI boots it.
const OLDEST: &str = "Linux 6.1";

/// CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (the verifier takes packet pointers' arithmetic only with it).
pub(crate) fn privileges() -> anyhow::Result<()> {
    const NEEDED: [(u32, &str); 3] = [(12, "CAP_NET_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    let status = fs::read_to_string("/proc/self/status").context("reading this process's capabilities")?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or_default();
    let missing: Vec<&str> = NEEDED
        .iter()
        .filter(|(bit, _)| effective & 1 << bit == 0 && (*bit == 12 || effective & CAP_SYS_ADMIN == 0))
        .map(|(_, name)| *name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    bail!("layer 4 needs {}: run as root, or give the binary these capabilities", missing.join(", "))
}

/// Why an object was not loaded, and what to do.
pub(crate) fn explain(error: anyhow::Error) -> anyhow::Error {
    let code = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()).and_then(io::Error::raw_os_error);
    match code {
        Some(libc::EPERM | libc::EACCES) => error.context(
            "loading the XDP program was refused: run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON",
        ),
        Some(libc::ENOSYS) => error.context("this kernel was built without BPF, which layer 4 needs"),
        Some(libc::ENOMEM) => error.context("no memory for the maps: each of l4.local_addresses takes 4 MB"),
        _ => error.context("loading the XDP program"),
    }
}

/// Why a program of it was not. Of the verifier's log, which may have a million lines, the one that says it is kept.
pub(crate) fn explain_program(name: &str, error: ProgramError) -> anyhow::Error {
    let ProgramError::LoadError { io_error, verifier_log } = error else { return explain(error.into()) };
    let log = verifier_log.to_string();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease");
    let kernel = format!("this kernel ({})", release.as_deref().unwrap_or("unknown").trim());
    // Figures follow it.
    let figures = ["processed ", "stack depth ", "verification time "];
    let verdict = log.lines().rfind(|line| !line.is_empty() && !figures.iter().any(|words| line.starts_with(words)));
    let error = anyhow::Error::new(io_error);
    let Some(verdict) = verdict else { return explain(error).context(format!("loading the program `{name}`")) };
    // "invalid func unknown#204", "unknown func bpf_...", "program of this type cannot use helper bpf_...".
    let hint = if ["invalid func", "unknown func", "cannot use helper"].iter().any(|words| verdict.contains(words)) {
        format!("{kernel} lacks a function that layer 4 calls: boot {OLDEST} or later, or run without the role l4")
    } else {
        format!("the verifier of {kernel} does not take it: boot {OLDEST} or later, and report this line if it is one")
    };
    error.context(format!("loading the program `{name}`: {verdict}; {hint}"))
}
