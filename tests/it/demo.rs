//! What `cargo xtask up` shows must work, line by line, and leave nothing.

use std::{path::Path, process::Command};

use tidegate_tests::appliance;

#[test]
fn every_command_of_the_demos_page_works_and_nothing_is_left() {
    if !appliance::require() {
        return;
    }
    let demo = appliance::binary("tidegate-demo");
    if Path::new("/run/tidegate-demo/pid").exists() {
        println!("SKIP: a demo is up, and there can be only one: `cargo xtask down` ends it");
        return;
    }
    let result = Command::new(demo).args(["up", "--check"]).output().unwrap();
    let said = String::from_utf8_lossy(&[result.stdout, result.stderr].concat()).into_owned();
    assert!(result.status.success(), "{said}");
    for name in ["/run/tidegate-demo", "/run/netns/tg-client", "/run/netns/tg-appliance", "/sys/fs/bpf/tidegate"] {
        assert!(!Path::new(name).exists(), "{name} is left\n{said}");
    }
}
