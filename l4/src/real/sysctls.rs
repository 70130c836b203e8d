//! The kernel's settings that a real needs, and what they were before: that is kept in a pinned map.

use std::{fs, io, path::Path};

use anyhow::Context;
use aya::maps::{HashMap, Map, MapData};
use tidegate_ebpf::real::map;
use tracing::info;

use crate::network::Link;

/// The interface's index, in the map of what was before.
const INTERFACE: u32 = 1000;

const CONF: &str = "/proc/sys/net/ipv4/conf";

/// A setting of IPv4. Its number in [`ALL`] is its key in the map.
struct Sysctl {
    name: &'static str,
    /// Else that of the interface.
    all: bool,
    value: u32,
    /// Values that are as good.
    enough: &'static [u32],
    /// Only for tunnels, and where the kernel is strict.
    tunnel: bool,
}

const ALL: [Sysctl; 5] = [
    // Answer ARP only for addresses of the interface that was asked at.
    Sysctl { name: "arp_ignore", all: true, value: 1, enough: &[1, 2, 8], tunnel: false },
    Sysctl { name: "arp_ignore", all: false, value: 1, enough: &[1, 2, 8], tunnel: false },
    // And never name a VIP as the one who asks.
    Sysctl { name: "arp_announce", all: true, value: 2, enough: &[2], tunnel: false },
    Sysctl { name: "arp_announce", all: false, value: 2, enough: &[2], tunnel: false },
    // The larger of this and that of all counts: 2 is loose, 1 refuses a client whose way back leads elsewhere.
    Sysctl { name: "rp_filter", all: false, value: 2, enough: &[], tunnel: true },
];

impl Sysctl {
    fn path(&self, interface: &str) -> String {
        let interface = if self.all { "all" } else { interface };
        format!("{CONF}/{interface}/{}", self.name)
    }
}

/// Sets what is needed and remembers what was there, once.
pub(super) fn set(folder: &Path, link: &Link, tunnel: bool) -> anyhow::Result<()> {
    let mut before = pinned(folder).context("the map of what was before is not pinned")?;
    before.insert(INTERFACE, link.index, 0).context("remembering the interface")?;
    for (key, sysctl) in (0_u32..).zip(&ALL) {
        let path = sysctl.path(&link.name);
        let now = read(&path)?;
        let needed = if sysctl.tunnel {
            tunnel && now.max(read(&format!("{CONF}/all/{}", sysctl.name))?) == 1
        } else {
            !sysctl.enough.contains(&now)
        };
        if !needed {
            continue;
        }
        if before.get(&key, 0).is_err() {
            before.insert(key, now, 0).with_context(|| format!("remembering {path}"))?;
        }
        info!("setting {path} to {}, it was {now}", sysctl.value);
        fs::write(&path, sysctl.value.to_string()).with_context(|| format!("writing {} to {path}", sysctl.value))?;
    }
    Ok(())
}

/// Puts back what was there, where it is still what was set.
pub(super) fn restore(folder: &Path, links: &[Link]) -> anyhow::Result<()> {
    // Without the map nothing was changed.
    let Some(mut before) = pinned(folder) else { return Ok(()) };
    let index = before.get(&INTERFACE, 0).unwrap_or_default();
    // An interface that is gone took its settings along; those of all are under no interface's name.
    let name = links.iter().find(|link| link.index == index).map(|link| link.name.as_str());
    for (key, sysctl) in (0_u32..).zip(&ALL) {
        let Ok(value) = before.get(&key, 0) else { continue };
        if let Some(name) = name.or(sysctl.all.then_some("all")) {
            put_back(&sysctl.path(name), sysctl.value, value)?;
        }
        before.remove(&key).context("forgetting a setting")?;
    }
    let _ = before.remove(&INTERFACE);
    Ok(())
}

fn put_back(path: &str, set: u32, before: u32) -> anyhow::Result<()> {
    let put = || -> anyhow::Result<()> {
        if read(path)? == set {
            fs::write(path, before.to_string()).with_context(|| format!("writing {before} back to {path}"))?;
        }
        Ok(())
    };
    match put() {
        // The interface has just gone.
        Err(error)
            if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::NotFound) =>
        {
            Ok(())
        }
        done => done,
    }
}

/// The interface that was joined at.
pub(super) fn interface(folder: &Path) -> Option<u32> {
    pinned(folder)?.get(&INTERFACE, 0).ok()
}

fn pinned(folder: &Path) -> Option<HashMap<MapData, u32, u32>> {
    let data = MapData::from_pin(folder.join(map::BEFORE)).ok()?;
    Map::HashMap(data).try_into().ok()
}

fn read(path: &str) -> anyhow::Result<u32> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    let wrong = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    text.trim().parse().map_err(wrong).with_context(|| format!("reading {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_set_is_put_back_what_somebody_else_set_stays_and_an_interface_that_went_is_no_problem() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        for (name, now) in [("ours", "2"), ("theirs", "8")] {
            fs::write(path(name), now).unwrap();
        }
        for name in ["ours", "theirs", "gone"] {
            put_back(&path(name), 2, 0).unwrap();
        }
        assert_eq!([read(&path("ours")).unwrap(), read(&path("theirs")).unwrap()], [0, 8]);
        assert!(!Path::new(&path("gone")).exists());
        fs::write(path("nonsense"), "nonsense").unwrap();
        put_back(&path("nonsense"), 2, 0).unwrap_err();
    }
}
