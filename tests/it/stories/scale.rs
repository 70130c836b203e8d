use tidegate_tests::appliance::Settings;

use super::{APP, Stage};

#[test]
fn scaling_up_and_down_loses_nothing() {
    let Some(stage) = Stage::set(&Settings::default()) else { return };
    let load = stage.load(stage.everything());
    load.wait_for_answers(20);
    load.mark("3 to 10");
    stage.cluster.scale(APP, 10).unwrap();
    load.mark("10 run");
    stage.served_by(&load, 10);
    load.mark("10 to 2");
    stage.cluster.scale(APP, 2).unwrap();
    load.mark("2 run");
    stage.served_by(&load, 2);
    let account = load.stop();
    account.assert_lossless();
    println!("{account}");
}
