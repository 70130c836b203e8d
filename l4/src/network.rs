//! The kernel's links, addresses, routes and neighbours, through rtnetlink.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::Context;
use futures_util::TryStreamExt;
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_route::{
        address::{AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, AddressScope, CacheInfo},
        link::{LinkAttribute, LinkFlags},
        neighbour::{
            NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage, NeighbourState,
        },
        route::{RouteAddress, RouteAttribute, RouteType},
    },
};
use tokio::task::JoinHandle;

/// Marks the addresses that are ours (`ip address` shows it as `proto 0x54`; Linux 5.18 and later): what is marked may
/// be removed again, by any later process, and nothing else is.
const OURS: u8 = 0x54;

/// One network namespace: that of the thread that opened it.
#[derive(Debug)]
pub struct Network {
    handle: Handle,
    connection: JoinHandle<()>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Link {
    pub name: String,
    pub index: u32,
    pub up: bool,
    pub loopback: bool,
    pub mac: Option<[u8; 6]>,
}

/// The next machine on the way to an address.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NextHop {
    pub index: u32,
    pub address: IpAddr,
}

/// What is known of a next hop.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Neighbour {
    /// Packets can be sent to it.
    pub resolved: bool,
    /// Somebody else (an operator) or the kernel itself keeps it.
    pub kept: bool,
}

impl Network {
    pub fn open() -> anyhow::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection().context("opening a netlink socket")?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    pub async fn links(&self) -> anyhow::Result<Vec<Link>> {
        let messages: Vec<_> =
            self.handle.link().get().execute().try_collect().await.context("listing the interfaces")?;
        let link = |message: rtnetlink::packet_route::link::LinkMessage| {
            let mut link = Link {
                name: String::new(),
                index: message.header.index,
                up: message.header.flags.contains(LinkFlags::Up),
                loopback: message.header.flags.contains(LinkFlags::Loopback),
                mac: None,
            };
            for attribute in message.attributes {
                match attribute {
                    LinkAttribute::IfName(name) => link.name = name,
                    LinkAttribute::Address(mac) => link.mac = mac.try_into().ok(),
                    _ => {}
                }
            }
            link
        };
        Ok(messages.into_iter().map(link).collect())
    }

    /// The interface of the default route, IPv4's first.
    pub async fn default_interface(&self) -> anyhow::Result<Option<u32>> {
        let questions =
            [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()];
        for question in questions {
            let routes: Vec<_> =
                self.handle.route().get(question).execute().try_collect().await.context("listing the routes")?;
            let default = routes
                .iter()
                .filter(|route| route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Unicast)
                .find_map(|route| oif(&route.attributes));
            if default.is_some() {
                return Ok(default);
            }
        }
        Ok(None)
    }

    /// All addresses of an interface that others may use, the kernel's order.
    pub async fn addresses(&self, index: u32) -> anyhow::Result<Vec<IpAddr>> {
        let request = self.handle.address().get().set_link_index_filter(index);
        let messages: Vec<_> = request.execute().try_collect().await.context("listing the addresses")?;
        let global = messages.into_iter().filter(|message| message.header.scope == AddressScope::Universe);
        let address = |message: AddressMessage| {
            message.attributes.into_iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(address),
                _ => None,
            })
        };
        Ok(global.filter_map(address).collect())
    }

    /// Our addresses on an interface.
    pub async fn ours(&self, index: u32) -> anyhow::Result<BTreeSet<IpAddr>> {
        Ok(self.our_messages(index).await?.into_keys().collect())
    }

    async fn our_messages(&self, index: u32) -> anyhow::Result<BTreeMap<IpAddr, AddressMessage>> {
        let request = self.handle.address().get().set_link_index_filter(index);
        let messages: Vec<_> = request.execute().try_collect().await.context("listing the addresses")?;
        let ours = |message: AddressMessage| {
            let marked = message.attributes.contains(&AddressAttribute::Protocol(AddressProtocol::Other(OURS)));
            let address = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            })?;
            marked.then_some((address, message))
        };
        Ok(messages.into_iter().filter_map(ours).collect())
    }

    /// One address, as a host of its own: it brings no route along and no connection of the host's starts from it.
    pub async fn add_address(&self, index: u32, address: IpAddr) -> anyhow::Result<()> {
        let length = if address.is_ipv4() { 32 } else { 128 };
        let mut request = self.handle.address().add(index, address, length);
        let message = request.message_mut();
        message.attributes.push(AddressAttribute::Protocol(AddressProtocol::Other(OURS)));
        if address.is_ipv6() {
            // Usable at once, and never chosen as a source while there is another.
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            let mut times = CacheInfo::default();
            times.ifa_valid = u32::MAX;
            message.attributes.push(AddressAttribute::CacheInfo(times));
        }
        match request.execute().await {
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::EEXIST => Ok(()),
            result => result.with_context(|| format!("adding the address {address}")),
        }
    }

    /// Takes away addresses of ours; others stay.
    pub async fn remove_addresses(&self, index: u32, addresses: &BTreeSet<IpAddr>) -> anyhow::Result<()> {
        if addresses.is_empty() {
            return Ok(());
        }
        for (address, message) in self.our_messages(index).await? {
            if !addresses.contains(&address) {
                continue;
            }
            match self.handle.address().del(message).execute().await {
                Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::EADDRNOTAVAIL => {}
                result => result.with_context(|| format!("removing the address {address}"))?,
            }
        }
        Ok(())
    }

    /// Where a packet to `address` goes next; `None` without a route, or when it is the host's own.
    pub async fn next_hop(&self, address: IpAddr) -> Option<NextHop> {
        let question = match address {
            IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(v4, 32).build(),
            IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(v6, 128).build(),
        };
        let route = self.handle.route().get(question).execute().try_next().await.ok()??;
        if route.header.kind != RouteType::Unicast {
            return None;
        }
        let gateway = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
            RouteAttribute::Gateway(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
            _ => None,
        });
        Some(NextHop { index: oif(&route.attributes)?, address: gateway.unwrap_or(address) })
    }

    pub async fn neighbours(&self) -> anyhow::Result<BTreeMap<NextHop, Neighbour>> {
        let messages: Vec<_> =
            self.handle.neighbours().get().execute().try_collect().await.context("listing the neighbours")?;
        let neighbour = |message: NeighbourMessage| {
            let mut address = None;
            let mut kept = matches!(message.header.state, NeighbourState::Permanent | NeighbourState::Noarp);
            for attribute in &message.attributes {
                match attribute {
                    NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
                    NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
                    NeighbourAttribute::ExtFlags(flags) => kept |= flags.contains(NeighbourExtFlags::Managed),
                    _ => {}
                }
            }
            let resolved = !matches!(
                message.header.state,
                NeighbourState::Incomplete | NeighbourState::Failed | NeighbourState::None
            );
            Some((NextHop { index: message.header.ifindex, address: address? }, Neighbour { resolved, kept }))
        };
        Ok(messages.into_iter().filter_map(neighbour).collect())
    }

    /// Has the kernel resolve a next hop now and, when `keep` is set, keep it resolved by itself from now on (Linux
    /// 5.16 and later), so that packets flow also while no process of ours runs.
    pub async fn resolve(&self, hop: NextHop, keep: bool) -> anyhow::Result<()> {
        let mut request = self
            .handle
            .neighbours()
            .add(hop.index, hop.address)
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace();
        if keep {
            request.message_mut().attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
        }
        request.execute().await.with_context(|| format!("resolving the neighbour {}", hop.address))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

fn oif(attributes: &[RouteAttribute]) -> Option<u32> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}
