//! wrk, the load of HTTP benches: one thread on one core.

use std::{
    io::{self, Write},
    process::{Command, Output},
    time::Duration,
};

use anyhow::Context;

use crate::peers::Peer;

pub(crate) const WRK: Peer = Peer { package: "wrk", program: "/usr/bin/wrk" };

/// What is asked, how often at once, and for how long.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) url: String,
    pub(crate) core: usize,
    pub(crate) connections: u32,
    pub(crate) time: Duration,
    /// A connection for each request.
    pub(crate) close: bool,
    /// Bytes that are PUT there. 0: it is a GET.
    pub(crate) upload: usize,
}

#[derive(Debug, PartialEq)]
pub(crate) struct Turn {
    pub(crate) requests: u64,
    pub(crate) failed: u64,
    pub(crate) p99_us: u64,
    pub(crate) took: Duration,
}

/// wrk speaks numbers best through its script: one line, in its own units (microseconds).
const SCRIPT: &str = r#"
done = function(summary, latency)
    local e = summary.errors
    io.write(string.format("tidegate %d %d %d %d\n", summary.requests,
        e.connect + e.read + e.write + e.status + e.timeout, latency:percentile(99), summary.duration))
end
"#;

impl Load {
    /// GETs over 64 connections that stay.
    pub(crate) fn of(url: &str) -> Self {
        Self { url: url.into(), core: 0, connections: 64, time: Duration::from_secs(1), close: false, upload: 0 }
    }

    /// `start` runs the command to its end, wherever it belongs.
    pub(crate) fn run(&self, start: impl FnOnce(&mut Command) -> io::Result<Output>) -> anyhow::Result<Turn> {
        let mut script = tempfile::NamedTempFile::new()?;
        script.write_all(SCRIPT.as_bytes())?;
        if self.upload > 0 {
            writeln!(script, "wrk.method = \"PUT\"\nwrk.body = string.rep(\"x\", {})", self.upload)?;
        }
        let mut command = Command::new("taskset");
        command
            .args(["-c", &self.core.to_string()])
            .arg(WRK.program())
            .args(["-t1", "-c", &self.connections.to_string(), "-d", &format!("{}s", self.time.as_secs()), "-s"])
            .arg(script.path());
        if self.close {
            command.args(["-H", "Connection: close"]);
        }
        let output = start(command.arg(&self.url)).context("starting wrk")?;
        let text = String::from_utf8_lossy(&output.stdout);
        read(&text).with_context(|| format!("wrk said: {text}{}", String::from_utf8_lossy(&output.stderr)))
    }
}

fn read(text: &str) -> Option<Turn> {
    let line = text.lines().find_map(|line| line.strip_prefix("tidegate "))?;
    let numbers: Vec<u64> = line.split(' ').map(|word| word.parse().ok()).collect::<Option<_>>()?;
    let &[requests, failed, p99_us, took_us] = numbers.as_slice() else { return None };
    Some(Turn { requests, failed, p99_us, took: Duration::from_micros(took_us) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_the_script_is_found_among_what_wrk_prints() {
        let text = "Running 1s test\n  1 threads\n\ntidegate 1000 2 350 1000123\n";
        let turn = Turn { requests: 1000, failed: 2, p99_us: 350, took: Duration::from_micros(1_000_123) };
        assert_eq!(read(text), Some(turn));
        assert_eq!(read("unable to connect"), None);
    }
}
