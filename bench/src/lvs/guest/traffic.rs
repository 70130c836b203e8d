//! Packets that are made in the guest's kernel, sent into the cable, and caught or dropped at its end.

use std::net::IpAddr;

use anyhow::{Context, ensure};
use aya::{
    Ebpf, TestRun, TestRunAttrs, TestRunOptions,
    maps::{Array, MapData},
    programs::{Xdp, XdpMode, xdp::XdpLink},
};
use tidegate_ebpf::frames::Build;
use tidegate_l4::Forward;

use super::network::{INSIDE, INSIDE_MAC, OUTSIDE, REAL_MACS, REAL_PORT, REALS_V4, REALS_V6, VIP_PORT, VIP_V4, VIP_V6};

static GENERATOR: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/generator.o"));

/// As the kernel sends them at once by itself.
const BATCH: u32 = 64;
/// A frame with Ethernet, IPv4 and UDP headers, which the generator writes anew each time.
pub(super) const FRAME: usize = 64;

pub(super) struct Traffic {
    ebpf: Ebpf,
    order: Array<MapData, [u64; 16]>,
    caught: Array<MapData, [u64; 8]>,
}

/// Who sends.
#[derive(Clone, Copy, Debug)]
pub(super) enum Flows {
    /// So many, in turns.
    Fixed(u64),
    /// Each packet begins another, from this number on.
    New(u64),
}

impl Traffic {
    pub(super) fn open() -> anyhow::Result<Self> {
        ensure!(!GENERATOR.is_empty(), "this build has no generator: run `cargo xtask ebpf`, then build again");
        let mut ebpf = Ebpf::load(GENERATOR).context("loading the generator")?;
        for (name, program) in ebpf.programs_mut() {
            let program: &mut Xdp = program.try_into()?;
            program.load().with_context(|| format!("loading the generator's `{name}`"))?;
        }
        let order = ebpf.take_map("order").context("there is no map `order`")?.try_into()?;
        let caught = ebpf.take_map("caught").context("there is no map `caught`")?.try_into()?;
        Ok(Self { ebpf, order, caught })
    }

    /// The program that does nothing.
    pub(super) fn empty(&mut self) -> anyhow::Result<&mut Xdp> {
        self.program("empty")
    }

    fn program(&mut self, name: &str) -> anyhow::Result<&mut Xdp> {
        Ok(self.ebpf.program_mut(name).with_context(|| format!("the generator has no `{name}`"))?.try_into()?)
    }

    /// Drops what comes by a device while the link lives.
    pub(super) fn sink(&mut self, device: &str) -> anyhow::Result<XdpLink> {
        attach(self.program("sink")?, device)
    }

    /// Sends back what comes by a device while the link lives.
    pub(super) fn reflect(&mut self, device: &str) -> anyhow::Result<XdpLink> {
        attach(self.program("reflect")?, device)
    }

    /// What comes out of the cable when one packet is sent in.
    pub(super) fn catch(&mut self, packet: &[u8]) -> anyhow::Result<Vec<u8>> {
        self.caught.set(0, [0; 8], 0).context("emptying the catch")?;
        let _link = attach(self.program("catch")?, OUTSIDE)?;
        self.send(packet, Flows::Fixed(1), 1)?;
        let caught = self.caught.get(&0, 0).context("reading the catch")?;
        ensure!(caught != [0; 8], "nothing came out of the cable");
        Ok(caught.iter().flat_map(|word| word.to_ne_bytes()).collect())
    }

    /// Sends into the cable. Returns instructions per packet, whatever they were spent on.
    pub(super) fn send(&mut self, packet: &[u8], flows: Flows, count: u32) -> anyhow::Result<i64> {
        let device = nix::net::if_::if_nametoindex(OUTSIDE).context("looking for the cable")?;
        self.order.set(0, order(packet, flows, device)?, 0).context("giving the generator its order")?;
        let options = TestRunOptions {
            data_in: Some(packet),
            repeat: count,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH.min(count)),
            ..TestRunOptions::new()
        };
        let result = self.program("generate")?.test_run(options).context("making packets")?;
        Ok(i64::try_from(result.duration.as_nanos())?)
    }
}

