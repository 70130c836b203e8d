use tidegate_tests::{appliance::Settings, marathon::Faults};

use super::Stage;

#[test]
fn an_empty_answer_withdraws_nothing_and_raises_an_alarm() {
    let Some(stage) = Stage::set(&Settings { resync_s: 1, ..Settings::default() }) else { return };
    let load = stage.load(stage.everything());
    load.wait_for_answers(20);
    let quiet = stage.appliance.alarms().unwrap();
    load.mark("empty");
    stage.cluster.standin().set_faults(Faults { empty: true, ..Faults::default() });
    stage
        .appliance
        .poll("an alarm is raised", |appliance| Ok(appliance.alarms()?.iter().any(|key| key.contains("empty"))))
        .unwrap();
    load.mark("alarm");
    load.wait_for_answers(200);
    assert_eq!(stage.appliance.status().unwrap()["instances"], 3, "the last good list stays");
    load.mark("back");
    stage.cluster.standin().set_faults(Faults::default());
    stage.appliance.poll("the alarm is over", |appliance| Ok(appliance.alarms()? == quiet)).unwrap();
    let back = load.so_far().marked("back");
    load.wait_for_answers(25);
    let account = load.stop();
    account.assert_lossless();
    assert_eq!(account.served_since(back).len(), 3, "{account}");
}
