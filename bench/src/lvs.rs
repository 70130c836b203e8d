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

use std::{
    collections::BTreeMap,
    env, fs,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, bail};

use self::{
    budget::Budget,
    image::{BALANCER_MODULES, PEER_MODULES},
    kernel::Kernel,
    said::Said,
};
use crate::{
    Settings,
    figures::{Better, Outcome, Row},
};

pub(crate) use self::guest::run as guest;

/// Debian's kernels that must take the balancer: the oldest that we promise, and the one that figures are of.
const OLDEST: &str = "6.1";
const MEASURED: &str = "6.12";

/// The contender that drops every packet at once.
const BASE: &str = "drop";

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

/// Ours, its peer, and in how many times fewer instructions than the peer's a packet should be through.
const PAIRS: [(&str, &str); 4] = [
    ("ours full NAT", "IPVS NAT"),
    ("ours direct", "IPVS DR"),
    ("ours IP in IP", "IPVS TUN"),
    ("ours full NAT", "nft dnat"),
];
const GOAL: f64 = 5.0;

/// Checks every path's budget; `update` writes the figures of now into it instead.
pub(crate) fn budgets(update: bool) -> anyhow::Result<()> {
    let cache = cache()?;
    let budget = Budget::read()?;
    let patience = Duration::from_secs(180);
    for series in [OLDEST, MEASURED] {
        let wanted = (series == MEASURED).then_some(budget.kernel.as_str());
        let kernel = Kernel::fetch(&cache, series, wanted)?;
        eprintln!("booting Linux {} ...", kernel.release);
        let said = boot::boot(&cache, &kernel, BALANCER_MODULES, guest::PATHS, patience)?;
        println!("Linux {}:", kernel.release);
        tell(&said);
        let paths = budget::paths(&said);
        if series != MEASURED {
            println!("{} paths of the balancer were run\n", paths.len());
            continue;
        }
        println!("{}", budget.table(&paths));
        if update {
            budget.renewed(&kernel.release, paths).write()?;
            continue;
        }
        if kernel.release != budget.kernel {
            println!("note: the budget is of Linux {}, whose helpers may take a little more or less", budget.kernel);
        }
        let complaints = budget.judge(&paths);
        if !complaints.is_empty() {
            bail!("the balancer is over its budget:\n  {}", complaints.join("\n  "));
        }
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
