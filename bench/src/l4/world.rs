//! What is balanced here: a VIP for each way of forwarding, a hundred reals behind each, and a link that they are at.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use imbl::{OrdMap, OrdSet};
use tidegate_ebpf::abi::Hop;
use tidegate_l4::{Forward, Frontend, Input, Protocol, Real, RealState, Service, real::GUE_PORT};
use tidegate_tests::lab::Ns;

/// Behind each VIP.
pub(super) const REALS: u8 = 100;
/// The link's end on the balancer's side, and its hardware address.
pub(super) const LINK: &str = "l0";
pub(super) const LINK_MAC: &str = "02:00:00:00:00:01";
/// The far end, where clients and reals are.
pub(super) const FAR: &str = "g0";
pub(super) const FAR_MAC: &str = "02:00:00:00:00:0c";

/// Where a frame goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Vip {
    /// An address that is no VIP.
    Nobody,
    FullNat,
    Direct,
    IpIp,
    /// As [`Vip::Direct`], and every slot of its ring changes hands.
    Moving,
    Gue,
}

impl Vip {
    const SERVED: [Self; 5] = [Self::FullNat, Self::Direct, Self::IpIp, Self::Moving, Self::Gue];

    pub(super) fn address(self, v6: bool) -> IpAddr {
        let last = self as u8;
        if v6 { Ipv6Addr::new(0xfd77, 0, 0x100, 0, 0, 0, 0, last.into()).into() } else { [10, 77, 100, last].into() }
    }

    pub(super) fn frontend(self, v6: bool, protocol: Protocol) -> Frontend {
        Frontend { vip: self.address(v6), port: 80, protocol }
    }

    pub(super) fn forward(self) -> Forward {
        match self {
            Self::Nobody | Self::FullNat => Forward::FullNat,
            Self::Direct | Self::Moving => Forward::Direct,
            Self::IpIp => Forward::IpIp,
            Self::Gue => Forward::Gue { port: GUE_PORT },
        }
    }
}

/// The `n`th real's address, from 1.
pub(super) fn real(v6: bool, n: u8) -> IpAddr {
    if v6 { Ipv6Addr::new(0xfd77, 0, 1, 0, 0, 0, 0, n.into()).into() } else { Ipv4Addr::new(10, 77, 1, n).into() }
}

/// All services. With `moved`, the moving ones have other reals than before; those from before are draining.
pub(super) fn input(moved: bool) -> Input {
    let mut services = OrdMap::new();
    for vip in Vip::SERVED {
        for v6 in [false, true] {
            let one = |n, state| Real { address: real(v6, n), port: 80, weight: 1, state };
            let mut reals: Vec<Real> = (1..=REALS).map(|n| one(n, RealState::Active)).collect();
            if moved && vip == Vip::Moving {
                reals.iter_mut().for_each(|real| real.state = RealState::Draining);
                reals.extend((REALS + 1..=2 * REALS).map(|n| one(n, RealState::Active)));
            }
            let service = Arc::new(Service { reals, forward: vip.forward(), ..Service::default() });
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                services.insert(vip.frontend(v6, protocol), service.clone());
            }
        }
    }
    let announce: OrdSet<IpAddr> = services.keys().map(|frontend| frontend.vip).collect();
    Input { generation: 1 + u64::from(moved), services, announce }
}

/// Two machines and the link between them.
pub(super) struct Link {
    pub(super) balancer: Ns,
    pub(super) far: Ns,
}

impl Link {
    /// The balancer's machine knows the hardware addresses of all reals, and forwards.
    pub(super) fn lay() -> anyhow::Result<Self> {
        let (balancer, far) = (Ns::new()?, Ns::new()?);
        balancer.ip(&format!(
            "link add {LINK} address {LINK_MAC} type veth peer name {FAR} address {FAR_MAC} netns {}\n\
             addr add 10.77.0.1/16 dev {LINK}\n\
             addr add fd77::1/32 dev {LINK} nodad\n\
             link set {LINK} up\n",
            far.path()
        ))?;
        far.ip(&format!("link set {FAR} up"))?;
        let mut neighbours = String::new();
        for v6 in [false, true] {
            for address in (1..=2 * REALS).map(|n| real(v6, n)).chain([Vip::Nobody.address(v6)]) {
                let _ = writeln!(neighbours, "neigh replace {address} lladdr {FAR_MAC} dev {LINK} nud permanent");
            }
        }
        balancer.ip(&neighbours)?;
        for family in ["ipv4", "ipv6"] {
            for interface in [LINK, "lo"] {
                balancer.sysctl(&format!("{family}/conf/{interface}/forwarding"), "1")?;
            }
        }
        Ok(Self { balancer, far })
    }
}

/// The way to all reals, for the balancer's namespace.
pub(super) fn way() -> anyhow::Result<Hop> {
    Ok(hop(index(LINK)?, LINK_MAC, FAR_MAC))
}

/// Out of an interface, as the plane writes it beside a real.
pub(super) fn hop(ifindex: u32, from: &str, to: &str) -> Hop {
    Hop { ifindex, source_mac: mac(from).into(), destination_mac: mac(to).into(), vlan: 0, mtu: 1500 }
}

/// The number of an interface of the current namespace.
pub(super) fn index(interface: &str) -> anyhow::Result<u32> {
    Ok(nix::net::if_::if_nametoindex(interface)?)
}

pub(super) fn mac(text: &str) -> [u8; 6] {
    let mut bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("a constant"));
    std::array::from_fn(|_| bytes.next().expect("six bytes"))
}
