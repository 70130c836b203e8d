//! What is known of one real: the last probes, and what its traffic looked like. Pure: the time is an argument.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use crate::{
    input::{Forward, Frontend, Probe, Protocol, Service},
    report::{Health, Verdict},
};

/// What the packet path saw of a real since the reading before.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Passive {
    /// SYNs that were sent to it, repeated ones too; UDP under full NAT: first datagrams of flows.
    pub opens: u64,
    /// Full NAT: what it said to them, to each repeated SYN again: else a client that repeats one SYN could have a real
    /// taken out. Other modes, whose answers pass elsewhere: all other packets of clients to it.
    pub answers: u64,
    /// RSTs that answered a SYN (TCP under full NAT).
    pub resets: u64,
}

/// Fewer opened flows than this say nothing: that ten in a row are lost by chance happens to no network that works.
pub(crate) const SAMPLE: u64 = 10;
/// A reading older than this is forgotten even if the sample is small: it is about another time.
pub(crate) const MEMORY: Duration = Duration::from_secs(10);
/// Nine in ten unanswered or refused: a real that answers more is overloaded, not away, and its load would only make
/// the next one so.
pub(crate) const BAD_IN_TEN: u64 = 9;
/// In the direct modes, a client that was answered sends at least one more packet for each SYN. Half of that leaves
/// room for what clients of a dead real still send again.
pub(crate) const OTHERS_PER_TEN_OPENS: u64 = 5;
/// The first ejection: long enough for a probe or two, short enough to be no loss when it was wrong.
pub(crate) const EJECTED: Duration = Duration::from_secs(5);
/// Each one soon after another doubles, up to this: at least so often a real without a probe gets a trial.
pub(crate) const EJECTED_LONGEST: Duration = Duration::from_secs(300);
/// A real that was in for so long starts over with the shortest ejection.
pub(crate) const FORGIVEN: Duration = Duration::from_secs(300);

#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    /// By the probes alone: `Unknown`, `Up` or `Down`.
    probed: Verdict,
    /// The last results that were alike: their number, and whether they were good.
    row: (u32, bool),
    down: Option<Down>,
    /// The newest reading is last.
    readings: VecDeque<Reading>,
    /// It answered at least once: only then is UDP's silence a sign, since some services never answer.
    answered: bool,
    ejection: Option<Ejection>,
    /// Ejections without [`FORGIVEN`] between them.
    times: u32,
    free_since: Duration,
}

#[derive(Clone, Debug)]
struct Down {
    how: String,
    why: Arc<str>,
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    since: Duration,
    passive: Passive,
}

#[derive(Clone, Debug)]
struct Ejection {
    until: Duration,
    why: Arc<str>,
}

impl Standing {
    /// Of a real that was out when this process started.
    pub(crate) fn out() -> Self {
        let why = "it was out before this process started, and its probes are not good yet";
        Self { probed: Verdict::Down, down: Some(Down { how: String::new(), why: why.into() }), ..Self::default() }
    }

    pub(crate) fn health(&self) -> Health {
        match (&self.ejection, self.probed) {
            (_, Verdict::Down) => {
                Health { verdict: Verdict::Down, why: self.down.as_ref().map(|down| Arc::clone(&down.why)) }
            }
            (Some(ejection), _) => Health { verdict: Verdict::Ejected, why: Some(Arc::clone(&ejection.why)) },
            (None, verdict) => Health { verdict, why: None },
        }
    }

    pub(crate) fn verdict(&self) -> Verdict {
        match self.probed {
            Verdict::Down => Verdict::Down,
            _ if self.ejection.is_some() => Verdict::Ejected,
            verdict => verdict,
        }
    }

    /// A probe came back: `Err` says how it failed. Answers whether there is something else to say of the real now.
    pub(crate) fn probe(&mut self, probe: &Probe, result: Result<(), &str>, now: Duration) -> bool {
        let before = self.verdict();
        let good = result.is_ok();
        self.row = if self.row.1 == good { (self.row.0.saturating_add(1), good) } else { (1, good) };
        let row = self.row.0;
        match result {
            Ok(()) if self.probed != Verdict::Down || row >= u32::from(probe.rise) => {
                self.probed = Verdict::Up;
                self.down = None;
            }
            // It goes on failing, and in another way: the first one may have been a passing one.
            Err(how) if row >= u32::from(probe.fall) && self.down.as_ref().is_none_or(|down| down.how != how) => {
                self.probed = Verdict::Down;
                let why = match row {
                    1 => format!("a probe failed: {how}"),
                    row => format!("{row} probes in a row failed: {how}"),
                };
                self.down = Some(Down { how: how.to_owned(), why: why.into() });
                return true;
            }
            _ => {}
        }
        // The first time the probe's word is enough. When its traffic went bad again soon after, probe and traffic
        // disagree, and clients are the traffic: the time has to pass.
        if good && self.times <= 1 && row >= u32::from(probe.rise) {
            self.release(now);
        }
        self.verdict() != before
    }

