//! Where tasks run: agents, and the processes that they start.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use nix::{
    sys::{
        prctl,
        signal::{Signal, killpg},
    },
    unistd::{Pid, setsid},
};
use tokio::{net::TcpStream, process, time::timeout};

use super::definition::Network;
use crate::lab;

/// An agent of the cluster.
#[derive(Debug)]
pub enum Place {
    /// This machine's loopback, for tests without privileges: host mode only.
    Local { name: String },
    /// A machine of the lab: every network mode.
    Lab(lab::Agent),
}

/// From where Marathon's own health checks are sent.
#[derive(Clone, Debug, Default)]
pub enum Dialer {
    #[default]
    Local,
    Lab(lab::Ns),
}

/// What an agent is asked to start.
#[derive(Debug)]
pub(crate) struct Launch {
    pub command: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub network: Network,
    pub mappings: Vec<lab::Mapping>,
    /// A directory for its output.
    pub sandbox: PathBuf,
}

/// A started task. Dropped, it is killed.
#[derive(Debug)]
pub(crate) enum Spawned {
    Local { child: Mutex<Option<process::Child>>, pid: Pid, ended: AtomicBool },
    Lab(Box<lab::Running>),
}

impl Place {
    /// As Marathon writes the agent's host; an address, so that nobody needs a resolver.
    pub fn host(&self) -> String {
        match self {
            Place::Local { name } => name.clone(),
            Place::Lab(agent) => agent.host.v4.to_string(),
        }
    }

    /// The address of tasks on the agent's own network.
    fn address(&self) -> IpAddr {
        match self {
            Place::Local { .. } => Ipv4Addr::LOCALHOST.into(),
            Place::Lab(agent) => agent.host.v4.into(),
        }
    }

    /// Whether nobody on this agent listens on the port yet.
    pub(crate) fn is_free(&self, port: u16) -> bool {
        match self {
            Place::Local { .. } => std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok(),
            // Only our tasks live there.
            Place::Lab(_) => true,
        }
    }

    /// Starts a task; the addresses are those that Mesos reports (the agent's own in host mode).
    pub(crate) async fn spawn(&self, launch: Launch) -> anyhow::Result<(Spawned, Vec<IpAddr>)> {
        std::fs::create_dir_all(&launch.sandbox).context("cannot make the task's sandbox")?;
        ensure!(!launch.command.is_empty(), "the app has no command (images are not pulled here): give it a cmd");
        match self {
            Place::Local { .. } => {
                if launch.network != Network::Host {
                    bail!("bridge and container networks need the lab: run as root, or use host mode");
                }
                Ok((spawn_local(&launch)?, vec![self.address()]))
            }
            Place::Lab(agent) => {
                let (agent, host) = (agent.clone(), self.address());
                let spawned = tokio::task::spawn_blocking(move || spawn_in_lab(&agent, &launch)).await??;
                let addresses = match spawned.addresses.is_empty() {
                    true => vec![host],
                    false => spawned.addresses.clone(),
                };
                Ok((Spawned::Lab(Box::new(spawned)), addresses))
            }
        }
    }
}

fn spawn_local(launch: &Launch) -> anyhow::Result<Spawned> {
    let log = |name: &str| std::fs::File::create(launch.sandbox.join(name)).context("cannot make the task's log");
    let mut command = process::Command::new(&launch.command[0]);
    command.args(&launch.command[1..]).envs(&launch.env).current_dir(&launch.sandbox).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(log("stdout")?).stderr(log("stderr")?);
    // SAFETY: both calls are async-signal-safe and touch no memory of the parent.
    unsafe {
        command.pre_exec(|| {
            // Its own session: signals reach everything it starts, and Ctrl-C of a terminal does not.
            setsid()?;
            Ok(prctl::set_pdeathsig(Signal::SIGKILL)?)
        });
    }
    let child = command.spawn().with_context(|| format!("cannot start {}", launch.command[0]))?;
    let pid = Pid::from_raw(child.id().expect("just started").try_into().expect("process ids are below 2^22"));
    Ok(Spawned::Local { child: Mutex::new(Some(child)), pid, ended: AtomicBool::new(false) })
}

