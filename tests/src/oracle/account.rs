//! What was counted, and how it is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    time::Duration,
};

/// The whole account of a load. All times are since its start.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// By the label of the target.
    pub counts: BTreeMap<String, Counts>,
    /// Requests without a good answer.
    pub failed: Vec<Loss>,
    /// Connections that ended in a way that a client would call an error.
    pub broken: Vec<Loss>,
    /// Datagrams without an answer; told apart, because UDP promises nothing.
    pub lost_datagrams: Vec<Loss>,
    /// By instance.
    pub served_by: BTreeMap<String, Served>,
    /// By address that a DNS answer held.
    pub resolved: BTreeMap<IpAddr, Served>,
    pub marks: Vec<(Duration, String)>,
    pub length: Duration,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Requests that were begun.
    pub requests: u64,
    pub answered: u64,
    /// Connections that were had.
    pub connections: u64,
    /// Ended by the server in an answer.
    pub announced_closes: u64,
    /// Ended by the server while nothing was asked.
    pub idle_closes: u64,
    pub slowest: Duration,
}

/// Something that should not have happened.
#[derive(Clone, Debug)]
pub struct Loss {
    pub at: Duration,
    pub label: String,
    pub reason: String,
}

/// When something was seen.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Served {
    pub first: Duration,
    pub last: Duration,
    pub count: u64,
}

impl Served {
    pub(super) fn seen(&mut self, at: Duration) {
        if self.count == 0 {
            self.first = at;
        }
        self.last = at;
        self.count += 1;
    }
}

impl Account {
    /// One target's counts; panics on a label that was never started.
    pub fn of(&self, label: &str) -> Counts {
        *self.counts.get(label).unwrap_or_else(|| panic!("no target is called {label}: {:?}", self.counts.keys()))
    }

    pub fn requests(&self) -> u64 {
        self.counts.values().map(|counts| counts.requests).sum()
    }

    pub fn connections(&self) -> u64 {
        self.counts.values().map(|counts| counts.connections).sum()
    }

    /// The instances that answered after a moment.
    pub fn served_since(&self, at: Duration) -> BTreeSet<&str> {
        self.served_by.iter().filter(|(_, served)| served.last >= at).map(|(name, _)| name.as_str()).collect()
    }

    /// When a mark was set; panics when it was not.
    pub fn marked(&self, what: &str) -> Duration {
        self.marks.iter().find(|(_, mark)| mark == what).map(|(at, _)| *at).unwrap_or_else(|| panic!("no mark {what}"))
    }

    /// 0 failed requests, 0 broken connections, and something was asked of every target at all.
    pub fn assert_lossless(&self) {
        assert!(self.failed.is_empty() && self.broken.is_empty(), "requests were lost\n{self}");
        for (label, counts) in &self.counts {
            assert!(counts.answered > 0, "nothing was answered to {label}, so nothing is proved\n{self}");
        }
    }

    /// The moment relative to the last mark before it: `1.204 s (0.031 s after "scale down")`.
    fn when(&self, at: Duration) -> String {
        let seconds = at.as_secs_f64();
        match self.marks.iter().rev().find(|(mark, _)| *mark <= at) {
            None => format!("{seconds:.3} s"),
            Some((mark, what)) => format!("{seconds:.3} s ({:.3} s after {what:?})", (at - *mark).as_secs_f64()),
        }
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 20;
        for (what, losses) in [
            ("failed requests", &self.failed),
            ("broken connections", &self.broken),
            ("lost datagrams", &self.lost_datagrams),
        ] {
            writeln!(f, "{what}: {}", losses.len())?;
            for loss in losses.iter().take(SHOWN) {
                writeln!(f, "  {}  {}: {}", self.when(loss.at), loss.label, loss.reason)?;
            }
            if losses.len() > SHOWN {
                writeln!(f, "  ... and {} more", losses.len() - SHOWN)?;
            }
        }
        for (label, counts) in &self.counts {
            writeln!(
                f,
                "{label}: {} requests, {} answered, {} connections, closed by the server: {} announced, {} idle; slowest {:?}",
                counts.requests,
                counts.answered,
                counts.connections,
                counts.announced_closes,
                counts.idle_closes,
                counts.slowest
            )?;
        }
        for (at, what) in &self.marks {
            writeln!(f, "mark at {:.3} s: {what}", at.as_secs_f64())?;
        }
        let resolved = self.resolved.iter().map(|(address, served)| (address.to_string(), served));
        for (name, served) in self.served_by.iter().map(|(name, served)| (name.clone(), served)).chain(resolved) {
            let (first, last) = (served.first.as_secs_f64(), served.last.as_secs_f64());
            writeln!(f, "{name}: {} answers, {first:.3} s to {last:.3} s", served.count)?;
        }
        Ok(())
    }
}
