//! One flat layer-2 network: a bridge in a namespace of its own, and a veth pair to every machine.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::OwnedFd,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::Context;

use super::{agent::Agent, bpf, ns::Ns};

/// Where everything is, in every lab.
pub mod addresses {
    use std::net::{Ipv4Addr, Ipv6Addr};

    pub const GATEWAY: (Ipv4Addr, Ipv6Addr) = (v4(0, 254), v6(0, 0xfe));
    pub const CLIENT: (Ipv4Addr, Ipv6Addr) = (v4(0, 10), v6(0, 0x10));
    pub const APPLIANCE: (Ipv4Addr, Ipv6Addr) = (v4(0, 1), v6(0, 1));
    pub const MARATHON: (Ipv4Addr, Ipv6Addr) = (v4(0, 2), v6(0, 2));
    pub const STANDBY: (Ipv4Addr, Ipv6Addr) = (v4(0, 3), v6(0, 3));
    pub const HOST_A: (Ipv4Addr, Ipv6Addr) = (v4(1, 1), v6(1, 1));
    pub const HOST_B: (Ipv4Addr, Ipv6Addr) = (v4(1, 2), v6(1, 2));
    pub const LOCAL: (Ipv4Addr, Ipv6Addr) = (v4(101, 1), v6(0x101, 1));
    pub const VIPS: (&str, &str) = ("10.77.100.0/24", "fd77:0:100::/64");

    /// The n-th container with an address of its own: 10.77.2.1, 10.77.2.2 ... and fd77:0:2::1 ...
    pub(super) const fn container(n: u32) -> (Ipv4Addr, Ipv6Addr) {
        // 250 to a third byte, and 97 third bytes below the VIPs.
        (v4((2 + n / 250 % 97) as u8, (1 + n % 250) as u8), v6(2, (1 + n) as u16))
    }

    const fn v4(net: u8, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, net, host)
    }

    const fn v6(net: u16, host: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0, net, 0, 0, 0, 0, host)
    }
}

/// The network. A handle; clones stand for the same one.
#[derive(Clone, Debug)]
pub struct Fabric {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    switch: Ns,
    ports: AtomicU32,
    containers: AtomicU32,
}

/// A machine on the network, with one interface, `eth0`. Gone when dropped.
#[derive(Clone, Debug)]
pub struct Host {
    pub name: String,
    pub ns: Ns,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    /// Its port on the switch.
    port: String,
    /// What makes XDP_TX work on `eth0`.
    _pass: Option<Arc<(OwnedFd, OwnedFd)>>,
}

impl Fabric {
    pub fn new() -> anyhow::Result<Self> {
        let switch = Ns::new().context("cannot make the switch")?;
        quiet(&switch)?;
        let (v4, v6) = addresses::GATEWAY;
        switch.ip(&format!(
            "link add br0 type bridge mcast_snooping 0 forward_delay 0\n\
             addr add {v4}/16 dev br0\n\
             addr add {v6}/32 dev br0 nodad\n\
             link set br0 up\n"
        ))?;
        Ok(Self { inner: Arc::new(Inner { switch, ports: AtomicU32::new(0), containers: AtomicU32::new(0) }) })
    }

    /// Adds a machine.
    pub fn host(&self, name: &str, (v4, v6): (Ipv4Addr, Ipv6Addr)) -> anyhow::Result<Host> {
        let ns = Ns::new()?;
        quiet(&ns)?;
        let port = format!("p{}", self.inner.ports.fetch_add(1, Ordering::Relaxed));
        let [a, b, c, d] = v4.octets();
        let path = ns.path();
        self.inner.switch.ip(&format!(
            "link add {port} type veth peer name eth0 address 02:77:{a:02x}:{b:02x}:{c:02x}:{d:02x} netns {path}\n\
             link set {port} master br0\n\
             link set {port} up\n"
        ))?;
        let (gateway4, gateway6) = addresses::GATEWAY;
        ns.ip(&format!(
            "addr add {v4}/16 dev eth0\n\
             addr add {v6}/32 dev eth0 nodad\n\
             link set eth0 up\n\
             route add default via {gateway4}\n\
             route add default via {gateway6}\n"
        ))
        .with_context(|| format!("cannot set up {name}"))?;
        Ok(Host { name: name.to_owned(), ns, v4, v6, port, _pass: None })
    }

    /// Adds the machine that Tidegate runs on: its `eth0` is ready for a native XDP program that answers by XDP_TX.
    pub fn appliance(&self, name: &str, at: (Ipv4Addr, Ipv6Addr)) -> anyhow::Result<Host> {
        let mut host = self.host(name, at)?;
        let switch = &self.inner.switch;
        // veth hands packets of a local stack over with their checksums left open, and a native program loses that mark:
        // this hop must finish them.
        switch.output(Command::new("ethtool").args(["-K", &host.port, "tx", "off"]))?;
        // A veth delivers what XDP_TX sends only if its peer polls, which it does when it has a program of its own.
        let program = bpf::load_pass().context("cannot load the program that passes everything")?;
        let link = switch
            .run(|| bpf::attach(&program, &host.port))
            .with_context(|| format!("cannot attach to {}", host.port))?;
        host._pass = Some(Arc::new((program, link)));
        Ok(host)
    }

    /// Adds a machine that runs tasks.
    pub fn agent(&self, name: &str, at: (Ipv4Addr, Ipv6Addr)) -> anyhow::Result<Agent> {
        Agent::new(self.clone(), self.host(name, at)?)
    }

    /// Adds a container with the next free addresses.
    pub fn container(&self, name: &str) -> anyhow::Result<Host> {
        let n = self.inner.containers.fetch_add(1, Ordering::Relaxed);
        self.host(name, addresses::container(n))
    }

    /// The namespace of the bridge: to lose packets on purpose, to look at what passes.
    pub fn switch(&self) -> &Ns {
        &self.inner.switch
    }
}

impl Host {
    pub fn addresses(&self) -> Vec<IpAddr> {
        vec![self.v4.into(), self.v6.into()]
    }

    /// The name of its port in the switch's namespace.
    pub fn port(&self) -> &str {
        &self.port
    }
}

/// Settings that make a network repeatable: no waiting for duplicate addresses, no connection that lingers in TIME_WAIT
/// and refuses its address to the next one.
pub(super) fn quiet(ns: &Ns) -> anyhow::Result<()> {
    ns.run(|| {
        for (name, value) in [
            ("ipv6/conf/all/accept_dad", "0"),
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv6/conf/default/router_solicitations", "0"),
            ("ipv4/tcp_max_tw_buckets", "0"),
            ("ipv4/ping_group_range", "0 2147483647"),
        ] {
            let path = format!("/proc/sys/net/{name}");
            std::fs::write(&path, value).with_context(|| format!("cannot write {value} to {path}"))?;
        }
        Ok(())
    })
}
