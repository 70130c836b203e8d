//! Where probes come from: source ports that the balancer gives to no flow.
//!
//! Answers to a local address reach XDP first, which knows a flow by its local port. Ports below 1024 are never a
//! flow's, so XDP lets their packets pass to the kernel and to an ordinary socket.

use std::{
    collections::VecDeque,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tidegate_ebpf::probe::{FIRST_PORT, LAST_PORT};
use tokio::net::{TcpSocket, UdpSocket};

use super::{
    path::{Entry, Path, Traffic},
    probe::Failure,
};
use crate::input::Protocol;

/// Others may sit on a port of ours: so many are tried.
const TRIES: usize = 8;

#[derive(Debug)]
pub(crate) struct Sources {
    v4: Vec<IpAddr>,
    v6: Vec<IpAddr>,
    next: AtomicUsize,
    /// Longest unused first, so that a late answer finds nobody to confuse.
    ports: Arc<Mutex<VecDeque<u16>>>,
    path: Path,
}

/// A port in use; nobody else has it.
#[derive(Debug)]
pub(crate) struct Lease {
    port: u16,
    ports: Arc<Mutex<VecDeque<u16>>>,
    entry: Option<Entry>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        // The entry goes before the port is anybody's again.
        self.entry = None;
        self.ports.lock().unwrap_or_else(PoisonError::into_inner).push_back(self.port);
    }
}

impl Sources {
    /// Without a local address of a family the kernel chooses one.
    pub(crate) fn new(locals: &[IpAddr], path: Path) -> Self {
        let (v4, v6) = locals.iter().partition(|local| local.is_ipv4());
        let ports = Arc::new(Mutex::new((FIRST_PORT..=LAST_PORT).collect()));
        Self { v4, v6, next: AtomicUsize::new(0), ports, path }
    }

    pub(crate) fn tcp(&self, to: SocketAddr, way: Option<&Traffic>) -> Result<(TcpSocket, Lease), Failure> {
        self.bound(to, Protocol::Tcp, way, |from| {
            let socket = if from.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            // A port may still be known to the kernel from its last probe, to another real.
            socket.set_reuseaddr(true)?;
            socket.set_zero_linger()?;
            socket.bind(from)?;
            Ok(socket)
        })
    }

    pub(crate) fn udp(&self, to: SocketAddr, way: Option<&Traffic>) -> Result<(UdpSocket, Lease), Failure> {
        self.bound(to, Protocol::Udp, way, |from| {
            let socket = std::net::UdpSocket::bind(from)?;
            socket.set_nonblocking(true)?;
            UdpSocket::from_std(socket)
        })
    }

    fn bound<T>(
        &self,
        to: SocketAddr,
        protocol: Protocol,
        way: Option<&Traffic>,
        bind: impl Fn(SocketAddr) -> io::Result<T>,
    ) -> Result<(T, Lease), Failure> {
        let from = self.address(to.is_ipv4());
        let mut tries = 0;
        loop {
            let mut lease = self.lease()?;
            match bind(SocketAddr::new(from, lease.port)) {
                Ok(socket) => {
                    if let Some(way) = way {
                        let entry = self.path.enter(lease.port, protocol, to, way);
                        lease.entry = Some(entry.map_err(|error| Failure::Unable(format!("{error:#}")))?);
                    }
                    return Ok((socket, lease));
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < TRIES => tries += 1,
                Err(error) => {
                    let hint = if error.kind() == io::ErrorKind::PermissionDenied {
                        "; probes need ports below 1024: run as root or with CAP_NET_BIND_SERVICE"
                    } else {
                        ""
                    };
                    return Err(Failure::Unable(format!("binding a probe to {from}: {error}{hint}")));
                }
            }
        }
    }

    fn address(&self, v4: bool) -> IpAddr {
        let locals = if v4 { &self.v4 } else { &self.v6 };
        let any = if v4 { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        // All of them are asked, since flows come from all of them.
        locals.get(turn.checked_rem(locals.len()).unwrap_or(0)).copied().unwrap_or(any)
    }

    fn lease(&self) -> Result<Lease, Failure> {
        let port = self.ports.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let port = port.ok_or_else(|| Failure::Unable("all source ports of probes are in use".into()))?;
        Ok(Lease { port, ports: Arc::clone(&self.ports), entry: None })
    }
}
