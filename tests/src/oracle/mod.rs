//! What a client really got: every request and connection is counted, across whatever happens meanwhile.
//!
//! The rules are strict. A request is lost when no connection is to be had, when the connection ends before the whole
//! answer is there, when the answer is not 200, or when it takes 5 seconds. A connection is broken when it ends with
//! a loss, or by a reset, or when the server says something that nobody asked for. A server may end a connection only
//! by announcing it in an answer (`Connection: close`) or by closing it while nothing is asked on it.

mod account;
mod worker;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use account::{Account, Counts, Loss, Served};

use crate::lab::Ns;

/// A request that takes longer is lost.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// What to ask, how, and how often.
#[derive(Clone, Debug)]
pub struct Target {
    /// The name of this load in the account.
    pub label: String,
    pub ask: Ask,
    pub workers: usize,
    /// Between two requests of one worker.
    pub pause: Duration,
}

#[derive(Clone, Debug)]
pub enum Ask {
    /// GET / over HTTP/1.1. The answer is JSON and says who answered (`task`).
    Http { at: SocketAddr, host: String, connection: Lifetime },
    /// A datagram whose answer holds what was sent.
    Udp { at: SocketAddr },
    /// An A query, which must be answered with an address.
    Dns { server: SocketAddr, name: String },
}

/// How long a worker keeps a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Lifetime {
    /// A new one for each request.
    Request,
    /// For 50 requests.
    KeepAlive,
    /// As long as the server lets it.
    Long,
}

impl Target {
    pub fn http(label: &str, at: SocketAddr, host: &str, connection: Lifetime) -> Self {
        Self::new(label, Ask::Http { at, host: host.to_owned(), connection })
    }

    pub fn udp(label: &str, at: SocketAddr) -> Self {
        Self::new(label, Ask::Udp { at })
    }

    pub fn dns(label: &str, server: SocketAddr, name: &str) -> Self {
        Self::new(label, Ask::Dns { server, name: name.to_owned() })
    }

    fn new(label: &str, ask: Ask) -> Self {
        Self { label: label.to_owned(), ask, workers: 2, pause: Duration::from_millis(10) }
    }

    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    #[must_use]
    pub fn pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }
}

/// A client at work.
#[derive(Debug)]
pub struct Load {
    tally: Tally,
    stop: CancellationToken,
    workers: Vec<JoinHandle<()>>,
    ns: Ns,
}

/// The account while it is being written.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    start: Instant,
    account: Arc<Mutex<Account>>,
}

impl Tally {
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    pub(crate) fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Load {
    /// Starts asking from a namespace; goes on until [`Load::stop`].
    pub fn start(ns: &Ns, targets: impl IntoIterator<Item = Target>) -> Self {
        let tally = Tally { start: Instant::now(), account: Arc::default() };
        let stop = CancellationToken::new();
        let mut workers = Vec::new();
        for target in targets {
            tally.account().counts.entry(target.label.clone()).or_default();
            for _ in 0..target.workers {
                workers.push(ns.spawn(worker::work(target.clone(), tally.clone(), stop.clone())));
            }
        }
        Self { tally, stop, workers, ns: ns.clone() }
    }

    /// Remembers when something was done, so that losses can be told relative to it.
    pub fn mark(&self, what: &str) {
        let at = self.tally.elapsed();
        self.tally.account().marks.push((at, what.to_owned()));
    }

    /// The account as it stands.
    pub fn so_far(&self) -> Account {
        self.tally.account().clone()
    }

    /// Waits until the account shows something; panics, with the account, when it does not within the limit.
    pub fn wait(&self, what: &str, limit: Duration, check: impl Fn(&Account) -> bool) {
        let deadline = Instant::now() + limit;
        while !check(&self.tally.account()) {
            assert!(Instant::now() < deadline, "not within {limit:?}: {what}\n{}", self.so_far());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until every target has been answered so many times more.
    pub fn wait_for_answers(&self, more: u64) {
        let before = self.so_far();
        let what = format!("{more} more answers of every kind");
        self.wait(&what, Duration::from_secs(60), |now| {
            now.counts.iter().all(|(label, counts)| counts.answered >= before.of(label).answered + more)
        });
    }

    /// Lets every request that is under way end, and closes the account.
    pub fn stop(self) -> Account {
        self.stop.cancel();
        let workers = self.workers;
        self.ns.block_on(async move {
            for worker in workers {
                worker.await.expect("a worker of the load panicked");
            }
        });
        let mut account = self.tally.account().clone();
        account.length = self.tally.elapsed();
        account
    }
}