fn spawn_in_lab(agent: &lab::Agent, launch: &Launch) -> anyhow::Result<lab::Running> {
    let task = lab::Task {
        // setsid runs the command in its own process (it leads no group yet), and gives us a group to signal.
        program: "setsid".into(),
        args: launch.command.clone(),
        env: launch.env.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        log: Some(launch.sandbox.join("stdout")),
    };
    match launch.network {
        Network::Host => agent.spawn_host(&task),
        // Mapped ports of a container with an address of its own are not laid out here: it is bridged instead.
        Network::Container if launch.mappings.is_empty() => agent.spawn_container(&task),
        Network::Container | Network::Bridge => agent.spawn_bridged(&task, &launch.mappings),
    }
}

impl Spawned {
    pub(crate) fn pid(&self) -> i32 {
        match self {
            Spawned::Local { pid, .. } => pid.as_raw(),
            Spawned::Lab(running) => running.process.pid() as i32,
        }
    }

    /// Resolves when the task's first process has ended; call it once at a time.
    pub(crate) async fn ended(&self) -> Option<ExitStatus> {
        match self {
            Spawned::Local { child, ended, .. } => {
                let mut held = child.lock().expect("nobody panics with it").take()?;
                let status = held.wait().await.ok();
                ended.store(true, Ordering::Relaxed);
                // What it has left behind.
                self.signal(Signal::SIGKILL);
                status
            }
            Spawned::Lab(running) => {
                let status = running.process.ended().await;
                self.signal(Signal::SIGKILL);
                status
            }
        }
    }

    /// Signals the task and everything that it started.
    pub(crate) fn signal(&self, signal: Signal) {
        // A group that is gone is no error: the task was faster.
        let _ = killpg(Pid::from_raw(self.pid()), signal);
    }

    /// Runs a command health check where the task runs.
    pub(crate) async fn check(
        &self,
        command: &str,
        env: &BTreeMap<String, String>,
        limit: Duration,
    ) -> Result<(), String> {
        let status = match self {
            Spawned::Local { .. } => {
                let mut shell = process::Command::new("/bin/sh");
                shell.args(["-c", command]).envs(env).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                let run = async { shell.kill_on_drop(true).status().await };
                timeout(limit, run).await.map_err(|_| "timed out".to_owned())?.map_err(|e| e.to_string())?
            }
            Spawned::Lab(running) => {
                let mut shell = std::process::Command::new("/bin/sh");
                shell.args(["-c", command]).envs(env).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                let process = running.ns.start(shell).map_err(|e| e.to_string())?;
                match timeout(limit, process.ended()).await {
                    Ok(Some(status)) => status,
                    _ => return Err("timed out".to_owned()),
                }
            }
        };
        if status.success() { Ok(()) } else { Err(format!("Command exited with {}", describe(status))) }
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        let running = match self {
            Spawned::Local { ended, .. } => !ended.load(Ordering::Relaxed),
            Spawned::Lab(running) => running.process.status().is_none(),
        };
        if running {
            self.signal(Signal::SIGKILL);
        }
    }
}

impl Dialer {
    pub(crate) async fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        match self {
            Dialer::Local => TcpStream::connect(to).await,
            Dialer::Lab(ns) => {
                let opened = ns.spawn(async move { TcpStream::connect(to).await?.into_std() });
                TcpStream::from_std(opened.await.map_err(std::io::Error::other)??)
            }
        }
    }
}

/// As Mesos words it.
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown status".to_owned(),
    }
}

/// `a_b.instance-...` as a directory.
pub(crate) fn sandbox(root: &Path, task: &str) -> PathBuf {
    root.join(task)
}
