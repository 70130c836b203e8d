//! The sockets. UDP is answered here; TCP is fronted by hickory-server, through one handler that asks [`wire`].
//!
//! hickory-server's own UDP path spawns a task per packet and drops replies when 32 wait, and its truncated replies are
//! damaged; over TCP nothing is truncated and its framing, time limits and pipelining serve well.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Context;
use arc_swap::ArcSwap;
use hickory_proto::op::{Header, HeaderCounts};
use hickory_server::{
    Server,
    net::runtime::Time,
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo},
    zone_handler::MessageResponseBuilder,
};
use nix::{ifaddrs::InterfaceAddress, net::if_::InterfaceFlags, sys::socket::SockaddrLike};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, UdpSocket},
    task::JoinHandle,
};
use tracing::{debug, info, warn};

use crate::{
    report::Counters,
    wire::{self, Outcome, Reply},
    zone::Zone,
};

/// How long a TCP connection may be silent (RFC 7766, 6.2.3: a few seconds).
const TCP_IDLE: Duration = Duration::from_secs(10);

/// Replies that wait on one TCP connection; the connection is not read while they do.
const TCP_REPLIES: usize = 64;

/// The largest query that is looked at. Ours have one question; padding and options hardly reach 1 KiB.
const LARGEST_QUERY: usize = 4096;

/// What every socket answers from.
#[derive(Debug, Default)]
pub(crate) struct Source {
    pub(crate) zone: ArcSwap<Zone>,
    udp_payload: u16,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    queries: AtomicU64,
    answered: AtomicU64,
    no_data: AtomicU64,
    no_such_name: AtomicU64,
    refused: AtomicU64,
    truncated: AtomicU64,
    failed: AtomicU64,
}

impl Source {
    pub(crate) fn new(udp_payload: u16) -> Self {
        Self { udp_payload, ..Self::default() }
    }

    pub(crate) fn counters(&self) -> Counters {
        let counts = &self.counts;
        Counters {
            queries: counts.queries.load(Relaxed),
            answered: counts.answered.load(Relaxed),
            no_data: counts.no_data.load(Relaxed),
            no_such_name: counts.no_such_name.load(Relaxed),
            refused: counts.refused.load(Relaxed),
            truncated: counts.truncated.load(Relaxed),
            failed: counts.failed.load(Relaxed),
        }
    }

    fn reply(&self, query: &[u8]) -> Option<Reply> {
        let reply = wire::reply(query, &self.zone.load(), self.udp_payload, fastrand::u32(..));
        let counts = &self.counts;
        counts.queries.fetch_add(1, Relaxed);
        match reply.as_ref().map_or(Outcome::Failed, |reply| reply.outcome) {
            Outcome::Answered => &counts.answered,
            Outcome::NoData => &counts.no_data,
            Outcome::NoSuchName => &counts.no_such_name,
            Outcome::Refused => &counts.refused,
            Outcome::Failed => &counts.failed,
        }
        .fetch_add(1, Relaxed);
        reply
    }

    fn datagram(&self, query: &[u8]) -> Option<Vec<u8>> {
        let bytes = self.reply(query)?.datagram()?;
        if wire::is_truncated(&bytes) {
            self.counts.truncated.fetch_add(1, Relaxed);
        }
        Some(bytes)
    }
}

/// Everything that listens.
pub(crate) struct Listening {
    source: Arc<Source>,
    configured: Vec<SocketAddr>,
    /// By the address that was asked for; the value has the port that a zero became.
    open: BTreeMap<SocketAddr, (SocketAddr, JoinHandle<()>)>,
    tcp: Server<Front>,
}

impl Listening {
    /// Opens every address, or says which one cannot be had and what to do about it.
    pub(crate) fn start(configured: &[SocketAddr], source: Arc<Source>) -> anyhow::Result<Self> {
        let tcp = Server::new(Front(source.clone()));
        let mut listening = Self { source, configured: configured.to_vec(), open: BTreeMap::new(), tcp };
        match listening.open_missing().into_iter().next() {
            Some(problem) => Err(problem),
            None if listening.open.is_empty() => {
                anyhow::bail!("no address to answer DNS on: put one into `listen` of the table [dns]")
            }
            None => Ok(listening),
        }
    }

    /// Opens what is not open: a wildcard covers addresses that come later, and a socket whose task died comes back.
    pub(crate) fn open_missing(&mut self) -> Vec<anyhow::Error> {
        let wanted = match expand(&self.configured) {
            Ok(wanted) => wanted,
            Err(problem) => return vec![problem],
        };
        let mut problems = Vec::new();
        for (address, freebind) in wanted {
            if let Err(e) = self.open(address, freebind) {
                problems.push(explain(address, &e));
            }
        }
        problems
    }

