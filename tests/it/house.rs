//! The rules of the house that a machine can hold: who may know whom, what stands where, and under which licence.
//!
//! Each check is a pure function from what is there to complaints, and is shown a wrong house as well as ours.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use cargo_metadata::{Metadata, MetadataCommand};
use toml::{Table, Value};

/// Which of our crates each of our crates may use.
const ARROWS: [(&str, &[&str]); 8] = [
    ("tidegate-ebpf", &[]),
    ("tidegate-l4", &["tidegate-ebpf"]),
    ("tidegate-l7", &[]),
    ("tidegate-dns", &[]),
    ("tidegate-control", &["tidegate-l4", "tidegate-l7", "tidegate-dns"]),
    ("xtask", &[]),
    ("tidegate-tests", &["tidegate-ebpf", "tidegate-l4", "tidegate-l7", "tidegate-dns", "tidegate-control"]),
    (
        "tidegate-bench",
        &["tidegate-ebpf", "tidegate-l4", "tidegate-l7", "tidegate-dns", "tidegate-control", "tidegate-tests"],
    ),
];

/// The nine rooms.
const ROOMS: [&str; 9] = ["bench", "control", "docs", "dns", "ebpf", "l4", "l7", "tests", "xtask"];

/// What else stands at the top: what the tools look for there.
const FURNITURE: [&str; 12] = [
    ".cargo",
    ".ci",
    ".gitignore",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "clippy.toml",
    "deny.toml",
    "rust-toolchain.toml",
    "rustfmt.toml",
];

/// Crates that we name and of which a second version is in the lock file all the same.
const TWICE: [(&str, &str); 1] = [("thiserror", "pingora's x509-parser 0.16 still uses version 1")];

/// Files that must decide without a clock, a socket, a file or dice: whatever they need is an argument.
const PURE: [&str; 22] = [
    "ebpf/src",
    "l4/src/maglev.rs",
    "l4/src/ring.rs",
    "l4/src/tables.rs",
    "l4/src/tables",
    "l4/src/census.rs",
    "l4/src/locals.rs",
    "l4/src/input.rs",
    "l4/src/hops/way.rs",
    "l4/src/hops/book.rs",
    "l4/src/hops/message.rs",
    "l4/src/health/judge.rs",
    "l4/src/health/standing.rs",
    "l7/src/table.rs",
    "l7/src/pool.rs",
    "dns/src/zone.rs",
    "dns/src/lookup.rs",
    "dns/src/wire.rs",
    "control/src/model",
    "control/src/compile",
    "control/src/cycle",
    "control/src/lately.rs",
];
const IMPURE: [&str; 12] = [
    "Instant::now",
    "SystemTime",
    "Timestamp::now",
    "Zoned::now",
    "fastrand::",
    "std::fs",
    "std::process",
    "std::env",
    "tokio::",
    "TcpStream",
    "UdpSocket",
    "std::thread",
];

const LONGEST_FILE: usize = 600;

#[test]
fn no_room_knows_one_that_it_must_not_know() {
    let metadata = metadata();
    let ours: BTreeSet<&str> = metadata.workspace_packages().iter().map(|package| package.name.as_str()).collect();
    let mut edges = Vec::new();
    for package in metadata.workspace_packages() {
        for dependency in &package.dependencies {
            if ours.contains(dependency.name.as_str()) {
                edges.push((package.name.as_str(), dependency.name.as_str()));
            }
        }
    }
    assert!(edges.contains(&("tidegate-l4", "tidegate-ebpf")), "the arrows were not read");
    none(edges.iter().filter_map(|(from, to)| wrong_arrow(from, to)));
    let unlisted: Vec<_> = ours.iter().filter(|name| ARROWS.iter().all(|(known, _)| known != *name)).collect();
    assert!(unlisted.is_empty(), "add to ARROWS what these may know: {unlisted:?}");

    assert!(wrong_arrow("tidegate-l7", "tidegate-l4").is_some());
    assert!(wrong_arrow("tidegate-dns", "tidegate-control").is_some());
    assert!(wrong_arrow("xtask", "tidegate-control").is_some());
}

fn wrong_arrow(from: &str, to: &str) -> Option<String> {
    let (_, allowed) = ARROWS.iter().find(|(name, _)| *name == from)?;
    (!allowed.contains(&to)).then(|| format!("{from} must not know {to}"))
}

