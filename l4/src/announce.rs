//! Makes addresses answer: the VIPs and the FULLNAT sources become addresses of the first interface.
//!
//! The kernel then answers ARP and neighbour solicitations for them, ping, and (with a reset) connections to a port
//! that nobody serves. A gratuitous ARP or an unsolicited advertisement tells neighbours that knew another place.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use imbl::OrdSet;
use tracing::{info, warn};

use crate::network::{Link, Network};

#[derive(Debug)]
pub(crate) struct Announcer {
    network: Network,
    link: Link,
    /// FULLNAT sources: announced from the start, whatever the Input says.
    locals: BTreeSet<IpAddr>,
    ours: BTreeSet<IpAddr>,
    greeter: io::Result<Greeter>,
}

impl Announcer {
    /// Knows the addresses that an earlier process added, and adds the local ones.
    pub(crate) async fn start(network: Network, link: Link, locals: &[IpAddr]) -> anyhow::Result<Self> {
        let ours = network.ours(link.index).await?;
        let locals: Vec<IpAddr> = locals.to_vec();
        let own = locals.iter().copied().collect();
        let mut announcer = Self { network, link, locals: own, ours, greeter: Greeter::open() };
        announcer.announce(locals).await?;
        Ok(announcer)
    }

    pub(crate) fn network(&self) -> &Network {
        &self.network
    }

    /// From now on at another link, which has none of our addresses but the local ones.
    pub(crate) async fn move_to(&mut self, link: Link) -> anyhow::Result<()> {
        self.ours = self.network.ours(link.index).await?;
        self.link = link;
        self.announce(self.locals.iter().copied().collect()).await
    }

    /// What is missing, and what is ours and not wanted any more.
    pub(crate) fn difference(&self, wanted: &OrdSet<IpAddr>) -> (Vec<IpAddr>, BTreeSet<IpAddr>) {
        let new = wanted.iter().filter(|address| !self.ours.contains(address)).copied().collect();
        let gone = self.ours.iter().filter(|address| !wanted.contains(*address)).copied().collect();
        (new, gone)
    }

    /// Takes addresses away, those that are ours.
    pub(crate) async fn withdraw(&mut self, mut gone: BTreeSet<IpAddr>) -> anyhow::Result<()> {
        gone.retain(|address| self.ours.contains(address) && !self.locals.contains(address));
        self.network.remove_addresses(self.link.index, &gone).await?;
        for address in gone {
            info!(%address, interface = self.link.name, "withdrawn");
            self.ours.remove(&address);
        }
        Ok(())
    }

    /// Adds addresses, those that are not there.
    pub(crate) async fn announce(&mut self, new: Vec<IpAddr>) -> anyhow::Result<()> {
        for address in new {
            if self.ours.contains(&address) {
                continue;
            }
            self.network.add_address(self.link.index, address).await?;
            self.ours.insert(address);
            info!(%address, interface = self.link.name, "announced");
            let Some(mac) = self.link.mac else { continue };
            let told = match &self.greeter {
                Ok(greeter) => {
                    greeter.send(self.link.index, &greeting(address, mac)).map_err(|error| error.to_string())
                }
                Err(error) => Err(error.to_string()),
            };
            if let Err(error) = told {
                // Neighbours find out by themselves, only later.
                warn!(%address, "could not tell the neighbours at once: {error}");
            }
        }
        Ok(())
    }
}

/// The frame that says "this address is at my hardware address" to all.
fn greeting(address: IpAddr, mac: [u8; 6]) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => gratuitous_arp(v4, mac),
        IpAddr::V6(v6) => unsolicited_advertisement(v6, mac),
    }
}

/// RFC 5227, section 3: an ARP request for one's own address.
fn gratuitous_arp(address: Ipv4Addr, mac: [u8; 6]) -> Vec<u8> {
    let address = address.octets();
    [
        &[0xff; 6][..],
        &mac,
        &[0x08, 0x06],
        // Ethernet, IPv4, their address lengths, request.
        &[0, 1, 0x08, 0, 6, 4, 0, 1],
        &mac,
        &address,
        &[0; 6],
        &address,
    ]
    .concat()
}

/// RFC 4861, section 7.2.6, to all nodes, with the override flag.
fn unsolicited_advertisement(address: Ipv6Addr, mac: [u8; 6]) -> Vec<u8> {
    let address = address.octets();
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).octets();
    let message = |checksum: [u8; 2]| [&[136, 0][..], &checksum, &[0x20, 0, 0, 0], &address, &[2, 1], &mac].concat();
    let length = message([0, 0]).len() as u8;
    // The pseudo-header of RFC 8200, section 8.1; 58 is ICMPv6.
    let summed = [&address[..], &all_nodes, &[0, 0, 0, length, 0, 0, 0, 58], &message([0, 0])].concat();
    let sum: u32 = summed.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let checksum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    [
        &[0x33, 0x33, 0, 0, 0, 1][..],
        &mac,
        &[0x86, 0xdd, 0x60, 0, 0, 0, 0, length, 58, 255],
        &address,
        &all_nodes,
        &message(checksum.to_be_bytes()),
    ]
    .concat()
}

/// A packet socket, kept open: to close one waits until every CPU has let go of it, 16 ms each time.
#[derive(Debug)]
struct Greeter(OwnedFd);

impl Greeter {
    fn open() -> io::Result<Self> {
        // SAFETY: a call without pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor that was just opened and that nobody else has.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn send(&self, index: u32, frame: &[u8]) -> io::Result<()> {
        // SAFETY: integers and an array of them, for which zero is a value.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = index as i32;
        to.sll_halen = 6;
        to.sll_addr[..6].copy_from_slice(&frame[..6]);
        // SAFETY: the frame and the address are as long as is said, and live until the call returns.
        let sent = unsafe {
            libc::sendto(
                self.0.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    #[test]
    fn a_greeting_names_the_address_and_the_machine() {
        let frame = greeting("10.77.100.1".parse().unwrap(), MAC);
        assert_eq!(frame.len(), 42);
        assert_eq!((&frame[28..32], &frame[38..42]), (&[10, 77, 100, 1][..], &[10, 77, 100, 1][..]));
    }

    #[test]
    fn an_advertisement_carries_a_checksum_that_adds_up() {
        let frame = greeting("fd77:0:100::1".parse().unwrap(), MAC);
        assert_eq!((frame.len(), frame[54], frame[21]), (14 + 40 + 32, 136, 255));
        let mut summed = frame[22..].to_vec();
        summed.extend([0, 32, 0, 58]);
        let sum: u32 = summed.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }
}
