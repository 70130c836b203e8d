//! Packets through a link: a generator at the far end, the balancer, and back to a sink at the far end, all on one core.
//!
//! The kernel makes the frames itself and puts them into the link's ring, as a network card does: nobody's socket is in the
//! figure. A program in the driver takes them there; for nft the driver must make socket buffers of them first, as it
//! must on any card. The generator's own time, measured alone, is subtracted.

use std::{collections::BTreeMap, process::Command};

use anyhow::Context;
use aya::programs::links::FdLink;
use tidegate_ebpf::{frames::Build, replay::Replay};

use super::{
    cpu::{Softirqs, of_this_thread},
    harness::{self, Harness},
    ours::{Ours, Room},
    peers::{self, NFT},
    row,
    world::{self, FAR, LINK, LINK_MAC, Link, Vip},
};
use crate::{
    Settings,
    figures::{Outcome, Samples, in_turns},
    machine::{Cores, Watch, stay_on},
};

/// Of nft's time in the same row.
const GOAL: f64 = 0.12;
const FLOWS: [(u32, &str); 2] = [(1, "1 flow"), (16_000, "16k flows")];
/// Ours by the way of forwarding, and whom it is compared with: the one that does as much or less.
const MODES: [(&str, Vip, &str); 3] =
    [("FULLNAT", Vip::FullNat, MASQUERADE), ("DIRECT", Vip::Direct, DNAT), ("IPIP", Vip::IpIp, DNAT)];
const DNAT: &str = "nft dnat";
const MASQUERADE: &str = "nft dnat+masq";
/// The kernel, with no balancer in it: what nft's work comes on top of.
const FORWARD: &str = "plain forwarding";
const GENERATOR: &str = "generator";

/// Someone whom frames go through, and where these are sent.
struct Contender {
    name: &'static str,
    vip: Vip,
    link: usize,
    /// Whether the frames come back.
    returns: bool,
}

struct Track {
    link: Link,
    _ours: Option<Ours>,
    _attached: Vec<FdLink>,
}

/// Who stands at the balancer's end of a link.
#[derive(Clone, Copy, PartialEq)]
enum Stands {
    /// The frames end here.
    Sink,
    Ours,
    Kernel,
    Nft {
        masquerade: bool,
    },
}

pub(super) fn measure(settings: &Settings, outcome: &mut Outcome) -> anyhow::Result<()> {
    eprintln!("packets through a link ...");
    let frames = if settings.quick { 200_000 } else { 1_000_000 };
    let mut harness = Harness::load()?;
    let (tracks, mut contenders) = lay_out(&mut harness)?;
    let softirqs = Softirqs::find()?;
    let core = Cores::choose()?.load;
    let mut samples = Samples::default();
    let mut lost: BTreeMap<&str, f64> = BTreeMap::new();
    in_turns(&mut contenders, settings.rounds(), |contender| {
        let watch = Watch::start(&[])?;
        for (flows, case) in FLOWS {
            let replay = frames_to(contender.vip, flows)?;
            let harness = &mut harness;
            let softirqs = &softirqs;
            let (ns, arrived) = tracks[contender.link].link.far.run(move || -> anyhow::Result<(f64, u64)> {
                stay_on(core)?;
                let interface = world::index(FAR)?;
                harness.lay(&replay)?;
                // Flows begin, and neighbours are looked up, before the clock runs.
                harness.generate(interface, flows.max(1000))?;
                let before = (of_this_thread()?, softirqs.time()?, harness.arrived()?);
                harness.generate(interface, frames)?;
                let used = of_this_thread()? - before.0 + (softirqs.time()? - before.1);
                Ok((used.as_nanos() as f64 / f64::from(frames), harness.arrived()? - before.2))
            })?;
            samples.add(case, contender.name, ns);
            if contender.returns {
                let share = 1.0 - arrived as f64 / f64::from(frames);
                let worst = lost.entry(contender.name).or_default();
                *worst = worst.max(share);
            }
        }
        outcome.disturbances.push(watch.stop()?);
        Ok(())
    })?;
    for (case_of_flows, mode, against) in
        FLOWS.iter().flat_map(|(_, case)| MODES.iter().map(move |(mode, _, against)| (*case, *mode, *against)))
    {
        let generator = samples.median(case_of_flows, GENERATOR).context("the generator had its turns")?;
        let net = |name: &str| samples.median(case_of_flows, name).map(|ns| ns - generator);
        let Some(ours) = net(mode) else { continue };
        let peers: BTreeMap<String, f64> =
            [DNAT, MASQUERADE, FORWARD].into_iter().filter_map(|name| Some((name.to_owned(), net(name)?))).collect();
        let goal = peers.get(against).map(|ns| GOAL * ns);
        outcome.rows.push(row(format!("through a link: {mode}, {case_of_flows}"), "ns", ours, peers, goal));
    }
    for (name, share) in lost.into_iter().filter(|(_, share)| *share > 0.001) {
        outcome.notes.push(format!("through a link: {name} lost {:.1} % in its worst turn", 100.0 * share));
    }
    outcome.notes.push(
        "through a link: processor time per packet of all that happens on the core, less the generator's; UDP of 64 bytes"
            .into(),
    );
    Ok(())
}

