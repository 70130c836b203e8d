//! `tidegate l4 explain`, `capture`, `flows`, `log`: looking at layer 4 through what it pinned.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    str::FromStr,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use tidegate_l4::{
    Frontend, Protocol,
    see::{
        self,
        capture::{Capture, Filter, Packet},
        explain::{Explainer, Outcome, Question},
        flows::{self, Flows},
        log::{Log, Told, What},
        pcap,
    },
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep_until},
};

use super::super::table::{count, table};
use crate::config::Loaded;

/// Where layer 4 pinned what is looked at.
#[derive(Args, Debug)]
pub(in crate::cli) struct Pins {
    /// The configuration that layer 4 runs with (for `l4.pin_dir`); without it the embedded defaults.
    #[arg(long, short, value_name = "FILE", env = "TIDEGATE_CONFIG")]
    config: Option<PathBuf>,
}

impl Pins {
    fn folder(&self) -> anyhow::Result<PathBuf> {
        Ok(Loaded::read(self.config.as_deref())?.config.l4.pin_dir)
    }
}

/// An address, perhaps with a port.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::cli) struct Place {
    address: IpAddr,
    port: Option<u16>,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self { address, port: None });
        }
        let place: SocketAddr = text
            .parse()
            .map_err(|_| format!("{text:?} is neither ADDRESS nor ADDRESS:PORT ([ADDRESS]:PORT for IPv6)"))?;
        Ok(Self { address: place.ip(), port: Some(place.port()) })
    }
}

#[derive(Args, Debug)]
pub(in crate::cli) struct Explain {
    /// Where the packet comes from; without a port 256 ports are asked about.
    #[arg(value_name = "CLIENT[:PORT]")]
    client: Place,
    /// Where it goes.
    #[arg(value_name = "VIP:PORT")]
    vip: SocketAddr,
    /// A UDP datagram instead of a TCP segment.
    #[arg(long, conflicts_with_all = ["syn", "ack"])]
    udp: bool,
    /// A SYN, which opens a connection (as if nothing is said).
    #[arg(long, conflicts_with = "ack")]
    syn: bool,
    /// An acknowledgement, as in the middle of a connection.
    #[arg(long)]
    ack: bool,
    /// The interface that it comes by; without it the first that the balancer is attached to.
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pins: Pins,
}

const DROPPED: u8 = 2;
const PASSED: u8 = 3;

pub(super) fn explain(args: &Explain) -> anyhow::Result<ExitCode> {
    let protocol = if args.udp { Protocol::Udp } else { Protocol::Tcp };
    let frontend = Frontend { vip: args.vip.ip(), port: args.vip.port(), protocol };
    let client = SocketAddr::new(args.client.address, args.client.port.unwrap_or_default());
    let question = Question { client, frontend, opens: !args.ack };
    let mut explainer = Explainer::open(&args.pins.folder()?, args.interface.as_deref())?;
    let outcome = match args.client.port {
        Some(_) => {
            let said = explainer.ask(&question)?;
            show(&said, &said, args.json)?;
            said.outcome
        }
        None => {
            let said = explainer.shares(&question)?;
            show(&said, &said, args.json)?;
            said.example.outcome
        }
    };
    Ok(match outcome {
        Outcome::Forwarded { .. } => ExitCode::SUCCESS,
        Outcome::Dropped { .. } => DROPPED.into(),
        Outcome::Passed { .. } => PASSED.into(),
    })
}

fn show(value: &impl Serialize, text: &impl std::fmt::Display, json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(value).context("writing JSON")?);
    } else {
        print!("{text}");
    }
    Ok(())
}

#[derive(Args, Debug)]
pub(in crate::cli) struct Captures {
    /// Only packets from or to this address; of a connection under fullnat also the answers, as they leave.
    #[arg(long, value_name = "ADDRESS")]
    host: Option<IpAddr>,
    /// Only packets from or to this port.
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Stop after so many packets.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Stop after so many seconds.
    #[arg(long, value_name = "S")]
    seconds: Option<u64>,
    /// Write a pcapng file (`-`: to standard output) instead of lines.
    #[arg(long, short, value_name = "FILE")]
    write: Option<PathBuf>,
    #[command(flatten)]
    pins: Pins,
}

