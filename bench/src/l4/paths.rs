//! The table of paths through the balancer: which frames take them, what must come of these, and what was promised.

use tidegate_ebpf::replay::CLIENTS;

use super::world::Vip;

/// A row: one kind of frame, many times.
#[derive(Clone, Copy, Debug)]
pub(super) struct Path {
    pub(super) case: &'static str,
    pub(super) vip: Vip,
    pub(super) v6: bool,
    pub(super) frames: Frames,
    pub(super) table: Table,
    /// Whether next hops are believed, or the kernel is asked for each packet's.
    pub(super) believed: bool,
    /// ns per packet.
    pub(super) goal: Option<f64>,
    /// Katran's figure for the nearest path, where it has one.
    pub(super) katran: Option<f64>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Frames {
    /// TCP segments of so many connections in turn.
    Of(u32),
    /// SYNs of connections that never were before.
    New,
    /// The real's answers in one connection.
    Answers,
}

impl Frames {
    pub(super) fn clients(self) -> u32 {
        match self {
            Self::Of(clients) => clients,
            Self::New => CLIENTS,
            Self::Answers => 1,
        }
    }
}

/// In what state the flow tables are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Table {
    /// Whatever the other rows leave behind.
    Used,
    /// Empty before each turn.
    Fresh,
    /// Several times as many flows as the table was made for have come and gone.
    Aged,
    /// Many more flows were offered than there is room for.
    Full,
}

impl Path {
    /// What a frame grows by on this path.
    pub(super) fn growth(&self) -> usize {
        let ip = if self.v6 { 40 } else { 20 };
        match self.vip {
            Vip::IpIp => ip,
            Vip::Gue => ip + 8,
            _ => 0,
        }
    }
}

const fn path(case: &'static str, vip: Vip, frames: Frames, goal: Option<f64>, katran: Option<f64>) -> Path {
    Path { case, vip, v6: false, frames, table: Table::Used, believed: true, goal, katran }
}

/// As it is when nobody has kept the next hops for a while.
const fn asking(path: Path) -> Path {
    Path { believed: false, ..path }
}

const fn v6(path: Path) -> Path {
    Path { v6: true, ..path }
}

const NONE: Option<f64> = None;
const NOT_A_VIP: Option<f64> = Some(15.0);
/// Direct server return on a slot that stands still looks nothing up that grows with the flows.
const STATELESS: Option<f64> = Some(30.0);
const RECORDED: Option<f64> = Some(200.0);
const HOT: Option<f64> = Some(45.0);
const COLD: Option<f64> = Some(150.0);
const NEW: Option<f64> = Some(300.0);

use Frames::{Answers, New as NewFlows, Of};

/// Katran's figures are medians of a run with such frames and 100 reals on a machine of this kind, less what laying the
/// frames cost there (7 ns, and 9 where the frame grew). They were measured before, and are not measured again here.
pub(super) const PATHS: &[Path] = &[
    path("not a VIP", Vip::Nobody, Of(1), NOT_A_VIP, Some(21.0)),
    path("DIRECT, 1 flow", Vip::Direct, Of(1), STATELESS, Some(65.0)),
    path("DIRECT, 1k flows", Vip::Direct, Of(1_000), STATELESS, Some(74.0)),
    path("DIRECT, 100k flows", Vip::Direct, Of(100_000), STATELESS, Some(245.0)),
    path("DIRECT, 1M flows", Vip::Direct, Of(1_000_000), STATELESS, Some(287.0)),
    path("DIRECT, new flow", Vip::Direct, NewFlows, STATELESS, Some(512.0)),
    path("IPIP, 1 flow", Vip::IpIp, Of(1), STATELESS, Some(65.0)),
    path("IPIP, 1k flows", Vip::IpIp, Of(1_000), STATELESS, Some(74.0)),
    path("IPIP, 100k flows", Vip::IpIp, Of(100_000), STATELESS, Some(245.0)),
    path("IPIP, 1M flows", Vip::IpIp, Of(1_000_000), STATELESS, Some(287.0)),
    path("IPIP, new flow", Vip::IpIp, NewFlows, STATELESS, Some(512.0)),
    path("GUE, 1 flow", Vip::Gue, Of(1), NONE, NONE),
    path("DIRECT on a moving slot, 100k recorded flows", Vip::Moving, Of(100_000), RECORDED, Some(245.0)),
    path("FULLNAT, 1 flow", Vip::FullNat, Of(1), HOT, Some(65.0)),
    path("FULLNAT, 1k flows", Vip::FullNat, Of(1_000), HOT, Some(74.0)),
    path("FULLNAT, 100k flows", Vip::FullNat, Of(100_000), COLD, Some(245.0)),
    path("FULLNAT, 1M flows", Vip::FullNat, Of(1_000_000), COLD, Some(287.0)),
    path("FULLNAT, answer of the real", Vip::FullNat, Answers, HOT, NONE),
    Path { table: Table::Fresh, ..path("FULLNAT, new flow, fresh table", Vip::FullNat, NewFlows, NEW, Some(512.0)) },
    Path { table: Table::Aged, ..path("FULLNAT, new flow, aged table", Vip::FullNat, NewFlows, NEW, Some(512.0)) },
    Path { table: Table::Full, ..path("FULLNAT, new flow, full table", Vip::FullNat, NewFlows, NONE, Some(1035.0)) },
    asking(path("DIRECT, 1 flow, asking the kernel for the hop", Vip::Direct, Of(1), NONE, NONE)),
    asking(path("FULLNAT, 1 flow, asking the kernel for the hop", Vip::FullNat, Of(1), NONE, NONE)),
    v6(path("IPv6: not a VIP", Vip::Nobody, Of(1), NOT_A_VIP, NONE)),
    v6(path("IPv6: DIRECT, 1 flow", Vip::Direct, Of(1), STATELESS, Some(61.0))),
    v6(path("IPv6: DIRECT, 100k flows", Vip::Direct, Of(100_000), STATELESS, Some(223.0))),
    v6(path("IPv6: IPIP, 100k flows", Vip::IpIp, Of(100_000), STATELESS, Some(223.0))),
    v6(path("IPv6: FULLNAT, 1 flow", Vip::FullNat, Of(1), HOT, Some(61.0))),
    v6(path("IPv6: FULLNAT, 100k flows", Vip::FullNat, Of(100_000), COLD, Some(223.0))),
    v6(path("IPv6: FULLNAT, answer of the real", Vip::FullNat, Answers, HOT, NONE)),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_rows_have_a_name_in_common() {
        for (at, path) in PATHS.iter().enumerate() {
            assert!(PATHS[..at].iter().all(|earlier| earlier.case != path.case), "{}", path.case);
        }
    }
}
