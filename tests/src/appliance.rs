//! The real `tidegate`, as a process in a machine of the lab.

use std::{
    fmt::Write as _,
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    http1::{self, Response},
    lab::{self, Host, Mounts, Process},
};

/// Where the control API answers, inside the machine.
pub const API: &str = "127.0.0.1:7070";

/// A running (or killed) Tidegate. Dropped, nothing of it is left; the end of its log is printed if a test failed.
#[derive(Debug)]
pub struct Appliance {
    pub host: Host,
    process: Option<Process>,
    /// Holds what it pins.
    mounts: Mounts,
    /// The configuration, the store and the log.
    dir: tempfile::TempDir,
}

/// What differs from the lab's configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    pub marathons: Vec<String>,
    /// Seconds between two full lists that are asked for without reason.
    pub resync_s: u64,
    /// Seconds for which an unexplained emptiness must be repeated.
    pub distrust_s: u64,
    pub roles: Vec<&'static str>,
    /// The networks that ELBs are given addresses of.
    pub vips: Vec<String>,
    /// Layer 4's local addresses.
    pub locals: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            marathons: vec!["http://10.77.0.2:8080".to_owned()],
            resync_s: 30,
            distrust_s: 300,
            roles: vec!["l4", "l7", "dns", "control"],
            vips: vec![lab::addresses::VIPS.0.to_owned(), lab::addresses::VIPS.1.to_owned()],
            locals: vec![lab::addresses::LOCAL.0.to_string(), lab::addresses::LOCAL.1.to_string()],
        }
    }
}

impl Settings {
    /// The configuration file of a Tidegate that keeps its store in `dir`.
    pub fn toml(&self, dir: &Path) -> String {
        let mut text = String::new();
        let store = dir.join("tidegate.redb");
        let Self { marathons, resync_s, distrust_s, roles, vips, locals } = self;
        write!(
            text,
            "roles = {roles:?}\ndistrust_s = {distrust_s}\n\
             [marathon]\nurls = {marathons:?}\nresync_s = {resync_s}\n\
             [api]\nlisten = [\"{API}\"]\n\
             [store]\npath = {store:?}\n\
             [vips]\ninternal = {vips:?}\n\
             [l4]\ninterfaces = [\"eth0\"]\nlocal_addresses = {locals:?}\n"
        )
        .expect("a String takes everything");
        text
    }
}

/// Whether a Tidegate can run here: a lab can, and everything is built. As [`lab::require`].
pub fn require() -> bool {
    if !lab::require() {
        return false;
    }
    let Some(missing) = missing() else { return true };
    lab::skip(&format!("{} is not built: `cargo xtask test` builds and runs everything", missing.display()))
}

fn missing() -> Option<PathBuf> {
    let object = profile_dir().parent().map(|target| target.join("ebpf/balancer.o")).unwrap_or_default();
    [binary("tidegate"), object].into_iter().find(|path| !path.exists())
}

/// A binary of this workspace, built in the same profile as the running one.
pub fn binary(name: &str) -> PathBuf {
    profile_dir().join(name)
}

fn profile_dir() -> PathBuf {
    let own = std::env::current_exe().expect("the running program has a path");
    let dir = own.parent().expect("a file is in a directory");
    // Tests are in target/<profile>/deps, binaries beside it.
    if dir.ends_with("deps") { dir.parent().expect("deps is in a profile's directory") } else { dir }.to_owned()
}

