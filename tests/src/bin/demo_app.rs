//! A small service to balance: it says who it is, is healthy, gets ready after a while, and dies well.
//!
//! `GET /` who answers · `GET /health` 200 · `GET /ready` 503, then 200 after `--ready-after` · `GET /slow?ms=N` answers
//! late · `POST /echo` the body back · UDP on the same port: echo. Everything on IPv4 and IPv6.
//!
//! On SIGTERM it becomes a lame duck for `--drain` milliseconds: it goes on accepting and answers every request in
//! full, with `Connection: close`, so that clients go elsewhere; idle connections it closes only at the end. A balancer
//! that stops sending new requests within that time breaks nothing. A second SIGTERM, or SIGKILL, ends it at once.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Parser;
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream, UdpSocket},
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::{sleep, timeout},
};

/// Request heads and bodies beyond these are refused.
const MAX_HEAD: usize = 16 * 1024;
const MAX_BODY: usize = 64 << 20;

#[derive(Clone, Debug, Parser)]
struct Args {
    /// TCP and UDP port; by default $PORT0, else 8080.
    #[arg(long)]
    port: Option<u16>,
    /// Milliseconds until /ready says 200.
    #[arg(long, default_value_t = 0)]
    ready_after: u64,
    /// Milliseconds of lame duck after SIGTERM.
    #[arg(long, default_value_t = 1500)]
    drain: u64,
    /// Whether /health says 503 from the start.
    #[arg(long)]
    sick: bool,
}

#[derive(Debug)]
struct App {
    args: Args,
    started: Instant,
    lame: AtomicBool,
    /// Requests that are being answered.
    busy: AtomicUsize,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let from_env = || std::env::var("PORT0").ok().and_then(|p| p.parse().ok());
    let port = args.port.or_else(from_env).unwrap_or(8080);
    let mut terminate = signal(SignalKind::terminate())?;
    let drain = Duration::from_millis(args.drain);
    let app = Arc::new(App { args, started: Instant::now(), lame: AtomicBool::new(false), busy: AtomicUsize::new(0) });
    let (over, end) = watch::channel(false);
    for address in [SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), (Ipv6Addr::UNSPECIFIED, port).into()] {
        let sockets = tcp(address).and_then(|tcp| Ok((tcp, udp(address)?)));
        match sockets {
            Ok((listener, echo)) => {
                tokio::spawn(accept(listener, app.clone(), end.clone()));
                tokio::spawn(echo_datagrams(echo));
            }
            // A machine without IPv6 is served on IPv4.
            Err(error) if address.is_ipv6() => eprintln!("not on {address}: {error}"),
            Err(error) => return Err(error).with_context(|| format!("cannot listen on {address}")),
        }
    }
    println!("listening on port {port}");
    terminate.recv().await;
    app.lame.store(true, Ordering::Relaxed);
    tokio::select! { () = sleep(drain) => {}, _ = terminate.recv() => return Ok(()) }
    over.send_replace(true);
    // What is being answered is finished, whatever the grace period leaves.
    while app.busy.load(Ordering::Relaxed) > 0 {
        tokio::select! { () = sleep(Duration::from_millis(5)) => {}, _ = terminate.recv() => return Ok(()) }
    }
    Ok(())
}

fn tcp(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

fn udp(address: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket.into())
}

async fn echo_datagrams(socket: UdpSocket) {
    let mut buffer = vec![0; 65_535];
    loop {
        if let Ok((n, from)) = socket.recv_from(&mut buffer).await {
            // A client that is gone is no concern of ours.
            let _ = socket.send_to(&buffer[..n], from).await;
        }
    }
}

async fn accept(listener: TcpListener, app: Arc<App>, end: watch::Receiver<bool>) {
    let mut over = end.clone();
    loop {
        tokio::select! {
            () = ended(&mut over) => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => _ = tokio::spawn(serve(stream, app.clone(), end.clone())),
                // Out of descriptors, most likely.
                Err(_) => sleep(Duration::from_millis(5)).await,
            }
        }
    }
}

async fn ended(over: &mut watch::Receiver<bool>) {
    // An error: the program ends, which is the same.
    let _ = over.wait_for(|over| *over).await;
}

