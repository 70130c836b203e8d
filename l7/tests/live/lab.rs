//! One plane, its upstreams and its clients. Everything waits for a condition with a deadline, never for a time.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tidegate_l7::{Config, Input, Listener, Pool, Report, Route, Upstream, UpstreamState, run};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// A loopback address of this process alone, with a port outside of the range that the kernel hands out.
pub(crate) fn fresh_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(2000);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    loop {
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, high.max(1), low, 1)), port);
        // Someone may listen on this port of all addresses.
        if std::net::TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// A plane that runs.
pub(crate) struct Lab {
    inputs: watch::Sender<Arc<Input>>,
    reports: watch::Receiver<Arc<Report>>,
    pub(crate) stop: CancellationToken,
    pub(crate) running: JoinHandle<anyhow::Result<()>>,
}

impl Lab {
    pub(crate) fn start() -> Self {
        Self::start_with(Config::default())
    }

    pub(crate) fn start_with(config: Config) -> Self {
        let (inputs, input) = watch::channel(Arc::default());
        let (report, reports) = watch::channel(Arc::default());
        let stop = CancellationToken::new();
        let running = tokio::spawn(run(config, input, report, stop.clone()));
        Self { inputs, reports, stop, running }
    }

    /// Changes the Input, and waits until it is applied or refused.
    pub(crate) async fn change(&mut self, change: impl FnOnce(&mut Input)) -> Arc<Report> {
        let mut input = Input::clone(&self.inputs.borrow());
        input.generation += 1;
        change(&mut input);
        self.send(input).await
    }

    pub(crate) async fn send(&mut self, input: Input) -> Arc<Report> {
        let generation = input.generation;
        self.inputs.send_replace(Arc::new(input));
        let refused = |report: &Report| report.refused.as_ref().is_some_and(|(refused, _)| *refused == generation);
        self.until(move |report| report.generation == generation || refused(report)).await
    }

    pub(crate) async fn until(&mut self, condition: impl Fn(&Report) -> bool) -> Arc<Report> {
        let reported = timeout(DEADLINE, self.reports.wait_for(|report| condition(report))).await;
        reported.expect("the report should say it in time").expect("the plane should run").clone()
    }

    pub(crate) async fn end(self) {
        self.stop.cancel();
        let ended = timeout(DEADLINE, self.running).await.expect("the plane should stop");
        ended.expect("the plane should not panic").expect("the plane should end well");
    }
}

pub(crate) fn route(host: Option<&str>, path: &str, pool: &str) -> Route {
    Route { host: host.map(Into::into), path: path.into(), pool: pool.into() }
}

/// A listener that sends everything to one pool.
pub(crate) fn all_to(pool: &str) -> Arc<Listener> {
    Arc::new(Listener { routes: vec![route(None, "/", pool)] })
}

pub(crate) fn active(addresses: &[SocketAddr]) -> Arc<Pool> {
    pool(addresses.iter().map(|address| (*address, UpstreamState::Active)))
}

pub(crate) fn pool(upstreams: impl IntoIterator<Item = (SocketAddr, UpstreamState)>) -> Arc<Pool> {
    let upstream = |(address, state)| Upstream { address, weight: 1, state };
    let mut upstreams: Vec<_> = upstreams.into_iter().map(upstream).collect();
    upstreams.sort();
    Arc::new(Pool { upstreams })
}

