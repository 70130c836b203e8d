//! ns per packet by path: the program alone, run by the kernel on frames in memory (BPF_PROG_TEST_RUN).
//!
//! A figure is believed only if the frames took the path that its row names: a single frame is looked at before, and the
//! balancer's own counters after each turn.

use anyhow::{Context, ensure};
use aya::programs::links::FdLink;
use tidegate_ebpf::{frames::Build, replay::Replay};
use tidegate_l4::Protocol;

use super::{
    harness::{Harness, Verdict},
    ours::{Counts, Ours, Room},
    paths::{Frames, PATHS, Path, Table},
    world::{self, LINK, LINK_MAC, Vip},
};

/// Of flows that have come and gone before a turn in an aged table, each of half as many as it is made for.
const GENERATIONS: u32 = 8;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    /// In one turn of one row; a row of more flows has as many as flows.
    pub(super) runs: u32,
    /// At most so many flows, whatever the row says.
    pub(super) flows: u32,
}

impl Scale {
    fn room(self) -> Room {
        Room { v4: self.flows, v6: self.flows.min(100_000) }
    }

    fn clients(self, path: &Path) -> u32 {
        if path.frames == Frames::New { path.frames.clients() } else { path.frames.clients().min(self.flows) }
    }

    fn runs(self, path: &Path) -> u32 {
        match path.frames {
            // Half of the room, so that the table is never crowded.
            Frames::New if path.table != Table::Full => self.runs.min(self.flows / 2),
            Frames::New => self.runs,
            _ => self.runs.max(self.clients(path)),
        }
    }
}

/// A namespace's thread holds all of this: test runs look for interfaces and routes in their caller's namespace.
pub(super) struct Desk {
    scale: Scale,
    harness: Harness,
    interface: u32,
    used: Ours,
    aged: Option<Ours>,
    full: Option<Ours>,
    /// Where each row of new flows goes on.
    next: Vec<u32>,
    /// Test runs can be told that a frame came by an interface only if that one is ready for XDP.
    _link: FdLink,
}

/// A turn of a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    /// For a packet, without what laying the frame cost.
    pub(super) ns: f64,
    /// What that cost.
    pub(super) laying: f64,
    /// Of the packets.
    pub(super) dropped: f64,
}

impl Desk {
    /// In the current namespace, which is a [`world::Link`]'s, with the flows of the rows that are wanted.
    pub(super) fn set(scale: Scale, wanted: &dyn Fn(&Path) -> bool) -> anyhow::Result<Self> {
        let mut harness = Harness::load()?;
        let link = harness.attach("nothing", LINK)?;
        let mut used = Ours::load(scale.room())?;
        let way = world::way()?;
        used.give(&world::input(false), &|_| way)?;
        used.give(&world::input(true), &|_| way)?;
        let interface = world::index(LINK)?;
        let next = vec![0; PATHS.len()];
        let mut desk = Self { scale, harness, interface, used, aged: None, full: None, next, _link: link };
        for path in PATHS.iter().filter(|path| matches!(path.frames, Frames::Of(_)) && wanted(path)) {
            desk.open(path)?;
        }
        Ok(desk)
    }

    /// All flows of a row begin. On a moving slot they are from before it moved: nobody saw them begin.
    fn open(&mut self, path: &Path) -> anyhow::Result<()> {
        let clients = self.scale.clients(path);
        self.harness.aim(self.used.program()?)?;
        for flags in if path.vip == Vip::Moving { &["A"][..] } else { &["S", "A"] } {
            self.harness.lay(&replay(path, flags, clients)?)?;
            self.harness.time(self.interface, clients)?;
        }
        Ok(())
    }

    /// Whether a single frame of this row comes out as it must.
    pub(super) fn look(&mut self, path: &Path) -> anyhow::Result<()> {
        let replay = self.frames(path)?;
        self.used.believe(path.believed)?;
        self.harness.aim(self.used.program()?)?;
        self.harness.lay(&replay)?;
        let (verdict, bytes) = self.harness.once(self.interface)?;
        let expected = if path.vip == Vip::Nobody { Verdict::Passed } else { Verdict::Sent };
        ensure!(verdict == expected, "the frame was {verdict:?}, not {expected:?}");
        let length = replay.length as usize + path.growth();
        ensure!(bytes.len() == length, "the frame came out with {} bytes, not {length}", bytes.len());
        Ok(())
    }

