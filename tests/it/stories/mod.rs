//! What happens to a cluster in its days, under constant load, with nothing lost.

mod deaf;
mod direct;
mod ecmp;
mod empty;
mod killed;
mod leader;
mod modes;
mod restart;
mod rolling;
mod scale;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use serde_json::json;
use tidegate_tests::{
    appliance::{self, Appliance, Settings},
    cluster::{Cluster, demo_app},
    oracle::{self, Lifetime, Load, Target},
};

pub(crate) const APP: &str = "/demo";
const HOST: &str = "demo.example.com";

/// A cluster with three instances of one app behind a layer-4 ELB, a layer-7 ELB and their names.
pub(crate) struct Stage {
    // In the order of leaving: Tidegate, then the cluster.
    pub(crate) appliance: Appliance,
    pub(crate) cluster: Cluster,
    /// One of each address family.
    pub(crate) layer4: Vec<IpAddr>,
    pub(crate) layer7: Vec<IpAddr>,
}

impl Stage {
    /// `None` where a lab is impossible; says why.
    pub(crate) fn set(settings: &Settings) -> Option<Self> {
        if !appliance::require() {
            return None;
        }
        let cluster = Cluster::start().unwrap();
        let settings = Settings {
            marathons: vec!["http://10.77.0.2:8080".to_owned(), "http://10.77.0.3:8080".to_owned()],
            ..settings.clone()
        };
        let appliance = Appliance::start(&cluster.appliance, &settings).unwrap();
        cluster.deploy(&demo_app(APP, 3)).unwrap();
        appliance.poll("Tidegate knows the job", |appliance| Ok(appliance.status()?["instances"] == 3)).unwrap();
        let ports = json!([{"listen": 80, "target": "http"}, {"listen": 80, "protocol": "udp", "target": "http"}]);
        let layer4 = create(&appliance, "demo-l4", &json!({"type": "layer4", "app": APP, "ports": ports}));
        let rules = json!([{"host": HOST, "app": APP}]);
        let layer7 = create(&appliance, "demo-l7", &json!({"type": "layer7", "rules": rules}));
        let stage = Self { appliance, cluster, layer4, layer7 };
        // Only when every way in answers is anything counted.
        let warm = oracle::serves(&stage.cluster.client.ns, &stage.everything(), Duration::from_secs(20));
        warm.unwrap_or_else(|account| panic!("the ELBs do not serve\n{account}"));
        Some(stage)
    }

    /// Load over layer 4 alone.
    pub(crate) fn layer4_load(&self) -> Vec<Target> {
        let (v4, v6) = (at(&self.layer4, false), at(&self.layer4, true));
        vec![
            Target::http("layer 4, keep-alive", v4, HOST, Lifetime::KeepAlive),
            Target::http("layer 4, new connections", v4, HOST, Lifetime::Request),
            Target::http("layer 4, long connections", v4, HOST, Lifetime::Long).workers(8),
            Target::http("layer 4, IPv6, new connections", v6, HOST, Lifetime::Request),
            Target::http("layer 4, IPv6, long connections", v6, HOST, Lifetime::Long).workers(4),
            Target::udp("layer 4, datagrams", v4),
        ]
    }

    /// Load by every way in.
    pub(crate) fn everything(&self) -> Vec<Target> {
        let (v4, v6) = (at(&self.layer7, false), at(&self.layer7, true));
        let dns = SocketAddr::new(self.cluster.appliance.v4.into(), 53);
        let mut targets = self.layer4_load();
        targets.extend([
            Target::http("layer 7, keep-alive", v4, HOST, Lifetime::KeepAlive),
            Target::http("layer 7, new connections", v4, HOST, Lifetime::Request),
            Target::http("layer 7, long connections", v4, HOST, Lifetime::Long),
            Target::http("layer 7, IPv6, new connections", v6, HOST, Lifetime::Request),
            Target::dns("name of the app", dns, "demo.marathon.mesos."),
            Target::dns("name of the layer-4 ELB", dns, "demo-l4.elb.mesos."),
        ]);
        targets
    }

    pub(crate) fn load(&self, targets: Vec<Target>) -> Load {
        Load::start(&self.cluster.client.ns, targets)
    }

    /// Waits until exactly these many instances, and no others, have answered for a while.
    pub(crate) fn served_by(&self, load: &Load, instances: usize) -> BTreeSet<String> {
        // Longer than the 30 seconds after which a full list is asked for without reason.
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let from = load.so_far().served_by.values().map(|served| served.last).max().unwrap_or_default();
            load.wait_for_answers(25);
            let account = load.so_far();
            let seen = account.served_since(from + Duration::from_millis(1));
            if seen.len() == instances {
                return seen.into_iter().map(str::to_owned).collect();
            }
            assert!(Instant::now() < deadline, "{instances} instances should serve, but these do: {seen:?}\n{account}");
        }
    }
}

pub(crate) fn create(appliance: &Appliance, name: &str, spec: &serde_json::Value) -> Vec<IpAddr> {
    let made = appliance.put_elb(name, spec).unwrap();
    appliance.wait_ready(name).unwrap();
    serde_json::from_value(made["vips"].clone()).unwrap()
}

pub(crate) fn at(vips: &[IpAddr], v6: bool) -> SocketAddr {
    let vip = vips.iter().find(|vip| vip.is_ipv6() == v6).expect("the pools have both families");
    SocketAddr::new(*vip, 80)
}
