//! Embeds the XDP object, if `cargo xtask ebpf` has built it.

use std::{env, fs, path::Path};

fn main() {
    let manifest = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    println!("cargo::rerun-if-env-changed=TIDEGATE_EBPF_OBJECT");
    let object = match env::var_os("TIDEGATE_EBPF_OBJECT") {
        Some(object) => {
            println!("cargo::rerun-if-changed={}", object.display());
            object.into()
        }
        None => {
            let folder = Path::new(&manifest).join("../target/ebpf");
            // The folder is watched, not the file: one that does not exist would have cargo build this crate every time.
            fs::create_dir_all(&folder).expect("the workspace's target folder can be written to");
            println!("cargo::rerun-if-changed={}", folder.display());
            folder.join("balancer.o")
        }
    };
    let out = env::var("OUT_DIR").expect("cargo sets it");
    let bytes = fs::read(&object).unwrap_or_default();
    fs::write(Path::new(&out).join("balancer.o"), bytes).expect("OUT_DIR can be written to");
}
