//! The kernel's links and addresses, through rtnetlink; `hops` has the routes and neighbours.

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
        route::{RouteAttribute, RouteType},
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
    pub mtu: u32,
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
                mtu: 0,
            };
            for attribute in message.attributes {
                match attribute {
                    LinkAttribute::IfName(name) => link.name = name,
                    LinkAttribute::Mtu(mtu) => link.mtu = mtu,
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
