//! What happened: read by whoever gave the Input.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use imbl::OrdMap;

use crate::{
    input::{Frontend, Refused},
    tables::Moved,
};

/// The plane's state, published when an Input was applied or refused and once a second; with thousands of services the
/// counters in it are read more rarely, so that changes do not wait for them.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The newest Input whose every part is in the maps and announced.
    pub generation: u64,
    /// The last Input that was refused, with its reason; cleared by the next good one.
    pub refused: Option<(u64, Refused)>,
    /// Where the program is attached.
    pub attached: Vec<Attached>,
    /// Counters by front end.
    pub services: OrdMap<Frontend, Arc<ServiceCounters>>,
    /// Packets dropped by reason, since the maps were made.
    pub drops: Vec<(&'static str, u64)>,
    /// Slots on the move, and how their moves ended.
    pub moves: Moved,
    /// The last drains that ended, the newest last.
    pub drains: Vec<Drained>,
    pub drained: DrainTotals,
    /// Services whose bad reals get new flows all the same, since nearly all of them look bad; `problems` says more.
    pub fail_open: Vec<Frontend>,
    pub probes: Probes,
    /// What is wrong now and what to do about it, in words.
    pub problems: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    pub interface: String,
    /// `native` or `generic`.
    pub mode: &'static str,
}

/// Counted since the maps were made: they survive a restart of the process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceCounters {
    /// Packets and bytes from clients.
    pub packets: u64,
    pub bytes: u64,
    /// Flows that were given a real.
    pub flows: u64,
    /// SYNs, also repeated ones.
    pub opens: u64,
    pub reals: Vec<RealCounters>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RealCounters {
    pub address: IpAddr,
    pub port: u16,
    pub packets: u64,
    pub bytes: u64,
    pub flows: u64,
    /// SYNs, also repeated ones.
    pub opens: u64,
    /// Flows that it answered for the first time, and its resets (full NAT only: other modes do not see answers).
    pub answers: u64,
    pub resets: u64,
    /// Flows alive when they were counted last: every 2 s while something drains or moves, every 10 s otherwise. 0 is the
    /// proof that a drain is over. `None`: not counted yet, or not known: in the direct and tunnelling modes only those
    /// of a real that drains are, and they are over when their client has ended them, whose answers are not seen.
    pub live: Option<u64>,
    pub health: Health,
}

/// Active probes since the process started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probes {
    pub sent: u64,
    pub failed: u64,
    /// Could not be sent, which says nothing about the real.
    pub unable: u64,
    /// Sent an interval or more after their time: too many are on their way at once, most likely to reals that are
    /// silent until their timeout.
    pub late: u64,
    /// The newest that failed: which real of which front end, and how.
    pub last_error: Option<(Frontend, SocketAddr, Arc<str>)>,
    /// How long the newest good one took.
    pub last_took: Option<Duration>,
}

/// What is thought of a real.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    pub verdict: Verdict,
    /// The reason, in words, of a verdict against it.
    pub why: Option<Arc<str>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing speaks for or against it: it is used.
    #[default]
    Unknown,
    /// It answers its probes.
    Up,
    /// It does not.
    Down,
    /// What its traffic looks like speaks against it, for a while.
    Ejected,
}

/// Drains that ended since the process started, also those that `drains` tells no more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DrainTotals {
    pub ended: u64,
    /// The flows that were alive when their reals left.
    pub cut: u64,
}

/// A real that left the Input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drained {
    pub frontend: Frontend,
    pub real: SocketAddr,
    /// When it began to drain, and for how long it did.
    pub began: Instant,
    pub lasted: Duration,
    /// The flows that were alive when it left: 0 is the proof that nobody lost anything.
    pub cut: u64,
}
