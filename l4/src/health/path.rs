//! The way of probes in the modes without translation: two programs at the interfaces that make a probe's packets what
//! a client's would be. Loaded when the first such probe is sent; they go with this process.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, MapData},
    programs::{SchedClassifier, TcAttachType, tc},
    util::KernelVersion,
};
use tidegate_ebpf::{
    abi::{Address, TCP, UDP},
    probe::{IN, OUT, WAYS, Way, WayKey},
};
use tracing::info;

use crate::input::{Forward, Frontend, Protocol};

/// The object that `cargo xtask ebpf` built, or nothing.
static EMBEDDED: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/probe.o"));
/// What could not be loaded is tried again so much later.
const AGAIN: Duration = Duration::from_secs(30);

/// What the traffic of a service looks like (any mode but full NAT, whose probes need nothing).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Traffic {
    pub(crate) frontend: Frontend,
    pub(crate) forward: Forward,
}

#[derive(Debug)]
pub(crate) struct Path {
    interfaces: Vec<String>,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Unused,
    Loaded(Arc<Loaded>),
    Failed { at: Instant, why: String },
}

#[derive(Debug)]
struct Loaded {
    /// The interfaces' indexes: one that went and came back has another.
    at: Vec<u32>,
    ways: Mutex<HashMap<MapData, WayKey, Way>>,
    /// Has the programs and their links.
    _ebpf: Ebpf,
}

/// The way of one socket's packets, while it lives.
#[derive(Debug)]
pub(crate) struct Entry {
    key: WayKey,
    loaded: Arc<Loaded>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        // One that is gone already is as good.
        let _ = self.loaded.ways.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

impl Path {
    pub(crate) fn new(interfaces: &[String]) -> Self {
        Self { interfaces: interfaces.to_vec(), state: Mutex::new(State::Unused) }
    }

    /// From now on, what a socket on this port sends to the real goes as the service's traffic does.
    pub(crate) fn enter(
        &self,
        port: u16,
        protocol: Protocol,
        to: SocketAddr,
        Traffic { frontend, forward }: &Traffic,
    ) -> anyhow::Result<Entry> {
        if frontend.vip.is_ipv4() != to.is_ipv4() {
            bail!("probes do not cross address families as tunnels do: the real is not probed");
        }
        let (mode, gue_port) = match *forward {
            Forward::FullNat => bail!("full NAT needs no way of its own"),
            Forward::Direct => (Way::DIRECT, 0),
            Forward::IpIp => (Way::IPIP, 0),
            Forward::Gue { port } => (Way::GUE, port),
        };
        let loaded = self.loaded()?;
        let protocol = match protocol {
            Protocol::Tcp => TCP,
            Protocol::Udp => UDP,
        };
        let key = WayKey { port, protocol, v4: u8::from(to.is_ipv4()) };
        let way = Way {
            real: Address::from(to.ip()),
            vip: Address::from(frontend.vip),
            real_port: to.port(),
            vip_port: frontend.port,
            mode,
            gue_port,
        };
        let mut ways = loaded.ways.lock().unwrap_or_else(PoisonError::into_inner);
        ways.insert(key, way, 0).context("writing the way of a probe")?;
        drop(ways);
        Ok(Entry { key, loaded })
    }

    fn loaded(&self) -> anyhow::Result<Arc<Loaded>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::Loaded(loaded) if loaded.at == indexes(&self.interfaces) => return Ok(Arc::clone(loaded)),
            State::Failed { at, why } if at.elapsed() < AGAIN => return Err(anyhow!(why.clone())),
            State::Loaded(_) | State::Failed { .. } | State::Unused => {}
        }
        match load(&self.interfaces) {
            Ok(loaded) => {
                let loaded = Arc::new(loaded);
                *state = State::Loaded(Arc::clone(&loaded));
                Ok(loaded)
            }
            Err(error) => {
                *state = State::Failed { at: Instant::now(), why: format!("{error:#}") };
                Err(error)
            }
        }
    }
}

fn indexes(interfaces: &[String]) -> Vec<u32> {
    interfaces.iter().map(|name| nix::net::if_::if_nametoindex(name.as_str()).unwrap_or_default()).collect()
}

fn load(interfaces: &[String]) -> anyhow::Result<Loaded> {
    if EMBEDDED.is_empty() {
        bail!("this build holds no probe programs: run `cargo xtask ebpf`, then build again");
    }
    let mut ebpf = EbpfLoader::new().load(EMBEDDED).context("loading the probe programs")?;
    // Before Linux 6.6 a filter needs a place to hang at, and outlives the process that hung it there.
    let old = KernelVersion::current().is_ok_and(|version| version < KernelVersion::new(6, 6, 0));
    for (name, at) in [(OUT, TcAttachType::Egress), (IN, TcAttachType::Ingress)] {
        let program = ebpf.program_mut(name).with_context(|| format!("the probe object has no program `{name}`"))?;
        let program: &mut SchedClassifier =
            program.try_into().with_context(|| format!("`{name}` is of no use here"))?;
        program.load().with_context(|| format!("loading the program `{name}`"))?;
        for interface in interfaces {
            if old {
                // There already, or nothing to detach: as good.
                let _ = tc::qdisc_add_clsact(interface);
                let _ = tc::qdisc_detach_program(interface, at, name);
            }
            program.attach(interface, at).with_context(|| format!("attaching `{name}` to {interface}"))?;
        }
    }
    info!(interfaces = interfaces.join(", "), "the probe programs are attached");
    let ways = ebpf.take_map(WAYS).with_context(|| format!("the probe object has no map {WAYS}"))?;
    let ways = HashMap::try_from(ways).context("the map of ways is of another type")?;
    Ok(Loaded { at: indexes(interfaces), ways: Mutex::new(ways), _ebpf: ebpf })
}
