//! What would become of one packet: the same program on the same maps, which writes nothing but its trace.

use std::{collections::BTreeMap, net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context, anyhow, bail};
use aya::maps::{Array, MapData};
use serde::Serialize;
use tidegate_ebpf::abi::{self, Flow, MOVING, Move, Reason, Trace, Why, map};

use super::{
    Alone, Real, View, build, line,
    program::{Answer, Program},
};
use crate::{
    input::{Frontend, Protocol},
    xdp,
};

/// What is asked: a client's packet to a VIP.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    pub client: SocketAddr,
    pub frontend: Frontend,
    /// TCP: a SYN; otherwise an acknowledgement, as in the middle of a connection.
    pub opens: bool,
}

/// What would become of it, and why.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    pub client: SocketAddr,
    pub vip: SocketAddr,
    /// `SYN`, `ACK` or `UDP`.
    pub packet: &'static str,
    /// The interface that it comes by.
    pub interface: String,
    pub outcome: Outcome,
    pub service: Option<Service>,
    pub slot: Option<Slot>,
    pub real: Option<Real>,
    pub why: Reasoning,
    pub flow: Option<FlowSeen>,
    /// Where the next hop comes from: `kept` (beside the real) or `kernel` (was asked).
    pub hop: Option<&'static str>,
    /// The packet as it would be sent.
    pub sent: Option<String>,
    /// What an explanation cannot know.
    pub note: Option<&'static str>,
}

#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase", tag = "what")]
pub enum Outcome {
    Forwarded {
        interface: String,
    },
    Dropped {
        reason: &'static str,
        advice: &'static str,
    },
    /// To the host, untouched.
    Passed {
        because: String,
    },
}

#[derive(Clone, Debug, Serialize)]
pub struct Service {
    pub id: u32,
    pub mode: &'static str,
    pub checks: Vec<&'static str>,
}

/// A place of the service's ring.
#[derive(Clone, Debug, Serialize)]
pub struct Slot {
    pub number: u32,
    pub of: u32,
    /// `None`: the slot moves.
    pub real: Option<u32>,
    pub moving: Option<Moving>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Moving {
    /// The real of new flows.
    pub current: Option<Real>,
    /// The real of flows from before.
    pub previous: Option<Real>,
    /// `learning`: who is not recorded and opens nothing is from before; `keeping`: for UDP no more.
    pub phase: &'static str,
}

/// Why a real was chosen.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reasoning {
    Nothing,
    Slot,
    MovingNew,
    Recorded,
    MovingPrevious,
    Flow,
    NewFlow,
    Other,
}

/// A FULLNAT flow: the one that is there, or the one that would be made.
#[derive(Clone, Debug, Serialize)]
pub struct FlowSeen {
    /// Our side, as the real sees it.
    pub local: Option<SocketAddr>,
    /// `new`, or as in [`super::flows::state`].
    pub state: &'static str,
    pub idle_s: u64,
}

/// Of many source ports of one client: who would get how many.
#[derive(Clone, Debug, Serialize)]
pub struct Shares {
    pub asked: u32,
    pub reals: Vec<Share>,
    /// Outcomes other than being forwarded.
    pub others: Vec<(Outcome, u32)>,
    /// One of those that are forwarded, or of the others.
    pub example: Explanation,
}

#[derive(Clone, Debug, Serialize)]
pub struct Share {
    pub real: Real,
    pub ports: u32,
}

/// Source ports that stand for all: 256 of them, all over the range that clients use.
const SAMPLE: u32 = 256;
const FIRST: u32 = 1024;
/// A microsecond each: whoever else asks is soon done.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks the program.
pub struct Explainer {
    view: View,
    program: Program,
    flows: Array<MapData, Flow>,
    moves: Array<MapData, Move>,
    interface: Interface,
    /// There is one trace.
    _alone: Alone,
}

#[derive(Debug)]
struct Interface {
    name: String,
    index: u32,
    mac: [u8; 6],
}