/// Serves a connection: one request after the other.
async fn serve(stream: TcpStream, app: Arc<App>, mut end: watch::Receiver<bool>) {
    let _ = stream.set_nodelay(true);
    let address = stream.local_addr().map(|a| a.ip().to_string()).unwrap_or_default();
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        tokio::select! {
            biased;
            some = reader.fill_buf() => if !some.is_ok_and(|bytes| !bytes.is_empty()) { return },
            () = ended(&mut end) => return,
        }
        app.busy.fetch_add(1, Ordering::Relaxed);
        let request = timeout(Duration::from_secs(30), read(&mut reader)).await.ok().flatten();
        let go_on = match request {
            Some(request) => {
                let close = request.close;
                let response = answer(&app, &address, request).await;
                // Asked only now: a request that came before the signal is told as well.
                let close = close || app.lame.load(Ordering::Relaxed);
                writer.write_all(&response.bytes(close)).await.is_ok() && !close
            }
            None => false,
        };
        app.busy.fetch_sub(1, Ordering::Relaxed);
        if !go_on {
            let _ = writer.shutdown().await;
            return;
        }
    }
}

struct Request {
    method: String,
    target: String,
    close: bool,
    body: Vec<u8>,
}

struct Response {
    status: &'static str,
    kind: &'static str,
    body: Vec<u8>,
}

impl Response {
    fn bytes(self, close: bool) -> Vec<u8> {
        let Response { status, kind, body } = self;
        let connection = if close { "close" } else { "keep-alive" };
        let mut bytes = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        bytes.extend(body);
        bytes
    }
}

/// Reads a request; `None`: the connection ended, or what came is no HTTP.
async fn read(reader: &mut (impl AsyncBufRead + Unpin)) -> Option<Request> {
    let mut head = Vec::new();
    loop {
        let from = head.len();
        let room = (MAX_HEAD - from) as u64;
        reader.take(room).read_until(b'\n', &mut head).await.ok()?;
        match &head[from..] {
            b"\r\n" | b"\n" if from > 0 => break,
            line if line.last() != Some(&b'\n') => return None,
            _ => {}
        }
    }
    let head = String::from_utf8(head).ok()?;
    let mut lines = head.lines();
    let mut words = lines.next()?.split(' ');
    let (method, target, version) = (words.next()?.to_owned(), words.next()?.to_owned(), words.next()?);
    let header = |name: &str| {
        let fields = head.lines().skip(1).filter_map(|line| line.split_once(':'));
        fields.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_lowercase())
    };
    let connection = header("connection").unwrap_or_default();
    let close = connection.contains("close") || (version == "HTTP/1.0" && !connection.contains("keep-alive"));
    let mut body = Vec::new();
    if header("transfer-encoding").is_some_and(|t| t.contains("chunked")) {
        read_chunks(reader, &mut body).await?;
    } else if let Some(length) = header("content-length") {
        body.resize(length.parse().ok().filter(|n| *n <= MAX_BODY)?, 0);
        reader.read_exact(&mut body).await.ok()?;
    }
    Some(Request { method, target, close, body })
}

async fn read_chunks(reader: &mut (impl AsyncBufRead + Unpin), body: &mut Vec<u8>) -> Option<()> {
    loop {
        let mut line = String::new();
        reader.take(64).read_line(&mut line).await.ok()?;
        let size = usize::from_str_radix(line.split(';').next()?.trim(), 16).ok()?;
        let from = body.len();
        body.resize(from.checked_add(size).filter(|n| *n <= MAX_BODY)?, 0);
        reader.read_exact(&mut body[from..]).await.ok()?;
        line.clear();
        // The end of the chunk, or the empty line after the last one (trailers are not understood).
        reader.take(64).read_line(&mut line).await.ok()?;
        if size == 0 {
            return Some(());
        }
    }
}

async fn answer(app: &App, address: &str, request: Request) -> Response {
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    let text = |status, body: &str| Response { status, kind: "text/plain", body: format!("{body}\n").into_bytes() };
    let env = |name: &str| std::env::var(name).unwrap_or_default();
    match (request.method.as_str(), path) {
        ("POST" | "PUT", "/echo") => {
            Response { status: "200 OK", kind: "application/octet-stream", body: request.body }
        }
        (_, "/health") if app.args.sick => text("503 Service Unavailable", "sick"),
        (_, "/health") => text("200 OK", "healthy"),
        (_, "/ready") if app.started.elapsed() < Duration::from_millis(app.args.ready_after) => {
            text("503 Service Unavailable", "not yet")
        }
        (_, "/ready") => text("200 OK", "ready"),
        (_, "/" | "/slow") => {
            let ms = query.split('&').find_map(|pair| pair.strip_prefix("ms=")).and_then(|ms| ms.parse().ok());
            sleep(Duration::from_millis(ms.unwrap_or(0))).await;
            let who = json!({
                "task": env("MESOS_TASK_ID"), "host": env("HOST"), "app": env("MARATHON_APP_ID"),
                "version": env("MARATHON_APP_VERSION"), "address": address,
            });
            Response { status: "200 OK", kind: "application/json", body: format!("{who}\n").into_bytes() }
        }
        _ => text("404 Not Found", "there is /, /health, /ready, /slow?ms=N and POST /echo"),
    }
}
