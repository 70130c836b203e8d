//! The program `explain`: it writes nothing but its trace.

use anyhow::Context;
use aya::{
    TestRun, TestRunOptions,
    maps::{Array, MapData},
    programs::Xdp,
};
use aya_obj::programs::XdpAttachType;
use tidegate_ebpf::abi::{Trace, map};

use super::{View, refused};
use crate::xdp;

pub(super) struct Program {
    program: Xdp,
    trace: Array<MapData, Trace>,
}

/// What it makes of a frame.
pub(super) struct Answer {
    /// An `xdp_action`.
    pub(super) action: u32,
    pub(super) frame: Vec<u8>,
    pub(super) trace: Trace,
}

impl Program {
    pub(super) fn open(view: &View) -> anyhow::Result<Self> {
        let path = view.folder().join(xdp::EXPLAIN);
        let program = Xdp::from_pin(&path, XdpAttachType::Interface).map_err(|error| refused(error.into(), &path))?;
        Ok(Self { program, trace: view.array(map::TRACE)? })
    }

    /// For a frame that comes by an interface of this network namespace.
    pub(super) fn ask(&mut self, frame: &[u8], ifindex: u32) -> anyhow::Result<Answer> {
        let none = u32::MAX;
        let fresh =
            Trace { service: none, slot: none, word: none, real: none, flow: none, reason: none, ..Trace::default() };
        self.trace.set(0, fresh, 0).context("clearing the trace")?;
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [0, frame.len() as u32, 0, ifindex, 0, 0].map(u32::to_ne_bytes).concat();
        self.run(frame, Some(&context))
    }

    /// The clock that the program stamps flows and events with, ns. It is not in the maps while nobody serves.
    pub(super) fn now(&self) -> anyhow::Result<u64> {
        // No Ethernet frame that is anybody's business.
        self.run(&[0; 64], None).map(|answer| answer.trace.at)
    }

    fn run(&self, frame: &[u8], context: Option<&[u8]>) -> anyhow::Result<Answer> {
        let mut out = vec![0; frame.len() + 256];
        let options =
            TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ctx_in: context, ..TestRunOptions::new() };
        let result = self.program.test_run(options).context("running the program `explain`")?;
        out.truncate(result.data_size_out as usize);
        let trace = self.trace.get(&0, 0).context("reading the trace")?;
        Ok(Answer { action: result.return_value, frame: out, trace })
    }
}
