//! The maps from user space: made once, pinned, adopted by the next process, written in the order that `tables` says.
//!
//! What is large or written often is memory; the rest goes through system calls.

use std::{fs, net::IpAddr, path::Path, time::Duration};

use anyhow::{Context, ensure};
use aya::{
    Ebpf, TestRun, TestRunOptions,
    maps::{
        Array, HashMap, IterableMap, Map, MapData, MapError, PerCpuArray,
        lpm_trie::{Key, LpmTrie},
    },
    programs::Xdp,
    util::nr_cpus,
};
use nix::time::{ClockId, clock_getres};
use tidegate_ebpf::abi::{
    self, AccessKeyData, Address, BLOCK_SLOTS, Counters, FILTER_WORDS, Flow, Frontend, LAYOUT, Limits, Move, PORTS,
    Real, Reason, Record, Service, ServiceKey, Settings, capacity, filter_bit, map,
};

use crate::{
    census::Census,
    heads::Heads,
    locals::Locals,
    mapped::Mapped,
    tables::{Capacity, Found, Write},
};

/// What user space reads and writes of the program's maps.
pub struct Maps {
    settings: Array<MapData, Settings>,
    now: Settings,
    heads: Heads,
    clock: Mapped<u64>,
    /// Kept for its program `beat`.
    ebpf: Ebpf,
    /// Two words each: VIPs, local addresses.
    filter: Mapped<u64>,
    locals: Array<MapData, Address>,
    local_index: HashMap<MapData, Address, u32>,
    services: HashMap<MapData, ServiceKey, Service>,
    frontends: Array<MapData, Frontend>,
    reals: Array<MapData, Real>,
    rings: Mapped<u32>,
    moves: Mapped<Move>,
    records: Mapped<u64>,
    flows: Mapped<Flow>,
    limits: Array<MapData, Limits>,
    meters: Mapped<u64>,
    access: LpmTrie<MapData, AccessKeyData, u32>,
    service_counters: Mapped<Counters>,
    real_counters: Mapped<Counters>,
    drops: PerCpuArray<MapData, u64>,
    cpus: usize,
}

