//! A whole cluster on one network: a client, the machine for Tidegate, two Marathons, two agents.

use std::{
    fmt,
    future::Future,
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use anyhow::Context;
use serde_json::{Value, json};
use tokio::runtime;

use crate::{
    appliance::binary,
    lab::{Agent, Fabric, Host, addresses},
    marathon::{Config, Dialer, Place, Settings, Standin},
};

/// The port of every Marathon.
const MARATHON_PORT: u16 = 8080;
/// How long a deployment may take.
const DEPLOYED: Duration = Duration::from_secs(60);

pub struct Cluster {
    /// `None` only while it is dropped. First, so that tasks end before their machines.
    standin: Option<Standin>,
    runtime: runtime::Runtime,
    pub client: Host,
    pub appliance: Host,
    pub marathon: Host,
    pub standby: Host,
    pub agents: Vec<Agent>,
    pub fabric: Fabric,
}

impl Cluster {
    pub fn start() -> anyhow::Result<Self> {
        let fabric = Fabric::new()?;
        let client = fabric.host("client", addresses::CLIENT)?;
        let appliance = fabric.appliance("appliance", addresses::APPLIANCE)?;
        let marathon = fabric.host("marathon", addresses::MARATHON)?;
        let standby = fabric.host("standby", addresses::STANDBY)?;
        let agents = vec![fabric.agent("host-a", addresses::HOST_A)?, fabric.agent("host-b", addresses::HOST_B)?];
        let mut nodes = Vec::new();
        // The last is where the embedded defaults of a Tidegate look for Marathon.
        for (host, at) in [(&marathon, marathon.v4), (&standby, standby.v4), (&appliance, [127, 0, 0, 1].into())] {
            let at = SocketAddr::new(at.into(), MARATHON_PORT);
            let listener = host.ns.run(|| TcpListener::bind(at)).with_context(|| format!("cannot listen on {at}"))?;
            nodes.push((listener, at.to_string()));
        }
        let config = Config {
            nodes,
            agents: agents.iter().cloned().map(Place::Lab).collect(),
            dialer: Dialer::Lab(marathon.ns.clone()),
            settings: Settings::default(),
        };
        let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let standin = runtime.block_on(async { Standin::start(config) })?;
        Ok(Self { standin: Some(standin), runtime, client, appliance, marathon, standby, agents, fabric })
    }

    pub fn standin(&self) -> &Standin {
        self.standin.as_ref().expect("taken only by drop")
    }

    /// Asks something of Marathon, in the runtime that it lives in.
    pub fn ask<T>(&self, ask: impl FnOnce(&Standin) -> T) -> T {
        let _inside = self.runtime.enter();
        ask(self.standin())
    }

    /// Waits for something that Marathon does. Not for use inside a task.
    pub fn wait<T>(&self, task: impl Future<Output = T>) -> T {
        self.runtime.block_on(task)
    }

    /// Creates or updates an app, and waits until its deployment is over.
    pub fn deploy(&self, app: &Value) -> anyhow::Result<()> {
        self.ask(|marathon| marathon.put_app(app.clone()))?;
        self.deployed(app["id"].as_str().context("an app needs an id")?)
    }

    /// Scales an app, and waits until its deployment is over.
    pub fn scale(&self, id: &str, instances: u32) -> anyhow::Result<()> {
        self.ask(|marathon| marathon.scale(id, instances))?;
        self.deployed(id)
    }

    pub fn deployed(&self, id: &str) -> anyhow::Result<()> {
        self.wait(self.standin().wait_deployments_done(id, DEPLOYED))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(standin) = self.standin.take() {
            let _ = self.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(5), standin.stop()).await });
        }
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("standin", &self.standin).finish_non_exhaustive()
    }
}

/// An app that answers who it is: in container mode, with its own addresses, on port 8080 (`http`, TCP and UDP).
pub fn demo_app(id: &str, instances: u32) -> Value {
    let program = binary("demo_app");
    json!({
        "id": id,
        "cmd": format!("exec {} --port 8080", program.display()),
        "cpus": 0.1,
        "mem": 32,
        "instances": instances,
        "networks": [{"mode": "container", "name": "fabric"}],
        "container": {"type": "MESOS", "portMappings": [{"containerPort": 8080, "protocol": "tcp,udp", "name": "http"}]},
        "healthChecks": [{
            "protocol": "MESOS_HTTP", "path": "/health", "portIndex": 0,
            "gracePeriodSeconds": 10, "intervalSeconds": 1, "timeoutSeconds": 2, "maxConsecutiveFailures": 3
        }],
        "taskKillGracePeriodSeconds": 10,
        "labels": {"owner": "demo"}
    })
}

/// An app whose every instance owns these VIPs itself and takes tunnels apart (`tidegate real join`), so that every way
/// to forward leads to it. Its pins are in a file system of its own, which ends with it.
#[must_use]
pub fn joined(mut app: Value, vips: &[&str]) -> Value {
    let join: String = vips.iter().map(|vip| format!(" --vip {vip}")).collect();
    let tidegate = binary("tidegate");
    let before = app["cmd"].as_str().expect("an app of the stories has a command").trim_start_matches("exec ");
    app["cmd"] = json!(format!(
        "exec unshare --mount /bin/sh -c 'mount -t bpf bpf /sys/fs/bpf && {} real join{join} >&2 && exec \"$@\"' joined {before}",
        tidegate.display()
    ));
    app
}
