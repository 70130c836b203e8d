use tidegate_tests::appliance::Settings;

use super::{APP, Stage};

#[test]
fn an_instance_that_marathon_kills_is_drained_before_it_dies() {
    let Some(stage) = Stage::set(&Settings::default()) else { return };
    let load = stage.load(stage.everything());
    load.wait_for_answers(20);
    let victim = stage.cluster.standin().tasks(APP)[0].task_id();
    load.mark("kill");
    stage.cluster.ask(|marathon| marathon.kill_task(&victim, false)).unwrap();
    load.wait("another took its place", std::time::Duration::from_secs(60), |account| account.served_by.len() == 4);
    let now = stage.served_by(&load, 3);
    assert!(!now.contains(&victim), "the killed instance serves: {now:?}");
    let account = load.stop();
    account.assert_lossless();
    assert!(account.served_by.contains_key(&victim), "the victim had never served, so nothing is proved\n{account}");
    println!("{account}");
}
