//! Looking at what layer 4 does, through what is pinned: also while no process of ours runs.
//!
//! ```text
//! explain ◄── the program `explain`, run once on the live maps ── trace
//! flows   ◄── flows, records          (read as memory)
//! log     ◄── events                  (a ring buffer: one reader at a time)
//! capture ◄── captured                (another)     log, capture ──► watch (what is wanted)
//! ```
//!
//! Nothing here changes what becomes of a packet. Start reading at [`View`], then [`explain`].

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    os::{
        linux::net::SocketAddrExt,
        unix::{fs::MetadataExt, net},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, bail};
use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, RingBuf},
};
use serde::Serialize;
use tidegate_ebpf::abi::{self, LAYOUT, ServiceKey, Settings, map};

use crate::{
    input::{Frontend, Protocol},
    mapped::Mapped,
};

mod advice;
mod build;
pub mod capture;
pub mod explain;
pub mod flows;
mod line;
pub mod log;
pub mod pcap;
mod program;
mod ring;
mod words;

pub use advice::{advice, advice_of};
pub use line::line;

/// The pinned maps, opened to be looked at.
pub struct View {
    folder: PathBuf,
    locals: Array<MapData, abi::Address>,
    services: HashMap<MapData, ServiceKey, abi::Service>,
    frontends: Array<MapData, abi::Frontend>,
    reals: Array<MapData, abi::Real>,
}

/// A real as it stands in the maps.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Real {
    pub id: u32,
    pub address: SocketAddr,
    /// `active`: gets new flows; `draining`: keeps its flows; `left`: not listed any more, keeps its flows; `gone`.
    pub state: &'static str,
    pub weight: u16,
    /// As user space found it; the kernel is asked when it may not be believed any more.
    pub hop: Option<Hop>,
}

/// The next machine on the way to a real.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Hop {
    pub interface: String,
    pub mac: String,
    pub vlan: Option<u16>,
    pub mtu: u16,
}

impl View {
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        let settings: Array<MapData, Settings> = {
            let data = pinned(folder, map::SETTINGS)?;
            let size = data.info().context("asking for the size of the settings")?.value_size() as usize;
            if size != size_of::<Settings>() {
                bail!("the maps in {} are another version's: use the `tidegate` that made them", folder.display());
            }
            Map::Array(data).try_into().context("reading the settings")?
        };
        match settings.get(&0, 0).context("reading the settings")?.layout {
            LAYOUT => {}
            0 => bail!("the maps in {} are not written yet: layer 4 is just starting", folder.display()),
            other => bail!(
                "the maps in {} have layout {other}, and this version knows {LAYOUT}: use the `tidegate` that made them",
                folder.display()
            ),
        }
        Ok(Self {
            locals: Map::Array(pinned(folder, map::LOCALS)?).try_into()?,
            services: Map::HashMap(pinned(folder, map::SERVICES)?).try_into()?,
            frontends: Map::Array(pinned(folder, map::FRONTENDS)?).try_into()?,
            reals: Map::Array(pinned(folder, map::REALS)?).try_into()?,
            folder: folder.to_path_buf(),
        })
    }

    pub(crate) fn service(&self, frontend: &Frontend) -> anyhow::Result<Option<abi::Service>> {
        let found = self.services.get(&crate::tables::key(frontend), 0);
        found_or_not(found).context("looking for the service")
    }

    /// What the VIP serves; `None`: it is no VIP.
    pub(crate) fn ports(&self, vip: IpAddr) -> anyhow::Result<Option<Vec<Frontend>>> {
        let address = abi::Address::from(vip);
        if found_or_not(self.services.get(&ServiceKey::of_vip(address), 0)).context("looking for the VIP")?.is_none() {
            return Ok(None);
        }
        let mut ports = Vec::new();
        for key in self.services.keys() {
            let key = key.context("reading the services")?;
            if key.vip == address && key.protocol != 0 {
                ports.push(front(vip, key.port, key.protocol));
            }
        }
        ports.sort();
        Ok(Some(ports))
    }

    /// `None`: no service has the number.
    pub fn frontend(&self, service: u32) -> Option<Frontend> {
        let found = self.frontends.get(&service, 0).ok()?;
        (found.protocol != 0).then(|| front(found.vip.into(), found.port, found.protocol))
    }

    pub(crate) fn raw_real(&self, id: u32) -> Option<abi::Real> {
        self.reals.get(&id, 0).ok()
    }

    pub fn real(&self, id: u32) -> Option<Real> {
        self.raw_real(id).map(|real| seen(id, &real))
    }

    /// The address of a FULLNAT flow at our side.
    pub fn local(&self, flow: u32) -> Option<SocketAddr> {
        let address = self.locals.get(&(flow / abi::PORTS), 0).ok()?;
        Some(SocketAddr::new(address.into(), flow as u16))
    }

    pub(crate) fn array<T: Pod>(&self, name: &str) -> anyhow::Result<Array<MapData, T>> {
        Map::Array(pinned(&self.folder, name)?).try_into().with_context(|| format!("opening the map {name}"))
    }

    pub(crate) fn mapped<T: Pod>(&self, name: &str) -> anyhow::Result<Mapped<T>> {
        Mapped::of(Map::Array(pinned(&self.folder, name)?)).with_context(|| format!("the map {name}"))
    }

    pub(crate) fn ring(&self, name: &str) -> anyhow::Result<RingBuf<MapData>> {
        Map::RingBuf(pinned(&self.folder, name)?).try_into().with_context(|| format!("opening the ring buffer {name}"))
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("folder", &self.folder).finish_non_exhaustive()
    }
}