pub(super) fn attach(program: &mut Xdp, device: &str) -> anyhow::Result<XdpLink> {
    let id = program.attach(device, XdpMode::Driver).with_context(|| format!("attaching to {device}"))?;
    program.take_link(id).context("taking a link")
}

/// The generator's order: the frame, where in the sequence of flows to begin, the device, and the sums of both
/// checksums without what changes from packet to packet.
fn order(packet: &[u8], flows: Flows, device: u32) -> anyhow::Result<[u64; 16]> {
    ensure!(packet.len() == FRAME && packet[23] == 17, "the generator sends UDP over IPv4 in {FRAME} bytes");
    let mut order = [0; 16];
    for (word, bytes) in order.iter_mut().zip(packet.chunks(8)) {
        *word = u64::from_ne_bytes(bytes.try_into()?);
    }
    let at = |offset: usize| u64::from(u16::from_be_bytes([packet[offset], packet[offset + 1]]));
    let sum = |range: std::ops::Range<usize>| range.step_by(2).map(at).sum::<u64>();
    let (host, port) = (at(28), at(34));
    let (next, count) = match flows {
        Flows::Fixed(count) => (0, count),
        Flows::New(next) => (next, 0),
    };
    order[8..15].copy_from_slice(&[
        next,
        count,
        u64::from(device),
        port,
        host,
        // Without the checksum and the client's half address.
        sum(14..34) - at(24) - host,
        // The pseudo header's addresses, protocol and length, then the segment without port and checksum.
        sum(26..34) - host + 17 + at(38) + sum(34..FRAME) - port - at(40),
    ]);
    Ok(order)
}

/// What the real answers to a packet that it was sent.
pub(super) fn answer(sent: &[u8]) -> anyhow::Result<Vec<u8>> {
    let sent = Build::read(sent).context("what was sent to a real has a wrong checksum")?;
    let (source, destination) = (sent.destination, sent.source);
    let (source_mac, destination_mac) = (sent.destination_mac, INSIDE_MAC);
    // TCP's says ACK.
    let flags = if sent.flags == 0 { 0 } else { 0x10 };
    Ok(Build { source, destination, source_mac, destination_mac, flags, ttl: 64, ..sent }.bytes())
}

/// What a packet for a real looks like.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    /// Addressed to the real.
    Nat,
    /// As it came, in the real's hands.
    Direct,
    /// As it came, within a packet to the real.
    Tunnel,
    /// From the VIP, for the client.
    Answer,
}

impl Shape {
    pub(super) fn of(forward: Forward) -> Self {
        match forward {
            Forward::FullNat => Self::Nat,
            Forward::Direct => Self::Direct,
            Forward::IpIp | Forward::Gue { .. } => Self::Tunnel,
        }
    }

    /// Why it is not of this shape.
    pub(super) fn check(self, frame: &[u8]) -> Result<(), String> {
        let packet = Packet::read(frame).ok_or("what came is no IP packet")?;
        let real = |address| REALS_V4.contains(&address) || REALS_V6.contains(&address);
        let vip = |address| address == VIP_V4 || address == VIP_V6;
        let good = match self {
            Self::Nat => real(packet.destination) && packet.ports.1 == REAL_PORT,
            Self::Direct => vip(packet.destination) && packet.ports.1 == VIP_PORT && REAL_MACS.contains(&packet.mac),
            Self::Tunnel => {
                let inner = Packet::within(frame).ok_or("what came is no packet in a packet")?;
                real(packet.destination) && vip(inner.destination) && inner.ports.1 == VIP_PORT
            }
            Self::Answer => vip(packet.source) && packet.ports.0 == VIP_PORT,
        };
        if good { Ok(()) } else { Err(format!("expected {self:?}, but {packet:?} came")) }
    }
}

