//! A kernel or a machine that the balancer cannot run on: it is told what is missing, and what runs is not touched.

#![allow(clippy::unwrap_used, reason = "a test says so by panicking")]

mod lab;

use std::process::{Command, Stdio};

use lab::{
    Lab,
    echo::{Connection, serve},
    plane::{self, Plane, input},
};
use tidegate_l4::{Service, xdp};

const VIP: &str = "10.77.100.1:80";
const VIPS: &[(&str, &[&str])] = &[("10.77.100.1", &["10.77.1.1"])];
/// `bpf_tcp_raw_gen_syncookie_ipv4`, which came with Linux 6.0, and a number that no kernel has.
const HELPER: (u32, u32) = (204, 9999);

/// The balancer as it is for a kernel that never heard of one of its helpers.
fn ahead_of_its_time() -> Vec<u8> {
    let mut object = xdp::object().unwrap().to_vec();
    let call = |helper: u32| [&[0x85, 0, 0, 0][..], &helper.to_le_bytes()].concat();
    let mut calls = 0;
    for instruction in object.chunks_exact_mut(8).filter(|bytes| *bytes == call(HELPER.0)) {
        instruction.copy_from_slice(&call(HELPER.1));
        calls += 1;
    }
    assert!(calls > 0, "the object calls the helper");
    object
}

/// A plane that stopped; its program serves.
fn served() -> (Lab, Connection) {
    let lab = Lab::new();
    serve(&lab.reals[0], 8080, b'a');
    let plane = Plane::start(&lab, &["eth0"]);
    plane.give(input(1, VIPS, &Service::default()));
    let open = Connection::open(&lab.client, VIP).unwrap();
    (lab, open)
}

fn still_serves(lab: &Lab, mut open: Connection) {
    open.echo(100_000).unwrap();
    Connection::open(&lab.client, VIP).unwrap().echo(1000).unwrap();
    // And whoever comes next and can, takes over.
    let plane = Plane::start(lab, &["eth0"]);
    plane.give(input(2, VIPS, &Service::default()));
    open.echo(100_000).unwrap();
}

#[test]
fn a_kernel_without_a_helper_is_told_so_in_a_line_and_what_runs_stays() {
    if lab::skip() {
        return;
    }
    let (lab, open) = served();
    let config = plane::config(&lab, &["eth0"]);
    let refused = xdp::start(&ahead_of_its_time(), &config, &[]).map(drop).unwrap_err();
    let text = format!("{refused:#}");
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    for words in ["`rest`", "9999", release.trim(), "lacks a function", "Linux 6."] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(text.lines().count() == 1 && text.len() < 600, "{text}");
    still_serves(&lab, open);
}

/// Not a test: a plane in a process of its own, with whatever the process may do.
#[test]
fn plane_process() {
    let Some(folder) = std::env::var_os("L4_REFUSED_PIN_DIR") else { return };
    let config = tidegate_l4::Config { pin_dir: folder.into(), ..Default::default() };
    println!("REFUSED {:#}", xdp::start(xdp::object().unwrap(), &config, &[]).map(drop).unwrap_err());
}

#[test]
fn a_process_that_may_not_is_told_which_capability_is_missing_and_what_runs_stays() {
    if lab::skip() {
        return;
    }
    let (lab, open) = served();
    for (missing, without) in
        [("CAP_BPF", "-bpf,-sys_admin"), ("CAP_PERFMON", "-perfmon,-sys_admin"), ("CAP_NET_ADMIN", "-net_admin")]
    {
        let output = Command::new("setpriv")
            .arg(format!("--bounding-set={without}"))
            .arg(std::env::current_exe().unwrap())
            .args(["plane_process", "--exact", "--nocapture"])
            .env("L4_REFUSED_PIN_DIR", &lab.pin_dir)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = said.lines().find_map(|line| line.split_once("REFUSED ")).unwrap_or_else(|| panic!("{output:?}")).1;
        assert!(line.contains(missing) && line.contains("root"), "{missing}: {line}");
    }
    still_serves(&lab, open);
}
