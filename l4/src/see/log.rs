//! New flows as they begin (one of so many), and drops with their reason (at most one in a millisecond on each CPU).

use std::{net::SocketAddr, path::Path};

use serde::Serialize;
use tidegate_ebpf::abi::{self, Event, Reason, map};

use super::{Alone, View, capture::Wish, program::Program, ring::Ring};

/// Something that happened.
#[derive(Clone, Debug, Serialize)]
pub struct Told {
    /// ns of the program's clock, which moves by jiffies.
    #[serde(skip)]
    pub at: u64,
    pub protocol: &'static str,
    pub client: SocketAddr,
    /// For an answer that was dropped: the local address.
    pub vip: SocketAddr,
    #[serde(flatten)]
    pub what: What,
}

#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase", tag = "what")]
pub enum What {
    /// A new flow, with its real if that is still there.
    Flow {
        real: Option<SocketAddr>,
    },
    Drop {
        reason: &'static str,
        advice: &'static str,
    },
}

/// Follows the ring buffer `events`, which has one reader: nobody else reads it.
pub struct Log {
    ring: Ring<Event>,
    view: View,
    wish: Wish,
    since: u64,
    _alone: Alone,
}

impl Log {
    /// `every`: one of so many new flows, rounded up to a power of two; 0: none. Needs a runtime.
    pub fn follow(folder: &Path, every: u32) -> anyhow::Result<Self> {
        let view = View::open(folder)?;
        let alone = Alone::need(folder, "log")?;
        let ring = Ring::new(view.ring(map::EVENTS)?)?;
        let wish = Wish::open(&view)?;
        let since = Program::open(&view)?.now()?;
        let every = if every == 0 { 0 } else { every.checked_next_power_of_two().unwrap_or(1 << 31) };
        wish.log_every(every);
        Ok(Self { ring, view, wish, since, _alone: alone })
    }

    /// When it began, by the clock of [`Told::at`].
    #[must_use]
    pub fn since(&self) -> u64 {
        self.since
    }

    /// The next that happened; `None`: nothing more so far.
    pub fn take(&mut self) -> Option<Told> {
        loop {
            let event = self.ring.take()?;
            // What happened while nobody read may be days old.
            if event.at >= self.since {
                return Some(self.told(&event));
            }
        }
    }

    /// Returns when there may be more.
    pub async fn ready(&mut self) -> anyhow::Result<()> {
        self.ring.ready().await
    }

    fn told(&self, event: &Event) -> Told {
        let what = if event.dropped != 0 {
            let reason = Reason::from_number(event.detail);
            What::Drop { reason: Reason::NAMES[reason as usize], advice: super::advice(reason) }
        } else {
            What::Flow { real: self.view.real(event.detail).map(|real| real.address) }
        };
        Told {
            at: event.at,
            protocol: match event.protocol {
                abi::TCP => "tcp",
                abi::UDP => "udp",
                _ => "icmp",
            },
            client: SocketAddr::new(event.client.into(), event.client_port),
            vip: SocketAddr::new(event.vip.into(), event.vip_port),
            what,
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.wish.log_every(0);
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("view", &self.view).finish_non_exhaustive()
    }
}