fn lay_out(harness: &mut Harness) -> anyhow::Result<(Vec<Track>, Vec<Contender>)> {
    let ours: Vec<_> = MODES.iter().map(|&(name, vip, _)| (name, vip)).collect();
    let mut all = vec![
        (Stands::Sink, vec![(GENERATOR, Vip::FullNat)]),
        (Stands::Ours, ours),
        (Stands::Kernel, vec![(FORWARD, Vip::Nobody)]),
    ];
    if NFT.is_there() {
        all.push((Stands::Nft { masquerade: false }, vec![(DNAT, Vip::FullNat)]));
        all.push((Stands::Nft { masquerade: true }, vec![(MASQUERADE, Vip::FullNat)]));
    }
    let mut tracks = Vec::new();
    let mut contenders = Vec::new();
    for (stands, names) in all {
        let returns = stands != Stands::Sink;
        contenders.extend(names.into_iter().map(|(name, vip)| Contender { name, vip, link: tracks.len(), returns }));
        tracks.push(lay_track(harness, stands)?);
    }
    Ok((tracks, contenders))
}

fn lay_track(harness: &mut Harness, stands: Stands) -> anyhow::Result<Track> {
    let link = Link::lay()?;
    // The driver hands frames to a program, or to the kernel if that gathers them (GRO), and to nobody else.
    link.balancer.output(Command::new("ethtool").args(["-K", LINK, "gro", "on"]))?;
    let mut attached = vec![link.far.run(|| harness.attach("sink", FAR))?];
    let mut ours = None;
    match stands {
        Stands::Sink => attached.push(link.balancer.run(|| harness.attach("sink", LINK))?),
        Stands::Ours => {
            let (balancer, link) = link.balancer.run(|| -> anyhow::Result<_> {
                let mut ours = Ours::load(Room { v4: 2 * FLOWS[1].0, v6: 1 })?;
                let way = world::way()?;
                ours.give(&world::input(false), &|_| way)?;
                let link = harness::attach(ours.program()?, LINK)?;
                Ok((ours, link))
            })?;
            ours = Some(balancer);
            attached.push(link);
        }
        Stands::Kernel | Stands::Nft { .. } => {
            // Clients and reals are at the same link: not an error here.
            for interface in ["all", LINK] {
                link.balancer.sysctl(&format!("ipv4/conf/{interface}/send_redirects"), "0")?;
            }
        }
    }
    if let Stands::Nft { masquerade } = stands {
        link.balancer.nft(&peers::rules_of_the_world(masquerade))?;
    }
    Ok(Track { link, _ours: ours, _attached: attached })
}

fn frames_to(vip: Vip, clients: u32) -> anyhow::Result<Replay> {
    let text = format!("udp 198.18.0.0:0 > {}:80 +22", vip.address(false));
    let mut frame: Build = text.parse().map_err(anyhow::Error::msg)?;
    frame.destination_mac = world::mac(LINK_MAC);
    Ok(Replay::of(&frame, clients))
}
