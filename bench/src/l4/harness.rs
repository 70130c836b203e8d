//! The programs of `ebpf/src/bin/bench.rs`: they lay a frame before a program and time it, make traffic and count it.
//!
//! A test run repeats itself on the packet that the run before has made. So `restore` lays the frame anew each time, of
//! the next client, and then hands it over; what that costs is measured in the same way, and subtracted.

use std::path::Path;

use anyhow::Context;
use aya::{
    Ebpf, EbpfLoader, TestRun, TestRunOptions,
    maps::{Array, MapData, PerCpuArray, ProgramArray},
    programs::{TestRunAttrs, Xdp, XdpMode, links::FdLink, xdp::XdpLinkId},
};
use tidegate_ebpf::replay::{CALLS, Replay};

use super::cpu;

/// Built by `cargo xtask ebpf`, and embedded in nothing that is shipped.
const OBJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/ebpf/bench.o");
const PROGRAMS: [&str; 7] = ["restore", "generate", "nothing", "grow", "calls", "far_look", "sink"];
/// Frames that a live run makes at once: as many as the kernel takes.
const BATCH: u32 = 256;

/// What an XDP program says of a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    Dropped,
    Passed,
    Sent,
}

pub(super) struct Harness {
    ebpf: Ebpf,
    replay: Array<MapData, Replay>,
    target: ProgramArray<MapData>,
    arrived: PerCpuArray<MapData, u64>,
}

impl Harness {
    pub(super) fn is_built() -> bool {
        Path::new(OBJECT).exists()
    }

    pub(super) fn load() -> anyhow::Result<Self> {
        let object =
            std::fs::read(OBJECT).with_context(|| format!("reading {OBJECT}: `cargo xtask ebpf` builds it"))?;
        let mut ebpf = EbpfLoader::new().load(&object).context("loading the bench's own programs")?;
        for name in PROGRAMS {
            program(&mut ebpf, name)?.load().with_context(|| format!("loading {name}"))?;
        }
        let mut map = |name| ebpf.take_map(name).with_context(|| format!("{OBJECT} has no map {name}"));
        let (replay, target, arrived) = (map("replay")?, map("target")?, map("arrived")?);
        Ok(Self { replay: replay.try_into()?, target: target.try_into()?, arrived: arrived.try_into()?, ebpf })
    }

    pub(super) fn attach(&mut self, name: &str, interface: &str) -> anyhow::Result<FdLink> {
        let program = program(&mut self.ebpf, name)?;
        attach(program, interface)
    }

    /// From now on frames go to `target`.
    pub(super) fn aim(&mut self, target: &Xdp) -> anyhow::Result<()> {
        self.target.set(0, target.fd()?, 0).context("aiming at a program (is it built with other XDP flags?)")
    }

    pub(super) fn lay(&mut self, replay: &Replay) -> anyhow::Result<()> {
        self.replay.set(0, replay, 0).context("laying the frame")
    }

    /// The next client to come.
    pub(super) fn next_client(&self) -> anyhow::Result<u32> {
        Ok(self.replay.get(&0, 0).context("looking at the frame")?.client)
    }

    /// One run, as if the frame had come by this interface: what became of it, and of its bytes.
    pub(super) fn once(&mut self, interface: u32) -> anyhow::Result<(Verdict, Vec<u8>)> {
        let mut output = vec![0; 256];
        let context = context(interface);
        let options = TestRunOptions {
            data_in: Some(&[0; FRAME]),
            data_out: Some(&mut output),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        };
        let result = program(&mut self.ebpf, "restore")?.test_run(options).context("running the balancer once")?;
        output.truncate(result.data_size_out as usize);
        let verdict = match result.return_value {
            1 => Verdict::Dropped,
            2 => Verdict::Passed,
            // XDP_TX and XDP_REDIRECT.
            3 | 4 => Verdict::Sent,
            other => anyhow::bail!("the program ended with {other}, which is no verdict on a packet"),
        };
        Ok((verdict, output))
    }