fn seen(id: u32, real: &abi::Real) -> Real {
    let state = match real.state {
        abi::Real::ACTIVE => "active",
        abi::Real::DRAINING => "draining",
        abi::Real::LEFT => "left",
        _ => "gone",
    };
    let hop = (real.hop.ifindex != 0).then(|| Hop {
        interface: interface(real.hop.ifindex),
        mac: mac(real.hop.destination_mac.into()),
        vlan: (real.hop.vlan != 0).then_some(real.hop.vlan),
        mtu: real.hop.mtu,
    });
    Real { id, address: SocketAddr::new(real.address.into(), real.port), state, weight: real.weight, hop }
}

fn front(vip: IpAddr, port: u16, protocol: u8) -> Frontend {
    let protocol = if protocol == abi::UDP { Protocol::Udp } else { Protocol::Tcp };
    Frontend { vip, port, protocol }
}

/// An interface's name, or its number when it has none any more.
#[must_use]
pub fn interface(index: u32) -> String {
    let name = nix::net::if_::if_indextoname(index).ok().and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| format!("interface {index}"))
}

fn mac([a, b, c, d, e, f]: [u8; 6]) -> String {
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

fn pinned(folder: &Path, name: &str) -> anyhow::Result<MapData> {
    let path = folder.join(name);
    MapData::from_pin(&path).map_err(|error| refused(error.into(), &path))
}

/// Says what an error at a pin means.
fn refused(error: anyhow::Error, path: &Path) -> anyhow::Error {
    let code = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()).and_then(io::Error::raw_os_error);
    match code {
        Some(libc::ENOENT) => anyhow!(
            "{} is not there: layer 4 was not started on this machine, or with another l4.pin_dir (name its \
             configuration by --config), or by a version that does not pin it",
            path.display()
        ),
        Some(libc::EPERM | libc::EACCES) => anyhow!("opening {}: looking into layer 4 needs root", path.display()),
        _ => error.context(format!("opening {}", path.display())),
    }
}

fn found_or_not<T>(result: Result<T, aya::maps::MapError>) -> Result<Option<T>, aya::maps::MapError> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(aya::maps::MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The clock that captured packets are stamped with, ns.
#[must_use]
pub fn clock() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map(std::time::Duration::from);
    time.map_or(0, |time| time.as_nanos() as u64)
}

/// Held by the only one that does something with these maps. The kernel takes it back, however its holder ends.
#[derive(Debug)]
pub(crate) struct Alone(#[expect(dead_code, reason = "it is held, not used")] net::UnixListener);

impl Alone {
    /// `None`: somebody else has it.
    pub(crate) fn take(folder: &Path, what: &str) -> anyhow::Result<Option<Self>> {
        let folder = fs::metadata(folder).with_context(|| format!("looking at {}", folder.display()))?;
        // The folder by number: a name of a socket is short.
        let name = format!("tidegate-l4-{what}-{}-{}", folder.dev(), folder.ino());
        let address = net::SocketAddr::from_abstract_name(name).context("naming a lock")?;
        match net::UnixListener::bind_addr(&address) {
            Ok(listener) => Ok(Some(Self(listener))),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error).context("taking a lock"),
        }
    }

    /// Fails when somebody else has it.
    pub(crate) fn need(folder: &Path, what: &str) -> anyhow::Result<Self> {
        Self::take(folder, what)?.with_context(|| {
            format!("another `tidegate l4 {what}` reads already, and there can be one reader: end that one first")
        })
    }
}
