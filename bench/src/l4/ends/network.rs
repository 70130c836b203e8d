//! The machines on one switch: a client, two servers, and a machine for each balancer, so that none is in another's way.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::Context;
use aya::programs::links::FdLink;
use imbl::{OrdMap, OrdSet};
use tidegate_ebpf::abi::Hop;
use tidegate_l4::{Forward, Frontend, Input, Protocol, Real, RealState, Service, real};
use tidegate_tests::lab::{Fabric, Host, Ns, Process, addresses};

use crate::{
    l4::{
        harness,
        ours::{Ours, Room},
        peers::{self, HAPROXY, NFT, NGINX, STREAM},
        world,
    },
    machine::Cores,
    peers::configure,
};

pub(super) const OURS_NAT: &str = "FULLNAT";
pub(super) const OURS_DIRECT: &str = "DIRECT";
pub(super) const OURS_IPIP: &str = "IPIP";
pub(super) const DIRECT_TO_SERVER: &str = "no balancer";
pub(super) const NFT_RULES: &str = "nft";
pub(super) const HAPROXY_TCP: &str = "haproxy";
pub(super) const NGINX_STREAM: &str = "nginx stream";

const SERVERS: u8 = 2;
const BODY: usize = 128;

/// Whom wrk asks.
pub(super) struct Contender {
    pub(super) name: &'static str,
    pub(super) vip: Ipv4Addr,
    /// None: it is all in the kernel.
    pub(super) process: Option<Process>,
}

pub(super) struct Network {
    pub(super) client: Ns,
    /// Servers of their own for the tunnel: what takes it apart would slow the others' packets down. They leave before
    /// their machines go.
    joined: Vec<(Joined, Process, Host)>,
    fabric: Fabric,
    servers: Vec<(Host, Process)>,
    /// The balancers' machines, and ours.
    machines: Vec<Host>,
    ours: Option<(Ours, FdLink)>,
}

impl Network {
    pub(super) fn lay(dir: &Path, cores: Cores) -> anyhow::Result<Self> {
        let fabric = Fabric::new()?;
        let client = fabric.host("client", addresses::CLIENT)?.ns;
        client.sysctl("ipv4/ip_local_port_range", "1024 65535")?;
        let mut servers = Vec::new();
        for n in 0..SERVERS {
            let host = fabric.container("server")?;
            let process = serve(&host.ns, &dir.join(format!("server-{n}")), cores.server)?;
            servers.push((host, process));
        }
        Ok(Self { client, joined: Vec::new(), fabric, servers, machines: Vec::new(), ours: None })
    }

    /// Servers that have joined as reals behind a tunnel.
    fn join(&mut self, dir: &Path, core: usize, vip: Ipv4Addr) -> anyhow::Result<()> {
        for n in 1..=SERVERS {
            let at = (Ipv4Addr::new(10, 77, 3, n), Ipv6Addr::new(0xfd77, 0, 3, 0, 0, 0, 0, n.into()));
            // As the balancer's machine: its link is ready for a native program.
            let host = self.fabric.appliance("joined", at)?;
            let joined = Joined::new(&host.ns, vip)?;
            let process = serve(&host.ns, &dir.join(format!("joined-{n}")), core)?;
            self.joined.push((joined, process, host));
        }
        Ok(())
    }

    pub(super) fn servers(&self) -> impl Iterator<Item = u32> {
        let joined = self.joined.iter().map(|(_, process, _)| process.pid());
        self.servers.iter().map(|(_, process)| process.pid()).chain(joined)
    }

    /// Ours must be there; a peer that is not is left out aloud.
    pub(super) fn contenders(
        &mut self,
        dir: &Path,
        cores: Cores,
        notes: &mut Vec<String>,
    ) -> anyhow::Result<Vec<Contender>> {
        let first = self.servers[0].0.v4;
        let mut contenders = vec![Contender { name: DIRECT_TO_SERVER, vip: first, process: None }];
        if let Err(problem) = self.join(dir, cores.server, vip(IPIP_VIP)) {
            self.joined.clear();
            notes.push(format!("{OURS_IPIP} is not measured end to end: {problem:#}"));
        }
        contenders.extend(self.ours()?);
        let mut add = |name, contender: anyhow::Result<Contender>| match contender {
            Ok(contender) => contenders.push(contender),
            Err(problem) => notes.push(format!("{name} is not measured end to end: {problem:#}")),
        };
        if NFT.is_there() {
            add(NFT_RULES, self.nft());
        }
        if HAPROXY.is_there() {
            add(HAPROXY_TCP, self.haproxy(dir, cores.server));
        }
        if STREAM.is_there() {
            add(NGINX_STREAM, self.nginx(dir, cores.server));
        }
        Ok(contenders)
    }

