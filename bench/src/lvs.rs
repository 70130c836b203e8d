//! Instructions of a packet: ours, IPVS and nft in one guest, and the budget of every path of ours.
//!
//! The guest is Debian's kernel for clouds, emulated with a clock that counts instructions. So the figures do not
//! depend on what the machine is doing, no right of the host is needed, and nothing of the host is touched.
//!
//! ```text
//! kernel (apt-get) ─┐
//! image (cpio) ─────┴─► boot (qemu) ─► console ─► said ─► budget, or the rows of this bench
//!                         └ guest: this program as the first process: network, traffic, paths, peers
//! ```

mod boot;
mod budget;
mod cpio;
mod guest;
mod image;
mod kernel;
mod ours;
mod said;

use std::{collections::BTreeMap, env, fs, path::PathBuf, time::Duration};

use anyhow::{Context, bail};

use self::{boot::Clock, budget::Budget, kernel::Kernel, said::Said};
use crate::{
    Settings,
    figures::{Better, Outcome, Row},
};

pub(crate) use self::guest::run as guest;

/// Debian's kernels that must take the balancer: the oldest that we promise (Debian 12's), and the one that figures are of.
const OLDEST: &str = "6.1";
const MEASURED: &str = "6.12";

/// What is no contender: every packet is dropped as soon as it has come,
const DROP: &str = "drop";
/// or goes back as it is. Ours go back.
const REFLECT: &str = "reflect";

/// Who sends.
struct Load {
    name: &'static str,
    /// None: each packet is another's.
    flows: Option<u64>,
}

const LOADS: [Load; 3] = [
    Load { name: "1 flow", flows: Some(1) },
    Load { name: "1000 flows", flows: Some(1000) },
    Load { name: "new flows", flows: None },
];

/// Packets of real servers on their way back.
const ANSWERS: &str = "answers";

/// Ways to a real, each with who knows them.
struct Way {
    name: &'static str,
    ours: &'static str,
    /// The goal is about this one.
    ipvs: &'static str,
    other: Option<&'static str>,
}

const WAYS: [Way; 3] = [
    Way { name: "NAT", ours: "ours full NAT", ipvs: "IPVS NAT", other: Some("nft dnat") },
    Way { name: "direct", ours: "ours direct", ipvs: "IPVS DR", other: Some("forwarding") },
    Way { name: "tunnel", ours: "ours IP in IP", ipvs: "IPVS TUN", other: None },
];

/// In how many times fewer instructions than IPVS's a packet should be through.
const GOAL: f64 = 5.0;

pub(crate) fn run(settings: &Settings) -> anyhow::Result<Outcome> {
    let cache = cache()?;
    let kernel = Kernel::fetch(&cache, MEASURED, Some(Budget::read()?.kernel.as_str()))?;
    // Established flows agree within 1 % whatever the number. With 100,000 new ones the ports of a single local
    // address run short, and more of them are tried: that would be another question.
    let count = if settings.quick { 10_000 } else { 30_000 };
    eprintln!("booting Linux {} for {count} packets of each kind ...", kernel.release);
    let work = format!("{}:{count}", guest::PEERS);
    let said = boot::boot(&cache, &kernel, &image::PEERS, &work, Clock::Instructions, Duration::from_secs(1800))?;
    let packets = packets_of(&said);
    let mut outcome = Outcome { rows: rows(&packets), ..Outcome::default() };
    outcome.notes.push(format!("in a guest with Linux {} whose clock counts instructions", kernel.release));
    if let (Some(drop), Some(reflect)) = (packets.get(&(DROP, LOADS[0].name)), packets.get(&(REFLECT, LOADS[0].name))) {
        outcome.notes.push(format!(
            "not counted: making a packet and its way through the cable ({drop}); ours' way back to the cable's far end \
             ({} more), while its peers send into a device that only forgets",
            reflect - drop
        ));
    }
    for said in &said {
        if let Said::Missing { what, why } = said {
            outcome.notes.push(format!("{what} is not there: {why}"));
        }
    }
    Ok(outcome)
}

/// By contender and load.
type Packets<'a> = BTreeMap<(&'a str, &'a str), i64>;

fn packets_of(said: &[Said]) -> Packets<'_> {
    let packet = |said| match said {
        &Said::Packet { ref contender, ref load, instructions } => Some(((&**contender, &**load), instructions)),
        _ => None,
    };
    said.iter().filter_map(packet).collect()
}

