//! Embeds the XDP object, if `cargo xtask ebpf` has built it.

use std::{env, fs, path::Path};

fn main() {
    let manifest = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let object = env::var("TIDEGATE_EBPF_OBJECT").unwrap_or_else(|_| format!("{manifest}/../target/ebpf/balancer.o"));
    println!("cargo::rerun-if-env-changed=TIDEGATE_EBPF_OBJECT");
    // A path that does not exist yet makes cargo look again at every build, which is what we want.
    println!("cargo::rerun-if-changed={object}");
    let out = env::var("OUT_DIR").expect("cargo sets it");
    let bytes = fs::read(&object).unwrap_or_default();
    fs::write(Path::new(&out).join("balancer.o"), bytes).expect("OUT_DIR can be written to");
}
