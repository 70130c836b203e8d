//! Names for the machines, so that `ip netns exec NAME` reaches them: each a file below `/run/netns` that the namespace
//! is mounted on.

use std::{fs, path::Path};

use anyhow::Context;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tidegate_tests::{cluster::Cluster, lab::Host};

const DIR: &str = "/run/netns";
const NAMES: [&str; 6] = ["tg-client", "tg-appliance", "tg-marathon", "tg-standby", "tg-host-a", "tg-host-b"];

/// The names; gone when dropped.
pub(crate) struct Names;

impl Names {
    pub(crate) fn give(cluster: &Cluster) -> anyhow::Result<Self> {
        fs::create_dir_all(DIR).with_context(|| format!("cannot make {DIR}"))?;
        let names = Self;
        let Cluster { client, appliance, marathon, standby, agents, .. } = cluster;
        let hosts: [&Host; 6] = [client, appliance, marathon, standby, &agents[0].host, &agents[1].host];
        for (name, host) in NAMES.iter().zip(hosts) {
            let path = Path::new(DIR).join(name);
            fs::write(&path, "").with_context(|| format!("cannot make {}", path.display()))?;
            let namespace = host.ns.path();
            mount(Some(namespace.as_str()), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .with_context(|| format!("cannot name the namespace {}", path.display()))?;
        }
        Ok(names)
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        remove();
    }
}

/// Removes every name, whoever gave it.
pub(crate) fn remove() {
    for name in NAMES {
        let path = Path::new(DIR).join(name);
        // Once for each time that it was mounted.
        while umount2(&path, MntFlags::MNT_DETACH).is_ok() {}
        let _ = fs::remove_file(&path);
    }
    // Only if nobody else has names.
    let _ = fs::remove_dir(DIR);
}
