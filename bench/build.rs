//! Embeds what runs in the kernel beside the balancer, if `cargo xtask ebpf` has built it: the guest of the bench `lvs` has
//! no other files.

use std::{env, fs, path::Path};

fn main() {
    let manifest = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let folder = Path::new(&manifest).join("../target/ebpf");
    // The folder is watched, not the file: one that does not exist would have cargo build this crate every time.
    fs::create_dir_all(&folder).expect("the workspace's target folder can be written to");
    println!("cargo::rerun-if-changed={}", folder.display());
    let out = env::var("OUT_DIR").expect("cargo sets it");
    for object in ["generator.o", "probe.o", "real.o"] {
        let bytes = fs::read(folder.join(object)).unwrap_or_default();
        fs::write(Path::new(&out).join(object), bytes).expect("OUT_DIR can be written to");
    }
}