fn rows(packets: &Packets<'_>) -> Vec<Row> {
    let mut rows = Vec::new();
    for way in &WAYS {
        for load in LOADS.iter().map(|load| load.name).chain([ANSWERS]) {
            let net = |contender, base| {
                // Answers are of one flow.
                let base = packets.get(&(base, load)).or_else(|| packets.get(&(base, LOADS[0].name)))?;
                Some((packets.get(&(contender, load))? - base) as f64)
            };
            let (Some(ours), Some(ipvs)) = (net(way.ours, REFLECT), net(way.ipvs, DROP)) else { continue };
            let other = way.other.and_then(|other| Some((other, net(other, DROP)?)));
            let goal = ipvs / GOAL;
            rows.push(Row {
                bench: "lvs",
                case: format!("{}, {load}", way.name),
                unit: "instructions",
                better: Better::Less,
                ours,
                peers: other.into_iter().chain([(way.ipvs, ipvs)]).map(|(name, net)| (name.to_owned(), net)).collect(),
                goal: Some(goal),
                holds: Some(ours <= goal),
            });
        }
    }
    rows
}

/// Checks every path's budget; `update` writes the figures of now into it instead. `oldest` asks another kernel, and only
/// whether it takes the balancer.
pub(crate) fn budgets(update: bool, oldest: bool) -> anyhow::Result<()> {
    let cache = cache()?;
    let budget = Budget::read()?;
    let patience = Duration::from_secs(600);
    // The older kernel's figures are not looked at.
    let (series, wanted, clock) = if oldest {
        (OLDEST, None, Clock::Host)
    } else {
        (MEASURED, Some(budget.kernel.as_str()), Clock::Instructions)
    };
    let kernel = Kernel::fetch(&cache, series, wanted)?;
    eprintln!("booting Linux {} ...", kernel.release);
    let said = boot::boot(&cache, &kernel, &image::BALANCER, guest::PATHS, clock, patience)?;
    println!("Linux {}:", kernel.release);
    tell(&said);
    let paths = budget::paths(&said);
    if oldest {
        println!("{} paths of the balancer were run", paths.len());
        return Ok(());
    }
    println!("{}", budget.table(&paths));
    if update {
        budget.renewed(&kernel.release, paths).write()?;
        println!("the budget is now what was measured");
        return Ok(());
    }
    if kernel.release != budget.kernel {
        println!("note: the budget is of Linux {}, whose helpers may take a little more or less", budget.kernel);
    }
    let complaints = budget.judge(&paths);
    if !complaints.is_empty() {
        bail!("the balancer is over its budget:\n  {}", complaints.join("\n  "));
    }
    Ok(())
}

fn tell(said: &[Said]) {
    for said in said {
        match said {
            Said::Note { text } => println!("{text}"),
            Said::Missing { what, why } => println!("{what} is not there: {why}"),
            _ => {}
        }
    }
}

/// Kernels and images stay beside what cargo builds.
fn cache() -> anyhow::Result<PathBuf> {
    let own = env::current_exe().context("asking for this program's path")?;
    let target = own.ancestors().nth(2).context("this program lies in no target folder")?;
    let cache = target.join("guest");
    fs::create_dir_all(&cache).with_context(|| format!("making {}", cache.display()))?;
    Ok(cache)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_net_of_the_way_and_its_goal_a_fifth_of_ipvs() {
        let packet = |contender: &str, load: &str, instructions| Said::Packet {
            contender: contender.into(),
            load: load.into(),
            instructions,
        };
        let said = [
            packet(DROP, "1 flow", 1000),
            packet(REFLECT, "1 flow", 1300),
            packet("ours full NAT", "1 flow", 2300),
            packet("IPVS NAT", "1 flow", 6000),
            packet("nft dnat", "1 flow", 7000),
            packet("ours full NAT", ANSWERS, 2400),
            packet("IPVS NAT", ANSWERS, 6000),
            packet("IPVS DR", "1 flow", 6000),
        ];
        let rows = rows(&packets_of(&said));
        let cases: Vec<_> = rows.iter().map(|row| (row.case.as_str(), row.ours, row.goal, row.holds)).collect();
        assert_eq!(
            cases,
            [("NAT, 1 flow", 1000.0, Some(1000.0), Some(true)), ("NAT, answers", 1100.0, Some(1000.0), Some(false)),]
        );
        assert_eq!(rows[0].peers, BTreeMap::from([("IPVS NAT".into(), 5000.0), ("nft dnat".into(), 6000.0)]));
    }
}
