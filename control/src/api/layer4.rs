//! Layer 4 as a whole, for the status: where it runs, what it drops, and what changes have cost.

use std::{collections::HashMap, net::IpAddr};

use serde::{Deserialize, Serialize};
use tidegate_l4::{
    Frontend, Report,
    report::{Attached, DrainTotals, Probes, Verdict},
    see::advice_of,
    tables::Moved,
};
use utoipa::ToSchema;

use crate::{lately::Lately, model::desired::Desired};

/// Layer 4 of this machine in numbers.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Layer4Status {
    /// Where the program is attached; where it is not, nothing is balanced.
    pub attached: Vec<AttachedBody>,
    pub front_ends: usize,
    pub reals: RealsBody,
    /// Front ends whose bad instances get new connections all the same, since nearly all of them look bad.
    pub fail_open: Vec<FailOpenBody>,
    /// Reasons for which anything was dropped.
    pub drops: Vec<DropsBody>,
    pub moves: MovesBody,
    pub drains: DrainsBody,
    pub probes: ProbesBody,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct AttachedBody {
    pub interface: String,
    /// `native`: in the driver. `generic`: in the kernel, at about half the speed.
    pub mode: String,
}

/// A real is an instance at one front end.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct RealsBody {
    pub all: usize,
    /// They fail their probes.
    pub down: usize,
    /// Their traffic speaks against them, for a while.
    pub ejected: usize,
    /// Connections and UDP flows known to be alive: in the modes without translation only those of instances that drain are.
    pub live: u64,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct FailOpenBody {
    pub elb: String,
    /// `tcp 10.77.100.1:80`.
    pub listen: String,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct DropsBody {
    /// As in `tidegate_l4_drops_total`.
    pub reason: String,
    /// Packets, since the maps were made.
    pub total: u64,
    pub last_minute: u64,
    /// What the reason means, and what to do.
    pub advice: String,
}

/// Ring slots that go from one instance to another, since the process started.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct MovesBody {
    pub now: u64,
    /// Ended when no connection needed them any more.
    pub settled: u64,
    /// Ended after an hour, and the connections that lost their instances thereby.
    pub forced: u64,
    pub lost: u64,
    /// Slots that changed hands without a move, for want of room.
    pub at_once: u64,
}

/// Drains that ended since the process started.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct DrainsBody {
    pub ended: u64,
    /// Connections that were alive when their instance left: 0 is the proof that nobody lost one.
    pub cut: u64,
}

/// Health probes since the process started.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct ProbesBody {
    pub sent: u64,
    pub failed: u64,
    /// Could not be sent, which says nothing of the instance.
    pub unable: u64,
    /// Sent an interval or more after their time.
    pub late: u64,
    /// The newest that failed: who, and how.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// Which ELB has a VIP.
pub(super) type Owners<'a> = HashMap<IpAddr, &'a str>;

pub(super) fn owners(desired: &Desired) -> Owners<'_> {
    desired.elbs.iter().flat_map(|(name, elb)| elb.vips.iter().map(|&vip| (vip, name.as_str()))).collect()
}

/// The name of a front end's ELB; empty for one that is being removed.
pub(super) fn owner<'a>(owners: &Owners<'a>, frontend: &Frontend) -> &'a str {
    owners.get(&frontend.vip).copied().unwrap_or_default()
}

pub(super) fn layer4(report: &Report, lately: &Lately, desired: &Desired) -> Layer4Status {
    let Report { attached, services, drops, moves, drained, fail_open, probes, .. } = report;
    let owners = owners(desired);
    let fail_open = fail_open
        .iter()
        .map(|frontend| FailOpenBody { elb: owner(&owners, frontend).to_owned(), listen: frontend.to_string() });
    let last_minute: HashMap<&str, u64> = lately.drops().into_iter().collect();
    let drops = drops.iter().filter(|(_, total)| *total > 0).map(|&(reason, total)| DropsBody {
        reason: reason.to_owned(),
        total,
        last_minute: last_minute.get(reason).copied().unwrap_or_default(),
        advice: advice_of(reason).unwrap_or_default().to_owned(),
    });
    let mut reals = RealsBody::default();
    for real in services.values().flat_map(|service| &service.reals) {
        reals.all += 1;
        reals.down += usize::from(real.health.verdict == Verdict::Down);
        reals.ejected += usize::from(real.health.verdict == Verdict::Ejected);
        reals.live += real.live.unwrap_or_default();
    }
    let &Moved { now, ended: settled, forced, lost, at_once } = moves;
    let &DrainTotals { ended, cut } = drained;
    Layer4Status {
        attached: attached.iter().map(interface).collect(),
        front_ends: services.len(),
        reals,
        fail_open: fail_open.collect(),
        drops: drops.collect(),
        moves: MovesBody { now, settled, forced, lost, at_once },
        drains: DrainsBody { ended, cut },
        probes: probed(probes),
    }
}

fn interface(attached: &Attached) -> AttachedBody {
    AttachedBody { interface: attached.interface.clone(), mode: attached.mode.to_owned() }
}

fn probed(probes: &Probes) -> ProbesBody {
    let Probes { sent, failed, unable, late, last_error, .. } = probes;
    let told = last_error.as_ref().map(|(frontend, real, how)| format!("{frontend}: {real}: {how}"));
    ProbesBody { sent: *sent, failed: *failed, unable: *unable, late: *late, last_error: told }
}
