//! Ours, IPVS and nft in turns at the same end of the same cable, with packets from the same generator.
//!
//! What each takes for a packet is counted from making the packet to its end. The host subtracts what it takes when the
//! packet is dropped as soon as it is through the cable ([`BASE`]).

use anyhow::Context;
use aya::programs::xdp::XdpLink;
use tidegate_ebpf::frames::Build;
use tidegate_l4::Forward;

use super::{
    network::{INSIDE, OUTSIDE, run, set},
    traffic::{Flows, Shape, Traffic, attach, without_a_program},
};
use crate::lvs::{BASE, LOADS, ours::Ours, said::Said};

/// A client's packet, in 64 bytes: IPVS takes UDP in the middle of nowhere, but no TCP without its SYN.
const PACKET: &str = "udp 10.78.0.1:1024 > 10.77.100.1:80 +22";
/// Where new flows begin: none of them was seen among the fixed ones.
const FRESH: u64 = 1 << 20;

/// Who has a turn: a name, how to set it up and take it away, and what it should make of a packet.
struct Contender {
    name: &'static str,
    set_up: &'static [(&'static str, &'static str)],
    take_away: &'static [(&'static str, &'static str)],
    shape: Shape,
    answers: bool,
}

const IPVS_GONE: &[(&str, &str)] = &[("ipvsadm", "-C"), ("ip", "addr del 10.77.100.1/32 dev l0")];

const PEERS: [Contender; 5] = [
    Contender {
        name: "IPVS NAT",
        set_up: &[
            ("ip", "addr add 10.77.100.1/32 dev l0"),
            ("ipvsadm", "-A -u 10.77.100.1:80 -s rr"),
            ("ipvsadm", "-a -u 10.77.100.1:80 -r 10.77.1.1:8080 -m"),
            ("ipvsadm", "-a -u 10.77.100.1:80 -r 10.77.1.2:8080 -m"),
        ],
        take_away: IPVS_GONE,
        shape: Shape::Nat,
        answers: true,
    },
    Contender {
        name: "IPVS DR",
        set_up: &[
            ("ip", "addr add 10.77.100.1/32 dev l0"),
            ("ipvsadm", "-A -u 10.77.100.1:80 -s rr"),
            ("ipvsadm", "-a -u 10.77.100.1:80 -r 10.77.1.1:80 -g"),
            ("ipvsadm", "-a -u 10.77.100.1:80 -r 10.77.1.2:80 -g"),
        ],
        take_away: IPVS_GONE,
        shape: Shape::Direct,
        answers: false,
    },
    Contender {
        name: "IPVS TUN",
        set_up: &[
            ("ip", "addr add 10.77.100.1/32 dev l0"),
            ("ipvsadm", "-A -u 10.77.100.1:80 -s rr"),
            ("ipvsadm", "-a -u 10.77.100.1:80 -r 10.77.1.1:80 -i"),
            ("ipvsadm", "-a -u 10.77.100.1:80 -r 10.77.1.2:80 -i"),
        ],
        take_away: IPVS_GONE,
        shape: Shape::Tunnel,
        answers: false,
    },
    Contender {
        name: "nft dnat",
        set_up: &[
            ("nft", "add table ip bench"),
            ("nft", "add chain ip bench before { type nat hook prerouting priority dstnat ; }"),
            (
                "nft",
                "add rule ip bench before ip daddr 10.77.100.1 udp dport 80 dnat to jhash ip saddr . udp sport mod 2 \
                 map { 0 : 10.77.1.1 , 1 : 10.77.1.2 } : 8080",
            ),
        ],
        take_away: &[("nft", "delete table ip bench")],
        shape: Shape::Nat,
        answers: true,
    },
    Contender {
        name: "forwarding",
        set_up: &[("ip", "route add 10.77.100.1/32 via 10.77.1.1")],
        take_away: &[("ip", "route del 10.77.100.1/32 via 10.77.1.1")],
        shape: Shape::Direct,
        answers: false,
    },
];

pub(super) fn measure(packets: u32) -> anyhow::Result<()> {
    let mut traffic = Traffic::open()?;
    let packet = PACKET.parse::<Build>().expect("a frame's text is well formed").bytes();
    {
        let _drop = traffic.sink(INSIDE)?;
        measure_loads(&mut traffic, BASE, &packet, packets)?;
    }
    for (name, forward) in
        [("ours full NAT", Forward::FullNat), ("ours direct", Forward::Direct), ("ours IP in IP", Forward::IpIp)]
    {
        let mut ours = Ours::load()?;
        ours.serve(forward)?;
        let _link = attach(ours.program()?, INSIDE)?;
        turn(&mut traffic, name, Shape::of(forward), forward == Forward::FullNat, &packet, packets)?;
    }
    without_a_program()?;
    // A table of connections that is full would be emptied in the middle of a turn.
    set("net/netfilter/nf_conntrack_max", "1048576")?;
    set("net/netfilter/nf_conntrack_buckets", "262144")?;
    for peer in &PEERS {
        peer.set_up.iter().try_for_each(|(program, line)| run(program, line))?;
        turn(&mut traffic, peer.name, peer.shape, peer.answers, &packet, packets).context(peer.name)?;
        peer.take_away.iter().try_for_each(|(program, line)| run(program, line))?;
    }
    Ok(())
}

fn turn(
    traffic: &mut Traffic,
    name: &str,
    shape: Shape,
    answers: bool,
    packet: &[u8],
    packets: u32,
) -> anyhow::Result<()> {
    let caught = traffic.catch(packet)?;
    if let Err(why) = shape.check(&caught) {
        Said::Missing { what: name.to_owned(), why }.say();
        return Ok(());
    }
    let _sink: XdpLink = traffic.sink(OUTSIDE)?;
    measure_loads(traffic, name, packet, packets)?;
    if answers {
        drop(_sink);
        let answer = answer(&caught)?;
        Shape::Answer.check(&traffic.catch(&answer)?).map_err(|why| anyhow::anyhow!("the answer: {why}"))?;
        let _sink = traffic.sink(OUTSIDE)?;
        let instructions = traffic.send(&answer, Flows::Fixed(1), packets)?;
        Said::Packet { contender: name.to_owned(), load: "answers".to_owned(), instructions }.say();
    }
    Ok(())
}

fn measure_loads(traffic: &mut Traffic, name: &str, packet: &[u8], packets: u32) -> anyhow::Result<()> {
    for load in LOADS {
        let flows = match load.flows {
            Some(flows) => {
                // Not the first packets of these flows.
                traffic.send(packet, Flows::Fixed(flows), u32::try_from(flows)?.max(256))?;
                Flows::Fixed(flows)
            }
            None => Flows::New(FRESH),
        };
        let instructions = traffic.send(packet, flows, packets)?;
        Said::Packet { contender: name.to_owned(), load: load.name.to_owned(), instructions }.say();
    }
    Ok(())
}

fn answer(sent: &[u8]) -> anyhow::Result<Vec<u8>> {
    let sent = Build::read(sent).context("what was caught has a wrong checksum")?;
    let (source, destination) = (sent.destination, sent.source);
    let (source_mac, destination_mac) = (sent.destination_mac, super::network::INSIDE_MAC);
    Ok(Build { source, destination, source_mac, destination_mac, ttl: 64, ..sent }.bytes())
}
