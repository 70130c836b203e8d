//! Packets as the program saw and sent them. What is wanted stands in `watch`, copies come by the ring buffer `captured`.

use std::{
    collections::{BTreeMap, VecDeque},
    mem::offset_of,
    net::IpAddr,
    path::Path,
};

use tidegate_ebpf::abi::{self, Captured, Reason, Watch, map};

use super::{Alone, View, ring::Ring};
use crate::mapped::Mapped;

/// Which packets: see [`Watch`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter {
    pub address: Option<IpAddr>,
    pub port: Option<u16>,
}

/// A packet, or as much of it as is held.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Packet {
    /// ns of the monotonic clock.
    pub at: u64,
    /// Of the whole packet.
    pub length: u32,
    pub bytes: Vec<u8>,
    /// Where it came by, or leaves.
    pub ifindex: u32,
    pub what: What,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum What {
    Came(Verdict),
    Sent,
}

/// What became of a packet that came.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    Sent,
    Passed,
    Dropped(Reason),
    /// The interface that it should leave by is gone.
    Aborted,
    /// Its copy was lost: packets came faster than they were read.
    Unknown,
}

/// The program stops by itself after so many copies that nobody read.
const LEASE: u32 = 4096;

/// Captures until it is dropped.
pub struct Capture {
    ring: Ring<Captured>,
    wish: Wish,
    /// By CPU: packets of which it is not known yet what became of them.
    coming: BTreeMap<u32, Packet>,
    done: VecDeque<Packet>,
    lost: u32,
    _alone: Alone,
}

impl Capture {
    /// Needs a runtime.
    pub fn start(folder: &Path, filter: &Filter) -> anyhow::Result<Self> {
        let view = View::open(folder)?;
        let alone = Alone::need(view.folder(), "capture")?;
        let wish = Wish::open(&view)?;
        // Whoever captured before may have been killed.
        wish.capture(false);
        let mut ring = Ring::new(view.ring(map::CAPTURED)?)?;
        while ring.take().is_some() {}
        let lost = wish.lost();
        wish.filter(filter);
        wish.renew();
        wish.capture(true);
        Ok(Self { ring, wish, coming: BTreeMap::new(), done: VecDeque::new(), lost, _alone: alone })
    }

    /// The next packet; `None`: no more so far. One that came is told when it is known what became of it.
    pub fn take(&mut self) -> Option<Packet> {
        while self.done.is_empty() {
            let captured = self.ring.take()?;
            self.wish.renew();
            self.sort(&captured);
        }
        self.done.pop_front()
    }

    /// Returns when there may be more.
    pub async fn ready(&mut self) -> anyhow::Result<()> {
        self.ring.ready().await
    }

    /// Copies for which there was no room, since they were not read fast enough.
    #[must_use]
    pub fn lost(&self) -> u32 {
        self.wish.lost().wrapping_sub(self.lost)
    }

    /// Ends it, and returns what is left.
    pub fn stop(mut self) -> Vec<Packet> {
        self.wish.capture(false);
        let mut rest: Vec<Packet> = std::iter::from_fn(|| self.take()).collect();
        rest.extend(std::mem::take(&mut self.coming).into_values());
        rest
    }

    fn sort(&mut self, captured: &Captured) {
        let bytes = captured.bytes.get(..captured.held as usize).unwrap_or(&captured.bytes).to_vec();
        let packet = |ifindex, what| Packet { at: captured.at, length: captured.length, bytes, ifindex, what };
        if captured.action == Captured::CAME {
            let came = packet(captured.ifindex, What::Came(Verdict::Unknown));
            self.done.extend(self.coming.insert(captured.cpu, came));
            return;
        }
        if let Some(came) = self.coming.remove(&captured.cpu) {
            self.done.push_back(Packet { what: What::Came(verdict(captured)), ..came });
        }
        if captured.held != 0 {
            let ifindex = if captured.action == REDIRECT { captured.detail } else { captured.ifindex };
            self.done.push_back(packet(ifindex, What::Sent));
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.wish.capture(false);
    }
}

impl std::fmt::Debug for Capture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Capture").field("lost", &self.lost()).finish_non_exhaustive()
    }
}

/// `enum xdp_action`.
const DROP: u32 = 1;
const PASS: u32 = 2;
const TX: u32 = 3;
const REDIRECT: u32 = 4;

fn verdict(captured: &Captured) -> Verdict {
    match captured.action {
        DROP => Verdict::Dropped(Reason::from_number(captured.detail)),
        PASS => Verdict::Passed,
        TX | REDIRECT => Verdict::Sent,
        _ => Verdict::Aborted,
    }
}

/// The map `watch` as words, each of which has one writer.
pub(super) struct Wish(Mapped<u32>);

impl Wish {
    pub(super) fn open(view: &View) -> anyhow::Result<Self> {
        view.mapped(map::WATCH).map(Self)
    }

    fn set(&self, offset: usize, word: u32) {
        let written = self.0.set(offset / size_of::<u32>(), &word);
        debug_assert!(written, "`watch` has a word at {offset}");
    }

    pub(super) fn log_every(&self, every: u32) {
        self.set(offset_of!(Watch, log_every), every);
    }

    fn capture(&self, on: bool) {
        self.set(offset_of!(Watch, capture), u32::from(on));
    }

    fn renew(&self) {
        self.set(offset_of!(Watch, left), LEASE);
    }

    fn lost(&self) -> u32 {
        self.0.get(offset_of!(Watch, lost) / size_of::<u32>()).unwrap_or_default()
    }

    fn filter(&self, filter: &Filter) {
        let address = filter.address.map(abi::Address::from).unwrap_or_default();
        for (at, word) in address.0.into_iter().enumerate() {
            self.set(offset_of!(Watch, address) + at * size_of::<u32>(), word);
        }
        // The port is the first half of its word, as it lies in memory; the other half is nothing.
        let [low, high] = filter.port.unwrap_or_default().to_ne_bytes();
        self.set(offset_of!(Watch, port), u32::from_ne_bytes([low, high, 0, 0]));
    }
}