pub(super) async fn capture(args: &Captures) -> anyhow::Result<ExitCode> {
    let mut end = End::after(args.seconds)?;
    let epoch = epoch(see::clock());
    let mut to = Sink::open(args.write.as_ref(), epoch)?;
    let filter = Filter { address: args.host, port: args.port };
    let mut capture = Capture::start(&args.pins.folder()?, &filter)?;
    let mut packets = 0;
    let limit = args.count.unwrap_or(u64::MAX);
    while packets < limit {
        let Some(packet) = capture.take() else {
            if !to.flush()? {
                break;
            }
            tokio::select! {
                () = end.comes() => break,
                ready = capture.ready() => ready?,
            }
            continue;
        };
        if !to.take(&packet)? {
            break;
        }
        packets += 1;
        if packets.is_multiple_of(BATCH) && end.is_there().await {
            break;
        }
    }
    let lost = capture.lost();
    for packet in capture.stop() {
        if packets < limit && to.take(&packet)? {
            packets += 1;
        }
    }
    to.flush()?;
    eprintln!("{} captured", count(usize::try_from(packets).unwrap_or(usize::MAX), "packet"));
    if lost != 0 {
        eprintln!("{lost} more came faster than they were read: narrow it by --host and --port, or write to a file");
    }
    Ok(ExitCode::SUCCESS)
}

/// Where captured packets go.
enum Sink {
    Lines { epoch: u64 },
    File(pcap::Writer<Box<dyn Write>>),
}

impl Sink {
    fn open(file: Option<&PathBuf>, epoch: u64) -> anyhow::Result<Self> {
        let Some(path) = file else { return Ok(Self::Lines { epoch }) };
        let to: Box<dyn Write> = if path.as_os_str() == "-" {
            Box::new(io::stdout())
        } else {
            Box::new(File::create(path).with_context(|| format!("making {}", path.display()))?)
        };
        let writer = pcap::Writer::new(Box::new(BufWriter::new(to)) as Box<dyn Write>, epoch);
        Ok(Self::File(writer.with_context(|| format!("writing {}", path.display()))?))
    }

    /// False: nobody reads any more.
    fn take(&mut self, packet: &Packet) -> anyhow::Result<bool> {
        still_read(match self {
            Self::File(writer) => writer.packet(packet),
            Self::Lines { epoch } => {
                let (what, interface) = (pcap::comment(packet.what), see::interface(packet.ifindex));
                let at = clock(*epoch, packet.at);
                writeln!(io::stdout(), "{at} {interface} {what}: {}", see::line(&packet.bytes))
            }
        })
    }

    fn flush(&mut self) -> anyhow::Result<bool> {
        still_read(match self {
            Self::File(writer) => writer.flush(),
            Self::Lines { .. } => io::stdout().flush(),
        })
    }
}

fn still_read(written: io::Result<()>) -> anyhow::Result<bool> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        written => written.context("writing what was seen").map(|()| true),
    }
}

#[derive(Args, Debug)]
pub(in crate::cli) struct List {
    /// Only flows to this VIP, or to this port of it.
    #[arg(long, value_name = "VIP[:PORT]")]
    service: Option<Place>,
    /// Only flows to this real.
    #[arg(long, value_name = "ADDRESS")]
    real: Option<IpAddr>,
    /// Only flows of this client.
    #[arg(long, value_name = "ADDRESS")]
    client: Option<IpAddr>,
    /// Print at most so many.
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pins: Pins,
}

pub(super) fn list(args: &List) -> anyhow::Result<ExitCode> {
    let filter = flows::Filter {
        vip: args.service.map(|service| service.address),
        port: args.service.and_then(|service| service.port),
        real: args.real,
        client: args.client,
    };
    let flows = flows::list(&args.pins.folder()?, &filter, args.limit)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&flows).context("writing JSON")?);
    } else {
        println!("{}", render(&flows));
    }
    Ok(ExitCode::SUCCESS)
}

fn render(flows: &Flows) -> String {
    let rows: Vec<Vec<String>> = flows
        .shown
        .iter()
        .map(|line| {
            let real = match line.real_state {
                "active" => line.real.to_string(),
                state => format!("{} ({state})", line.real),
            };
            let ends = [line.client.to_string(), line.vip.to_string(), line.local.to_string(), real];
            [vec![line.protocol.to_owned()], ends.to_vec(), vec![line.state.to_owned(), format!("{} s", line.idle_s)]]
                .concat()
        })
        .collect();
    let mut text = String::new();
    if !rows.is_empty() {
        text += &table(&["PROTOCOL", "CLIENT", "VIP", "LOCAL", "REAL", "STATE", "IDLE"], &rows);
        text += "\n";
    }
    text += &format!(
        "{} of fullnat alive, {} of these fit, {} shown",
        count(flows.alive, "flow"),
        flows.fitting,
        flows.shown.len()
    );
    if !flows.recorded.is_empty() {
        let rows: Vec<Vec<String>> = flows
            .recorded
            .iter()
            .map(|found| {
                let real = format!("{} ({})", found.real.address, found.real.state);
                vec![found.protocol.to_owned(), found.vip.to_string(), real, found.flows.to_string()]
            })
            .collect();
        text += "\n\nrecorded since a slot of theirs moves:\n";
        text += &table(&["PROTOCOL", "VIP", "REAL", "FLOWS"], &rows);
    }
    text
}

