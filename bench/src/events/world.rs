//! A Marathon with many apps, a Tidegate that follows it, and two instances that can be heard.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tidegate_tests::{
    appliance::{self, Appliance},
    lab::{Fabric, Host, addresses},
    marathon::{Config, Dialer, Standin, SyntheticChange, SyntheticTask},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::Runtime,
};

use super::probe::{Plane, SOURCES};

/// Of every app.
pub(super) const INSTANCES: usize = 10;
/// What the two instances of `/probe` answer.
pub(super) const NAMES: [&str; 2] = ["left", "right"];
const PORT: u16 = 8080;
const PROBE: &str = "/probe";
/// Addresses for an ELB of each app.
const POOL: &str = "10.80.0.0/16";

/// Where the instances of `/probe` are.
pub(super) const fn instance(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 2, 1 + index as u8)
}

pub(super) struct World {
    pub(super) client: Host,
    pub(super) loaded: Loaded,
    appliance: Appliance,
    marathon: Standin,
    runtime: Runtime,
    /// Which of the two is healthy.
    healthy: AtomicUsize,
    tasks: [String; 2],
    size: usize,
    vips: std::sync::OnceLock<[Ipv4Addr; 2]>,
    /// Holds the two instances and Marathon's machine.
    _hosts: Vec<Host>,
    _fabric: Fabric,
}

/// What it took to load the table from nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loaded {
    pub(super) after: Duration,
    pub(super) resident_mb: f64,
    pub(super) cpu_s: f64,
}

impl World {
    pub(super) fn lay_out(size: usize) -> anyhow::Result<Self> {
        let fabric = Fabric::new()?;
        let client = fabric.host("client", addresses::CLIENT)?;
        let machine = fabric.appliance("appliance", addresses::APPLIANCE)?;
        let marathon = fabric.host("marathon", addresses::MARATHON)?;
        let mut hosts = Vec::new();
        for name in NAMES {
            let host = fabric.container(name)?;
            answer_with(&host, name)?;
            hosts.push(host);
        }
        // The VIPs are not on the fabric's own network: the client is told the way.
        client.ns.ip(&format!("route add {POOL} via {}", addresses::APPLIANCE.0))?;
        for source in SOURCES {
            client.ns.ip(&format!("addr add {source}/16 dev eth0"))?;
        }

        let runtime = Runtime::new()?;
        let at = SocketAddr::from((addresses::MARATHON.0, PORT));
        let listener = marathon.ns.run(|| TcpListener::bind(at)).context("listening for Marathon")?;
        let config = Config {
            nodes: vec![(listener, at.to_string())],
            agents: Vec::new(),
            dialer: Dialer::Lab(marathon.ns.clone()),
            settings: Default::default(),
        };
        let standin = {
            let _inside = runtime.enter();
            Standin::start(config)?
        };
        standin.add_synthetic((1..size).map(filler))?;
        standin.add_synthetic([probe()])?;
        hosts.push(marathon);
        let tasks: Vec<String> = standin.tasks(PROBE).iter().map(|task| task.id.to_string()).collect();
        let tasks: [String; 2] = place(&standin, tasks)?;
        for (task, alive) in [(&tasks[0], true), (&tasks[1], false)] {
            standin.push(PROBE, SyntheticChange::Health(task.clone(), alive))?;
        }

        let settings = appliance::Settings { vips: vec![POOL.to_owned()], ..appliance::Settings::default() };
        let began = Instant::now();
        let appliance = Appliance::start(&machine, &settings)?;
        let pid = appliance.pid().context("it was just started")?;
        wait_for_apps(&appliance, size)?;
        let loaded = Loaded { after: began.elapsed(), resident_mb: resident_mb(pid)?, cpu_s: cpu_s(pid)? };
        Ok(Self {
            client,
            loaded,
            appliance,
            marathon: standin,
            runtime,
            healthy: AtomicUsize::new(0),
            tasks,
            size,
            vips: std::sync::OnceLock::new(),
            _hosts: hosts,
            _fabric: fabric,
        })
    }

    /// Tidegate's.
    pub(super) fn pid(&self) -> anyhow::Result<Pid> {
        Ok(Pid::from_raw(self.appliance.pid().context("tidegate has ended")?.cast_signed()))
    }

    /// An ELB for each app, nine of ten of layer 4, and one of each layer for `/probe`; how many there are.
    pub(super) fn make_elbs(&self) -> anyhow::Result<usize> {
        for n in 1..self.size {
            let spec = if n % 10 == 0 {
                json!({"type": "layer7", "rules": [{"host": format!("app-{n}.test"), "app": app(n)}]})
            } else {
                json!({"type": "layer4", "app": app(n), "ports": [{"listen": 80, "target": PORT}]})
            };
            self.appliance.put_elb(&format!("app-{n}"), &spec)?;
        }
        let four =
            json!({"type": "layer4", "app": PROBE, "ports": [{"listen": 9000, "target": PORT, "protocol": "udp"}]});
        let seven = json!({"type": "layer7", "rules": [{"host": "probe.test", "app": PROBE}]});
        let mut vips = [Ipv4Addr::UNSPECIFIED; 2];
        for (vip, (name, spec)) in vips.iter_mut().zip([("probe-4", four), ("probe-7", seven)]) {
            let elb = self.appliance.put_elb(name, &spec)?;
            *vip = elb["vips"][0].as_str().context("an ELB has a VIP")?.parse()?;
            self.appliance.wait_ready(name)?;
        }
        self.vips.set(vips).map_err(|_| anyhow::anyhow!("the ELBs were made before"))?;
        Ok(self.size + 1)
    }

