//! The guest's network: two ends of one cable, the balancer's and the world's, and neighbours that never change.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::Command,
};

use anyhow::{Context, ensure};

/// The balancer's end: packets come and go here.
pub(in crate::lvs) const INSIDE: &str = "l0";
/// The world's end: packets are made and end here.
pub(in crate::lvs) const OUTSIDE: &str = "g0";

pub(in crate::lvs) const VIP_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 100, 1));
pub(in crate::lvs) const VIP_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0x100, 0, 0, 0, 0, 1));
pub(in crate::lvs) const VIP_PORT: u16 = 80;
pub(in crate::lvs) const REALS_V4: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 77, 1, 1)), IpAddr::V4(Ipv4Addr::new(10, 77, 1, 2))];
pub(in crate::lvs) const REALS_V6: [IpAddr; 2] =
    [IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 1, 0, 0, 0, 0, 1)), IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 1, 0, 0, 0, 0, 2))];
pub(in crate::lvs) const REAL_PORT: u16 = 8080;
/// Where our own connections to the reals come from.
pub(in crate::lvs) const LOCALS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 77, 101, 1)), IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0x101, 0, 0, 0, 0, 1))];

pub(super) const INSIDE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(super) const REAL_MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 1, 1], [2, 0, 0, 0, 1, 2]];

pub(super) fn lay_out() -> anyhow::Result<()> {
    // The kernel sends nothing of its own accord.
    for quiet in ["all/accept_dad", "default/accept_dad", "default/router_solicitations", "default/autoconf"] {
        set(&format!("net/ipv6/conf/{quiet}"), "0")?;
    }
    set("net/ipv6/conf/all/forwarding", "1")?;
    set("net/ipv4/ip_forward", "1")?;
    for name in ["all", "default"] {
        set(&format!("net/ipv4/conf/{name}/rp_filter"), "0")?;
        // A packet that leaves where it came in is meant to.
        set(&format!("net/ipv4/conf/{name}/send_redirects"), "0")?;
    }
    ip("link set lo up
        link add l0 address 02:00:00:00:00:01 type veth peer name g0 address 02:00:00:00:00:0c
        link set g0 addrgenmode none up
        link set l0 addrgenmode none up
        addr add 10.77.0.1/16 dev l0
        addr add fd77::1/32 dev l0 nodad
        neigh add 10.77.0.10 lladdr 02:00:00:00:00:0c dev l0 nud permanent
        neigh add 10.77.1.1 lladdr 02:00:00:00:01:01 dev l0 nud permanent
        neigh add 10.77.1.2 lladdr 02:00:00:00:01:02 dev l0 nud permanent
        neigh add fd77::10 lladdr 02:00:00:00:00:0c dev l0 nud permanent
        neigh add fd77:0:1::1 lladdr 02:00:00:00:01:01 dev l0 nud permanent
        neigh add fd77:0:1::2 lladdr 02:00:00:00:01:02 dev l0 nud permanent
        route add 10.78.0.0/16 via 10.77.0.10
        route add fd78::/32 via fd77::10")
}

/// Runs `ip` with each line.
pub(super) fn ip(lines: &str) -> anyhow::Result<()> {
    lines.lines().map(str::trim).try_for_each(|line| run("ip", line))
}

/// Arguments are words.
pub(super) fn run(program: &str, arguments: &str) -> anyhow::Result<()> {
    let output = Command::new(format!("/usr/sbin/{program}"))
        .args(arguments.split_whitespace())
        .output()
        .with_context(|| format!("starting {program}"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments}: {}", error.trim());
    Ok(())
}

pub(super) fn set(name: &str, value: &str) -> anyhow::Result<()> {
    fs::write(format!("/proc/sys/{name}"), value).with_context(|| format!("writing {value} to {name}"))
}
