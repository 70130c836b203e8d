//! Tidegate as a stranger would start it: `tidegate run`, without a configuration.

use std::{
    fs::{self, File},
    net::{IpAddr, SocketAddr},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde_json::Value;
use tidegate_tests::{
    appliance::{API, binary},
    http1::{self, Response},
    lab::{Host, Mounts, Process},
};
use tokio::net::{TcpListener, TcpStream};

pub(crate) struct Tidegate {
    host: Host,
    /// Its own `/sys/fs/bpf` and `/var/lib`: the defaults point there, and nothing may stay.
    mounts: Mounts,
    process: Process,
    run: PathBuf,
    /// Where this machine reaches the API and the status page.
    pub(crate) api: SocketAddr,
}

impl Tidegate {
    pub(crate) fn start(host: &Host, run: &Path) -> anyhow::Result<Self> {
        let mounts = Mounts::new()?;
        let process = start(host, &mounts, run)?;
        let api = forward(host)?;
        let tidegate = Self { host: host.clone(), mounts, process, run: run.to_owned(), api };
        tidegate.wait("tidegate answers on its API", |it| {
            if let Some(status) = it.process.status() {
                bail!("tidegate ended at once, {status}");
            }
            Ok(it.ask("GET", "/healthz", b"").is_ok_and(|response| response.status == 200))
        })?;
        Ok(tidegate)
    }

    /// Starts it again if it has ended.
    pub(crate) fn revive(&mut self) -> anyhow::Result<()> {
        let Some(status) = self.process.status() else { return Ok(()) };
        println!("tidegate has ended ({status}); layer 4 goes on without it. Starting it again in 5 seconds ...");
        thread::sleep(Duration::from_secs(5));
        self.process = start(&self.host, &self.mounts, &self.run)?;
        println!("tidegate runs again (process {}).", self.process.pid());
        Ok(())
    }

    pub(crate) fn wait_for_instances(&self, instances: u64) -> anyhow::Result<()> {
        self.wait("tidegate has heard of the job from Marathon", |it| {
            Ok(it.json("GET", "/v1/status", b"")?["instances"] == instances)
        })
    }

    /// Makes an ELB and waits until it is ready; its addresses.
    pub(crate) fn create(&self, name: &str, spec: &Value) -> anyhow::Result<Vec<IpAddr>> {
        let path = format!("/v1/elbs/{name}");
        let made = self.json("PUT", &path, spec.to_string().as_bytes())?;
        self.wait(&format!("the ELB {name} is ready"), |it| {
            Ok(it.json("GET", &path, b"")?["readiness"]["ready"] == true)
        })?;
        serde_json::from_value(made["vips"].clone()).context("the ELB has no addresses")
    }

    fn wait(&self, what: &str, mut check: impl FnMut(&Self) -> anyhow::Result<bool>) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let failure = loop {
            match check(self) {
                Ok(true) => return Ok(()),
                Ok(false) if Instant::now() > deadline => break anyhow::anyhow!("not within 20 s: {what}"),
                Ok(false) => thread::sleep(Duration::from_millis(20)),
                Err(error) => break error.context(format!("waited until {what}")),
            }
        };
        // The log is removed with everything else: what matters of it must be told now.
        let log = fs::read_to_string(self.run.join("tidegate.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let end = lines[lines.len().saturating_sub(20)..].join("\n");
        Err(failure.context(format!("the end of tidegate's log:\n{end}\n")))
    }

    fn json(&self, method: &'static str, path: &str, body: &[u8]) -> anyhow::Result<Value> {
        let response = self.ask(method, path, body)?;
        if !(200..300).contains(&response.status) {
            bail!("{method} {path} was answered {}: {}", response.status, response.text());
        }
        response.json().with_context(|| format!("{method} {path} did not answer JSON"))
    }

    fn ask(&self, method: &'static str, path: &str, body: &[u8]) -> anyhow::Result<Response> {
        let (path, body) = (path.to_owned(), body.to_vec());
        let at: SocketAddr = API.parse().expect("a literal");
        self.host.ns.block_on(async move {
            let asked = tokio::time::timeout(Duration::from_secs(10), http1::once(at, method, &path, &body));
            asked
                .await
                .with_context(|| format!("{path}: no answer for 10 s"))?
                .with_context(|| format!("{method} {path}"))
        })
    }
}

fn start(host: &Host, mounts: &Mounts, run: &Path) -> anyhow::Result<Process> {
    let binary = binary("tidegate");
    let log = File::options().create(true).append(true).open(run.join("tidegate.log"))?;
    let mut command = Command::new(&binary);
    // A group of its own: Ctrl-C is for the demo, which then ends tidegate.
    command.arg("run").env_remove("TIDEGATE_CONFIG").stdout(log.try_clone()?).stderr(log).process_group(0);
    mounts.enter(&mut command);
    let process = host.ns.start(command).with_context(|| format!("cannot start {}", binary.display()))?;
    fs::write(run.join("tidegate.pid"), format!("{}\n", process.pid()))?;
    Ok(process)
}

/// Makes the API, which listens on the appliance's loopback, reachable on this machine's: for a browser.
fn forward(host: &Host) -> anyhow::Result<SocketAddr> {
    // The same port where it is free.
    let listener = std::net::TcpListener::bind(API).or_else(|_| std::net::TcpListener::bind("127.0.0.1:0"))?;
    let at = listener.local_addr()?;
    listener.set_nonblocking(true)?;
    // Accepted in the appliance's runtime, so that what is opened next is opened in its namespace.
    host.ns.spawn(async move {
        let listener = TcpListener::from_std(listener).expect("a bound listener");
        while let Ok((mut outside, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut inside = TcpStream::connect(API).await?;
                tokio::io::copy_bidirectional(&mut outside, &mut inside).await
            });
        }
    });
    Ok(at)
}
