//! The program loaded on maps that hold what the packet core's memory holds.

use std::path::Path;

use aya::{
    Ebpf, EbpfLoader, Pod, TestRun, TestRunOptions,
    maps::{Array, HashMap, LpmTrie, Map, MapData, ProgramArray, lpm_trie::Key},
    programs::Xdp,
};
use tidegate_ebpf::{
    abi::{AccessKeyData, Flow, SECOND, Settings, map},
    host::State,
};
use tidegate_l4::xdp;

pub struct Kernel {
    pub ebpf: Ebpf,
    /// The places of flows and records that the last script may have filled.
    pub places: (Vec<u32>, Vec<u32>),
}

/// ns of a jiffy.
const JIFFY: u32 = 4_000_000;

impl Kernel {
    /// `pins`: a folder for the maps and the program `explain`, as a process that serves leaves them.
    pub fn load(pins: Option<&Path>) -> Self {
        let cpus = aya::util::nr_cpus().unwrap() as u32;
        let mut loader = EbpfLoader::new();
        for name in map::ALL {
            if let Some(pins) = pins {
                loader.map_pin_path(name, pins.join(name));
            }
        }
        let mut ebpf = loader
            .map_max_entries(map::FLOWS, 2 * 65_536)
            .map_max_entries(map::REALS, 1024)
            .map_max_entries(map::RINGS, 65_536)
            .map_max_entries(map::SERVICE_COUNTERS, 64 * cpus)
            .map_max_entries(map::REAL_COUNTERS, 64 * cpus)
            .load(xdp::object().unwrap())
            .unwrap();
        for name in ["balance", "rest", "explain", "beat"] {
            let program: &mut Xdp = ebpf.program_mut(name).unwrap().try_into().unwrap();
            program.load().unwrap();
            if let ("explain", Some(pins)) = (name, pins) {
                program.pin(pins.join(name)).unwrap();
            }
        }
        let rest: &Xdp = ebpf.program("rest").unwrap().try_into().unwrap();
        let rest = rest.fd().unwrap().try_clone().unwrap();
        let mut programs: ProgramArray<_> = ebpf.map_mut(map::PROGRAMS).unwrap().try_into().unwrap();
        programs.set(0, &rest, 0).unwrap();
        let mut kernel = Self { ebpf, places: Default::default() };
        kernel.array(map::SETTINGS).set(0, Settings { jiffy: JIFFY, ..Settings::default() }, 0).unwrap();
        kernel
    }

    /// The program's clock. Next hops are believed for a day from then on.
    pub fn now(&mut self) -> u64 {
        let mut frame = [0; 64];
        frame[..8].copy_from_slice(&(86_400 * SECOND).to_ne_bytes());
        self.run("beat", &frame);
        self.array::<u64>(map::CLOCK).get(&0, 0).unwrap()
    }

    pub fn run(&mut self, program: &str, input: &[u8]) -> (u32, Vec<u8>) {
        let program: &mut Xdp = self.ebpf.program_mut(program).unwrap().try_into().unwrap();
        let mut output = vec![0; input.len() + 256];
        let options = TestRunOptions { data_in: Some(input), data_out: Some(&mut output), ..TestRunOptions::new() };
        let result = program.test_run(options).unwrap();
        output.truncate(result.data_size_out as usize);
        (result.return_value, output)
    }

    fn map(&mut self, name: &str) -> &mut Map {
        self.ebpf.map_mut(name).unwrap()
    }

    pub fn array<T: Pod>(&mut self, name: &str) -> Array<&mut MapData, T> {
        self.map(name).try_into().unwrap()
    }

    fn hash<K: Pod, V: Pod>(&mut self, name: &str) -> HashMap<&mut MapData, K, V> {
        self.map(name).try_into().unwrap()
    }

