//! The room itself: what it does when, so that what is urgent never waits for what is much.

use std::{
    collections::{BTreeSet, HashSet},
    io,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinHandle, spawn_blocking, yield_now},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tracing::{debug, warn};

use super::{
    AT_ONCE, Order, Shared,
    book::Book,
    kernel::{Heard, Kernel, Watch},
    message::{Event, Prefix},
    way::{Links, Neighbours, NextHop},
};

/// So many routes are asked for in one go, about half a millisecond.
const PORTION: usize = 256;
/// Routes come and go in swarms: they are looked up again when the first of one is so old.
const SWARM: Duration = Duration::from_millis(5);
/// Of more changed routes at once, it does not pay to remember which.
const PREFIXES: usize = 64;
/// Following routes takes at most a quarter of the time, however many come and go.
const REST: u32 = 3;
/// At most so many events are heard in one span of time; the queue and, when that is full, a look at everything bridge
/// the rest.
const EVENTS: usize = 256;
const SPAN: Duration = Duration::from_millis(10);
/// Nothing should be missed; this often everything is looked at nevertheless.
const REFRESH: Duration = Duration::from_secs(10);
/// When that failed, it is tried again so soon.
const AGAIN: Duration = Duration::from_secs(1);
/// After a loss everything is read again; so often at most.
const REREAD: Duration = Duration::from_millis(200);
/// The flows of a real outlive its entry; so long its way is watched for them.
const AFTERGLOW: Duration = Duration::from_secs(600);
/// How often the room says that it is at work.
const BEAT: Duration = Duration::from_millis(250);

/// All that the kernel has, and the socket it was read with.
type Reading = JoinHandle<(Kernel, io::Result<(Links, Neighbours)>)>;

pub(super) struct Room {
    kernel: Kernel,
    watch: Watch,
    /// What everything is read with; `None` while a blocking thread has it.
    reader: Option<Kernel>,
    reading: Option<Reading>,
    /// When everything was read, and when it is read again.
    read: Instant,
    read_at: Instant,
    /// Something was not heard, and is not read again yet.
    lost: bool,
    book: Book,
    stale: Stale,
    /// When what is stale becomes due.
    look_at: Option<Instant>,
    /// Whose routes are looked up now, a portion at a time.
    due: BTreeSet<IpAddr>,
    /// How long that took so far, if routes that changed are among them; and until when others that do must wait.
    looked: Option<Duration>,
    rest: Instant,
    /// How many events were heard in the span of time that ends then.
    heard: usize,
    span: Instant,
    waiting: Vec<Waiter>,
    tell: mpsc::Sender<()>,
    shared: Arc<Shared>,
}

/// What is to be looked up again.
#[derive(Default)]
struct Stale {
    all: bool,
    prefixes: Vec<Prefix>,
    /// Next hops that the kernel forgot.
    forgotten: BTreeSet<NextHop>,
}

/// Somebody who added addresses, and those of them that have no hop yet.
struct Waiter {
    new: Vec<IpAddr>,
    left: HashSet<IpAddr>,
    done: oneshot::Sender<()>,
}

impl Room {
    pub(super) fn open(tell: mpsc::Sender<()>, shared: Arc<Shared>) -> anyhow::Result<Self> {
        // Heard first and read then: what changes in between is heard.
        let watch = Watch::open()?;
        let kernel = Kernel::open().context("opening a netlink socket")?;
        let mut reader = Kernel::open().context("opening a netlink socket")?;
        let (links, neighbours) = read(&mut reader).context("reading the interfaces and neighbours")?;
        let mut book = Book::default();
        book.replace(links, neighbours);
        let now = Instant::now();
        Ok(Self {
            kernel,
            watch,
            reader: Some(reader),
            reading: None,
            read: now,
            read_at: now + REFRESH,
            lost: false,
            book,
            stale: Stale::default(),
            look_at: None,
            due: BTreeSet::new(),
            looked: None,
            rest: now,
            heard: 0,
            span: now,
            waiting: Vec::new(),
            tell,
            shared,
        })
    }

