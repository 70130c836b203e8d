//! How many instructions the balancer runs for a packet on each of its paths: one packet, one run, one figure.

use anyhow::{Context, anyhow, bail, ensure};
use aya::{
    Ebpf, TestRun, TestRunOptions,
    programs::{Program, Xdp},
};
use tidegate_ebpf::frames::Build;
use tidegate_l4::Forward;

use super::{
    network::{INSIDE, VIP_V4, VIP_V6},
    traffic::{Shape, Traffic, answer, attach},
};
use crate::{
    figures::median,
    lvs::{ours::Ours, said::Said},
};

/// Odd, so that the median is a run that was. A run that a timer interrupts, or that finds two flows in one row of a
/// table, is not the median.
const RUNS: u16 = 201;

pub(super) fn measure() -> anyhow::Result<()> {
    others()?;
    let mut traffic = Traffic::open()?;
    let base = Gauge { base: 0 }.runs(traffic.empty()?, |_| frame("tcp 10.78.0.1:1024 > 10.77.100.1:80 A"))?.0;
    Said::Note { text: format!("an empty program takes {base} instructions") }.say();
    let gauge = Gauge { base };
    for (forward, name) in [(Forward::FullNat, "fullnat"), (Forward::Direct, "direct"), (Forward::IpIp, "ipip")] {
        let mut ours = Ours::load()?;
        if forward == Forward::FullNat {
            let (verified, jited) = ours.size()?;
            Said::Note { text: format!("the verifier took the balancer: {verified} instructions, {jited} bytes") }
                .say();
        }
        ours.serve(forward)?;
        if forward == Forward::FullNat {
            gauge
                .path("not a VIP", ours.program()?, Return::Pass, |_| frame("tcp 10.78.0.1:1024 > 10.77.200.1:80 A"))?;
        }
        let mut missing = false;
        for (family, client, vip) in [("4", "10.78.0.1", VIP_V4.to_string()), ("6", "[fd78::1]", format!("[{VIP_V6}]"))]
        {
            for (protocol, first, later) in [("tcp", "S", "A"), ("udp", "", "")] {
                let name = format!("{name} {protocol}{family}");
                let text = |port: u16, flags: &str| frame(&format!("{protocol} {client}:{port} > {vip}:80 {flags}"));
                let out = gauge.once(ours.program()?, &text(1024, first))?;
                if let Err(why) = Shape::of(forward).check(&out) {
                    Said::Missing { what: name, why }.say();
                    missing = true;
                    continue;
                }
                gauge.path(&format!("{name} new"), ours.program()?, Return::Sent, |run| text(2000 + run, first))?;
                gauge.path(&format!("{name} established"), ours.program()?, Return::Sent, |_| text(1024, later))?;
                if forward == Forward::FullNat {
                    let answer = answer(&out)?;
                    gauge.path(&format!("{name} reply"), ours.program()?, Return::Sent, |_| answer.clone())?;
                }
            }
        }
        if !missing {
            alive(&mut traffic, &mut ours, forward)?;
        }
    }
    Ok(())
}

/// The programs beside the balancer, of which it is only asked whether the verifier takes them.
fn others() -> anyhow::Result<()> {
    static PROBE: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/probe.o"));
    static REAL: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/real.o"));
    for (whose, object) in [("the health checks", PROBE), ("`real join`", REAL)] {
        let mut ebpf = Ebpf::load(object).with_context(|| format!("loading the maps of {whose}"))?;
        for (name, program) in ebpf.programs_mut() {
            match program {
                Program::Xdp(program) => program.load(),
                Program::SchedClassifier(program) => program.load(),
                Program::SockOps(program) => program.load(),
                Program::CgroupSockAddr(program) => program.load(),
                other => bail!("{whose} have a program of a new kind, `{name}`: {:?}", other.prog_type()),
            }
            .with_context(|| format!("loading `{name}` of {whose}"))?;
        }
        Said::Note { text: format!("the verifier took the programs of {whose}") }.say();
    }
    Ok(())
}

fn frame(text: &str) -> Vec<u8> {
    text.parse::<Build>().expect("a frame's text is well formed").bytes()
}

/// The same through a real driver, in native mode: one packet to a real, and its answer back.
fn alive(traffic: &mut Traffic, ours: &mut Ours, forward: Forward) -> anyhow::Result<()> {
    let _link = attach(ours.program()?, INSIDE)?;
    let caught = traffic.catch(&frame("udp 10.78.0.1:1024 > 10.77.100.1:80 +22"))?;
    Shape::of(forward).check(&caught).map_err(|why| anyhow!("{forward:?} through the cable: {why}"))?;
    if forward == Forward::FullNat {
        let answer = traffic.catch(&answer(&caught)?)?;
        Shape::Answer.check(&answer).map_err(|why| anyhow!("an answer through the cable: {why}"))?;
    }
    Said::Note { text: format!("{forward:?}: a packet came through the cable as it should") }.say();
    Ok(())
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Return {
    Pass,
    Sent,
}

struct Gauge {
    /// What a run takes without a program.
    base: i64,
}

impl Gauge {
    fn path(&self, name: &str, program: &Xdp, expected: Return, packet: impl Fn(u16) -> Vec<u8>) -> anyhow::Result<()> {
        let (instructions, returned) = self.runs(program, packet)?;
        ensure!(returned == expected, "{name}: the balancer should have said {expected:?}, but said {returned:?}");
        Said::Path { name: name.to_owned(), instructions }.say();
        Ok(())
    }

    fn runs(&self, program: &Xdp, packet: impl Fn(u16) -> Vec<u8>) -> anyhow::Result<(i64, Return)> {
        let mut samples = Vec::new();
        let mut returned = Return::Pass;
        for run in 0..RUNS {
            let packet = packet(run);
            let options = TestRunOptions { data_in: Some(&packet), ..TestRunOptions::new() };
            let result = program.test_run(options).context("running the program")?;
            returned = said(result.return_value)?;
            samples.push(result.duration.as_nanos() as f64);
        }
        let median = median(&samples).context("nothing was run")?;
        Ok((median as i64 - self.base, returned))
    }

    fn once(&self, program: &Xdp, packet: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut out = vec![0; 2048];
        let options = TestRunOptions { data_in: Some(packet), data_out: Some(&mut out), ..TestRunOptions::new() };
        let result = program.test_run(options).context("running the program")?;
        ensure!(said(result.return_value)? == Return::Sent, "the balancer does not balance");
        out.truncate(result.data_size_out as usize);
        Ok(out)
    }
}

fn said(value: u32) -> anyhow::Result<Return> {
    match value {
        2 => Ok(Return::Pass),
        3 | 4 => Ok(Return::Sent),
        other => bail!("the program said {other}: the packet is lost"),
    }
}
