//! A machine that runs tasks in the three ways that Marathon knows: on its own network, behind it, or beside it.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU16, Ordering},
    },
};

use anyhow::Context;

use super::{
    fabric::{Fabric, Host, quiet},
    ns::Ns,
    process::Process,
};

/// What to run.
#[derive(Clone, Debug, Default)]
pub struct Task {
    pub program: PathBuf,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Where its output goes; `None`: nowhere.
    pub log: Option<PathBuf>,
}

/// A port of the agent that leads to a port of a bridged container.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Mapping {
    pub host: u16,
    pub container: u16,
    pub protocol: Protocol,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// A task that was started. Dropped, its process is killed and its container is gone.
#[derive(Debug)]
pub struct Running {
    pub process: Process,
    /// The addresses of its container; empty on the host's network.
    pub addresses: Vec<IpAddr>,
    _mapped: Option<Mapped>,
    /// Its container's namespace, or the host's.
    pub ns: Ns,
}

/// An agent. A handle; clones stand for the same machine.
#[derive(Clone, Debug)]
pub struct Agent {
    pub host: Host,
    fabric: Fabric,
    bridge: Arc<Bridge>,
}

/// What `docker0` is on a machine with Docker; made when the first bridged container starts.
#[derive(Debug, Default)]
struct Bridge {
    made: OnceLock<()>,
    making: Mutex<()>,
    containers: AtomicU16,
}

impl Agent {
    pub(super) fn new(fabric: Fabric, host: Host) -> anyhow::Result<Self> {
        Ok(Self { host, fabric, bridge: Arc::default() })
    }

    pub fn ns(&self) -> &Ns {
        &self.host.ns
    }

    /// Host mode: the task listens on the agent's own addresses.
    pub fn spawn_host(&self, task: &Task) -> anyhow::Result<Running> {
        let ns = self.host.ns.clone();
        Ok(Running { process: start(&ns, task)?, addresses: Vec::new(), _mapped: None, ns })
    }

    /// Container mode: the task has addresses of its own on the network.
    pub fn spawn_container(&self, task: &Task) -> anyhow::Result<Running> {
        let container = self.fabric.container("container")?;
        let addresses = container.addresses();
        Ok(Running { process: start(&container.ns, task)?, addresses, _mapped: None, ns: container.ns })
    }

    /// Bridge mode: the task has a private address behind the agent, and ports of the agent lead to it.
    pub fn spawn_bridged(&self, task: &Task, mappings: &[Mapping]) -> anyhow::Result<Running> {
        self.make_bridge().context("cannot make the agent's bridge")?;
        let n = self.bridge.containers.fetch_add(1, Ordering::Relaxed);
        let address = Ipv4Addr::new(172, 17, 1 + (n / 250) as u8, 1 + (n % 250) as u8);
        let ns = Ns::new()?;
        quiet(&ns)?;
        self.host.ns.ip(&format!(
            "link add d{n} type veth peer name eth0 netns {}\nlink set d{n} master docker0\nlink set d{n} up\n",
            ns.path()
        ))?;
        ns.ip(&format!("addr add {address}/16 dev eth0\nlink set eth0 up\nroute add default via 172.17.0.1\n"))?;
        let process = start(&ns, task)?;
        let mapped = Mapped::new(self.host.ns.clone(), address, mappings)?;
        Ok(Running { process, addresses: vec![address.into()], _mapped: Some(mapped), ns })
    }

    fn make_bridge(&self) -> anyhow::Result<()> {
        let _one = self.bridge.making.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if self.bridge.made.get().is_some() {
            return Ok(());
        }
        let ns = &self.host.ns;
        ns.sysctl("ipv4/ip_forward", "1")?;
        ns.ip(
            "link add docker0 type bridge forward_delay 0\naddr add 172.17.0.1/16 dev docker0\nlink set docker0 up\n",
        )?;
        ns.nft(
            "table ip lab {
                map tcp_ports { type inet_service : ipv4_addr . inet_service; }
                map udp_ports { type inet_service : ipv4_addr . inet_service; }
                chain to_containers {
                    type nat hook prerouting priority dstnat;
                    iifname != docker0 dnat ip to tcp dport map @tcp_ports
                    iifname != docker0 dnat ip to udp dport map @udp_ports
                }
                chain from_containers {
                    type nat hook postrouting priority srcnat;
                    ip saddr 172.17.0.0/16 oifname != docker0 masquerade
                }
            }",
        )?;
        let _ = self.bridge.made.set(());
        Ok(())
    }
}

/// Ports of an agent that lead to a container until dropped.
#[derive(Debug)]
struct Mapped {
    agent: Ns,
    elements: Vec<String>,
}

impl Mapped {
    fn new(agent: Ns, address: Ipv4Addr, mappings: &[Mapping]) -> anyhow::Result<Self> {
        let mut mapped = Self { agent, elements: Vec::new() };
        for Mapping { host, container, protocol } in mappings {
            let map = match protocol {
                Protocol::Tcp => "tcp_ports",
                Protocol::Udp => "udp_ports",
            };
            mapped
                .agent
                .nft(&format!("add element ip lab {map} {{ {host} : {address} . {container} }}"))
                .with_context(|| format!("cannot map port {host} (taken by another task?)"))?;
            mapped.elements.push(format!("delete element ip lab {map} {{ {host} : {address} . {container} }}\n"));
        }
        Ok(mapped)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let _ = self.agent.nft(&self.elements.concat());
    }
}

fn start(ns: &Ns, task: &Task) -> anyhow::Result<Process> {
    let mut command = Command::new(&task.program);
    command.args(&task.args).envs(task.env.iter().cloned()).stdin(Stdio::null());
    match &task.log {
        None => command.stdout(Stdio::null()).stderr(Stdio::null()),
        Some(path) => {
            let log = File::options().create(true).append(true).open(path);
            let log = log.with_context(|| format!("cannot open the log {}", path.display()))?;
            command.stdout(log.try_clone()?).stderr(log)
        }
    };
    ns.start(command).with_context(|| format!("cannot start {}", task.program.display()))
}