#[test]
fn every_version_of_a_dependency_stands_in_the_workspace_table_alone() {
    for room in ROOMS {
        let manifest = root().join(room).join("Cargo.toml");
        if let Ok(text) = fs::read_to_string(&manifest) {
            let table: Table = toml::from_str(&text).expect("cargo has read this manifest already");
            none(
                own_versions(&table)
                    .into_iter()
                    .map(|name| format!("{room}/Cargo.toml: {name} needs workspace = true")),
            );
        }
    }

    let wrong = r#"
        dependencies = { a = "1", b = { workspace = true, version = "1" }, good = { workspace = true } }
        dev-dependencies.c = { path = "../c" }
        target."cfg(unix)".build-dependencies.d = { git = "somewhere" }
    "#;
    assert_eq!(own_versions(&toml::from_str(wrong).unwrap()), ["a", "b", "c", "d"]);
}

/// Dependencies that say more than that the workspace knows them (features and optional are theirs to say).
fn own_versions(table: &Table) -> Vec<String> {
    let mut names = Vec::new();
    for (key, value) in table {
        match (key.as_str(), value) {
            ("dependencies" | "dev-dependencies" | "build-dependencies", Value::Table(dependencies)) => {
                for (name, dependency) in dependencies {
                    let from_workspace = dependency.get("workspace").and_then(Value::as_bool) == Some(true);
                    let more = ["version", "path", "git"].iter().any(|key| dependency.get(key).is_some());
                    if !from_workspace || more {
                        names.push(name.clone());
                    }
                }
            }
            ("target", Value::Table(targets)) => {
                names.extend(targets.values().filter_map(Value::as_table).flat_map(own_versions));
            }
            _ => {}
        }
    }
    names
}

#[test]
fn what_we_name_ourselves_is_there_once() {
    let metadata = metadata();
    let mut versions: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for package in &metadata.packages {
        versions.entry(package.name.as_str()).or_default().insert(package.version.to_string());
    }
    let manifest: Table = toml::from_str(&read("Cargo.toml")).unwrap();
    let named: Vec<&str> =
        manifest["workspace"]["dependencies"].as_table().unwrap().keys().map(String::as_str).collect();
    assert!(named.contains(&"tokio"), "the workspace table was not read");
    none(twice(&named, &versions, &TWICE));

    let two = BTreeSet::from(["1.0.0".to_owned(), "2.0.0".to_owned()]);
    let one = BTreeSet::from(["1.0.0".to_owned()]);
    let wrong = BTreeMap::from([("serde", two), ("http", one)]);
    assert_eq!(twice(&["serde", "http"], &wrong, &[]).len(), 1);
    assert_eq!(twice(&["serde", "http"], &wrong, &[("serde", "a reason"), ("http", "is over")]).len(), 1);
}

fn twice(named: &[&str], versions: &BTreeMap<&str, BTreeSet<String>>, known: &[(&str, &str)]) -> Vec<String> {
    let mut complaints = Vec::new();
    for name in named {
        let count = versions.get(name).map_or(0, BTreeSet::len);
        let excused = known.iter().any(|(known, _)| known == name);
        if count > 1 && !excused {
            complaints.push(format!("{name} is in the lock file as {:?}: settle on one, or excuse it", versions[name]));
        }
        if count < 2 && excused {
            complaints.push(format!("{name} is there once again: take it out of TWICE"));
        }
    }
    complaints
}

#[test]
fn nothing_unknown_stands_at_the_top() {
    let top = top_level();
    none(strangers(&top));
    for room in ROOMS {
        assert!(top.iter().any(|name| name == room), "the room {room} is gone");
    }

    assert_eq!(strangers(&["l4".to_owned(), "utils".to_owned()]).len(), 1);
}

fn strangers(top: &[String]) -> Vec<String> {
    top.iter()
        .filter(|name| !ROOMS.contains(&name.as_str()) && !FURNITURE.contains(&name.as_str()))
        .map(|name| format!("{name} belongs into one of the nine rooms"))
        .collect()
}

/// What git knows or would add; without git, what is there.
fn top_level() -> Vec<String> {
    let git = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output();
    let names: BTreeSet<String> = match git {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| line.split('/').next())
            .map(str::to_owned)
            .collect(),
        _ => fs::read_dir(root())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|name| name != ".git" && name != "target")
            .collect(),
    };
    names.into_iter().collect()
}

#[test]
fn no_file_is_longer_than_a_person_can_hold() {
    let files: Vec<PathBuf> = ROOMS.iter().flat_map(|room| rust_files(&root().join(room))).collect();
    assert!(files.len() > 30, "only {} files were found", files.len());
    none(files.iter().filter_map(|file| too_long(file, &fs::read_to_string(file).unwrap())));

    assert!(too_long(Path::new("long.rs"), &"//\n".repeat(601)).is_some());
    assert!(too_long(Path::new("fits.rs"), &"//\n".repeat(600)).is_none());
}

fn too_long(file: &Path, text: &str) -> Option<String> {
    let lines = text.lines().count();
    (lines > LONGEST_FILE).then(|| format!("{} has {lines} lines: it is more than one idea", file.display()))
}

