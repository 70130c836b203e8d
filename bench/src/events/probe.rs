//! A client that asks all the time, and knows when it first heard the other instance.

use std::{
    fmt,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use super::world::{NAMES, World};

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Plane {
    Packet,
    Request,
    Dns,
}

impl Plane {
    pub(super) const ALL: [Self; 3] = [Self::Packet, Self::Request, Self::Dns];
}

impl fmt::Display for Plane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Packet => "first packet",
            Self::Request => "first request",
            Self::Dns => "first DNS answer",
        })
    }
}

/// How long the client rests between an answer and its next question: the grain of the measurement.
const REST: Duration = Duration::from_micros(100);
/// The addresses of the client that packets come from.
pub(super) const SOURCES: [Ipv4Addr; 4] = {
    const fn source(n: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 3, n)
    }
    [source(1), source(2), source(3), source(4)]
};
const SOURCE_PORTS: u32 = 64_000;
/// So many answers in a row from the heir alone mean that the change is through.
const SETTLED: usize = 8;

/// A thread in the client's machine.
pub(super) struct Prober {
    answers: Receiver<(usize, Instant)>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Prober {
    pub(super) fn start(world: &World, plane: Plane) -> anyhow::Result<Self> {
        let (sender, answers) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let (ns, at) = (world.client.ns.clone(), world.endpoint(plane));
        let asker = Asker { plane, at, tcp: None, query: query(), resolver: None, flows: 0 };
        let thread = {
            let stop = stop.clone();
            std::thread::spawn(move || ns.run(|| ask_on(asker, &sender, &stop)))
        };
        let prober = Self { answers, stop, thread: Some(thread) };
        // The first answers open the connection and fill the caches.
        prober.answers.recv_timeout(Duration::from_secs(10)).context("nothing answers the bench's client")?;
        Ok(prober)
    }

    /// When the client first heard the heir, of whom it was said at `written`.
    pub(super) fn first_answer_of(&self, heir: usize, written: Instant, limit: Duration) -> anyhow::Result<Instant> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.answers.recv_timeout(left) {
                Ok((who, at)) if who & (1 << heir) != 0 => {
                    anyhow::ensure!(
                        at > written,
                        "the heir was heard before the event: the change before was not over"
                    );
                    return Ok(at);
                }
                Ok(_) => {}
                Err(_) => bail!("{} was not heard within {limit:?} of the event that made it healthy", NAMES[heir]),
            }
        }
    }

    /// Waits until only the heir answers.
    pub(super) fn settle(&self, heir: usize, limit: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + limit;
        let mut row = 0;
        while row < SETTLED {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.answers.recv_timeout(left) {
                Ok((who, _)) => row = if who == 1 << heir { row + 1 } else { 0 },
                Err(_) => bail!("the instance that became unhealthy still answers after {limit:?}"),
            }
        }
        Ok(())
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && let Ok(Err(error)) = thread.join()
        {
            eprintln!("the bench's client ended early: {error:#}");
        }
    }
}

fn ask_on(mut asker: Asker, answers: &Sender<(usize, Instant)>, stop: &AtomicBool) -> anyhow::Result<()> {
    while !stop.load(Ordering::Relaxed) {
        // A question that is lost is asked again; it only makes the measured time longer.
        if let Ok(who) = asker.ask()
            && answers.send((who, Instant::now())).is_err()
        {
            break;
        }
        std::thread::sleep(REST);
    }
    Ok(())
}

struct Asker {
    plane: Plane,
    at: SocketAddr,
    tcp: Option<TcpStream>,
    query: Vec<u8>,
    resolver: Option<UdpSocket>,
    /// How many flows there were: each has a source of its own.
    flows: u32,
}

const LIMIT: Option<Duration> = Some(Duration::from_millis(200));

impl Asker {
    /// Who answered: a bit for each instance.
    fn ask(&mut self) -> anyhow::Result<usize> {
        match self.plane {
            Plane::Packet => self.packet(),
            Plane::Request => {
                let who = self.request();
                if who.is_err() {
                    self.tcp = None;
                }
                who
            }
            Plane::Dns => self.dns(),
        }
    }

    /// A new source each time, never one that was used before: a flow that is known stays where it is, by design.
    fn packet(&mut self) -> anyhow::Result<usize> {
        let (address, port) = (self.flows / SOURCE_PORTS, self.flows % SOURCE_PORTS);
        let address = SOURCES.get(address as usize).context("all sources were used: shorten the bench")?;
        self.flows += 1;
        let socket = UdpSocket::bind((*address, 1024 + port as u16))?;
        socket.set_read_timeout(LIMIT)?;
        socket.connect(self.at)?;
        socket.send(b"who")?;
        let mut answer = [0; 64];
        let length = socket.recv(&mut answer)?;
        named(&answer[..length])
    }

    fn request(&mut self) -> anyhow::Result<usize> {
        if self.tcp.is_none() {
            let stream = TcpStream::connect_timeout(&self.at, Duration::from_secs(1))?;
            stream.set_read_timeout(LIMIT)?;
            stream.set_nodelay(true)?;
            self.tcp = Some(stream);
        }
        let stream = self.tcp.as_mut().context("just made")?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: probe.test\r\n\r\n")?;
        let mut answer = Vec::new();
        let mut part = [0; 1024];
        loop {
            let length = stream.read(&mut part)?;
            anyhow::ensure!(length > 0, "closed");
            answer.extend_from_slice(&part[..length]);
            // The body is the name and a full stop.
            if answer.ends_with(b".") {
                anyhow::ensure!(answer.starts_with(b"HTTP/1.1 200"), "refused");
                let head = answer.windows(4).position(|w| w == b"\r\n\r\n").context("no end of the head")?;
                return named(&answer[head + 4..]);
            }
            anyhow::ensure!(answer.len() < 4096 && !answer.starts_with(b"HTTP/1.1 5"), "not an instance's answer");
        }
    }

    fn dns(&mut self) -> anyhow::Result<usize> {
        if self.resolver.is_none() {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(LIMIT)?;
            socket.connect(self.at)?;
            self.resolver = Some(socket);
        }
        let socket = self.resolver.as_ref().context("just made")?;
        socket.send(&self.query)?;
        let mut answer = [0; 1232];
        let length = socket.recv(&mut answer)?;
        let answer = &answer[..length];
        let holds = |address: [u8; 4]| answer.windows(4).any(|window| window == address);
        let who = usize::from(holds(super::world::instance(0).octets()))
            | usize::from(holds(super::world::instance(1).octets())) << 1;
        anyhow::ensure!(who != 0, "no address");
        Ok(who)
    }
}

fn named(answer: &[u8]) -> anyhow::Result<usize> {
    let text = std::str::from_utf8(answer)?.trim_end_matches('.');
    let who = NAMES.iter().position(|name| *name == text).with_context(|| format!("{text:?} is nobody"))?;
    Ok(1 << who)
}

/// `probe.marathon.mesos A`, as it goes over the wire.
fn query() -> Vec<u8> {
    let mut query = vec![0x7d, 0x67, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in ["probe", "marathon", "mesos"] {
        query.push(label.len() as u8);
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    query
}
