//! What an Input's words look like in the maps, and back.

use std::net::{IpAddr, SocketAddr};

use tidegate_ebpf::abi::{self, ServiceKey};

use crate::input::{ClientAddress, Forward, Frontend, Protocol, Real, RealState, Service};

/// What stands in `services` for a VIP itself.
pub(super) const VIP: abi::Service =
    abi::Service { id: u32::MAX, block: 0, mask: 0, mode: 0, client: 0, checks: 0, pad: 0, tunnel_port: 0, pad2: 0 };

#[must_use]
pub fn key(frontend: &Frontend) -> ServiceKey {
    ServiceKey { vip: frontend.vip.into(), port: frontend.port, protocol: protocol(frontend.protocol), pad: 0 }
}

fn protocol(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => abi::TCP,
        Protocol::Udp => abi::UDP,
    }
}

/// `None`: an entry that says that an address is a VIP, or that nobody is here.
pub(super) fn frontend(vip: abi::Address, port: u16, protocol: u8) -> Option<Frontend> {
    let protocol = match protocol {
        abi::TCP => Protocol::Tcp,
        abi::UDP => Protocol::Udp,
        _ => return None,
    };
    Some(Frontend { vip: vip.into(), port, protocol })
}

pub(super) fn write_frontend(frontend: &Frontend, service: &Service) -> abi::Frontend {
    abi::Frontend {
        vip: frontend.vip.into(),
        port: frontend.port,
        protocol: protocol(frontend.protocol),
        mode: mode(service.forward),
        client: client(service.client_address),
        pad: [0; 3],
    }
}

pub(super) fn mode(forward: Forward) -> u8 {
    match forward {
        Forward::FullNat => abi::Service::FULLNAT,
        Forward::Direct => abi::Service::DIRECT,
        Forward::IpIp => abi::Service::IPIP,
        Forward::Gue { .. } => abi::Service::GUE,
    }
}

pub(super) fn tunnel_port(forward: Forward) -> u16 {
    match forward {
        Forward::Gue { port } => port,
        _ => 0,
    }
}

pub(super) fn client(client: ClientAddress) -> u8 {
    match client {
        ClientAddress::Hidden => abi::Service::HIDDEN,
        ClientAddress::Toa => abi::Service::TOA,
        ClientAddress::Proxy => abi::Service::PROXY,
    }
}

pub(super) fn read_forward(service: &abi::Service) -> Forward {
    match service.mode {
        abi::Service::DIRECT => Forward::Direct,
        abi::Service::IPIP => Forward::IpIp,
        abi::Service::GUE => Forward::Gue { port: service.tunnel_port },
        _ => Forward::FullNat,
    }
}

pub(super) fn read_client(service: &abi::Service) -> ClientAddress {
    match service.client {
        abi::Service::TOA => ClientAddress::Toa,
        abi::Service::PROXY => ClientAddress::Proxy,
        _ => ClientAddress::Hidden,
    }
}

/// `None`: nobody, or one that left.
pub(super) fn read_real(real: &abi::Real) -> Option<Real> {
    let state = match real.state {
        abi::Real::ACTIVE => RealState::Active,
        abi::Real::DRAINING => RealState::Draining,
        _ => return None,
    };
    Some(Real { address: real.address.into(), port: real.port, weight: real.weight, state })
}

pub(super) fn write_real(real: &Real, service: u32, hop: abi::Hop) -> abi::Real {
    abi::Real {
        address: real.address.into(),
        service,
        port: real.port,
        weight: real.weight,
        state: match real.state {
            RealState::Active => abi::Real::ACTIVE,
            RealState::Draining => abi::Real::DRAINING,
        },
        hop,
        ..abi::Real::default()
    }
}

pub(super) fn name(real: &Real) -> SocketAddr {
    SocketAddr::new(real.address, real.port)
}

pub(super) fn name_of(real: &abi::Real) -> SocketAddr {
    SocketAddr::new(IpAddr::from(real.address), real.port)
}
