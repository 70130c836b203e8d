//! Keeps the next hop of every real resolved.
//!
//! The program cannot ask for a hardware address, it can only drop a packet that has none. So a new real's is asked
//! for before the ring names it, and the kernel is told to keep it. Clients need nothing: their flows remember where
//! their packets came from.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tracing::{debug, warn};

use crate::network::{Network, NextHop};

/// How long a new real may hold its Input up. Neighbours that are there answer within one; one that is not must not
/// delay the others for longer.
const PATIENCE: Duration = Duration::from_millis(20);
/// More than so many new addresses at once (a start) are resolved meanwhile.
const AT_ONCE: usize = 256;
/// Routes change and neighbour tables are flushed; this often they are looked at again.
const REFRESH: Duration = Duration::from_secs(10);
/// The flows of a real outlive its entry; so long its next hop is kept for them.
const AFTERGLOW: Duration = Duration::from_secs(600);

/// The room's other end.
#[derive(Clone, Debug)]
pub(crate) struct Neighbours(mpsc::UnboundedSender<Change>);

#[derive(Debug)]
struct Change {
    add: Vec<IpAddr>,
    remove: Vec<IpAddr>,
    done: oneshot::Sender<()>,
}

impl Neighbours {
    /// Starts the room; it ends when its last other end is dropped.
    #[must_use]
    pub(crate) fn start(network: Network) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::spawn(keep(network, receiver));
        Self(sender)
    }

    /// The addresses of reals that came and went. Returns when the new ones are resolved, or patience is over.
    pub(crate) async fn change(&self, add: Vec<IpAddr>, remove: Vec<IpAddr>) {
        let few = add.len() <= AT_ONCE;
        let (done, wait) = oneshot::channel();
        if self.0.send(Change { add, remove, done }).is_ok() && few {
            // The time covers the room's other work too.
            let _ = timeout(PATIENCE * 2, wait).await;
        }
    }
}

#[derive(Default)]
struct Kept {
    /// How many reals have this address.
    wanted: HashMap<IpAddr, usize>,
    hops: HashMap<IpAddr, NextHop>,
    leaving: HashMap<IpAddr, Instant>,
}

async fn keep(network: Network, mut changes: mpsc::UnboundedReceiver<Change>) {
    let mut kept = Kept::default();
    let mut refresh = interval(REFRESH);
    refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            change = changes.recv() => match change {
                Some(change) => kept.change(&network, change).await,
                None => return,
            },
            _ = refresh.tick() => kept.refresh(&network).await,
        }
    }
}

impl Kept {
    async fn change(&mut self, network: &Network, change: Change) {
        let mut new = Vec::new();
        for address in change.add {
            let count = self.wanted.entry(address).or_default();
            *count += 1;
            if *count == 1 && self.leaving.remove(&address).is_none() {
                new.push(address);
            }
        }
        for address in change.remove {
            if let Some(count) = self.wanted.get_mut(&address) {
                *count -= 1;
                if *count == 0 {
                    self.wanted.remove(&address);
                    self.leaving.insert(address, Instant::now());
                }
            }
        }
        if !new.is_empty() {
            let asked = self.ask(network, &new).await;
            if new.len() <= AT_ONCE {
                await_answers(network, asked).await;
            }
        }
        // Nobody listens any more when patience was over first.
        let _ = change.done.send(());
    }

    async fn refresh(&mut self, network: &Network) {
        let over: Vec<IpAddr> =
            self.leaving.iter().filter(|(_, since)| since.elapsed() > AFTERGLOW).map(|(address, _)| *address).collect();
        for address in over {
            self.leaving.remove(&address);
            if let Some(hop) = self.hops.remove(&address)
                && !self.hops.values().any(|other| *other == hop)
                && let Err(error) = network.resolve(hop, false).await
            {
                debug!("{error:#}");
            }
        }
        let all: Vec<IpAddr> = self.wanted.keys().chain(self.leaving.keys()).copied().collect();
        if !all.is_empty() {
            self.ask(network, &all).await;
        }
    }

    /// Has the kernel resolve the next hops that nobody keeps; these are returned.
    async fn ask(&mut self, network: &Network, addresses: &[IpAddr]) -> BTreeSet<NextHop> {
        let known = known(network).await;
        let mut asked = BTreeSet::new();
        for address in addresses {
            let Some(hop) = network.next_hop(*address).await else {
                debug!(%address, "no route to a real");
                self.hops.remove(address);
                continue;
            };
            self.hops.insert(*address, hop);
            if known.get(&hop).is_some_and(|neighbour| neighbour.kept) || !asked.insert(hop) {
                continue;
            }
            if let Err(error) = network.resolve(hop, true).await {
                warn!("{error:#}");
            }
        }
        asked
    }
}

async fn known(network: &Network) -> BTreeMap<NextHop, crate::network::Neighbour> {
    network.neighbours().await.unwrap_or_else(|error| {
        warn!("{error:#}");
        BTreeMap::new()
    })
}

async fn await_answers(network: &Network, mut asked: BTreeSet<NextHop>) {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_micros(200);
    loop {
        let known = known(network).await;
        asked.retain(|hop| known.get(hop).is_none_or(|neighbour| !neighbour.resolved));
        if asked.is_empty() || Instant::now() + pause > deadline {
            return;
        }
        sleep(pause).await;
        pause *= 2;
    }
}