/// The sizes that the maps are made with where they are not as compiled in, for so many local addresses.
pub fn sizes(locals: usize) -> anyhow::Result<Vec<(&'static str, u32)>> {
    let cpus = cpus()? as u32;
    Ok(vec![
        (map::FLOWS, locals.max(1) as u32 * PORTS),
        (map::SERVICE_COUNTERS, cpus * capacity::SERVICES as u32),
        (map::REAL_COUNTERS, cpus * capacity::REALS as u32),
    ])
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
        return Err(refuse("another layout"));
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
    /// Of an object whose programs are loaded.
    pub fn take(mut object: Ebpf) -> anyhow::Result<Self> {
        let ebpf = &mut object;
        let settings: Array<_, Settings> = typed(ebpf, map::SETTINGS)?;
        let services: HashMap<_, ServiceKey, Service> = typed(ebpf, map::SERVICES)?;
        let mut heads = Heads::new(mapped(ebpf, map::HEADS)?);
        for entry in services.iter() {
            let (key, service) = entry.context("reading the services back")?;
            if key != ServiceKey::of_vip(key.vip) {
                heads.set(key, service);
            }
        }
        Ok(Self {
            now: settings.get(&0, 0).context("reading the settings")?,
            settings,
            heads,
            clock: mapped(ebpf, map::CLOCK)?,
            filter: mapped(ebpf, map::FILTER)?,
            locals: typed(ebpf, map::LOCALS)?,
            local_index: typed(ebpf, map::LOCAL_INDEX)?,
            services,
            frontends: typed(ebpf, map::FRONTENDS)?,
            reals: typed(ebpf, map::REALS)?,
            rings: mapped(ebpf, map::RINGS)?,
            moves: mapped(ebpf, map::MOVES)?,
            records: mapped(ebpf, map::RECORDS)?,
            flows: mapped(ebpf, map::FLOWS)?,
            limits: typed(ebpf, map::LIMITS)?,
            meters: mapped(ebpf, map::METERS)?,
            access: typed(ebpf, map::ACCESS)?,
            service_counters: mapped(ebpf, map::SERVICE_COUNTERS)?,
            real_counters: mapped(ebpf, map::REAL_COUNTERS)?,
            drops: typed(ebpf, map::DROPS)?,
            cpus: cpus()?,
            ebpf: object,
        })
    }

    /// Every real and every service has counters on every CPU.
    pub fn capacity(&self) -> anyhow::Result<Capacity> {
        let entries = max_entries(self.services.map().info())?;
        let services = [
            self.frontends.len(),
            self.limits.len(),
            (self.meters.len() / 2) as u32,
            (self.service_counters.len() / self.cpus) as u32,
        ];
        let services = services.into_iter().min().unwrap_or_default().min(entries);
        Ok(Capacity {
            services,
            vips: entries - services,
            reals: self.reals.len().min((self.real_counters.len() / self.cpus) as u32),
            blocks: (self.rings.len() / BLOCK_SLOTS) as u32,
            moves: self.moves.len() as u32,
            access: max_entries(IterableMap::<Key<AccessKeyData>, u32>::map(&self.access).info())?,
        })
    }

    /// Reads back what there is.
    pub fn found(&self) -> anyhow::Result<Found> {
        let mut found = Found::default();
        for entry in self.services.iter() {
            found.services.push(entry.context("reading the services back")?);
        }
        for (key, service) in &found.services {
            if *key == ServiceKey::of_vip(key.vip) {
                continue;
            }
            let first = service.block as usize * BLOCK_SLOTS;
            let slots = if service.mask == 0 { 0 } else { service.mask as usize + 1 };
            let words = (first..first.saturating_add(slots)).map_while(|slot| self.rings.get(slot));
            found.rings.insert(service.id, words.collect());
            if service.id < self.limits.len() {
                let limits = self.limits.get(&service.id, 0).context("reading the limits back")?;
                found.limits.insert(service.id, limits);
            }
        }
        for frontend in self.frontends.iter() {
            found.frontends.push(frontend.context("reading the front ends back")?);
        }
        for real in self.reals.iter() {
            found.reals.push(real.context("reading the reals back")?);
        }
        for entry in self.access.iter() {
            let (key, value) = entry.context("reading the lists back")?;
            found.access.push((abi::AccessKey { prefix: key.prefix_len(), data: key.data() }, value));
        }
        found.moves = self.moves.iter().collect();
        found.vips = (0..FILTER_WORDS).filter_map(|word| self.filter.get(2 * word)).collect();
        Ok(found)
    }

    /// The layout, where FULLNAT connections come from, and where tunnels do: from the first local address of their
    /// family, or else from an address of `own`. What could not be done is told.
    pub fn settle(&mut self, locals: &[IpAddr], own: &[IpAddr]) -> anyhow::Result<Option<String>> {
        let room = self.flows.len() as u32 / PORTS;
        let old = self.old_locals()?;
        let new = match &old {
            Some(old) => old.change(locals, room)?,
            None => Locals::new(locals)?,
        };
        ensure!(
            new.first_v6 + new.v6.len() as u32 <= room,
            "the flows' map has room for {room} local addresses, and {} are configured",
            locals.len()
        );
        let old = old.unwrap_or_default();
        let known = |place: (u32, IpAddr)| old.iter().any(|old| old == place);
        for (index, address) in new.iter().filter(|place| !known(*place)) {
            // Flows of whoever had the place are nobody's.
            let first = (index * PORTS) as usize;
            let cleared = (first..first + PORTS as usize).all(|place| self.flows.set(place, &Flow::default()));
            ensure!(cleared, "the flows' map ends before the place of {address}");
            self.locals.set(index, Address::from(address), 0).context("writing the local addresses")?;
            self.local_index.insert(Address::from(address), index, 0).context("writing the local addresses")?;
        }
        new.iter().for_each(|(index, address)| self.heads.set_local(address.into(), index));
        self.write_local_filter(old.iter().chain(new.iter()))?;
        let tunnel = |v4: bool| {
            let of_family = new.iter().map(|(_, address)| address).chain(own.iter().copied());
            of_family.filter(|address| address.is_ipv4() == v4).map(Address::from).next().unwrap_or_default()
        };
        self.now = Settings {
            layout: LAYOUT,
            locals_v4: new.v4.len() as u32,
            locals_v6: new.v6.len() as u32,
            first_v6: new.first_v6,
            jiffy: jiffy()?,
            services: (self.service_counters.len() / self.cpus) as u32,
            reals: (self.real_counters.len() / self.cpus) as u32,
            tunnel_v4: tunnel(true),
            tunnel_v6: tunnel(false),
            ..self.now
        };
        self.write_settings()?;
        for (_, address) in old.iter().filter(|(_, old)| new.iter().all(|(_, new)| new != *old)) {
            self.heads.remove_local(address.into());
            self.local_index.remove(&address.into()).context("removing a local address")?;
        }
        self.write_local_filter(new.iter())?;
        Ok((!new.homeless.is_empty()).then(|| {
            format!(
                "the flows' map that is in use has no room for {}: `tidegate l4 remove` and a new start make it",
                new.homeless.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            )
        }))
    }

    /// `None`: the maps are new.
    fn old_locals(&self) -> anyhow::Result<Option<Locals>> {
        if self.now.layout == 0 {
            return Ok(None);
        }
        let Settings { locals_v4, locals_v6, first_v6, .. } = self.now;
        let read = |first: u32, count: u32| {
            let address = |index| self.locals.get(&index, 0).map(IpAddr::from);
            (first..first + count).map(address).collect::<Result<Vec<_>, _>>().context("reading the local addresses")
        };
        Ok(Some(Locals { v4: read(0, locals_v4)?, v6: read(first_v6, locals_v6)?, first_v6, homeless: Vec::new() }))
    }

    fn write_local_filter(&self, locals: impl Iterator<Item = (u32, IpAddr)>) -> anyhow::Result<()> {
        let mut words = vec![0_u64; FILTER_WORDS];
        for (_, address) in locals {
            let (word, bit) = filter_bit(&address.into());
            words[word as usize] |= 1 << bit;
        }
        let written = words.iter().enumerate().all(|(word, bits)| self.filter.set(2 * word + 1, bits));
        ensure!(written, "the filter's map has less than {FILTER_WORDS} words");
        Ok(())
    }

    /// The program's clock, ns. The next hops in `reals` are believed from now on for so long; what was said of them
    /// before holds no more.
    pub fn beat(&self, believe: Duration) -> anyhow::Result<u64> {
        let mut frame = [0; 64];
        frame[..8].copy_from_slice(&(believe.as_nanos() as u64).to_ne_bytes());
        self.run("beat", &frame)?;
        self.clock.get(0).context("the clock's map is empty")
    }

    /// A program of the object that the maps are of.
    pub fn program(&mut self, name: &str) -> anyhow::Result<&mut Xdp> {
        let program = self.ebpf.program_mut(name).with_context(|| format!("the XDP object has no program `{name}`"))?;
        program.try_into().with_context(|| format!("`{name}` is not an XDP program"))
    }

    /// What a program makes of a frame that comes by the loopback interface: its action, and the frame.
    pub fn run(&self, program: &str, frame: &[u8]) -> anyhow::Result<(u32, Vec<u8>)> {
        let found = self.ebpf.program(program).with_context(|| format!("the XDP object has no program `{program}`"))?;
        let found: &Xdp = found.try_into().with_context(|| format!("`{program}` is not an XDP program"))?;
        // Room for what may be put before it.
        let mut out = vec![0; frame.len() + 256];
        let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::new() };
        let result = found.test_run(options).with_context(|| format!("running the program `{program}`"))?;
        out.truncate(result.data_size_out as usize);
        Ok((result.return_value, out))
    }

    /// Gives away the places that services left before. For now and then, not for right after a change.
    pub fn settle_heads(&mut self) {
        self.heads.settle();
    }

    fn write_settings(&mut self) -> anyhow::Result<()> {
        self.settings.set(0, self.now, 0).context("writing the settings")
    }

    pub fn apply(&mut self, write: &Write) -> anyhow::Result<()> {
        match write {
            Write::Real { id, value } => self.reals.set(*id, value, 0).context("writing a real"),
            Write::Ring { block, words } => {
                let first = *block as usize * BLOCK_SLOTS;
                let written = (first..).zip(words).all(|(slot, word)| self.rings.set(slot, word));
                ensure!(written, "writing a ring: the map ends before it");
                Ok(())
            }
            Write::Slot { block, slot, word } => {
                let written = self.rings.set(*block as usize * BLOCK_SLOTS + *slot as usize, word);
                ensure!(written, "writing a slot: the map ends before it");
                Ok(())
            }
            Write::Move { index, value } => {
                ensure!(self.moves.set(*index as usize, value), "writing a move: the map ends before it");
                Ok(())
            }
            Write::Frontend { id, value } => self.frontends.set(*id, value, 0).context("writing a front end"),
            Write::Limits { id, value } => self.limits.set(*id, value, 0).context("writing limits"),
            Write::Access { network, value } => {
                let key = Key::new(network.prefix, network.data);
                match value {
                    Some(value) => self.access.insert(&key, value, 0).context("writing a list's network"),
                    None => gone(self.access.remove(&key)).context("removing a list's network"),
                }
            }
            Write::Service { key, value } => {
                self.services.insert(key, value, 0).context("writing a service")?;
                if *key != ServiceKey::of_vip(key.vip) {
                    self.heads.set(*key, *value);
                }
                Ok(())
            }
            Write::RemoveService { key } => {
                self.heads.remove(key);
                gone(self.services.remove(key)).context("removing a service")
            }
            Write::Vips { word, bits } => {
                ensure!(self.filter.set(2 * *word as usize, bits), "writing the filter: the map ends before the word");
                Ok(())
            }
            Write::ResetService { id } => {
                for which in 0..2 {
                    let _ = self.meters.set(2 * *id as usize + which, &0);
                }
                reset(&self.service_counters, self.cpus, *id);
                Ok(())
            }
            Write::ResetReal { id } => {
                reset(&self.real_counters, self.cpus, *id);
                Ok(())
            }
        }
    }

    #[must_use]
    pub fn service_counters(&self, id: u32) -> Counters {
        sum(&self.service_counters, self.cpus, id)
    }

    #[must_use]
    pub fn real_counters(&self, id: u32) -> Counters {
        sum(&self.real_counters, self.cpus, id)
    }

    pub fn drops(&self) -> anyhow::Result<Vec<(&'static str, u64)>> {
        let count = |(reason, name): (u32, &'static str)| {
            let counts = self.drops.get(&reason, 0).context("reading the drop counters")?;
            Ok((name, counts.iter().sum()))
        };
        (0..).zip(Reason::NAMES).map(count).collect()
    }

    /// Counts what is alive: a walk over the memory of flows and records. `at` is the moment by the caller's clock, and
    /// `clock` by the program's ([`Maps::beat`]).
    #[must_use]
    pub fn census(&self, at: u64, clock: u64) -> Census {
        let mut census = Census::take(clock, self.flows.iter(), self.records.iter().map(Record::unpack));
        census.at = at;
        census
    }
}

