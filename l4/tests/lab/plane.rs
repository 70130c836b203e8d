//! The plane itself, on a thread of the appliance's namespace: Inputs go in, reports come out.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use imbl::{OrdMap, OrdSet};
use tidegate_l4::{Config, Forward, Frontend, Input, Protocol, Real, RealState, Report, Service};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Lab;

pub const LOCALS: [&str; 2] = ["10.77.101.1", "fd77:0:101::1"];
const PATIENCE: Duration = Duration::from_secs(10);

pub fn config(lab: &Lab, interfaces: &[&str]) -> Config {
    Config {
        pin_dir: lab.pin_dir.clone(),
        local_addresses: LOCALS.iter().map(|local| local.parse().unwrap()).collect(),
        interfaces: interfaces.iter().map(ToString::to_string).collect(),
        ..Config::default()
    }
}

pub struct Plane {
    input: watch::Sender<Arc<Input>>,
    reports: watch::Receiver<Arc<Report>>,
    failed: Arc<Mutex<Option<String>>>,
    stop: CancellationToken,
    done: mpsc::Receiver<()>,
}

impl Plane {
    pub fn start(lab: &Lab, interfaces: &[&str]) -> Self {
        let config = config(lab, interfaces);
        let (input, inputs) = watch::channel(Arc::new(Input::default()));
        let (report, reports) = watch::channel(Arc::new(Report::default()));
        let stop = CancellationToken::new();
        let failed = Arc::new(Mutex::new(None));
        let (token, why) = (stop.clone(), Arc::clone(&failed));
        let (ended, done) = mpsc::channel();
        // A thread of the namespace: whatever it opens or starts is in there.
        lab.appliance.run(move || {
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                if let Err(error) = runtime.block_on(tidegate_l4::run(config, inputs, report, token)) {
                    *why.lock().unwrap() = Some(format!("{error:#}"));
                }
                drop(runtime);
                let _ = ended.send(());
            });
        });
        Self { input, reports, failed, stop, done }
    }

    /// Gives an Input and waits until it is applied.
    pub fn give(&self, input: Input) -> Arc<Report> {
        let generation = input.generation;
        self.input.send_replace(Arc::new(input));
        self.until("the Input is applied", |report| report.generation == generation)
    }

    /// Waits for a report that says so.
    pub fn until(&self, what: &str, check: impl Fn(&Report) -> bool) -> Arc<Report> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let report = self.reports.borrow().clone();
            if check(&report) {
                return report;
            }
            let failed = self.failed.lock().unwrap().clone();
            assert!(failed.is_none() && Instant::now() < deadline, "not: {what}; {failed:?}, {report:#?}");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.stop.cancel();
        let _ = self.done.recv_timeout(PATIENCE);
    }
}

/// TCP at port 80 of VIPs, each on reals at port 8080 (or, where nothing is translated, 80).
pub fn input(generation: u64, services: &[(&str, &[&str])], service: &Service) -> Input {
    let mut announce = OrdSet::new();
    let mut all = OrdMap::new();
    for (vip, reals) in services {
        let vip: IpAddr = vip.parse().unwrap();
        let port = if service.forward == Forward::FullNat { 8080 } else { 80 };
        let real = |text: &&str| Real { address: text.parse().unwrap(), port, weight: 1, state: RealState::Active };
        announce.insert(vip);
        let frontend = Frontend { vip, port: 80, protocol: Protocol::Tcp };
        all.insert(frontend, Arc::new(Service { reals: reals.iter().map(real).collect(), ..service.clone() }));
    }
    Input { generation, services: all, announce }
}