    /// One turn of `PATHS[row]`.
    pub(super) fn turn(&mut self, row: usize) -> anyhow::Result<Turn> {
        let path = &PATHS[row];
        let runs = self.scale.runs(path);
        let mut frames = self.frames(path)?;
        let base = self.harness.price(&frames, path.growth(), self.interface, runs.min(self.scale.runs))?;
        let mut fresh = None;
        match path.table {
            Table::Used => {}
            Table::Fresh => fresh = Some(filled(self.scale.room())?),
            Table::Aged => self.age(row)?,
            Table::Full => self.fill()?,
        }
        if fresh.is_none() {
            frames.client = self.next[row];
        }
        let Self { harness, used, aged, full, interface, .. } = self;
        let ours = match path.table {
            Table::Used => used,
            Table::Fresh => fresh.as_mut().expect("it was just made"),
            Table::Aged => aged.as_mut().expect("it was just aged"),
            Table::Full => full.as_mut().expect("it was just filled"),
        };
        let frontend = path.vip.frontend(path.v6, Protocol::Tcp);
        let count = |ours: &Ours| match path.vip {
            Vip::Nobody => Ok(Counts::default()),
            _ => ours.counts(&frontend),
        };
        let (before, dropped) = (count(ours)?, ours.drops()?);
        ours.believe(path.believed)?;
        harness.aim(ours.program()?)?;
        harness.lay(&frames)?;
        let ns = harness.time(*interface, runs)? - base;
        let after = count(ours)?;
        let dropped = ours.drops()? - dropped;
        if path.frames == Frames::New {
            self.next[row] = harness.next_client()?;
        }
        let counted = Counts { packets: after.packets - before.packets, flows: after.flows - before.flows };
        judge(path, runs.into(), counted, dropped)?;
        if path.table == Table::Aged {
            self.pass(row, "R", frames.client, runs)?;
        }
        Ok(Turn { ns, laying: base, dropped: dropped as f64 / f64::from(runs) })
    }

    /// ns of one call of a helper, which every look-up in a map is.
    pub(super) fn helper_call(&mut self) -> anyhow::Result<f64> {
        let frames = self.frames(&PATHS[0])?;
        self.harness.helper_call(&frames, self.interface, self.scale.runs)
    }

    /// ns of one look at memory that no cache holds, as every packet of one of very many flows has to.
    pub(super) fn far_look(&mut self) -> anyhow::Result<f64> {
        let frames = Replay { growth: 0, ..replay(&PATHS[0], "A", 1_000_000)? };
        self.harness.far_look(&frames, self.interface, self.scale.runs)
    }

    /// Flows begin and end, half as many as the table is made for at a time.
    fn age(&mut self, row: usize) -> anyhow::Result<()> {
        if self.aged.is_some() {
            return Ok(());
        }
        self.aged = Some(filled(self.scale.room())?);
        for _ in 0..GENERATIONS {
            let begun = self.next[row];
            self.pass(row, "S", begun, self.scale.flows / 2)?;
            self.next[row] = self.harness.next_client()?;
            self.pass(row, "R", begun, self.scale.flows / 2)?;
        }
        Ok(())
    }

    /// A packet of each of so many flows, in the aged table.
    fn pass(&mut self, row: usize, flags: &str, first: u32, flows: u32) -> anyhow::Result<()> {
        let path = &PATHS[row];
        let aged = self.aged.as_mut().expect("made by `age`");
        self.harness.aim(aged.program()?)?;
        self.harness.lay(&Replay { client: first, ..replay(path, flags, path.frames.clients())? })?;
        self.harness.time(self.interface, flows)?;
        Ok(())
    }

    /// Offers more flows than there is room for, until hardly any finds a place, or there were many more.
    fn fill(&mut self) -> anyhow::Result<()> {
        if self.full.is_some() {
            return Ok(());
        }
        let path = PATHS.iter().find(|path| path.table == Table::Full).context("no row is about a full table")?;
        let mut ours = filled(self.scale.room())?;
        self.harness.aim(ours.program()?)?;
        self.harness.lay(&replay(path, "S", path.frames.clients())?)?;
        self.harness.time(self.interface, 16 * self.scale.flows)?;
        let row = PATHS.iter().position(|path| path.table == Table::Full).expect("it was just found");
        self.next[row] = self.harness.next_client()?;
        self.full = Some(ours);
        Ok(())
    }