#[derive(Debug)]
struct Packet {
    mac: [u8; 6],
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    ports: (u16, u16),
}

impl Packet {
    fn read(frame: &[u8]) -> Option<Self> {
        Self::at(frame, 14)
    }

    fn within(frame: &[u8]) -> Option<Self> {
        match (Self::read(frame)?.protocol, frame[14] >> 4) {
            (4 | 41, 4) => Self::at(frame, 34),
            (4 | 41, _) => Self::at(frame, 54),
            _ => None,
        }
    }

    fn at(frame: &[u8], start: usize) -> Option<Self> {
        let ip = frame.get(start..)?;
        let port = |at: usize| Some(u16::from_be_bytes(ip.get(at..at + 2)?.try_into().ok()?));
        let v4 = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?));
        let v6 = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?));
        let (source, destination, protocol, header) = match ip.first()? >> 4 {
            4 => (v4(12)?, v4(16)?, *ip.get(9)?, 20),
            6 => (v6(8)?, v6(24)?, *ip.get(6)?, 40),
            _ => return None,
        };
        let ports = (port(header).unwrap_or_default(), port(header + 2).unwrap_or_default());
        Some(Self { mac: frame.get(..6)?.try_into().ok()?, source, destination, protocol, ports })
    }
}

/// Lets the cable's inner end take frames without a program: as a network card does, it hands them to the kernel in
/// bundles.
pub(super) fn without_a_program() -> anyhow::Result<()> {
    super::network::run("ethtool", &format!("-K {INSIDE} gro on"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(text: &str) -> Vec<u8> {
        text.parse::<Build>().expect("it is well formed").bytes()
    }

    /// As the generator computes it.
    fn checksum(sum: u64) -> u16 {
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        !(sum as u16)
    }

    #[test]
    fn an_order_gives_every_client_good_checksums() {
        let order = order(&frame("udp 10.78.0.1:1024 > 10.77.100.1:80 +22"), Flows::New(7), 3).expect("it can be sent");
        assert_eq!(order[8..13], [7, 0, 3, 1024, 1]);
        for (client, host, port) in [("10.78.0.1:1024", 1, 1024), ("10.78.2.9:17000", 0x209, 17_000)] {
            let packet = frame(&format!("udp {client} > 10.77.100.1:80 +22"));
            assert_eq!(packet[24..26], checksum(order[13] + host).to_be_bytes());
            assert_eq!(packet[40..42], checksum(order[14] + host + port).to_be_bytes());
        }
    }

    #[test]
    fn what_the_generator_cannot_send_is_refused() {
        for text in ["udp 10.78.0.1:1024 > 10.77.100.1:80 +23", "tcp 10.78.0.1:1024 > 10.77.100.1:80 A +10"] {
            assert!(order(&frame(text), Flows::Fixed(1), 3).is_err(), "{text}");
        }
    }

    #[test]
    fn a_shape_is_told_from_the_others() {
        let mut direct = frame("udp 10.78.0.1:1024 > 10.77.100.1:80 +22");
        direct[..6].copy_from_slice(&REAL_MACS[0]);
        let mut tunnel = frame("udp 10.77.0.1:1 > 10.77.1.2:2");
        tunnel.truncate(34);
        tunnel[23] = 4;
        tunnel.extend(&direct[14..]);
        let frames = [
            (Shape::Nat, frame("udp 10.78.0.1:1024 > 10.77.1.1:8080")),
            (Shape::Direct, direct),
            (Shape::Tunnel, tunnel),
            (Shape::Answer, frame("udp 10.77.100.1:80 > 10.78.0.1:1024")),
        ];
        for (i, (shape, _)) in frames.iter().enumerate() {
            for (j, (_, frame)) in frames.iter().enumerate() {
                assert_eq!(shape.check(frame).is_ok(), i == j, "{shape:?}: {frame:?}");
            }
        }
    }
}
