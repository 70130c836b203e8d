//! The maps from user space: made once, pinned, adopted by the next process, written in the order that `tables` says.

use std::{collections::HashMap as StdHashMap, fs, net::IpAddr, path::Path};

use anyhow::{Context, bail};
use aya::{
    Ebpf,
    maps::{Array, HashMap, IterableMap, Map, MapData, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use tidegate_ebpf::abi::{
    self, Address, BLOCK_SLOTS, Counters, Flow, LAYOUT, Real, Reason, Reverse, RingBlock, Service, ServiceKey,
    Settings, Tuple, map,
};

use crate::tables::{Capacity, Found, Write};

/// All maps of the program.
pub struct Maps {
    settings: Array<MapData, Settings>,
    locals: Array<MapData, Address>,
    services: HashMap<MapData, ServiceKey, Service>,
    reals: Array<MapData, Real>,
    rings: Array<MapData, RingBlock>,
    reverses: HashMap<MapData, Tuple, Reverse>,
    service_counters: PerCpuArray<MapData, Counters>,
    real_counters: PerCpuArray<MapData, Counters>,
    drops: PerCpuArray<MapData, u64>,
    cpus: usize,
    /// How many flows the table really holds: a pinned one keeps its size.
    pub flows: u32,
}

/// Whether maps of an earlier process are there and of our layout. Fails when they are of another.
pub fn survivors(folder: &Path) -> anyhow::Result<bool> {
    let path = folder.join(map::SETTINGS);
    if !path.exists() {
        return Ok(false);
    }
    let refuse = |found: &str| {
        anyhow::anyhow!(
            "the maps in {} are of {found}, this version needs layout {LAYOUT}: `tidegate l4 remove` takes them away \
             (and ends the connections that run through them)",
            folder.display()
        )
    };
    let data = MapData::from_pin(&path).with_context(|| format!("opening {}", path.display()))?;
    if data.info().context("asking for the settings map's size")?.value_size() != size_of::<Settings>() as u32 {
        return Err(refuse("an unknown layout"));
    }
    let settings: Array<_, Settings> = Map::Array(data).try_into().context("reading the settings map")?;
    match settings.get(&0, 0).context("reading the settings map")?.layout {
        LAYOUT => Ok(true),
        // A process that died between making the maps and writing the layout left nothing of worth.
        0 => {
            for name in map::ALL {
                let _ = fs::remove_file(folder.join(name));
            }
            Ok(false)
        }
        other => Err(refuse(&format!("layout {other}"))),
    }
}

impl Maps {
    pub fn take(ebpf: &mut Ebpf) -> anyhow::Result<Self> {
        let flows: HashMap<_, Tuple, Flow> = typed(ebpf, map::FLOWS)?;
        let flows = max_entries(flows.map().info())?;
        Ok(Self {
            settings: typed(ebpf, map::SETTINGS)?,
            locals: typed(ebpf, map::LOCALS)?,
            services: typed(ebpf, map::SERVICES)?,
            reals: typed(ebpf, map::REALS)?,
            rings: typed(ebpf, map::RINGS)?,
            reverses: typed(ebpf, map::REVERSES)?,
            service_counters: typed(ebpf, map::SERVICE_COUNTERS)?,
            real_counters: typed(ebpf, map::REAL_COUNTERS)?,
            drops: typed(ebpf, map::DROPS)?,
            cpus: nr_cpus().map_err(|(file, error)| error_at(file, error))?,
            flows,
        })
    }

    pub fn capacity(&self) -> anyhow::Result<Capacity> {
        Ok(Capacity {
            services: max_entries(self.services.map().info())?,
            reals: self.reals.len(),
            blocks: self.rings.len(),
        })
    }

    /// Reads back what there is.
    pub fn found(&self) -> anyhow::Result<Found> {
        let mut found = Found::default();
        for entry in self.services.iter() {
            found.services.push(entry.context("reading the services back")?);
        }
        for (_, service) in &found.services {
            let blocks = if service.mask == 0 { 0 } else { (service.mask + 1) / BLOCK_SLOTS as u32 };
            let mut slots = Vec::with_capacity(blocks as usize * BLOCK_SLOTS);
            for block in service.block..service.block.saturating_add(blocks).min(self.rings.len()) {
                slots.extend(self.rings.get(&block, 0).context("reading the rings back")?.0);
            }
            found.rings.insert(service.id, slots);
        }
        for id in 0..self.reals.len() {
            found.reals.push(self.reals.get(&id, 0).context("reading the reals back")?);
        }
        Ok(found)
    }

    /// The layout and where FULLNAT connections come from.
    pub fn settle(&mut self, locals: &[IpAddr]) -> anyhow::Result<()> {
        let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = locals.iter().partition(|local| local.is_ipv4());
        for (first, locals) in [(0, &v4), (abi::LOCALS, &v6)] {
            if locals.len() > abi::LOCALS as usize {
                bail!(
                    "l4.local_addresses holds {} addresses of one family, at most {} work",
                    locals.len(),
                    abi::LOCALS
                );
            }
            for (index, local) in (first..).zip(locals) {
                self.locals.set(index, Address::from(*local), 0).context("writing the local addresses")?;
            }
        }
        let settings = Settings { layout: LAYOUT, locals_v4: v4.len() as u32, locals_v6: v6.len() as u32, pad: 0 };
        self.settings.set(0, settings, 0).context("writing the settings")
    }

    pub fn apply(&mut self, write: &Write) -> anyhow::Result<()> {
        match write {
            Write::Real { id, value } => self.reals.set(*id, value, 0).context("writing a real"),
            Write::Block { block, value } => self.rings.set(*block, **value, 0).context("writing a ring"),
            Write::Service { key, value } => self.services.insert(key, value, 0).context("writing a service"),
            Write::RemoveService { key } => match self.services.remove(key) {
                Ok(()) | Err(aya::maps::MapError::KeyNotFound) => Ok(()),
                Err(error) => Err(error).context("removing a service"),
            },
            Write::ResetService { id } => {
                self.service_counters.set(*id, self.zeros()?, 0).context("resetting a service's counters")
            }
            Write::ResetReal { id } => {
                self.real_counters.set(*id, self.zeros()?, 0).context("resetting a real's counters")
            }
        }
    }

    fn zeros(&self) -> anyhow::Result<PerCpuValues<Counters>> {
        PerCpuValues::try_from(vec![Counters::default(); self.cpus]).context("making a counter for every CPU")
    }

    pub fn service_counters(&self, id: u32) -> anyhow::Result<Counters> {
        Ok(sum(&self.service_counters.get(&id, 0).context("reading a service's counters")?))
    }

    pub fn real_counters(&self, id: u32) -> anyhow::Result<Counters> {
        Ok(sum(&self.real_counters.get(&id, 0).context("reading a real's counters")?))
    }

    pub fn drops(&self) -> anyhow::Result<Vec<(&'static str, u64)>> {
        let count = |(reason, name): (u32, &'static str)| {
            let counts = self.drops.get(&reason, 0).context("reading the drop counters")?;
            Ok((name, counts.iter().sum()))
        };
        (0..).zip(Reason::NAMES).map(count).collect()
    }

    /// The flows that go on, by real id and epoch, of the reals that are asked for.
    pub fn live(&self, wanted: &mut StdHashMap<(u32, u32), u64>, now: u64) {
        // An entry that goes away during the walk starts aya's iterator over or ends it with an error: either way the
        // walk is bounded, and the count is a picture of a moving thing.
        let bound = self.flows as usize;
        for (tuple, reverse) in self.reverses.iter().take(bound).flatten() {
            if let Some(count) = wanted.get_mut(&(reverse.real_id, reverse.epoch))
                && !reverse.over(tuple.protocol, now)
            {
                *count += 1;
            }
        }
    }
}

impl std::fmt::Debug for Maps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Maps").field("flows", &self.flows).finish_non_exhaustive()
    }
}

fn sum(counts: &PerCpuValues<Counters>) -> Counters {
    counts.iter().fold(Counters::default(), |sum, count| Counters {
        packets: sum.packets + count.packets,
        bytes: sum.bytes + count.bytes,
        flows: sum.flows + count.flows,
    })
}

fn typed<T: TryFrom<Map, Error = aya::maps::MapError>>(ebpf: &mut Ebpf, name: &str) -> anyhow::Result<T> {
    let map = ebpf.take_map(name).with_context(|| format!("the XDP object has no map {name}"))?;
    map.try_into().with_context(|| format!("the map {name} is not of the type that this version needs"))
}

fn max_entries(info: Result<aya::maps::MapInfo, aya::maps::MapError>) -> anyhow::Result<u32> {
    Ok(info.context("asking for a map's size")?.max_entries())
}

fn error_at(file: &str, error: std::io::Error) -> anyhow::Error {
    anyhow::Error::new(error).context(format!("reading {file}"))
}