#[test]
fn the_pure_rooms_have_no_clock_socket_file_or_dice() {
    for place in PURE {
        let path = root().join(place);
        // A room may be one file or a folder of them.
        let mut files = rust_files(&path);
        files.extend(Some(path.with_extension("rs")).filter(|file| file.is_file() && !files.contains(file)));
        assert!(!files.is_empty(), "{place} is not there: the list of pure rooms is old");
        let inside = |file: &Path| file.strip_prefix(&path).is_ok_and(|rest| rest.starts_with("tests"));
        let tests = |file: &&PathBuf| inside(file) || file.ends_with("tests.rs");
        for file in files.iter().filter(|file| !tests(file)) {
            none(impure(&fs::read_to_string(file).unwrap()).map(|word| format!("{}: {word}", file.display())));
        }
    }

    assert_eq!(impure("let now = Instant::now();").count(), 1);
    assert_eq!(impure("//! no SystemTime here\n#[cfg(test)]\nmod tests { use std::fs; }").count(), 0);
}

/// What code (not comments, and not the tests at its end) says that it must not.
fn impure(text: &str) -> impl Iterator<Item = &'static str> {
    let code = text.split("#[cfg(test)]").next().unwrap_or(text);
    let code: String = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    IMPURE.into_iter().filter(move |word| code.contains(word))
}

#[test]
fn every_licence_is_one_that_we_accept() {
    let deny: Table = toml::from_str(&read("deny.toml")).unwrap();
    let allowed: Vec<&str> =
        deny["licenses"]["allow"].as_array().unwrap().iter().map(|licence| licence.as_str().unwrap()).collect();
    let metadata = metadata();
    assert!(metadata.packages.len() > 100, "only {} packages were read", metadata.packages.len());
    none(metadata.packages.iter().filter_map(|package| {
        let licence = package.license.as_deref().unwrap_or("no licence");
        (!acceptable(licence, &allowed)).then(|| format!("{} {}: {licence}", package.name, package.version))
    }));

    let allowed = ["MIT", "Apache-2.0", "Unicode-3.0", "MPL-2.0", "Apache-2.0 WITH LLVM-exception"];
    let cases = [
        ("MIT", true),
        ("MPL-2.0+", true),
        ("GPL-3.0-only", false),
        ("no licence", false),
        ("MIT OR GPL-3.0-only", true),
        ("MIT/Apache-2.0", true),
        ("MIT AND GPL-3.0-only", false),
        ("(MIT OR GPL-3.0-only) AND Unicode-3.0", true),
        ("MIT AND (GPL-3.0-only OR GPL-2.0-only)", false),
        ("GPL-3.0-only OR MIT AND Unicode-3.0", true),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("MIT WITH LLVM-exception", false),
        ("(MIT", false),
    ];
    for (licence, expected) in cases {
        assert_eq!(acceptable(licence, &allowed), expected, "{licence}");
    }
}

/// An SPDX expression: `AND` binds closer than `OR`; some crates still write `/` for `OR`.
fn acceptable(expression: &str, allowed: &[&str]) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    any_of(&mut rest, allowed) && rest.is_empty()
}

fn any_of(words: &mut &[&str], allowed: &[&str]) -> bool {
    let mut accepted = all_of(words, allowed);
    while let ["OR", rest @ ..] = *words {
        *words = rest;
        // Not `||` with the call last: the words must be read even if the answer is known.
        accepted = all_of(words, allowed) || accepted;
    }
    accepted
}

fn all_of(words: &mut &[&str], allowed: &[&str]) -> bool {
    let mut accepted = one(words, allowed);
    while let ["AND", rest @ ..] = *words {
        *words = rest;
        accepted = one(words, allowed) && accepted;
    }
    accepted
}

fn one(words: &mut &[&str], allowed: &[&str]) -> bool {
    match *words {
        ["(", rest @ ..] => {
            *words = rest;
            let accepted = any_of(words, allowed);
            let [")", rest @ ..] = *words else { return false };
            *words = rest;
            accepted
        }
        [licence, "WITH", exception, rest @ ..] => {
            *words = rest;
            allowed.contains(&format!("{licence} WITH {exception}").as_str())
        }
        [licence, rest @ ..] => {
            *words = rest;
            allowed.contains(&licence.trim_end_matches('+'))
        }
        [] => false,
    }
}

fn none(complaints: impl IntoIterator<Item = String>) {
    let complaints: Vec<String> = complaints.into_iter().collect();
    assert!(complaints.is_empty(), "\n  {}\n", complaints.join("\n  "));
}

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .exec()
        .expect("cargo reads the manifests that it has just built from")
}

/// All Rust files below a folder.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else { return files };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests lie in the repository")
}