    /// What scripts leave behind.
    pub fn clear(&mut self) {
        fn empty<K: Pod, V: Pod>(mut map: HashMap<&mut MapData, K, V>) {
            let keys: Vec<K> = map.keys().map(Result::unwrap).collect();
            keys.iter().for_each(|key| map.remove(key).unwrap());
        }
        empty::<tidegate_ebpf::abi::ServiceKey, tidegate_ebpf::abi::Service>(self.hash(map::SERVICES));
        empty::<tidegate_ebpf::abi::FragmentKey, tidegate_ebpf::abi::Fragment>(self.hash(map::FRAGMENTS));
        empty::<tidegate_ebpf::abi::SourceKey, u64>(self.hash(map::SOURCES));
        empty::<tidegate_ebpf::abi::Address, u32>(self.hash(map::LOCAL_INDEX));
        let mut access: LpmTrie<_, AccessKeyData, u32> = self.map(map::ACCESS).try_into().unwrap();
        let keys: Vec<_> = access.keys().map(Result::unwrap).collect();
        keys.iter().for_each(|key| access.remove(key).unwrap());
        let (flows, records) = std::mem::take(&mut self.places);
        let mut array = self.array(map::FLOWS);
        flows.iter().for_each(|index| array.set(*index, Flow::default(), 0).unwrap());
        let mut array = self.array(map::RECORDS);
        records.iter().for_each(|index| array.set(*index, tidegate_ebpf::abi::RecordLine::default(), 0).unwrap());
        let mut meters = self.array::<u64>(map::METERS);
        for index in 0..64 {
            meters.set(index, 0, 0).unwrap();
        }
    }

    /// Makes the maps hold `state`; `known` is what they hold of it already.
    pub fn write(&mut self, state: &State, known: &mut State) {
        let mut settings = *state.settings;
        (settings.services, settings.reals, settings.jiffy) = (64, 64, JIFFY);
        self.array(map::SETTINGS).set(0, settings, 0).unwrap();
        let mut array = self.array(map::FILTER);
        state.filter.iter().for_each(|(index, word)| array.set(*index, *word, 0).unwrap());
        let mut array = self.array(map::LOCALS);
        state.locals.iter().for_each(|(index, local)| array.set(*index, *local, 0).unwrap());
        let mut hash = self.hash::<tidegate_ebpf::abi::Address, u32>(map::LOCAL_INDEX);
        state.locals.iter().for_each(|(index, local)| hash.insert(local, index, 0).unwrap());
        let mut hash = self.hash::<tidegate_ebpf::abi::ServiceKey, tidegate_ebpf::abi::Service>(map::SERVICES);
        state.services.iter().for_each(|(key, service)| hash.insert(key, service, 0).unwrap());
        let mut array = self.array(map::HEADS);
        state.heads.iter().for_each(|(place, head)| array.set(*place, **head, 0).unwrap());
        let mut array = self.array(map::FRONTENDS);
        state.frontends.iter().for_each(|(id, frontend)| array.set(*id, *frontend, 0).unwrap());
        let mut array = self.array(map::REALS);
        state.reals.iter().for_each(|(id, real)| array.set(*id, **real, 0).unwrap());
        let mut array = self.array(map::RINGS);
        state.rings.iter().for_each(|(index, block)| array.set(*index, *block, 0).unwrap());
        let mut array = self.array(map::MOVES);
        state.moves.iter().for_each(|(index, moving)| array.set(*index, *moving, 0).unwrap());
        let mut array = self.array(map::LIMITS);
        state.limits.iter().for_each(|(id, limits)| array.set(*id, **limits, 0).unwrap());
        let mut access: LpmTrie<_, AccessKeyData, u32> = self.map(map::ACCESS).try_into().unwrap();
        for (key, value) in &state.access {
            access.insert(&Key::new(key.prefix, key.data), value, 0).unwrap();
        }
        // Only what the script itself changed: the rest is the packets' work, here as there. The script's clock stands
        // still, and the kernel's goes on: how old a flow is must be the same.
        let passed = Flow::tick(self.now()).wrapping_sub(Flow::tick(state.now));
        let mut array = self.array(map::FLOWS);
        for (index, flow) in state.flows.iter().filter(|(index, flow)| known.flows.get(index) != Some(flow)) {
            array.set(*index, Flow { seen: flow.seen.wrapping_add(passed), ..*flow }, 0).unwrap();
        }
        for index in known.flows.keys().filter(|index| !state.flows.contains_key(index)) {
            array.set(*index, Flow::default(), 0).unwrap();
        }
        *known = state.clone();
    }
}
