//! Pinned links that are given up.

#![allow(clippy::unwrap_used, reason = "a test says so by panicking")]

mod lab;

use std::process::Command;

use aya::programs::links::PinnedLink;
use lab::Lab;
use tidegate_l4::{Config, config::Mode, network::Network, xdp};

#[test]
fn a_program_that_gives_way_sees_no_packet_more_even_while_somebody_looks_at_its_link() {
    if lab::skip() {
        return;
    }
    let lab = Lab::new();
    let folder = lab.pin_dir.clone();
    lab.appliance.run(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let links = runtime.block_on(async { Network::open().unwrap().links().await.unwrap() });
        let links: Vec<_> = links.into_iter().filter(|link| link.name == "eth0").collect();
        let start = |mode, name| {
            let config = Config {
                mode,
                pin_dir: folder.clone(),
                local_addresses: vec!["10.77.101.1".parse().unwrap()],
                ..Config::default()
            };
            let (_, attached) = xdp::start(xdp::object().unwrap(), &config, &links).unwrap();
            assert_eq!(attached[0].mode, name);
            // The pin is not all that holds the link.
            PinnedLink::from_pin(folder.join(format!("link-eth0-{}-{name}", links[0].index))).unwrap()
        };
        let xdp = || {
            let output = Command::new("ip").args(["link", "show", "dev", "eth0"]).output().unwrap();
            String::from_utf8(output.stdout).unwrap().contains("xdp")
        };
        // The kernel has one place for both.
        let _native = start(Mode::Native, "native");
        let _generic = start(Mode::Generic, "generic");
        assert!(xdp());
        xdp::remove(&folder).unwrap();
        assert!(!xdp());
    });
}
