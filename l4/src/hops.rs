//! Knows the way to every real, and tells when it changes.
//!
//! The program cannot ask for a hardware address, it can only drop a packet that has none. So a new real's is asked
//! for before the ring names it, and the kernel is told to keep it, so that packets flow also while no process of ours
//! runs. Clients need nothing: their flows remember where their packets came from.
//!
//! ```text
//! reals ──► book ◄── events of links, neighbours, routes (and all that there is, now and then)
//!            │ what is different
//!            ▼
//!     hops, changes
//! ```

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};

mod book;
mod kernel;
mod message;
mod room;
mod way;

pub use way::Hop;

use room::Room;

/// How long a new real may hold its Input up. Neighbours that are there answer within one; one that is not must not
/// delay the others for longer.
const PATIENCE: Duration = Duration::from_millis(20);
/// More than so many new addresses at once (a start) are resolved meanwhile.
const AT_ONCE: usize = 256;
/// For so long a sign of life of the room holds.
const ALIVE: Duration = Duration::from_secs(1);

/// The room's other end.
#[derive(Clone, Debug)]
pub struct Hops {
    orders: mpsc::UnboundedSender<Order>,
    shared: Arc<Shared>,
}

/// Where the changes come from.
#[derive(Debug)]
pub struct Changes {
    some: mpsc::Receiver<()>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared(Mutex<State>);

#[derive(Debug)]
struct State {
    hops: HashMap<IpAddr, Hop>,
    /// Whose hop differs from what was told.
    changed: HashSet<IpAddr>,
    /// When the room was at work last, knowing all that the kernel told.
    seen: Option<Instant>,
}

#[derive(Debug)]
struct Order {
    add: Vec<IpAddr>,
    remove: Vec<IpAddr>,
    done: oneshot::Sender<()>,
}

impl Hops {
    /// Starts the room for the network namespace of this thread; it ends when its last other end is dropped.
    pub fn start() -> anyhow::Result<(Self, Changes)> {
        let (orders, receiver) = mpsc::unbounded_channel();
        let (tell, some) = mpsc::channel(1);
        let state = State { hops: HashMap::new(), changed: HashSet::new(), seen: Some(Instant::now()) };
        let shared = Arc::new(Shared(Mutex::new(state)));
        tokio::spawn(Room::open(tell, Arc::clone(&shared))?.run(receiver));
        Ok((Self { orders, shared: Arc::clone(&shared) }, Changes { some, shared }))
    }

    /// The addresses of reals that came and went. Returns when there is a way to the new ones, or patience is over.
    /// Whoever adds an address asks for its hop then; only what changes later is told.
    pub async fn change(&self, add: Vec<IpAddr>, remove: Vec<IpAddr>) {
        let few = add.len() <= AT_ONCE;
        let (done, wait) = oneshot::channel();
        if self.orders.send(Order { add, remove, done }).is_ok() && few {
            let _ = timeout(PATIENCE, wait).await;
        }
    }

    /// The way to a real; `None`: the kernel must be asked for each packet, or there is none.
    #[must_use]
    pub fn get(&self, address: &IpAddr) -> Option<Hop> {
        self.shared.lock().hops.get(address).copied()
    }

    /// Whether the hops may be believed for another second or two: the room is at work and knows what the kernel told.
    #[must_use]
    pub fn watched(&self) -> bool {
        self.shared.lock().seen.is_some_and(|seen| seen.elapsed() < ALIVE)
    }
}

impl Changes {
    /// The reals that have another hop than was told, and which; `None` when the room is gone. Of several changes of
    /// one real, the last is told. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Vec<(IpAddr, Option<Hop>)>> {
        loop {
            let changes = self.take();
            if !changes.is_empty() {
                return Some(changes);
            }
            self.some.recv().await?;
        }
    }

    /// The same without waiting.
    pub fn take(&mut self) -> Vec<(IpAddr, Option<Hop>)> {
        let mut state = self.shared.lock();
        let changed = std::mem::take(&mut state.changed);
        changed.into_iter().map(|address| (address, state.hops.get(&address).copied())).collect()
    }
}

impl Shared {
    /// Keeps hops, and those that are to be told for `Changes`; whether there are any.
    fn put(&self, hops: impl Iterator<Item = (IpAddr, Option<Hop>, bool)>) -> bool {
        let mut state = self.lock();
        for (address, hop, tell) in hops {
            match hop {
                Some(hop) => state.hops.insert(address, hop),
                None => state.hops.remove(&address),
            };
            if tell {
                state.changed.insert(address);
            }
        }
        !state.changed.is_empty()
    }

    /// What a panic left is whole: each change of it is one insertion.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
