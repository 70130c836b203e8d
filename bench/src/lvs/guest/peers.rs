//! Ours, IPVS and nft in turns at the same end of the same cable, with packets from the same generator.
//!
//! What each takes for a packet is counted from making the packet to its end. The host subtracts what the way takes
//! without anybody's thinking: to the end of the cable ([`DROP`]) for those that send elsewhere, and back through it
//! ([`REFLECT`]) for those that send back.

use std::{fs, thread, time::Duration};

use anyhow::{Context, anyhow, bail};
use tidegate_ebpf::frames::Build;
use tidegate_l4::Forward;

use super::{
    network::{INSIDE, OUTSIDE, ip, run, set},
    traffic::{Flows, Shape, Traffic, answer, attach, without_a_program},
};
use crate::lvs::{ANSWERS, DROP, LOADS, REFLECT, ours::Ours, said::Said};

/// New flows begin at a multiple: none of them was seen before.
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

const OURS: [(&str, Forward); 3] =
    [("ours full NAT", Forward::FullNat), ("ours direct", Forward::Direct), ("ours IP in IP", Forward::IpIp)];

const PEERS: [Contender; 5] = [
    Contender {
        name: "IPVS NAT",
        set_up: &[
            ("ip", "addr add 10.77.100.1/32 dev l0"),
            ("ipvsadm", "--set 30 30 30"),
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
            ("ipvsadm", "--set 30 30 30"),
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
            ("ipvsadm", "--set 30 30 30"),
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
        take_away: &[],
        shape: Shape::Direct,
        answers: false,
    },
];

pub(super) fn measure(packets: u32) -> anyhow::Result<()> {
    let mut rig = Rig { traffic: Traffic::open()?, packets, turns: 0 };
    {
        let _drop = rig.traffic.sink(INSIDE)?;
        rig.measure(DROP)?;
    }
    {
        let _back = rig.traffic.reflect(INSIDE)?;
        let _sink = rig.traffic.sink(OUTSIDE)?;
        rig.measure(REFLECT)?;
    }
    for (name, forward) in OURS {
        let mut ours = Ours::load()?;
        ours.serve(forward)?;
        let _link = attach(ours.program()?, INSIDE)?;
        rig.turn(name, Shape::of(forward), forward == Forward::FullNat, WayOut::Cable)?;
    }
    without_a_program()?;
    ip(OUT_DEVICE)?;
    // A table of connections that is full would be emptied in the middle of a turn.
    set("net/netfilter/nf_conntrack_max", "1048576")?;
    set("net/netfilter/nf_conntrack_buckets", "262144")?;
    for peer in &PEERS {
        peer.set_up.iter().try_for_each(|(program, line)| run(program, line))?;
        rig.turn(peer.name, peer.shape, peer.answers, WayOut::Device).context(peer.name)?;
        peer.take_away.iter().try_for_each(|(program, line)| run(program, line))?;
        forgotten()?;
    }
    Ok(())
}

/// Where packets go while they are counted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum WayOut {
    /// Back where they came from, as XDP sends them. What that takes is known ([`REFLECT`]).
    Cable,
    /// Into a device that forgets them, which is the cheapest that the kernel has. Were it the cable, its far end would
    /// have to make of the kernel's buffers what XDP takes, copying those of tunnels.
    Device,
}

const OUT_DEVICE: &str = "link add s0 type dummy
    link set s0 addrgenmode none up
    neigh add 10.77.1.1 lladdr 02:00:00:00:01:01 dev s0 nud permanent
    neigh add 10.77.1.2 lladdr 02:00:00:00:01:02 dev s0 nud permanent
    neigh add 10.77.100.1 lladdr 02:00:00:00:01:01 dev s0 nud permanent
    neigh add 10.78.0.1 lladdr 02:00:00:00:00:0c dev s0 nud permanent";
/// To reals, to a VIP that is none of this machine's, and to clients.
const TO_DEVICE: &str = "route add 10.77.1.0/24 dev s0
    route replace 10.77.100.1/32 dev s0
    route replace 10.78.0.0/16 dev s0";
const TO_CABLE: &str = "route del 10.77.1.0/24 dev s0
    route del 10.77.100.1/32 dev s0
    route replace 10.78.0.0/16 via 10.77.0.10 dev l0";

struct Rig {
    traffic: Traffic,
    packets: u32,
    turns: u64,
}

impl Rig {
    fn turn(&mut self, name: &str, shape: Shape, answers: bool, way_out: WayOut) -> anyhow::Result<()> {
        self.turns += 1;
        let caught = self.traffic.catch(&self.packet())?;
        if let Err(why) = shape.check(&caught) {
            Said::Missing { what: name.to_owned(), why }.say();
            return Ok(());
        }
        let answer = if answers { Some(answer(&caught)?) } else { None };
        if let Some(answer) = &answer {
            Shape::Answer.check(&self.traffic.catch(answer)?).map_err(|why| anyhow!("the answer: {why}"))?;
        }
        let _sink = self.traffic.sink(OUTSIDE)?;
        if way_out == WayOut::Device {
            ip(TO_DEVICE)?;
        }
        self.measure(name)?;
        if let Some(answer) = &answer {
            let instructions = self.traffic.send(answer, Flows::Fixed(1), self.packets)?;
            Said::Packet { contender: name.to_owned(), load: ANSWERS.to_owned(), instructions }.say();
        }
        if way_out == WayOut::Device {
            ip(TO_CABLE)?;
        }
        Ok(())
    }

    fn measure(&mut self, name: &str) -> anyhow::Result<()> {
        let packet = self.packet();
        for load in LOADS {
            let flows = match load.flows {
                Some(flows) => {
                    // Not the first packets of these flows.
                    self.traffic.send(&packet, Flows::Fixed(flows), u32::try_from(flows)?.max(256))?;
                    Flows::Fixed(flows)
                }
                None => Flows::New(FRESH * (1 + self.turns)),
            };
            let instructions = self.traffic.send(&packet, flows, self.packets)?;
            Said::Packet { contender: name.to_owned(), load: load.name.to_owned(), instructions }.say();
        }
        Ok(())
    }

    /// A client's, in 64 bytes, of ports that no other turn uses: IPVS remembers flows beyond the service's end.
    /// UDP, since IPVS takes no TCP in the middle of a connection.
    fn packet(&self) -> Vec<u8> {
        let port = 1024 + 2000 * self.turns;
        let text = format!("udp 10.78.0.1:{port} > 10.77.100.1:80 +22");
        text.parse::<Build>().expect("a frame's text is well formed").bytes()
    }
}

/// Waits until neither table of connections holds anything of the last turn. The guest's clock flies while it waits.
fn forgotten() -> anyhow::Result<()> {
    for _ in 0..600 {
        let ipvs = fs::read_to_string("/proc/net/ip_vs_conn").context("reading IPVS's connections")?;
        let tracked = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").context("reading a count")?;
        // The first three lines are the table's head.
        if ipvs.lines().count() <= 3 && tracked.trim() == "0" {
            return Ok(());
        }
        thread::sleep(Duration::from_secs(1));
    }
    bail!("connections of the last turn are still remembered")
}