    fn open(&mut self, address: SocketAddr, freebind: bool) -> io::Result<()> {
        let (local, udp) = match self.open.get(&address) {
            Some((_, task)) if !task.is_finished() => return Ok(()),
            Some((local, _)) => (*local, bind_udp(*local, freebind)?),
            None => {
                let (tcp, udp) = bind_both(address, freebind)?;
                let local = tcp.local_addr()?;
                self.tcp.register_listener(tcp, TCP_IDLE, TCP_REPLIES);
                info!(%local, "answering DNS");
                (local, udp)
            }
        };
        let task = tokio::spawn(answer_datagrams(udp, self.source.clone()));
        self.open.insert(address, (local, task));
        Ok(())
    }

    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.open.values().map(|(local, _)| *local).collect()
    }

    /// Closes every socket.
    pub(crate) async fn stop(mut self) {
        for (_, task) in self.open.values() {
            task.abort();
        }
        if let Err(e) = self.tcp.shutdown_gracefully().await {
            debug!("stopping DNS over TCP: {e}");
        }
    }
}

async fn answer_datagrams(socket: UdpSocket, source: Arc<Source>) {
    let mut query = vec![0; LARGEST_QUERY];
    loop {
        match socket.recv_from(&mut query).await {
            Ok((len, client)) => {
                let Some(answer) = source.datagram(&query[..len]) else { continue };
                // The client may be gone, or have asked from port 0: its own loss.
                if let Err(e) = socket.send_to(&answer, client).await {
                    debug!(%client, "sending a DNS answer: {e}");
                }
            }
            Err(e) => {
                warn!("receiving DNS queries: {e}");
                // Errors that stay must not take the processor.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

/// hickory-server's view of us: it frames, we answer.
struct Front(Arc<Source>);

#[async_trait::async_trait]
impl RequestHandler for Front {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut client: R) -> ResponseInfo {
        let Some(reply) = self.0.reply(request.as_slice()) else { return nothing_sent(request) };
        let message = reply.stream();
        let response = MessageResponseBuilder::new(&request.queries, message.edns.as_ref()).build(
            message.metadata,
            &message.answers,
            &message.authorities,
            [],
            &message.additionals,
        );
        client.send_response(response).await.unwrap_or_else(|e| {
            debug!(client = %request.src(), "sending a DNS answer: {e}");
            nothing_sent(request)
        })
    }
}

fn nothing_sent(request: &Request) -> ResponseInfo {
    Header { metadata: request.metadata, counts: HeaderCounts::default() }.into()
}

/// The addresses that `configured` stands for, each with whether it may be bound before the kernel calls it usable
/// (an IPv6 address of an interface is not, for a second, while it is checked for duplicates).
fn expand(configured: &[SocketAddr]) -> anyhow::Result<BTreeSet<(SocketAddr, bool)>> {
    let mut wanted = BTreeSet::new();
    for address in configured {
        if !address.ip().is_unspecified() {
            wanted.insert((*address, false));
            continue;
        }
        let interfaces: Vec<_> =
            nix::ifaddrs::getifaddrs().context("listing this machine's addresses for DNS")?.collect();
        let networks = networks(&interfaces);
        for interface in &interfaces {
            let Some(local) = interface.address.filter(|_| !is_extra(interface, &networks)) else { continue };
            let local = match (address.ip(), local.as_sockaddr_in(), local.as_sockaddr_in6()) {
                (IpAddr::V4(_), Some(v4), _) => SocketAddr::V4(SocketAddrV4::new(v4.ip(), address.port())),
                (IpAddr::V6(_), _, Some(v6)) => {
                    SocketAddr::V6(SocketAddrV6::new(v6.ip(), address.port(), 0, v6.scope_id()))
                }
                _ => continue,
            };
            wanted.insert((local, true));
        }
    }
    // Named twice, once by itself: the strict one wins.
    let strict: BTreeSet<SocketAddr> = wanted.iter().filter(|(_, freebind)| !freebind).map(|(a, _)| *a).collect();
    wanted.retain(|(address, freebind)| !freebind || !strict.contains(address));
    Ok(wanted)
}

/// The interfaces, by family, that have an address of a network.
type Networks = BTreeSet<(String, Option<i32>)>;

fn networks(interfaces: &[InterfaceAddress]) -> Networks {
    let of_networks = interfaces.iter().filter(|interface| is_host(interface) == Some(false));
    of_networks.map(|interface| (interface.interface_name.clone(), family(interface))).collect()
}

/// An address of one host beside one of a network, on the same interface and of the same family: somebody's VIP or
/// alias, for a service of its own. There may be thousands.
fn is_extra(interface: &InterfaceAddress, networks: &Networks) -> bool {
    let loopback = interface.flags.contains(InterfaceFlags::IFF_LOOPBACK);
    !loopback
        && is_host(interface) == Some(true)
        && networks.contains(&(interface.interface_name.clone(), family(interface)))
}

fn family(interface: &InterfaceAddress) -> Option<i32> {
    interface.address.as_ref().and_then(SockaddrLike::family).map(|family| family as i32)
}

/// Whether the mask leaves room for one host alone.
fn is_host(interface: &InterfaceAddress) -> Option<bool> {
    let mask = interface.netmask?;
    match (mask.as_sockaddr_in(), mask.as_sockaddr_in6()) {
        (Some(v4), _) => Some(v4.ip() == Ipv4Addr::BROADCAST),
        (_, Some(v6)) => Some(v6.ip().to_bits() == u128::MAX),
        _ => None,
    }
}

/// One port for both. A zero port is chosen by the kernel for TCP, and may be taken for UDP: then another is tried.
fn bind_both(address: SocketAddr, freebind: bool) -> io::Result<(TcpListener, UdpSocket)> {
    let mut tries = if address.port() == 0 { 20 } else { 1 };
    loop {
        tries -= 1;
        let tcp = bind_tcp(address, freebind)?;
        match bind_udp(tcp.local_addr()?, freebind) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
            udp => return Ok((tcp, udp?)),
        }
    }
}

fn bind_tcp(address: SocketAddr, freebind: bool) -> io::Result<TcpListener> {
    let socket = socket(address, Type::STREAM, freebind)?;
    // A restart must not wait for the last connections to be forgotten.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}

fn bind_udp(address: SocketAddr, freebind: bool) -> io::Result<UdpSocket> {
    let socket = socket(address, Type::DGRAM, freebind)?;
    // Room for a burst; the kernel gives what net.core.rmem_max allows.
    socket.set_recv_buffer_size(4 << 20)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

fn socket(address: SocketAddr, kind: Type, freebind: bool) -> io::Result<Socket> {
    let protocol = if kind == Type::STREAM { Protocol::TCP } else { Protocol::UDP };
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(freebind)?,
        SocketAddr::V6(_) => {
            socket.set_only_v6(true)?;
            socket.set_freebind_v6(freebind)?;
        }
    }
    Ok(socket)
}

fn explain(address: SocketAddr, e: &io::Error) -> anyhow::Error {
    let port = address.port();
    let advice = match e.kind() {
        io::ErrorKind::AddrInUse => format!(
            "another process has the port (`ss -lntup 'sport = :{port}'` shows which; often it is systemd-resolved: \
             set DNSStubListener=no in /etc/systemd/resolved.conf). Stop it, or change `listen` of the table [dns]"
        ),
        io::ErrorKind::PermissionDenied => format!(
            "port {port} needs root or CAP_NET_BIND_SERVICE. Run as root, or choose a port from 1024 in `listen` of the \
             table [dns]"
        ),
        io::ErrorKind::AddrNotAvailable => {
            "the address is not on this machine (`ip address` shows those that are). Add it, or change `listen` of the \
             table [dns]"
                .into()
        }
        _ => "see `listen` of the table [dns]".into(),
    };
    anyhow::anyhow!("cannot answer DNS on {address}: {e}: {advice}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_stands_for_each_address_and_a_named_one_for_itself() {
        let named: SocketAddr = "127.0.0.1:5300".parse().unwrap();
        let wanted = expand(&["0.0.0.0:5300".parse().unwrap(), named]).unwrap();
        assert!(wanted.iter().all(|(address, _)| !address.ip().is_unspecified() && address.is_ipv4()), "{wanted:?}");
        assert_eq!(wanted.iter().filter(|(address, _)| *address == named).collect::<Vec<_>>(), [&(named, false)]);
    }

    #[test]
    fn an_address_of_one_host_beside_a_network_is_somebody_elses() {
        let interface = |name: &str, address: &str, mask: &str| {
            let socket = |text: &str| SocketAddr::new(text.parse().unwrap(), 0).into();
            InterfaceAddress {
                interface_name: name.to_owned(),
                flags: if name == "lo" { InterfaceFlags::IFF_LOOPBACK } else { InterfaceFlags::empty() },
                address: Some(socket(address)),
                netmask: Some(socket(mask)),
                broadcast: None,
                destination: None,
            }
        };
        let one = "255.255.255.255";
        let all = [
            interface("lo", "10.0.0.1", one),
            interface("lo", "127.0.0.1", "255.0.0.0"),
            interface("eth0", "10.77.0.1", "255.255.0.0"),
            interface("eth0", "10.77.100.1", one),
            interface("eth0", "fd77:0:100::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            interface("eth1", "10.78.0.1", one),
        ];
        // The address of eth1 is all that it has, as in some clouds; so is the IPv6 one of eth0.
        let networks = networks(&all);
        let extra: Vec<bool> = all.iter().map(|interface| is_extra(interface, &networks)).collect();
        assert_eq!(extra, [false, false, false, true, false, false]);
    }
}