    pub(super) async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Order>) {
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut events = Vec::new();
        loop {
            let hearing = self.reading.is_none();
            let far = self.span + REFRESH;
            tokio::select! {
                biased;
                order = orders.recv() => match order {
                    Some(order) => self.obey(order),
                    None => return,
                },
                // What is read must not be older than what was heard, so nothing is heard meanwhile.
                read = finished(&mut self.reading) => self.take(read),
                () = sleep_until(self.span), if hearing && self.heard >= EVENTS => self.heard = 0,
                heard = self.watch.hear(EVENTS, &mut events), if hearing && self.heard < EVENTS => {
                    self.hear(heard, &mut events);
                }
                () = sleep_until(self.read_at), if hearing => self.read_all(),
                () = sleep_until(self.look_at.unwrap_or(far).max(self.rest)), if self.look_at.is_some() && self.looked.is_none() => {
                    self.look();
                }
                () = yield_now(), if !self.due.is_empty() => self.look_up_portion(),
                _ = beat.tick() => self.beat(),
            }
            self.publish();
        }
    }

    fn obey(&mut self, order: Order) {
        let now = Instant::now();
        let mut new = Vec::new();
        for address in order.add {
            if self.book.add(address) {
                new.push(address);
            }
        }
        for address in order.remove {
            self.book.remove(address, now.into_std());
        }
        if new.len() > AT_ONCE {
            self.due.extend(new);
            return;
        }
        self.look_up(&new, true);
        let expected =
            |address: &IpAddr| self.book.hop(*address).is_none() && self.book.askable(*address).next().is_some();
        let left: HashSet<IpAddr> = new.iter().copied().filter(expected).collect();
        // Whoever waits asks for the hops then, and need not be told.
        let changes = self.book.changes();
        self.shared.put(changes.into_iter().map(|(address, hop)| (address, hop, !new.contains(&address))));
        let waiter = Waiter { new, left, done: order.done };
        if waiter.left.is_empty() {
            self.dismiss(waiter);
        } else {
            self.waiting.push(waiter);
        }
    }

    /// Ends somebody's wait; whoever had no more patience is told after all.
    fn dismiss(&self, waiter: Waiter) {
        if waiter.done.send(()).is_err() {
            self.shared.lock().changed.extend(waiter.new);
            self.sign();
        }
    }

    /// One sign for all changes is enough; and nobody needs to listen.
    fn sign(&self) {
        let _ = self.tell.try_send(());
    }

    fn hear(&mut self, heard: io::Result<Heard>, events: &mut Vec<Event>) {
        let now = Instant::now();
        if self.span <= now {
            (self.span, self.heard) = (now + SPAN, 0);
        }
        self.heard += events.len().max(1);
        match heard {
            Ok(Heard::Events) => {}
            Ok(Heard::Lost) => self.lose(now),
            Err(error) => {
                warn!("listening to the kernel's events failed, everything is read again: {error}");
                (self.span, self.heard) = (now + BEAT, EVENTS);
                self.lose(now);
            }
        }
        for event in events.drain(..) {
            match event {
                Event::Neighbour(to, neighbour) => {
                    self.book.set_neighbour(to, neighbour);
                    if neighbour.is_none() && self.book.reals_behind(to).next().is_some() {
                        self.stale.forgotten.insert(to);
                    }
                }
                Event::Link(index, link) => {
                    // A link that goes takes its routes along without a word, and one that comes brings some.
                    self.stale.all |= self.book.set_link(index, link);
                }
                Event::Routes(prefix) => self.stale.add(prefix),
                Event::AllRoutes => self.stale.all = true,
            }
        }
        self.plan_look();
    }

    fn lose(&mut self, now: Instant) {
        debug!("events were lost");
        self.watch.skip();
        if !self.lost {
            self.lost = true;
            self.read_at = now.max(self.read + REREAD);
        }
    }

    fn plan_look(&mut self) {
        if self.look_at.is_none() && !self.stale.is_empty() {
            self.look_at = Some(Instant::now() + SWARM);
        }
    }

    /// Makes due what is stale.
    fn look(&mut self) {
        self.look_at = None;
        self.looked = Some(Duration::ZERO);
        let stale = std::mem::take(&mut self.stale);
        for to in stale.forgotten {
            // To ask for one of them is to ask for the next hop.
            self.due.extend(self.book.reals_behind(to).next());
        }
        if stale.all {
            self.due.extend(self.book.addresses());
        } else if !stale.prefixes.is_empty() {
            let held = |address: &IpAddr| stale.prefixes.iter().any(|prefix| prefix.holds(*address));
            self.due.extend(self.book.addresses().filter(held));
        }
        if self.due.is_empty() {
            self.looked = None;
        }
    }

    fn look_up_portion(&mut self) {
        let began = Instant::now();
        let mut portion = Vec::with_capacity(PORTION);
        while portion.len() < PORTION
            && let Some(address) = self.due.pop_first()
        {
            portion.push(address);
        }
        self.look_up(&portion, false);
        let now = Instant::now();
        self.looked = self.looked.map(|looked| looked + (now - began));
        if self.due.is_empty()
            && let Some(looked) = self.looked.take()
        {
            self.rest = now + looked * REST;
        }
    }

    /// Looks up routes, and has the kernel resolve and keep the next hops that it does not keep; when it is `urgent`,
    /// those too that it keeps but has not resolved.
    fn look_up(&mut self, addresses: &[IpAddr], urgent: bool) {
        if addresses.is_empty() {
            return;
        }
        let routes = match self.kernel.routes(addresses) {
            Ok(routes) => routes,
            Err(error) => {
                warn!("the routes to {} reals could not be looked up: {error}", addresses.len());
                return;
            }
        };
        let mut ask = BTreeSet::new();
        for (address, route) in addresses.iter().zip(routes) {
            if route.paths.is_empty() {
                debug!(%address, "no route to a real");
            }
            self.book.set_route(*address, route);
            let missing = |(_, resolved, kept): &(NextHop, bool, bool)| !kept || (urgent && !resolved);
            ask.extend(self.book.askable(*address).filter(missing).map(|(to, ..)| to));
        }
        self.resolve(ask, true);
    }

    fn resolve(&mut self, hops: impl IntoIterator<Item = NextHop>, keep: bool) {
        let hops: Vec<NextHop> = hops.into_iter().collect();
        match self.kernel.resolve(&hops, keep) {
            Ok(refused) => {
                if let Some((hop, error)) = refused.first() {
                    warn!("resolving {} neighbours, {} among them: {error}", refused.len(), hop.address);
                }
            }
            Err(error) => warn!("resolving {} neighbours: {error}", hops.len()),
        }
    }

    /// Begins to read all that the kernel has.
    fn read_all(&mut self) {
        self.read = Instant::now();
        self.read_at = self.read + REFRESH;
        let before = self.read.checked_sub(AFTERGLOW);
        let free = before.map(|before| self.book.forget(before.into_std())).unwrap_or_default();
        self.resolve(free, false);
        if let Some(mut reader) = self.reader.take() {
            self.reading = Some(spawn_blocking(move || {
                let result = read(&mut reader);
                (reader, result)
            }));
        }
    }

    fn take(&mut self, read: Option<(Kernel, io::Result<(Links, Neighbours)>)>) {
        self.reading = None;
        let result = match read {
            Some((reader, result)) => {
                self.reader = Some(reader);
                result
            }
            // The thread panicked.
            None => Kernel::open().map(|reader| self.reader = Some(reader)).and(Err(io::ErrorKind::Interrupted.into())),
        };
        match result {
            Ok((links, neighbours)) => {
                self.lost = false;
                self.book.replace(links, neighbours);
                self.due.extend(self.book.addresses());
            }
            Err(error) => {
                warn!("the interfaces and neighbours could not be read, tried again in a second: {error}");
                self.read_at = Instant::now() + AGAIN;
            }
        }
    }

    fn beat(&mut self) {
        self.dismiss_all();
        if !self.lost {
            self.shared.lock().seen = Some(Instant::now());
        }
    }

    /// Tells what is different.
    fn publish(&mut self) {
        let changes = self.book.changes();
        if changes.is_empty() {
            return;
        }
        let told = changes.into_iter().map(|(address, hop)| {
            let mut awaited = false;
            for waiter in &mut self.waiting {
                awaited |= hop.is_some() && waiter.left.remove(&address);
            }
            (address, hop, !awaited)
        });
        if self.shared.put(told) {
            self.sign();
        }
        self.dismiss_all();
    }

    fn dismiss_all(&mut self) {
        let over = |waiter: &mut Waiter| waiter.left.is_empty() || waiter.done.is_closed();
        let over: Vec<Waiter> = self.waiting.extract_if(.., over).collect();
        over.into_iter().for_each(|waiter| self.dismiss(waiter));
    }
}

impl Stale {
    fn is_empty(&self) -> bool {
        !self.all && self.prefixes.is_empty() && self.forgotten.is_empty()
    }

    fn add(&mut self, prefix: Prefix) {
        if self.prefixes.len() < PREFIXES {
            self.prefixes.push(prefix);
        } else {
            self.all = true;
        }
    }
}

fn read(kernel: &mut Kernel) -> io::Result<(Links, Neighbours)> {
    Ok((kernel.links()?, kernel.neighbours()?))
}

/// The end of a reading; never, when nothing is read.
async fn finished(reading: &mut Option<Reading>) -> Option<(Kernel, io::Result<(Links, Neighbours)>)> {
    match reading {
        Some(reading) => reading.await.ok(),
        None => std::future::pending().await,
    }
}