    fn ours(&mut self) -> anyhow::Result<Vec<Contender>> {
        let machine = self.fabric.appliance("ours", (Ipv4Addr::new(10, 77, 0, 1), addresses::APPLIANCE.1))?;
        let room = Room { v4: 200_000, v6: 1 };
        let plain: Vec<&Host> = self.servers.iter().map(|(host, _)| host).collect();
        let joined: Vec<&Host> = self.joined.iter().map(|(.., host)| host).collect();
        let mut modes =
            vec![(OURS_NAT, Forward::FullNat, vip(1), &plain), (OURS_DIRECT, Forward::Direct, vip(2), &plain)];
        if !joined.is_empty() {
            modes.push((OURS_IPIP, Forward::IpIp, vip(IPIP_VIP), &joined));
        }
        let services: OrdMap<_, _> = modes
            .iter()
            .map(|&(_, forward, vip, hosts)| {
                let real =
                    |host: &&Host| Real { address: host.v4.into(), port: 80, weight: 1, state: RealState::Active };
                let reals = hosts.iter().map(real).collect();
                let frontend = Frontend { vip: vip.into(), port: 80, protocol: Protocol::Tcp };
                (frontend, Arc::new(Service { reals, forward, ..Service::default() }))
            })
            .collect();
        let announce: OrdSet<_> = services.keys().map(|frontend: &Frontend| frontend.vip).collect();
        let input = Input { generation: 1, services, announce };

        // Everybody knows everybody's hardware address: nothing here waits for an answer to that.
        machine.ns.ip(&known([(addresses::CLIENT.0, mac(addresses::CLIENT.0))]))?;
        for family in ["ipv4", "ipv6"] {
            machine.ns.sysctl(&format!("{family}/conf/eth0/forwarding"), "1")?;
        }
        let locals = room.locals().into_iter().filter_map(|local| match local {
            IpAddr::V4(local) => Some((local, mac(machine.v4))),
            IpAddr::V6(_) => None,
        });
        let locals = known(locals);
        for host in &plain {
            host.ns.ip(&locals)?;
            // The VIP is this machine's too, and nobody hears of it.
            for interface in ["all", "eth0"] {
                host.ns.sysctl(&format!("ipv4/conf/{interface}/arp_ignore"), "1")?;
                host.ns.sysctl(&format!("ipv4/conf/{interface}/arp_announce"), "2")?;
            }
            host.ns.ip(&format!("addr add {}/32 dev lo\n", vip(2)))?;
        }
        self.client.ip(&known(modes.iter().map(|&(_, _, vip, _)| (vip, mac(machine.v4)))))?;
        let (ours, link) = machine.ns.run(|| -> anyhow::Result<_> {
            let mut ours = Ours::load(room)?;
            let index = world::index("eth0")?;
            let way = |real| match real {
                IpAddr::V4(real) => world::hop(index, &mac(machine.v4), &mac(real)),
                IpAddr::V6(_) => Hop::default(),
            };
            ours.give(&input, &way)?;
            let link = harness::attach(ours.program()?, "eth0")?;
            Ok((ours, link))
        })?;
        let contenders = modes.iter().map(|&(name, _, vip, _)| Contender { name, vip, process: None }).collect();
        self.ours = Some((ours, link));
        self.machines.push(machine);
        Ok(contenders)
    }

    fn nft(&mut self) -> anyhow::Result<Contender> {
        let (vip, machine) = self.machine("nft", 3)?;
        let reals: Vec<String> = self.servers.iter().map(|(host, _)| host.v4.to_string()).collect();
        machine.nft(&peers::rules(&vip.to_string(), &reals, true))?;
        machine.sysctl("ipv4/ip_forward", "1")?;
        for interface in ["all", "eth0"] {
            machine.sysctl(&format!("ipv4/conf/{interface}/send_redirects"), "0")?;
        }
        // Otherwise the table of connections fills with closed ones, and the peer would be measured refusing.
        machine.sysctl("netfilter/nf_conntrack_tcp_timeout_time_wait", "1")?;
        machine.sysctl("netfilter/nf_conntrack_tcp_timeout_close_wait", "1")?;
        Ok(Contender { name: NFT_RULES, vip, process: None })
    }

    fn haproxy(&mut self, dir: &Path, core: usize) -> anyhow::Result<Contender> {
        let (vip, machine) = self.machine("haproxy", 4)?;
        machine.ip(&format!("addr add {vip}/32 dev eth0\n"))?;
        let dir = made(dir.join("haproxy"))?;
        let mut servers = String::new();
        for (n, (host, _)) in self.servers.iter().enumerate() {
            let _ = writeln!(servers, "    server s{n} {}:80", host.v4);
        }
        let values = [("vip", vip.to_string()), ("servers", servers)];
        let values = values.each_ref().map(|(name, value)| (*name, value.as_str()));
        let file = configure(&dir, "haproxy.cfg", include_str!("../../../peers/l4-haproxy.cfg"), &values)?;
        // In the foreground, without a master process.
        let process = start(&machine, &dir, core, HAPROXY.program, &["-db", "-f", &file])?;
        Ok(Contender { name: HAPROXY_TCP, vip, process: Some(process) })
    }