#[derive(Args, Debug)]
pub(in crate::cli) struct Follow {
    /// Tell one of so many new flows (N is rounded up to a power of two).
    #[arg(long, value_name = "1/N", default_value = "1/1", value_parser = sample)]
    sample: u32,
    /// Tell drops alone.
    #[arg(long)]
    drops: bool,
    /// Stop after so many seconds.
    #[arg(long, value_name = "S")]
    seconds: Option<u64>,
    /// One JSON object in each line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pins: Pins,
}

fn sample(text: &str) -> anyhow::Result<u32> {
    match text.strip_prefix("1/").unwrap_or(text).parse() {
        Ok(0) | Err(_) => bail!("say 1/N, as 1/1024"),
        Ok(every) => Ok(every),
    }
}

#[derive(Serialize)]
struct Entry<'a> {
    at: Timestamp,
    #[serde(flatten)]
    told: &'a Told,
}

pub(super) async fn log(args: &Follow) -> anyhow::Result<ExitCode> {
    let mut end = End::after(args.seconds)?;
    let mut log = Log::follow(&args.pins.folder()?, if args.drops { 0 } else { args.sample })?;
    let epoch = epoch(log.since());
    for number in 1_u64.. {
        let Some(told) = log.take() else {
            tokio::select! {
                () = end.comes() => break,
                ready = log.ready() => ready?,
            }
            continue;
        };
        let line = if args.json {
            serde_json::to_string(&Entry { at: time(epoch, told.at), told: &told }).context("writing JSON")?
        } else {
            format!("{} {}", clock(epoch, told.at), words(&told))
        };
        if !still_read(writeln!(io::stdout(), "{line}"))? || (number.is_multiple_of(BATCH) && end.is_there().await) {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn words(told: &Told) -> String {
    let Told { protocol, client, vip, what, .. } = told;
    match what {
        What::Flow { real: Some(real) } => format!("flow {protocol} {client} > {vip} to {real}"),
        What::Flow { real: None } => format!("flow {protocol} {client} > {vip} to a real that is gone"),
        What::Drop { reason, advice } => format!("DROP {protocol} {client} > {vip} ({reason}): {advice}"),
    }
}

/// What is added to a clock that stands at `clock` now to make it the time of day, ns.
fn epoch(clock: u64) -> u64 {
    (Timestamp::now().as_nanosecond() as u64).wrapping_sub(clock)
}

fn time(epoch: u64, at: u64) -> Timestamp {
    Timestamp::from_nanosecond(epoch.wrapping_add(at).into()).unwrap_or_default()
}

fn clock(epoch: u64, at: u64) -> String {
    time(epoch, at).strftime("%H:%M:%S.%6f").to_string()
}

/// What comes faster than it is written must not keep the end away: it is looked for after so much of it.
const BATCH: u64 = 256;

/// Ctrl-C, SIGTERM or a time. All of them end it in good order: what was switched on is switched off.
struct End {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    at: Option<Instant>,
}

impl End {
    fn after(seconds: Option<u64>) -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("waiting for Ctrl-C")?,
            terminate: signal(SignalKind::terminate()).context("waiting for SIGTERM")?,
            at: seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds)),
        })
    }

    /// Whether it has come, for whoever has no time to wait for it.
    async fn is_there(&mut self) -> bool {
        tokio::select! {
            biased;
            () = self.comes() => true,
            () = tokio::task::yield_now() => false,
        }
    }

    async fn comes(&mut self) {
        let at = self.at;
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            () = async { sleep_until(at.expect("there is a time")).await }, if at.is_some() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_an_address_perhaps_with_a_port() {
        let place = |text: &str| text.parse::<Place>().map(|place| (place.address.to_string(), place.port));
        assert_eq!(place("10.0.0.1"), Ok(("10.0.0.1".to_owned(), None)));
        assert_eq!(place("10.0.0.1:80"), Ok(("10.0.0.1".to_owned(), Some(80))));
        assert_eq!(place("fd77::1"), Ok(("fd77::1".to_owned(), None)));
        assert_eq!(place("[fd77::1]:80"), Ok(("fd77::1".to_owned(), Some(80))));
        assert!(place("shop:80").unwrap_err().contains("ADDRESS:PORT"));
    }

    #[test]
    fn a_sample_is_a_fraction() {
        assert_eq!(sample("1/1024").unwrap(), 1024);
        assert_eq!(sample("64").unwrap(), 64);
        assert!(sample("1/0").is_err() && sample("half").is_err());
    }
}