impl std::fmt::Debug for Maps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Maps").field("settings", &self.now).finish_non_exhaustive()
    }
}

/// On which CPU nobody counts is known to nobody, so all are asked.
fn sum(counters: &Mapped<Counters>, cpus: usize, id: u32) -> Counters {
    let each = counters.len() / cpus;
    let of = (0..cpus).filter_map(|cpu| counters.get(cpu * each + id as usize).filter(|_| (id as usize) < each));
    of.fold(Counters::default(), |sum, count| Counters {
        packets: sum.packets + count.packets,
        bytes: sum.bytes + count.bytes,
        flows: sum.flows + count.flows,
        opens: sum.opens + count.opens,
        answers: sum.answers + count.answers,
        resets: sum.resets + count.resets,
    })
}

fn reset(counters: &Mapped<Counters>, cpus: usize, id: u32) {
    let each = counters.len() / cpus;
    for cpu in 0..cpus {
        let _ = counters.set(cpu * each + id as usize, &Counters::default());
    }
}

fn typed<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &str) -> anyhow::Result<T> {
    let map = ebpf.take_map(name).with_context(|| format!("the XDP object has no map {name}"))?;
    map.try_into().with_context(|| format!("the map {name} is not of the type that this version needs"))
}

fn mapped<T: aya::Pod>(ebpf: &mut Ebpf, name: &str) -> anyhow::Result<Mapped<T>> {
    let map = ebpf.take_map(name).with_context(|| format!("the XDP object has no map {name}"))?;
    Mapped::of(map).with_context(|| format!("the map {name}"))
}

/// What is not there needs no removing.
fn gone(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(call)) if call.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

fn max_entries(info: Result<aya::maps::MapInfo, MapError>) -> anyhow::Result<u32> {
    Ok(info.context("asking for a map's size")?.max_entries())
}

fn cpus() -> anyhow::Result<usize> {
    nr_cpus().map_err(|(file, error)| anyhow::Error::new(error).context(format!("reading {file}")))
}

/// ns of a jiffy: the coarse clocks' resolution.
fn jiffy() -> anyhow::Result<u32> {
    let resolution = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).context("asking for the length of a jiffy")?;
    Ok(resolution.tv_nsec() as u32)
}
