//! `tidegate l4 ...`.

mod see;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Subcommand;

use crate::{
    config::Loaded,
    io::store::{Store, StoreError},
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Takes away the program, its maps (and with them every connection) and the VIPs that layer 4 left on this machine.
    #[command(after_help = "Example, to leave nothing behind:
  systemctl stop tidegate && tidegate l4 remove --config /etc/tidegate.toml")]
    Remove {
        /// The configuration that layer 4 ran with; without it the embedded defaults.
        #[arg(long, short, value_name = "FILE", env = "TIDEGATE_CONFIG")]
        config: Option<PathBuf>,
    },
    /// Says what would become of a client's packet right now, and why: service, ring slot, real, flow, next hop.
    #[command(
        after_help = "Nothing is sent, counted or remembered: the balancer's own program is asked, on its live maps.
Exit code 0: it would be forwarded; 2: dropped; 3: passed to the host (no VIP, no such port, no instance); 1: it could
not be asked. Needs root; tidegate need not run.

Examples:
  tidegate l4 explain 192.0.2.7:40000 10.0.0.80:80        a SYN of this very connection
  tidegate l4 explain 192.0.2.7:40000 10.0.0.80:80 --ack  a packet in its middle
  tidegate l4 explain 192.0.2.7 10.0.0.80:80              256 ports of the client: who gets which share
  tidegate l4 explain --udp fd00::7 [fd00::53]:53 --json"
    )]
    Explain(see::Explain),
    /// Shows packets as the balancer sees them come and as it sends them, with what became of them.
    #[command(
        after_help = "tcpdump on the interface does not see what XDP takes; this does, with the first 256 bytes of each packet.
Each packet stands there twice: \"in\", with what became of it, and \"out\", as it was sent. It ends with Ctrl-C,
--count or --seconds; if it is killed, the kernel ends it after 4,096 copies. Needs root; tidegate need not run.

Examples:
  tidegate l4 capture --host 192.0.2.7                    one client
  tidegate l4 capture --port 80 --seconds 10 -w web.pcapng
  tidegate l4 capture --host 192.0.2.7 -w - | wireshark -k -i -"
    )]
    Capture(see::Captures),
    /// Lists the flows that fullnat translates, and counts those that are recorded on moving ring slots.
    #[command(after_help = "Needs root; tidegate need not run.

Examples:
  tidegate l4 flows --client 192.0.2.7
  tidegate l4 flows --service 10.0.0.80:80 --real 10.1.0.9 --limit 1000 --json")]
    Flows(see::List),
    /// Follows new flows as they begin, and drops with their reason.
    #[command(
        after_help = "Of drops at most one in a millisecond on each CPU is told (all are counted: tidegate_l4_drops_total). There can be
one log at a time; tidegate itself does not read it. Needs root; tidegate need not run.

Examples:
  tidegate l4 log --drops                why packets are dropped
  tidegate l4 log --sample 1/1024        one of 1,024 new flows, on a busy machine
  tidegate l4 log --json --seconds 60"
    )]
    Log(see::Follow),
}

pub(super) async fn main(verb: Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Remove { config } => remove(config).await.map(|()| ExitCode::SUCCESS),
        Verb::Explain(args) => see::explain(&args),
        Verb::Capture(args) => see::capture(&args).await,
        Verb::Flows(args) => see::list(&args),
        Verb::Log(args) => see::log(&args).await,
    }
}

async fn remove(config: Option<PathBuf>) -> anyhow::Result<()> {
    let config = Loaded::read(config.as_deref())?.config;
    // Whoever runs would put everything back at once. Its store is locked as long as it lives.
    if config.store.path.exists()
        && let Err(error @ StoreError::InUse(_)) = Store::open(&config.store.path)
    {
        return Err(anyhow::Error::from(error).context("layer 4 is not removed while it runs"));
    }
    tidegate_l4::remove(&config.l4).await.context("removing what layer 4 left (it needs root)")?;
    println!("layer 4 has left nothing on this machine");
    Ok(())
}
