//! Builds the XDP objects with the same compiler as everything else.
//!
//! bpf-linker links LLVM bitcode, so it must be built against the LLVM of the compiler that wrote the bitcode: it is
//! installed once per toolchain, under `target/tools`, from the library that rustc itself runs on.

use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use anyhow::{Context, bail, ensure};

/// The line of bpf-linker that knows LLVM 22, which rustc 1.95 is built on.
const LINKER_VERSION: &str = "0.13";
const LLVM_FEATURE: &str = "llvm-22";
const TARGET: &str = "bpfel-unknown-none";

/// The binaries of the room `ebpf`, each of which becomes an object.
const BINS: &[&str] = &["balancer", "probe", "real", "bench", "generator"];

/// Builds `target/ebpf/<bin>.o` when one is older than what they are made from.
pub(crate) fn build() -> anyhow::Result<()> {
    let root = workspace()?;
    let folder = root.join("target/ebpf");
    let sources = sources(&root)?;
    let fresh = |bin: &&str| {
        let built = modified(&object(&folder, bin));
        built.is_some_and(|built| sources.iter().all(|source| modified(source).is_some_and(|changed| changed <= built)))
    };
    if BINS.iter().all(fresh) {
        println!("ebpf: {} in {} are up to date", BINS.join(" and "), folder.display());
        return Ok(());
    }
    rust_src()?;
    let linker = linker(&root)?;
    println!("ebpf: building the XDP programs");
    let build_dir = root.join("target/ebpf-build");
    let flags = [
        format!("-Clinker={}", linker.display()),
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
        // Atomic instructions, and half as many to compare words of 32 bits (Linux 5.12).
        "-Ctarget-cpu=v3".into(),
    ];
    let status = Command::new(cargo())
        .current_dir(&root)
        .args(["build", "--package", "tidegate-ebpf", "--features", "kernel", "--release"])
        .args(BINS.iter().flat_map(|bin| ["--bin", bin]))
        .args(["--target", TARGET, "-Zbuild-std=core", "--target-dir"])
        .arg(&build_dir)
        // The pinned stable compiler may build `core` for the BPF target only when it is told that this is fine.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        // The verifier takes no panic paths, and overflow checks are panics.
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "false")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3")
        .env("CARGO_PROFILE_RELEASE_LTO", "true")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "2")
        .status()
        .context("starting cargo to build the XDP programs")?;
    ensure!(status.success(), "the XDP programs did not build (see above)");
    fs::create_dir_all(&folder).context("making target/ebpf")?;
    for bin in BINS {
        let (built, object) = (build_dir.join(TARGET).join("release").join(bin), object(&folder, bin));
        // By a rename, so that nobody embeds half a file.
        let part = object.with_extension("part");
        fs::copy(&built, &part).with_context(|| format!("copying {}", built.display()))?;
        fs::rename(&part, &object).with_context(|| format!("putting {} in place", object.display()))?;
        println!("ebpf: {}", object.display());
    }
    Ok(())
}

fn object(folder: &Path, bin: &str) -> PathBuf {
    folder.join(bin).with_extension("o")
}

fn workspace() -> anyhow::Result<PathBuf> {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Ok(Path::new(&manifest).parent().context("xtask has no folder above it")?.to_path_buf())
}

fn cargo() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

/// All that the objects are made from.
fn sources(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> =
        ["ebpf/Cargo.toml", "rust-toolchain.toml", "xtask/src/ebpf.rs"].iter().map(|name| root.join(name)).collect();
    let mut folders = vec![root.join("ebpf/src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
            let path = entry.with_context(|| format!("reading {}", folder.display()))?.path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    Ok(found)
}

/// `core` for the BPF target is built from source. rustup brings the source by itself, as rust-toolchain.toml asks for
/// it, unless it was told not to install anything by itself.
fn rust_src() -> anyhow::Result<()> {
    if sysroot()?.join("lib/rustlib/src/rust/library/core").is_dir() {
        return Ok(());
    }
    println!("ebpf: adding the component rust-src to the toolchain (`core` is built from it for the kernel)");
    let status = Command::new("rustup").args(["component", "add", "rust-src"]).status().context("starting rustup")?;
    ensure!(status.success(), "rust-src could not be added; install the toolchain with rustup and try again");
    Ok(())
}

fn sysroot() -> anyhow::Result<PathBuf> {
    let output =
        Command::new("rustc").args(["--print", "sysroot"]).output().context("asking rustc where its toolchain is")?;
    ensure!(output.status.success(), "rustc --print sysroot failed");
    Ok(PathBuf::from(String::from_utf8(output.stdout).context("the sysroot is not UTF-8")?.trim()))
}

/// A bpf-linker: of `target/tools`, of `PATH`, or freshly installed.
fn linker(root: &Path) -> anyhow::Result<PathBuf> {
    let tools = root.join("target/tools");
    let ours = tools.join("bin/bpf-linker");
    if runs(&ours) {
        return Ok(ours);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    if let Some(found) = env::split_paths(&path).map(|folder| folder.join("bpf-linker")).find(|linker| runs(linker)) {
        return Ok(found);
    }
    install(&tools)?;
    ensure!(runs(&ours), "{} was installed but does not start", ours.display());
    Ok(ours)
}

fn runs(linker: &Path) -> bool {
    linker.is_file()
        && Command::new(linker)
            .arg("--version")
            .output()
            .is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(LINKER_VERSION))
}

fn install(tools: &Path) -> anyhow::Result<()> {
    println!(
        "ebpf: installing bpf-linker {LINKER_VERSION} into {} (it turns Rust's bitcode into a BPF object; about a minute)",
        tools.display()
    );
    let sysroot = sysroot()?;
    let llvm = llvm_library(&sysroot.join("lib"))?;
    // llvm-sys wants an installation of LLVM. Of the toolchain's it needs the library alone, under its common name.
    let prefix = tools.join("llvm");
    for folder in ["lib", "lib64"] {
        let folder = prefix.join(folder);
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let link = folder.join("libLLVM.so");
        let _ = fs::remove_file(&link);
        symlink(&llvm, &link).with_context(|| format!("linking {}", link.display()))?;
    }
    let status = Command::new(cargo())
        .args(["install", "bpf-linker", "--locked", "--no-default-features", "--features", LLVM_FEATURE])
        .args(["--version", &format!("~{LINKER_VERSION}"), "--force", "--root"])
        .arg(tools)
        .env("LLVM_PREFIX", &prefix)
        .env("RUSTFLAGS", format!("-C link-arg=-Wl,-rpath,{}/lib", sysroot.display()))
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_TARGET_DIR")
        .status()
        .context("starting cargo to install bpf-linker")?;
    ensure!(
        status.success(),
        "bpf-linker could not be installed (see above); it needs a C compiler and the crates registry"
    );
    Ok(())
}

fn llvm_library(lib: &Path) -> anyhow::Result<PathBuf> {
    let entries = fs::read_dir(lib).with_context(|| format!("looking for LLVM in {}", lib.display()))?;
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with("libLLVM") {
            return Ok(entry.path());
        }
    }
    bail!("no libLLVM in {}: install the toolchain with rustup, not from the distribution", lib.display())
}