    pub(super) fn endpoint(&self, plane: Plane) -> SocketAddr {
        let vips = self.vips.get().expect("the ELBs are made before anybody asks");
        match plane {
            Plane::Packet => (vips[0], 9000).into(),
            Plane::Request => (vips[1], 80).into(),
            Plane::Dns => (addresses::APPLIANCE.0, 53).into(),
        }
    }

    /// The healthy instance of `/probe` falls ill and the other one gets well: when that was said, and who that is.
    pub(super) fn switch_over(&self) -> anyhow::Result<(Instant, usize)> {
        let ill = self.healthy.load(Ordering::Relaxed);
        let heir = 1 - ill;
        let said = self.marathon.push(PROBE, SyntheticChange::Health(self.tasks[heir].clone(), true))?;
        self.marathon.push(PROBE, SyntheticChange::Health(self.tasks[ill].clone(), false))?;
        let written =
            self.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(5), said.written()).await });
        self.healthy.store(heir, Ordering::Relaxed);
        Ok((written.context("tidegate does not listen to Marathon's events")?, heir))
    }
}

fn app(n: usize) -> String {
    format!("/group-{}/app-{n}", n % 100)
}

fn definition(id: &str) -> Value {
    json!({
        "id": id,
        "networks": [{"mode": "container", "name": "fabric"}],
        "container": {"type": "MESOS", "portMappings": [{"containerPort": PORT, "protocol": "tcp,udp", "name": "http"}]},
    })
}

fn task(address: Ipv4Addr) -> SyntheticTask {
    SyntheticTask { host: addresses::HOST_A.0.to_string(), ports: Vec::new(), addresses: vec![address.into()] }
}

fn filler(n: usize) -> (Value, Vec<SyntheticTask>) {
    let address = |i: usize| {
        let [_, b, c, d] = u32::try_from(n * INSTANCES + i).expect("a small number").to_be_bytes();
        Ipv4Addr::new(10, 88 + b, c, d)
    };
    (definition(&app(n)), (0..INSTANCES).map(|i| task(address(i))).collect())
}

fn probe() -> (Value, Vec<SyntheticTask>) {
    let mut json = definition(PROBE);
    json["healthChecks"] = json!([{"protocol": "MESOS_HTTP", "path": "/", "portIndex": 0}]);
    (json, (0..2).map(|i| task(instance(i))).collect())
}

/// The tasks in the order of their addresses.
fn place(standin: &Standin, tasks: Vec<String>) -> anyhow::Result<[String; 2]> {
    let mut places = standin.tasks(PROBE);
    places.sort_by_key(|task| task.addresses.clone());
    let sorted: Vec<String> = places.iter().map(|task| task.id.to_string()).collect();
    sorted.try_into().map_err(|_| anyhow::anyhow!("/probe has two tasks, not {}", tasks.len()))
}

/// UDP and HTTP on the same port: the answer is the instance's name.
fn answer_with(host: &Host, name: &'static str) -> anyhow::Result<()> {
    let udp = host.ns.run(|| UdpSocket::bind(("0.0.0.0", PORT)))?;
    std::thread::spawn(move || {
        let mut question = [0; 64];
        while let Ok((_, client)) = udp.recv_from(&mut question) {
            let _ = udp.send_to(name.as_bytes(), client);
        }
    });
    host.ns.block_on(async move {
        let listener = tokio::net::TcpListener::bind(("0.0.0.0", PORT)).await?;
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}.", name.len() + 1);
                    let mut question = [0; 4096];
                    while stream.read(&mut question).await.is_ok_and(|length| length > 0) {
                        if stream.write_all(answer.as_bytes()).await.is_err() {
                            break;
                        }
                    }
                });
            }
        });
        anyhow::Ok(())
    })
}

fn wait_for_apps(appliance: &Appliance, size: usize) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let status = appliance.status()?;
        let instances = status["instances"].as_u64().unwrap_or(0);
        if instances >= ((size - 1) * INSTANCES) as u64 + 2 {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("tidegate knows {instances} instances after two minutes\n{}", appliance.log_tail());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn resident_mb(pid: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1_000.0)
}

/// User and system time of a process so far.
fn cpu_s(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let rest = stat.rsplit(')').next().context("no end of the name")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    // USER_HZ is 100 on every Linux that Rust runs on.
    Ok(ticks as f64 / 100.0)
}