impl Explainer {
    /// `interface`: where the packet comes by; without it the first that the balancer is attached to.
    pub fn open(folder: &Path, interface: Option<&str>) -> anyhow::Result<Self> {
        let view = View::open(folder)?;
        let name = match interface {
            Some(name) => name.to_owned(),
            None => xdp::attached(folder)?.into_iter().next().with_context(|| {
                format!("no interface is attached according to {}: name one by --interface", folder.display())
            })?,
        };
        let began = std::time::Instant::now();
        let alone = loop {
            match Alone::take(folder, "explain")? {
                Some(alone) => break alone,
                None if began.elapsed() > PATIENCE => bail!("another `tidegate l4 explain` does not end"),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        Ok(Self {
            flows: view.array(map::FLOWS)?,
            moves: view.array(map::MOVES)?,
            program: Program::open(&view)?,
            interface: Interface::find(&name)?,
            view,
            _alone: alone,
        })
    }

    pub fn ask(&mut self, question: &Question) -> anyhow::Result<Explanation> {
        let Question { client, frontend, opens } = *question;
        let vip = SocketAddr::new(frontend.vip, frontend.port);
        if client.is_ipv4() != vip.is_ipv4() {
            bail!("the client {} and the VIP {} are of two address families", client.ip(), vip.ip());
        }
        let protocol = if frontend.protocol == Protocol::Udp { abi::UDP } else { abi::TCP };
        let frame = build::frame(self.interface.mac, client, vip, protocol, opens);
        let Answer { action, frame: sent, trace } = self.program.ask(&frame, self.interface.index)?;
        let service = self.view.service(&frontend)?.filter(|service| service.id == trace.service);
        let forwarded = action == TX || action == REDIRECT;
        Ok(Explanation {
            client,
            vip,
            packet: match (frontend.protocol, opens) {
                (Protocol::Udp, _) => "UDP",
                (Protocol::Tcp, true) => "SYN",
                (Protocol::Tcp, false) => "ACK",
            },
            interface: self.interface.name.clone(),
            outcome: self.outcome(action, &trace, &frontend)?,
            slot: service.filter(|_| trace.slot != u32::MAX).map(|service| self.slot(&trace, &service)),
            service: service.as_ref().map(seen),
            real: self.real(trace.real),
            why: reasoning(trace.why),
            flow: self.flow(&trace)?,
            hop: match trace.hop {
                1 => Some("kept"),
                2 => Some("kernel"),
                _ => None,
            },
            sent: forwarded.then(|| line(&sent)),
            note: service.filter(|service| service.checks & LIMITED != 0 && (opens || protocol == abi::UDP)).map(|_| {
                "limits are not asked, since that would use them up: above its rates a new flow is dropped or, with \
                 cookies, answered"
            }),
        })
    }

    /// The same for many source ports of a client.
    pub fn shares(&mut self, question: &Question) -> anyhow::Result<Shares> {
        let mut reals: BTreeMap<u32, Share> = BTreeMap::new();
        let mut others: Vec<(Outcome, u32)> = Vec::new();
        let mut example: Option<Explanation> = None;
        for step in 0..SAMPLE {
            let port = FIRST + step * (abi::PORTS - FIRST) / SAMPLE;
            let client = SocketAddr::new(question.client.ip(), port as u16);
            let explanation = self.ask(&Question { client, ..*question })?;
            match (&explanation.outcome, &explanation.real) {
                (Outcome::Forwarded { .. }, Some(real)) => {
                    reals.entry(real.id).or_insert_with(|| Share { real: real.clone(), ports: 0 }).ports += 1;
                }
                (outcome, _) => match others.iter_mut().find(|(other, _)| other == outcome) {
                    Some((_, count)) => *count += 1,
                    None => others.push((outcome.clone(), 1)),
                },
            }
            let better = |example: &Explanation| {
                matches!(explanation.outcome, Outcome::Forwarded { .. })
                    && !matches!(example.outcome, Outcome::Forwarded { .. })
            };
            if example.as_ref().is_none_or(better) {
                example = Some(explanation);
            }
        }
        let mut reals: Vec<Share> = reals.into_values().collect();
        reals.sort_by_key(|share| (std::cmp::Reverse(share.ports), share.real.address));
        let example = example.context("no port was asked about")?;
        Ok(Shares { asked: SAMPLE, reals, others, example })
    }

    fn outcome(&self, action: u32, trace: &Trace, frontend: &Frontend) -> anyhow::Result<Outcome> {
        Ok(match action {
            TX => Outcome::Forwarded { interface: self.interface.name.clone() },
            // The program does not tell which: the real's entry does, unless the kernel was asked.
            REDIRECT => Outcome::Forwarded {
                interface: match self.real(trace.real).and_then(|real| real.hop) {
                    Some(hop) if trace.hop == 1 => hop.interface,
                    _ => "the interface that the kernel names".to_owned(),
                },
            },
            DROP => {
                let reason = Reason::from_number(trace.reason);
                Outcome::Dropped { reason: Reason::NAMES[reason as usize], advice: super::advice(reason) }
            }
            _ => Outcome::Passed { because: self.passed(frontend)? },
        })
    }

    /// Why the host gets it.
    fn passed(&self, frontend: &Frontend) -> anyhow::Result<String> {
        let vip = frontend.vip;
        let Some(ports) = self.view.ports(vip)? else {
            return Ok(format!("{vip} is no VIP of layer 4 here: the packet is the host's own business"));
        };
        let Some(service) = self.view.service(frontend)? else {
            let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
            return Ok(format!("{vip} is a VIP, but {frontend} is no service (there are {})", ports.join(", ")));
        };
        if service.mask == 0 {
            return Ok(format!("{frontend} has no real that gets traffic: the host refuses the client at once"));
        }
        Ok("it belongs to no flow that is known and cannot begin one: the host refuses it".to_owned())
    }

    fn real(&self, id: u32) -> Option<Real> {
        if id == u32::MAX { None } else { self.view.real(id) }
    }

    fn slot(&self, trace: &Trace, service: &abi::Service) -> Slot {
        let moves = trace.word & MOVING != 0 && trace.word != u32::MAX;
        let moving = moves.then(|| self.moves.get(&(trace.word & !MOVING), 0).ok()).flatten().map(|found| Moving {
            current: self.real(found.current),
            previous: self.real(found.previous),
            phase: match found.phase {
                Move::LEARNING => "learning",
                Move::KEEPING => "keeping",
                _ => "free",
            },
        });
        Slot { number: trace.slot, of: service.mask + 1, real: (!moves).then_some(trace.word), moving }
    }

    fn flow(&self, trace: &Trace) -> anyhow::Result<Option<FlowSeen>> {
        if trace.flow == u32::MAX {
            return Ok(None);
        }
        let local = self.view.local(trace.flow);
        if trace.why == Why::NewFlow as u32 {
            return Ok(Some(FlowSeen { local, state: "new", idle_s: 0 }));
        }
        let flow = self.flows.get(&trace.flow, 0).context("reading the flow")?;
        Ok(Some(FlowSeen { local, state: super::flows::state(&flow), idle_s: flow.idle(trace.at) / abi::SECOND }))
    }
}

impl std::fmt::Debug for Explainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Explainer").field("interface", &self.interface).finish_non_exhaustive()
    }
}