    /// The service has no probe any more.
    pub(crate) fn forget_probes(&mut self) {
        (self.probed, self.row, self.down) = (Verdict::Unknown, (0, false), None);
    }

    /// Packets go another way now: what was counted says nothing about it.
    pub(crate) fn forget_traffic(&mut self) {
        self.readings.clear();
        self.answered = false;
    }

    /// What was counted from `since` to `now`. Answers when an ejection that begins now ends.
    pub(crate) fn traffic(
        &mut self,
        frontend: &Frontend,
        service: &Service,
        passive: Passive,
        since: Duration,
        now: Duration,
    ) -> Option<Duration> {
        self.answered |= passive.answers > passive.resets;
        if self.ejection.is_some() {
            return None;
        }
        self.readings.push_back(Reading { since, passive });
        // As few of the newest readings as make a sample.
        while self.readings.front().is_some_and(|oldest| now.saturating_sub(oldest.since) > MEMORY)
            || self.asked(1) >= SAMPLE
        {
            self.readings.pop_front();
        }
        let why = self.complaint(frontend.protocol, service.forward, now)?;
        if now.saturating_sub(self.free_since) > FORGIVEN {
            self.times = 0;
        }
        let time = EJECTED.saturating_mul(1 << self.times.min(16)).min(EJECTED_LONGEST);
        self.times += 1;
        // Good probes from before count no longer.
        self.row = (0, false);
        self.readings.clear();
        let until = now + time;
        self.ejection = Some(Ejection { until, why: format!("{why}; out for {} s", time.as_secs()).into() });
        Some(until)
    }

    /// Opened flows of all readings but the first `skip` and the newest: its flows may yet be answered.
    fn asked(&self, skip: usize) -> u64 {
        let older = self.readings.len().saturating_sub(1);
        self.readings.iter().take(older).skip(skip).map(|reading| reading.passive.opens).sum()
    }

    fn complaint(&self, protocol: Protocol, forward: Forward, now: Duration) -> Option<String> {
        let opens = self.asked(0);
        if opens < SAMPLE {
            return None;
        }
        let sum = |of: fn(&Passive) -> u64| -> u64 { self.readings.iter().map(|reading| of(&reading.passive)).sum() };
        let answers = sum(|passive| passive.answers).min(opens);
        let (refused, of) = (sum(|passive| passive.resets), sum(|passive| passive.opens));
        let since = self.readings.front().map_or(now, |oldest| oldest.since);
        let seconds = now.saturating_sub(since).as_secs_f32().ceil();
        match (forward, protocol) {
            (Forward::FullNat, Protocol::Tcp) if refused * 10 >= of * BAD_IN_TEN => {
                Some(format!("{} of {of} connections were refused in {seconds} s", refused.min(of)))
            }
            (Forward::FullNat, protocol) if (opens - answers) * 10 >= opens * BAD_IN_TEN => match protocol {
                Protocol::Tcp => Some(format!("{} of {opens} SYNs got no answer in {seconds} s", opens - answers)),
                Protocol::Udp => self
                    .answered
                    .then(|| format!("{} of {opens} UDP flows got no answer in {seconds} s", opens - answers)),
            },
            (Forward::Direct | Forward::IpIp | Forward::Gue { .. }, Protocol::Tcp)
                if answers * 10 < opens * OTHERS_PER_TEN_OPENS =>
            {
                Some(format!("after {opens} SYNs only {answers} other packets came in {seconds} s"))
            }
            _ => None,
        }
    }

    /// Ends an ejection whose time is over.
    pub(crate) fn tick(&mut self, now: Duration) {
        if self.ejection.as_ref().is_some_and(|ejection| ejection.until <= now) {
            self.release(now);
        }
    }

    fn release(&mut self, now: Duration) {
        if self.ejection.take().is_some() {
            self.free_since = now;
        }
    }
}
