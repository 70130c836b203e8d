//! A client that others wrote drives the stand-in without knowing: the package `marathon` of PyPI.

use std::{path::Path, process::Stdio, time::Duration};

use tidegate_tests::{
    lab::skip,
    marathon::{Config, Standin},
};
use tokio::{process::Command, time::timeout};

#[tokio::test(flavor = "multi_thread")]
async fn the_python_client_finds_marathon() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let python = root.join("target/venv/bin/python");
    let has_client = std::process::Command::new(&python).args(["-c", "import marathon"]).stderr(Stdio::null()).status();
    if !has_client.is_ok_and(|status| status.success()) {
        skip(
            "target/venv with the PyPI package marathon is missing: python3 -m venv target/venv && target/venv/bin/pip install marathon",
        );
        return;
    }
    let standin = Standin::start(Config::local(2).unwrap()).unwrap();
    let urls = standin.urls();
    let run = Command::new(python)
        .arg(root.join("tests/python/drive.py"))
        .args([&urls[0], env!("CARGO_BIN_EXE_demo_app"), &urls[1]])
        .kill_on_drop(true)
        .output();
    let output = timeout(Duration::from_secs(120), run).await.expect("it ends in time").unwrap();
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.ends_with("done\n"), "after\n{said}it failed:\n{complained}");
    standin.stop().await;
}