impl Appliance {
    /// Starts it and waits until its API answers.
    pub fn start(host: &Host, settings: &Settings) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join("tidegate.toml"), settings.toml(dir.path()))?;
        let mut appliance = Self { host: host.clone(), process: None, mounts: Mounts::new()?, dir };
        appliance.restart()?;
        Ok(appliance)
    }

    /// Starts the process (again), with the same configuration, store and pins.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.process = None;
        let binary = binary("tidegate");
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let mut command = Command::new(&binary);
        command.arg("run").arg("--config").arg(self.dir.path().join("tidegate.toml"));
        command.stdout(log.try_clone()?).stderr(log);
        self.mounts.enter(&mut command);
        let process = self.host.ns.start(command).with_context(|| {
            format!(
                "cannot start {}: build it with `cargo xtask ebpf && cargo build -p tidegate-control`",
                binary.display()
            )
        })?;
        self.process = Some(process);
        self.poll("tidegate answers on its API", |appliance| {
            if let Some(status) = appliance.process.as_ref().and_then(Process::status) {
                bail!("tidegate ended at once, {status}\n{}", appliance.log_tail());
            }
            Ok(appliance.ask("GET", "/healthz", b"").is_ok_and(|response| response.status == 200))
        })
    }

    /// SIGKILL: nothing can be said or saved any more.
    pub fn kill9(&mut self) {
        self.process = None;
    }

    /// SIGTERM, and how it ended.
    pub fn stop(&mut self) -> Option<ExitStatus> {
        let process = self.process.take()?;
        process.signal(Signal::SIGTERM);
        process.wait(Duration::from_secs(20))
    }

    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// One request to the control API.
    pub fn ask(&self, method: &'static str, path: &str, body: &[u8]) -> anyhow::Result<Response> {
        let (path, body) = (path.to_owned(), body.to_vec());
        let at: SocketAddr = API.parse().expect("a literal");
        self.host.ns.block_on(async move {
            tokio::time::timeout(Duration::from_secs(10), http1::once(at, method, &path, &body))
                .await
                .with_context(|| format!("{method} {path}: no answer for 10 s"))?
                .with_context(|| format!("{method} {path}"))
        })
    }

    /// Makes or changes an ELB; the answer, or an error with what the API said.
    pub fn put_elb(&self, name: &str, spec: &Value) -> anyhow::Result<Value> {
        self.json("PUT", &format!("/v1/elbs/{name}"), spec.to_string().as_bytes())
    }

    pub fn delete_elb(&self, name: &str) -> anyhow::Result<()> {
        let response = self.ask("DELETE", &format!("/v1/elbs/{name}"), b"")?;
        if response.status != 204 {
            bail!("DELETE of {name} was answered {}: {}", response.status, response.text());
        }
        Ok(())
    }

    pub fn get_elb(&self, name: &str) -> anyhow::Result<Value> {
        self.json("GET", &format!("/v1/elbs/{name}"), b"")
    }

    pub fn status(&self) -> anyhow::Result<Value> {
        self.json("GET", "/v1/status", b"")
    }

    /// The keys of the alarms that are raised now.
    pub fn alarms(&self) -> anyhow::Result<Vec<String>> {
        let status = self.status()?;
        let alarms = status["alarms"].as_array().into_iter().flatten();
        Ok(alarms.filter_map(|alarm| alarm["key"].as_str().map(str::to_owned)).collect())
    }

    /// Waits until every plane has applied the ELB's last change.
    pub fn wait_ready(&self, name: &str) -> anyhow::Result<()> {
        self.poll(&format!("the ELB {name} is ready"), |appliance| {
            Ok(appliance.get_elb(name)?["readiness"]["ready"] == true)
        })
    }

    /// Asks until the answer is yes, for 20 seconds.
    pub fn poll(&self, what: &str, mut check: impl FnMut(&Self) -> anyhow::Result<bool>) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !check(self)? {
            if Instant::now() > deadline {
                bail!("not within 20 s: {what}\n{}", self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn json(&self, method: &'static str, path: &str, body: &[u8]) -> anyhow::Result<Value> {
        let response = self.ask(method, path, body)?;
        if !(200..300).contains(&response.status) {
            bail!("{method} {path} was answered {}: {}", response.status, response.text());
        }
        response.json().with_context(|| format!("{method} {path} answered what is not JSON: {}", response.text()))
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// The end of what it said.
    pub fn log_tail(&self) -> String {
        let log = fs::read(self.log_path()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        format!("---- the end of tidegate's log\n{}\n----", lines[lines.len().saturating_sub(60)..].join("\n"))
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.log_tail());
        }
    }
}