/// A small HTTP/1.1 server. It answers with its name, a line with the request target and the request's header;
/// `/echo` with the request's body, `/big/N` with N bytes, `/gate` not before `open` is called, `/break` not at all,
/// `/stale` and then closes without having said so. An upgrade is accepted and everything after it sent back.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) hits: Arc<AtomicUsize>,
    gate: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start(name: &'static str) -> Self {
        let address = fresh_address();
        let listener = TcpListener::bind(address).await.expect("a fresh address is free");
        let hits = Arc::new(AtomicUsize::new(0));
        let gate = watch::Sender::new(false);
        let (counter, opened) = (hits.clone(), gate.subscribe());
        let accepting = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (counter, opened) = (counter.clone(), opened.clone());
                // Ends with an error when the proxy goes away, which is the proxy's right.
                tokio::spawn(async move { drop(serve(tcp, name, &counter, opened).await) });
            }
        });
        Self { address, hits, gate, accepting }
    }

    pub(crate) fn open(&self) {
        self.gate.send_replace(true);
    }

    pub(crate) fn hits(&self) -> usize {
        self.hits.load(Ordering::Relaxed)
    }

    /// Waits until a request has arrived here.
    pub(crate) async fn until_hits(&self, hits: usize) {
        let arrived = async {
            while self.hits() < hits {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, arrived).await.expect("the request should arrive");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(
    tcp: TcpStream,
    name: &str,
    hits: &AtomicUsize,
    mut opened: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let mut connection = Connection { tcp, buffer: Vec::new() };
    loop {
        let head = connection.head().await?;
        hits.fetch_add(1, Ordering::Relaxed);
        let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
        if head.to_ascii_lowercase().contains("\r\nupgrade: websocket") {
            let accept = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
            connection.tcp.write_all(accept.as_bytes()).await?;
            let mut bytes = vec![0; 4096];
            loop {
                let length = connection.tcp.read(&mut bytes).await?;
                if length == 0 {
                    return Ok(());
                }
                connection.tcp.write_all(&bytes[..length]).await?;
            }
        }
        let body = connection.body(&head).await?;
        let answer = match target.as_str() {
            "/break" => return Ok(()),
            "/gate" => {
                opened.wait_for(|open| *open).await?;
                b"through the gate".to_vec()
            }
            "/echo" => body,
            big if big.starts_with("/big/") => vec![b'x'; big["/big/".len()..].parse()?],
            _ => format!("{name}\n{head}").into_bytes(),
        };
        let is_head = head.starts_with("HEAD ");
        let start = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", answer.len());
        connection.tcp.write_all(&[start.as_bytes(), if is_head { b"" } else { &answer }].concat()).await?;
        if target == "/stale" {
            return Ok(());
        }
    }
}

/// Either end of an HTTP/1.1 connection.
pub(crate) struct Connection {
    pub(crate) tcp: TcpStream,
    buffer: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// With the status line, in lower case.
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body should be text")
    }
}

impl Connection {
    pub(crate) async fn to(address: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self { tcp: TcpStream::connect(address).await?, buffer: Vec::new() })
    }

    /// Sends and reads one answer.
    pub(crate) async fn ask(&mut self, request: &str) -> anyhow::Result<Response> {
        self.tcp.write_all(request.as_bytes()).await?;
        self.answer(!request.starts_with("HEAD ")).await
    }

    pub(crate) async fn answer(&mut self, with_body: bool) -> anyhow::Result<Response> {
        let head = timeout(DEADLINE, self.head()).await??.to_ascii_lowercase();
        let status = head.split(' ').nth(1).unwrap_or_default().parse()?;
        let body = if with_body { timeout(DEADLINE, self.body(&head)).await?? } else { Vec::new() };
        Ok(Response { status, head, body })
    }

    /// True when the other side has ended the connection, in whatever way, without saying more.
    pub(crate) async fn is_closed(&mut self) -> bool {
        let mut byte = [0];
        let read = timeout(DEADLINE, self.tcp.read(&mut byte)).await.expect("the connection should end");
        self.buffer.is_empty() && !matches!(read, Ok(1))
    }

    async fn head(&mut self) -> anyhow::Result<String> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = self.buffer.drain(..end + 4).collect();
                return Ok(String::from_utf8(head)?);
            }
            self.more().await?;
        }
    }

    async fn body(&mut self, head: &str) -> anyhow::Result<Vec<u8>> {
        let field = |name: &str| {
            let of = |line: &str| line.to_ascii_lowercase().strip_prefix(name).map(|value| value.trim().to_owned());
            head.lines().find_map(of)
        };
        if field("transfer-encoding:").is_some() {
            let mut body = Vec::new();
            loop {
                let line = self.until(b"\r\n").await?;
                let size = usize::from_str_radix(std::str::from_utf8(&line)?.trim(), 16)?;
                let chunk = self.exactly(size + 2).await?;
                if size == 0 {
                    return Ok(body);
                }
                body.extend_from_slice(&chunk[..size]);
            }
        }
        let length = field("content-length:").map_or(Ok(0), |length| length.parse())?;
        self.exactly(length).await
    }

    async fn until(&mut self, end: &[u8]) -> anyhow::Result<Vec<u8>> {
        loop {
            if let Some(found) = self.buffer.windows(end.len()).position(|window| window == end) {
                return Ok(self.buffer.drain(..found + end.len()).collect());
            }
            self.more().await?;
        }
    }

    async fn exactly(&mut self, length: usize) -> anyhow::Result<Vec<u8>> {
        while self.buffer.len() < length {
            self.more().await?;
        }
        Ok(self.buffer.drain(..length).collect())
    }

    async fn more(&mut self) -> anyhow::Result<()> {
        anyhow::ensure!(self.tcp.read_buf(&mut self.buffer).await? > 0, "the connection ended");
        Ok(())
    }
}

/// One request on a connection of its own.
pub(crate) async fn get(address: SocketAddr, host: &str, target: &str) -> anyhow::Result<Response> {
    let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    Connection::to(address).await?.ask(&request).await
}
