use tidegate_tests::{appliance::Settings, marathon::FailOver};

use super::{APP, Stage};

#[test]
fn a_new_leader_changes_nothing_and_is_followed() {
    let Some(stage) = Stage::set(&Settings::default()) else { return };
    let load = stage.load(stage.everything());
    load.wait_for_answers(20);
    load.mark("fail over");
    // For a second the new leader answers with no apps at all, as some versions did.
    let how = FailOver { empty_ms: 1_000, ..FailOver::default() };
    stage.cluster.wait(stage.cluster.standin().fail_over(how));
    load.mark("new leader");
    load.wait_for_answers(100);
    load.mark("3 to 4");
    stage.cluster.scale(APP, 4).unwrap();
    stage.served_by(&load, 4);
    let account = load.stop();
    account.assert_lossless();
    println!("{account}");
}