    fn nginx(&mut self, dir: &Path, core: usize) -> anyhow::Result<Contender> {
        let (vip, machine) = self.machine("nginx", 5)?;
        machine.ip(&format!("addr add {vip}/32 dev eth0\n"))?;
        let dir = made(dir.join("nginx"))?;
        let servers: String = self.servers.iter().map(|(host, _)| format!("server {}:80; ", host.v4)).collect();
        let values = [("vip", vip.to_string()), ("servers", servers), ("module", STREAM.program.to_owned())];
        let values = values.each_ref().map(|(name, value)| (*name, value.as_str()));
        let file = configure(&dir, "nginx.conf", include_str!("../../../peers/l4-nginx.conf"), &values)?;
        let process = start_nginx(&machine, &dir, core, &file)?;
        Ok(Contender { name: NGINX_STREAM, vip, process: Some(process) })
    }

    /// A machine for a peer, and the address that the client finds there.
    fn machine(&mut self, name: &str, n: u8) -> anyhow::Result<(Ipv4Addr, Ns)> {
        let at = (Ipv4Addr::new(10, 77, 0, 20 + n), Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x20 + u16::from(n)));
        let machine = self.fabric.host(name, at)?;
        machine.ns.sysctl("ipv4/ip_local_port_range", "1024 65535")?;
        self.client.ip(&known([(vip(n), mac(machine.v4))]))?;
        let ns = machine.ns.clone();
        self.machines.push(machine);
        Ok((vip(n), ns))
    }
}

/// Others than those of the peers' machines.
const IPIP_VIP: u8 = 10;

/// A real, for as long as this is there.
struct Joined {
    ns: Ns,
    folder: PathBuf,
}

impl Joined {
    fn new(ns: &Ns, vip: Ipv4Addr) -> anyhow::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = real::folder().with_file_name(format!("tidegate-bench-{}-{number}", std::process::id()));
        let joined = Self { ns: ns.clone(), folder: folder.clone() };
        let join = real::Join {
            vips: [vip.into()].into(),
            interface: Some("eth0".into()),
            tunnel: real::Tunnel::IpIp,
            folder,
            ..real::Join::default()
        };
        ns.block_on(async move { real::join(&join).await.map(drop) })?;
        Ok(joined)
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        let folder = self.folder.clone();
        if let Err(problem) = self.ns.block_on(async move { real::leave(&folder).await }) {
            eprintln!("{} is left behind: {problem:#}", self.folder.display());
        }
    }
}

const fn vip(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 100, n)
}

/// As the lab gives them.
fn mac(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("02:77:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// Lines for `ip`.
fn known(neighbours: impl IntoIterator<Item = (Ipv4Addr, String)>) -> String {
    let mut lines = String::new();
    for (address, mac) in neighbours {
        let _ = writeln!(lines, "neigh replace {address} lladdr {mac} dev eth0 nud permanent");
    }
    lines
}

fn made(dir: PathBuf) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    Ok(dir)
}

/// The server behind every balancer.
fn serve(ns: &Ns, dir: &Path, core: usize) -> anyhow::Result<Process> {
    std::fs::create_dir_all(dir.join("put"))?;
    std::fs::write(dir.join("megabyte"), vec![b'x'; super::MEGABYTE])?;
    let body = "x".repeat(BODY);
    let file = configure(dir, "nginx.conf", include_str!("../../../peers/l4-backend.conf"), &[("body", &body)])?;
    start_nginx(ns, dir, core, &file)
}

fn start_nginx(ns: &Ns, dir: &Path, core: usize, file: &str) -> anyhow::Result<Process> {
    let place = dir.display().to_string();
    let early = dir.join("early.log").display().to_string();
    start(ns, dir, core, NGINX.program, &["-c", file, "-p", &place, "-e", &early])
}

/// On one core; killed when dropped.
fn start(ns: &Ns, dir: &Path, core: usize, program: &str, arguments: &[&str]) -> anyhow::Result<Process> {
    let log = std::fs::File::create(dir.join("log"))?;
    let mut command = Command::new("taskset");
    command.args(["-c", &core.to_string(), program]).args(arguments).current_dir(dir).stdin(Stdio::null());
    command.stdout(log.try_clone()?).stderr(log);
    ns.start(command).with_context(|| format!("starting {program} by taskset (package util-linux)"))
}
