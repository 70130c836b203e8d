//! The binary itself, as an operator meets it.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

struct Tidegate {
    child: Child,
    url: String,
}

impl Drop for Tidegate {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.env_remove("TIDEGATE_API").env_remove("TIDEGATE_CONFIG").env_remove("TIDEGATE_LOG");
    command
}

fn say(args: &[&str]) -> (bool, String) {
    let Output { status, stdout, stderr } = command().args(args).output().unwrap();
    (status.success(), String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap())
}

fn config(directory: &Path, more: &str) -> String {
    let path = directory.join("t.toml");
    let text = format!(
        "{more}\n[marathon]\nurls = ['http://127.0.0.1:9']\n[api]\nlisten = ['127.0.0.1:0']\n[store]\npath = '{}'\n\
         [vips]\ninternal = ['127.77.0.0/24']\n[dns]\nlisten = ['127.0.0.1:0']\n",
        directory.join("t.redb").display()
    );
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Starts it and reads from its log where the API is.
fn start(config: &str, roles: &str) -> Tidegate {
    let mut child =
        command().args(["run", "--config", config, "--roles", roles]).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let url = loop {
        let line = lines.next().expect("it says where the API is before it ends").unwrap();
        if let Some((_, url)) = line.split_once("the API is at ") {
            break url.to_owned();
        }
    };
    // Nobody else reads the pipe, and a full one would stop it.
    std::thread::spawn(move || lines.for_each(drop));
    Tidegate { child, url }
}

#[test]
fn an_elb_lives_through_the_command_line_a_stop_and_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path(), "");
    let mut tidegate = start(&config, "control");
    let api = tidegate.url.clone();
    let create =
        ["elb", "create", "demo", "--type", "layer4", "--app", "/demo", "--port", "80:8080", "--wait", "0", "--api"];
    let (good, text) = say(&[&create[..], &[&api]].concat());
    assert!(good && text.contains("127.77.0.1") && text.contains("demo.elb.mesos"), "{text}");
    let (good, text) = say(&["elb", "list", "--api", &api]);
    assert!(good && text.contains("80/tcp->8080 of /demo"), "{text}");
    let (good, text) = say(&["status", "--api", &api]);
    assert!(good && text.contains("1 at revision 1"), "{text}");
    let (good, text) = say(&["elb", "show", "demo", "--json", "--api", &api]);
    assert!(good && text.starts_with("{\"name\":\"demo\""), "{text}");
    let (good, text) = say(&["elb", "create", "demo", "--type", "layer7", "--rule", "/=/demo", "--api", &api]);
    assert!(!good && text.contains("other type") && text.contains("hint:"), "{text}");
    // The same file cannot serve two.
    let (good, text) = say(&["run", "--config", &config, "--roles", "control"]);
    assert!(!good && text.contains("another tidegate") && text.contains("t.redb"), "{text}");

    kill(Pid::from_raw(tidegate.child.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert!(tidegate.child.wait().unwrap().success());

    let tidegate = start(&config, "control");
    let (good, text) = say(&["elb", "show", "demo", "--api", &tidegate.url]);
    assert!(good && text.contains("127.77.0.1"), "{text}");
    let (good, text) = say(&["elb", "delete", "demo", "--api", &tidegate.url]);
    assert!(good && text.contains("removed"), "{text}");
    let (good, text) = say(&["elb", "delete", "demo", "--api", &tidegate.url]);
    assert!(!good && text.contains("there is no ELB demo"), "{text}");
}

#[test]
fn what_cannot_be_done_is_answered_with_what_can() {
    let directory = tempfile::tempdir().unwrap();
    let file = config(directory.path(), "");
    let wrong = directory.path().join("wrong.toml");
    std::fs::write(&wrong, "[api]\nlisen = ['127.0.0.1:1']\n").unwrap();
    let wrong = wrong.to_str().unwrap();
    let table: &[(&[&str], &[&str])] = &[
        (&["status", "--api", "http://127.0.0.1:9"], &["http://127.0.0.1:9", "tidegate run", "--api"]),
        (&["status", "--api", "here"], &["like http://"]),
        (&["check", wrong], &["wrong.toml:2", "api.lisen", "did you mean `listen`"]),
        (&["run", "--config", wrong], &["wrong.toml:2", "api.lisen"]),
        (&["run", "--config", &file, "--roles", "l7"], &["api.follow", "where the ELBs come from"]),
        (&["check", "/nonexistent.toml"], &["/nonexistent.toml"]),
        (&["check"], &["<FILE>"]),
        (&["elb", "create", "x", "--type", "layer4", "--app", "/x"], &["--port"]),
        (&["elb", "create", "x", "--type", "layer4", "--port", "80"], &["--app"]),
        (&["elb", "create", "x", "--type", "layer7"], &["--rule"]),
        (&["elb", "create", "x", "--type", "layer4", "--app", "/x", "--port", "eighty"], &["eighty", "80:8080"]),
        (&["elb", "create", "x", "--type", "layer4", "--app", "/x", "--port", "80/sctp"], &["sctp", "udp"]),
        (&["elb", "create", "x", "--type", "layer7", "--rule", "shop"], &["shop.example.com/=/shop/web"]),
        (&["elb", "show", "a/b"], &["not an ELB's name"]),
    ];
    for (args, wants) in table {
        let (good, text) = say(args);
        assert!(!good, "{args:?}: {text}");
        for want in *wants {
            assert!(text.contains(want), "{args:?} said {text:?}, not {want:?}");
        }
    }
}

#[test]
fn check_says_what_would_run() {
    let directory = tempfile::tempdir().unwrap();
    let (good, text) = say(&["check", &config(directory.path(), "roles = ['l4', 'control']")]);
    assert!(good && text.contains("127.77.0.0/24") && text.contains("can run"), "{text}");
    let file = directory.path().join("d.toml");
    let (good, defaults) = say(&["check", "--defaults"]);
    assert!(good);
    std::fs::write(&file, defaults).unwrap();
    let (good, text) = say(&["check", file.to_str().unwrap()]);
    assert!(good && text.contains("l4, l7, dns, control"), "{text}");
}

#[test]
fn without_a_free_port_it_ends_and_says_which() {
    let directory = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let file = config(directory.path(), "");
    let text = std::fs::read_to_string(&file).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    std::fs::write(&file, text.replacen("127.0.0.1:0", &address, 1)).unwrap();
    let (good, text) = say(&["run", "--config", &file, "--roles", "control"]);
    assert!(!good && text.contains(&address) && text.contains("[api]"), "{text}");
}
