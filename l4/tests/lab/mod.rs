//! A small network of namespaces for this crate's own tests: client, appliance and two reals on one bridge.
//!
//! A namespace is a thread that unshared its network; what must happen inside is sent to it. Nothing is named on disk,
//! so nothing is left behind when a test panics.

#![allow(unreachable_pub, dead_code, reason = "each test file uses a part of it")]

pub mod echo;
pub mod flood;
pub mod kernel;
pub mod plane;
pub mod segments;
pub mod unwrap;

use std::{
    fs::File,
    os::fd::AsRawFd,
    path::PathBuf,
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread::JoinHandle,
};

use aya::{
    EbpfLoader,
    programs::{Xdp, XdpMode},
};
use tidegate_l4::xdp;

type Job = Box<dyn FnOnce() + Send>;

pub struct Namespace {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    file: File,
}

impl Namespace {
    pub fn new() -> Self {
        let (jobs, todo) = mpsc::channel::<Job>();
        let (ready, file) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            ready.send(File::open("/proc/thread-self/ns/net").unwrap()).unwrap();
            todo.into_iter().for_each(|job| job());
        });
        let namespace = Self { jobs: Some(jobs), thread: Some(thread), file: file.recv().unwrap() };
        namespace.ip("link set lo up");
        // A link that comes up would otherwise ask for a second or two whether somebody has its address (RFC 4862), and
        // asks for nobody else's meanwhile.
        namespace.run(|| std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap());
        namespace
    }

    pub fn run<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> R {
        let (sender, result) = mpsc::channel();
        let job = move || drop(sender.send(std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))));
        self.jobs.as_ref().unwrap().send(Box::new(job)).unwrap();
        result.recv().unwrap().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs `ip` once per line.
    pub fn ip(&self, lines: &str) {
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            self.command("ip", line);
        }
    }

    pub fn command(&self, program: &'static str, arguments: &str) {
        let arguments = arguments.to_owned();
        self.run(move || {
            let output = Command::new(program).args(arguments.split_whitespace()).output().unwrap();
            assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        });
    }

    /// For `ip link ... netns`.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub struct Lab {
    pub client: Namespace,
    pub appliance: Namespace,
    pub reals: [Namespace; 2],
    pub switch: Namespace,
    pub pin_dir: PathBuf,
    pass: Mutex<aya::Ebpf>,
}

impl Lab {
    pub fn new() -> Self {
        let switch = Namespace::new();
        switch.ip("link add br0 type bridge forward_delay 0 mcast_snooping 0\nlink set br0 up");
        let machine = |name: &str, v4: &str, v6: &str| {
            let namespace = Namespace::new();
            wire(&switch, &namespace, name, v4, v6);
            namespace
        };
        let client = machine("client", "10.77.0.10", "fd77::10");
        let appliance = machine("appl", APPLIANCE.0, APPLIANCE.1);
        let reals = [machine("a", "10.77.1.1", "fd77:0:1::1"), machine("b", "10.77.1.2", "fd77:0:1::2")];
        let pass = pass(&switch);
        Self { client, appliance, reals, switch, pin_dir: pin_dir(), pass: Mutex::new(pass) }
    }

    /// Gives the appliance a new `eth0` in the place of one that was deleted.
    pub fn plug(&self) {
        wire(&self.switch, &self.appliance, "appl", APPLIANCE.0, APPLIANCE.1);
        *self.pass.lock().unwrap() = pass(&self.switch);
    }
}

const APPLIANCE: (&str, &str) = ("10.77.0.1", "fd77::1");

/// A machine's link to the switch.
fn wire(switch: &Namespace, namespace: &Namespace, name: &str, v4: &str, v6: &str) {
    switch.ip(&format!(
        "link add p-{name} type veth peer name eth0 netns {}
         link set p-{name} master br0 up",
        namespace.path()
    ));
    namespace.ip(&format!(
        "link set eth0 up
         addr add {v4}/16 dev eth0
         addr add {v6}/32 dev eth0 nodad"
    ));
}

/// Makes the appliance's port ready for XDP.
fn pass(switch: &Namespace) -> aya::Ebpf {
    // Frames that leave the XDP device must be whole: its driver drops the kernel's promise of a later checksum.
    switch.command("ethtool", "-K p-appl tx off");
    // And its peer needs a program to be able to take what XDP transmits.
    switch.run(|| {
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("flows", 16)
            .map_max_entries("records", 16)
            .map_max_entries("rings", 16)
            .map_max_entries("reals", 16)
            .map_max_entries("real_counts", 16)
            .load(xdp::object().unwrap())
            .unwrap();
        let pass: &mut Xdp = ebpf.program_mut("pass").unwrap().try_into().unwrap();
        pass.load().unwrap();
        pass.attach("p-appl", XdpMode::Driver).unwrap();
        ebpf
    })
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = xdp::remove(&self.pin_dir);
    }
}

/// A folder for pins that nobody else has.
pub fn pin_dir() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    PathBuf::from(format!("/sys/fs/bpf/tidegate-test-{}-{count}", std::process::id()))
}

/// Whether the lab cannot run here; says why. Fails instead when `LAB_REQUIRE=1`.
pub fn skip() -> bool {
    let object = xdp::object().is_ok();
    skip_without_root() || skip_unless(object, "no XDP object in this build (`cargo xtask ebpf`, then build again)")
}

/// The same for a test without the program.
pub fn skip_without_root() -> bool {
    skip_unless(nix::unistd::geteuid().is_root(), "not root")
}

fn skip_unless(possible: bool, reason: &str) -> bool {
    if possible {
        return false;
    }
    assert!(std::env::var("LAB_REQUIRE").as_deref() != Ok("1"), "LAB_REQUIRE=1, but: {reason}");
    println!("SKIP {reason}");
    true
}
