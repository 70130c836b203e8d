use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    sync::Arc,
};

use tidegate_control::{
    io::store::Store,
    model::{
        desired::Desired,
        elb::{Elb, ElbSpec},
    },
};

const FILE: &str = "TIDEGATE_TEST_STORE";

fn desired(revision: u64) -> Desired {
    let spec: ElbSpec =
        serde_json::from_str(r#"{"type":"layer4","app":"/demo","ports":[{"listen":80,"target":8080}]}"#).unwrap();
    let elb = |revision| Arc::new(Elb { spec: spec.clone(), vips: vec![], revision });
    // Two rows that always change together.
    let elbs = [("a".to_owned(), elb(revision)), ("b".to_owned(), elb(revision))].into_iter().collect();
    Desired { elbs, revision }
}

/// Not a test of its own: the process that is killed in the middle of its writes.
#[tokio::test]
async fn writes_without_end_when_asked_to() {
    let Some(path) = std::env::var_os(FILE) else { return };
    let store = Store::open(path.as_ref()).unwrap();
    let apps = store.load().unwrap().apps;
    for revision in 1..u64::MAX {
        let old = if revision == 1 { Desired::default() } else { desired(revision - 1) };
        store.commit(old, desired(revision)).await.unwrap();
        println!("committed {revision} {}", apps.len());
    }
}

#[test]
fn after_kill_9_in_the_middle_of_writes_the_store_holds_all_that_was_committed_and_no_half() {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let path = directory.path().join(format!("{round}.redb"));
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::writes_without_end_when_asked_to", "--nocapture"])
            .env(FILE, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut last = 0;
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        while last < 20 + round * 7 {
            let line = lines.next().expect("the child writes until it is killed").unwrap();
            if let Some((_, rest)) = line.split_once("committed ") {
                last = rest.split(' ').next().unwrap().parse().unwrap();
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let kept = Store::open(&path).unwrap().load().unwrap();
        assert!(kept.desired.revision >= last, "{} was told, {} is there", last, kept.desired.revision);
        assert_eq!(kept.desired, desired(kept.desired.revision));
        assert!(kept.problems.is_empty());
    }
}
