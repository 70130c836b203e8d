//! Embeds the BPF objects, if `cargo xtask ebpf` has built them.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

fn main() {
    let manifest = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    println!("cargo::rerun-if-env-changed=TIDEGATE_EBPF_OBJECT");
    let folder = Path::new(&manifest).join("../target/ebpf");
    // The folder is watched, not the files: one that does not exist would have cargo build this crate every time.
    fs::create_dir_all(&folder).expect("the workspace's target folder can be written to");
    println!("cargo::rerun-if-changed={}", folder.display());
    embed("balancer.o", env::var_os("TIDEGATE_EBPF_OBJECT").map_or_else(|| folder.join("balancer.o"), PathBuf::from));
    for name in ["probe.o", "real.o"] {
        embed(name, folder.join(name));
    }
}

fn embed(name: &str, object: PathBuf) {
    if object.is_file() {
        println!("cargo::rerun-if-changed={}", object.display());
    }
    let out = env::var("OUT_DIR").expect("cargo sets it");
    let bytes = fs::read(&object).unwrap_or_default();
    fs::write(Path::new(&out).join(name), bytes).expect("OUT_DIR can be written to");
}