    /// The processor's ns for one run, frame laying included.
    pub(super) fn time(&mut self, interface: u32, runs: u32) -> anyhow::Result<f64> {
        let context = context(interface);
        let options = TestRunOptions {
            data_in: Some(&[0; FRAME]),
            ctx_in: Some(&context),
            repeat: runs,
            ..TestRunOptions::new()
        };
        let restore = program(&mut self.ebpf, "restore")?;
        let before = cpu::of_this_thread()?;
        restore.test_run(options).context("running the balancer")?;
        Ok((cpu::of_this_thread()? - before).as_nanos() as f64 / f64::from(runs))
    }

    /// What laying this frame costs: the ns for one run that ends in a program that does nothing. With `growth`, a
    /// program that makes room for so many bytes, of which the frame's next laying has to take them away: half of that
    /// is the measured program's own work.
    pub(super) fn price(&mut self, replay: &Replay, growth: usize, interface: u32, runs: u32) -> anyhow::Result<f64> {
        let nothing = self.time_own("nothing", replay, interface, runs)?;
        if growth == 0 {
            return Ok(nothing);
        }
        let replay = Replay { growth: growth.try_into()?, ..*replay };
        Ok(f64::midpoint(nothing, self.time_own("grow", &replay, interface, runs)?))
    }

    /// The ns that calling a helper of the kernel costs, which does nearly nothing.
    pub(super) fn helper_call(&mut self, replay: &Replay, interface: u32, runs: u32) -> anyhow::Result<f64> {
        let calls = self.time_own("calls", replay, interface, runs)?;
        Ok((calls - self.time_own("nothing", replay, interface, runs)?) / f64::from(CALLS))
    }

    /// The ns that a look at one of very many lines costs, a look-up in an array included.
    pub(super) fn far_look(&mut self, replay: &Replay, interface: u32, runs: u32) -> anyhow::Result<f64> {
        let look = self.time_own("far_look", replay, interface, runs)?;
        Ok(look - self.time_own("nothing", replay, interface, runs)?)
    }

    fn time_own(&mut self, name: &str, replay: &Replay, interface: u32, runs: u32) -> anyhow::Result<f64> {
        let Self { ebpf, target, .. } = self;
        target.set(0, program(ebpf, name)?.fd()?, 0).context("aiming at the bench's own program")?;
        self.lay(replay)?;
        self.time(interface, runs)
    }

    /// Sends real frames out of an interface of this namespace.
    pub(super) fn generate(&mut self, interface: u32, frames: u32) -> anyhow::Result<()> {
        let context = context(interface);
        let options = TestRunOptions {
            data_in: Some(&[0; FRAME]),
            ctx_in: Some(&context),
            repeat: frames,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::new()
        };
        program(&mut self.ebpf, "generate")?.test_run(options).context("generating frames")?;
        Ok(())
    }

    /// How many frames have come to the end.
    pub(super) fn arrived(&self) -> anyhow::Result<u64> {
        Ok(self.arrived.get(&0, 0).context("counting what has arrived")?.iter().sum())
    }
}

/// Every run begins with a frame of this length; the first laying makes it the right one.
const FRAME: usize = 64;

/// `struct xdp_md` (linux/bpf.h) of a packet that came by `interface`.
fn context(interface: u32) -> [u8; 24] {
    let mut context = [0; 24];
    context[4..8].copy_from_slice(&(FRAME as u32).to_ne_bytes());
    context[12..16].copy_from_slice(&interface.to_ne_bytes());
    context
}

/// Attaches natively to an interface of the current namespace, until the link is dropped.
pub(super) fn attach(program: &mut Xdp, interface: &str) -> anyhow::Result<FdLink> {
    let id: XdpLinkId =
        program.attach(interface, XdpMode::Driver).with_context(|| format!("attaching to {interface}"))?;
    program.take_link(id)?.try_into().context("this kernel has no BPF links for XDP (Linux 5.9)")
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name).with_context(|| format!("{OBJECT} has no program {name}"))?;
    let program: &mut Xdp = program.try_into()?;
    Ok(program)
}