/// `enum xdp_action`.
const DROP: u32 = 1;
const TX: u32 = 3;
const REDIRECT: u32 = 4;
const LIMITED: u8 = abi::Service::SOURCE_RATE | abi::Service::SERVICE_RATE | abi::Service::COOKIES;

fn reasoning(why: u32) -> Reasoning {
    const ALL: [(Why, Reasoning); 7] = [
        (Why::Nothing, Reasoning::Nothing),
        (Why::Slot, Reasoning::Slot),
        (Why::MovingNew, Reasoning::MovingNew),
        (Why::Recorded, Reasoning::Recorded),
        (Why::MovingPrevious, Reasoning::MovingPrevious),
        (Why::Flow, Reasoning::Flow),
        (Why::NewFlow, Reasoning::NewFlow),
    ];
    ALL.iter().find(|(known, _)| *known as u32 == why).map_or(Reasoning::Other, |(_, reasoning)| *reasoning)
}

fn seen(service: &abi::Service) -> Service {
    const CHECKS: [(u8, &str); 5] = [
        (abi::Service::ACCESS, "lists"),
        (abi::Service::CLOSED, "closed to others"),
        (abi::Service::SOURCE_RATE, "source rate"),
        (abi::Service::SERVICE_RATE, "vip rate"),
        (abi::Service::COOKIES, "syn cookies"),
    ];
    let checks = CHECKS.iter().filter(|(bit, _)| service.checks & bit != 0).map(|(_, name)| *name).collect();
    let mode = match service.mode {
        abi::Service::DIRECT => "direct",
        abi::Service::IPIP => "ipip",
        abi::Service::GUE => "gue",
        _ => "fullnat",
    };
    Service { id: service.id, mode, checks }
}

impl Interface {
    fn find(name: &str) -> anyhow::Result<Self> {
        let index = nix::net::if_::if_nametoindex(name)
            .map_err(|error| anyhow!("looking for the interface {name}: {error}; `ip link` lists them"))?;
        let all = nix::ifaddrs::getifaddrs().context("listing the interfaces")?;
        let mac = all
            .filter(|entry| entry.interface_name == name)
            .find_map(|entry| entry.address.as_ref()?.as_link_addr()?.addr());
        // An interface without a hardware address takes any.
        Ok(Self { name: name.to_owned(), index, mac: mac.unwrap_or_default() })
    }
}