    fn frames(&mut self, path: &Path) -> anyhow::Result<Replay> {
        match path.frames {
            Frames::Of(_) => replay(path, "A", self.scale.clients(path)),
            Frames::New => replay(path, "S", self.scale.clients(path)),
            Frames::Answers => {
                let question = replay(path, "A", 1)?;
                self.harness.aim(self.used.program()?)?;
                self.harness.lay(&question)?;
                let (verdict, forwarded) = self.harness.once(self.interface)?;
                ensure!(verdict == Verdict::Sent, "the question to be answered was {verdict:?}");
                Ok(Replay::fixed(&answer(forwarded)))
            }
        }
    }
}

/// A balancer with all services, and no flows.
fn filled(room: Room) -> anyhow::Result<Ours> {
    let mut ours = Ours::load(room)?;
    let way = world::way()?;
    ours.give(&world::input(false), &|_| way)?;
    Ok(ours)
}

fn replay(path: &Path, flags: &str, clients: u32) -> anyhow::Result<Replay> {
    let vip = path.vip.address(path.v6);
    // IPv4 takes the 64 bytes of Ethernet's smallest frame; in IPv6 the headers alone are longer.
    let text = if path.v6 {
        format!("tcp [fd77:5::]:0 > [{vip}]:80 {flags}")
    } else {
        format!("tcp 198.18.0.0:0 > {vip}:80 {flags} +10")
    };
    let mut frame: Build = text.parse().map_err(anyhow::Error::msg)?;
    frame.destination_mac = world::mac(LINK_MAC);
    Ok(Replay::of(&frame, clients))
}

/// What the one at the other end of this frame would send back. The checksums hold, since the sums do.
fn answer(mut frame: Vec<u8>) -> Vec<u8> {
    let v4 = frame[12..14] == [0x08, 0x00];
    let (addresses, length, ports) = if v4 { (26, 4, 34) } else { (22, 16, 54) };
    for (at, length) in [(0, 6), (addresses, length), (ports, 2)] {
        let (first, second) = frame[at..at + 2 * length].split_at_mut(length);
        first.swap_with_slice(second);
    }
    frame
}

/// Whether the balancer counted what the row says.
fn judge(path: &Path, runs: u64, counted: Counts, dropped: u64) -> anyhow::Result<()> {
    if path.table != Table::Full {
        ensure!(dropped <= runs / 1000, "{dropped} of {runs} packets were dropped");
    }
    if path.vip == Vip::Nobody || path.frames == Frames::Answers {
        ensure!(counted == Counts::default(), "another path was taken: {counted:?}");
        return Ok(());
    }
    ensure!(counted.packets + dropped >= runs, "{} of {runs} packets were the service's", counted.packets);
    if path.vip == Vip::FullNat && path.table != Table::Full {
        let expected = if path.frames == Frames::New { runs - dropped } else { 0 };
        ensure!(counted.flows == expected, "{} flows began, not {expected}", counted.flows);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tidegate_tests::lab;

    use super::*;

    #[test]
    fn every_row_takes_the_path_that_it_names() {
        if !lab::require() {
            return;
        }
        if !Harness::is_built() {
            lab::skip("the bench's own programs are not built (`cargo xtask ebpf`)");
            return;
        }
        let link = world::Link::lay().expect("two namespaces");
        link.balancer.run(|| {
            let mut desk = Desk::set(Scale { runs: 500, flows: 2000 }, &|_| true).expect("a balancer");
            for (row, path) in PATHS.iter().enumerate() {
                desk.look(path).unwrap_or_else(|problem| panic!("{}: {problem:#}", path.case));
                desk.turn(row).unwrap_or_else(|problem| panic!("{}: {problem:#}", path.case));
            }
        });
    }

    #[test]
    fn a_row_whose_frames_went_elsewhere_is_not_believed() {
        let old = PATHS.iter().find(|path| path.vip == Vip::FullNat && path.frames == Frames::Of(1)).unwrap();
        let counts = |packets, flows| Counts { packets, flows };
        judge(old, 1000, counts(1000, 0), 0).unwrap();
        assert!(judge(old, 1000, counts(1000, 1), 0).is_err(), "a flow began");
        assert!(judge(old, 1000, counts(900, 0), 0).is_err(), "packets are missing");
        assert!(judge(old, 1000, counts(900, 0), 100).is_err(), "packets were dropped");
        let answers = PATHS.iter().find(|path| path.frames == Frames::Answers).unwrap();
        assert!(judge(answers, 1000, counts(1000, 0), 0).is_err(), "a client's packets");
    }
}
