use tidegate_tests::appliance::Settings;

use super::{APP, Stage};

#[test]
fn layer_4_does_not_blink_when_tidegate_is_killed_and_started_again() {
    let Some(mut stage) = Stage::set(&Settings::default()) else { return };
    let load = stage.load(stage.layer4_load());
    load.wait_for_answers(20);
    load.mark("kill -9");
    stage.appliance.kill9();
    // New connections and old ones alike, with no process at all.
    load.wait_for_answers(100);
    load.mark("start");
    stage.appliance.restart().unwrap();
    load.mark("started");
    stage.appliance.wait_ready("demo-l4").unwrap();
    load.wait_for_answers(100);
    let before = load.so_far();
    for (label, workers) in [("layer 4, long connections", 8), ("layer 4, IPv6, long connections", 4)] {
        assert_eq!(before.of(label).connections, workers, "{label}: none was made anew\n{before}");
    }
    load.mark("3 to 4");
    stage.cluster.scale(APP, 4).unwrap();
    stage.served_by(&load, 4);
    let account = load.stop();
    account.assert_lossless();
    assert!(account.lost_datagrams.is_empty(), "{account}");
    println!("{account}");
}

#[test]
fn a_tidegate_that_starts_without_marathon_serves_what_it_remembers() {
    let Some(mut stage) = Stage::set(&Settings::default()) else { return };
    let status = stage.appliance.stop();
    assert!(status.is_some_and(|status| status.success()), "SIGTERM ends it in good order: {status:?}");
    let down = tidegate_tests::marathon::Faults { hang: vec!["/".to_owned()], ..Default::default() };
    stage.cluster.standin().set_faults(down);
    stage.appliance.restart().unwrap();
    stage.appliance.wait_ready("demo-l4").unwrap();
    stage.appliance.wait_ready("demo-l7").unwrap();
    let load = stage.load(stage.everything());
    load.wait_for_answers(20);
    load.stop().assert_lossless();
}
