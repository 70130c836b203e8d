use std::time::{Duration, Instant};

use tidegate_tests::{
    appliance::Settings,
    marathon::{EventFaults, Faults},
};

use super::{APP, Stage};

#[test]
fn a_minute_without_events_is_bridged_by_full_lists() {
    let Some(stage) = Stage::set(&Settings::default()) else { return };
    let load = stage.load(stage.everything());
    load.wait_for_answers(20);
    load.mark("deaf");
    let from = Instant::now();
    let events = EventFaults { lose: vec!["*".to_owned()], ..EventFaults::default() };
    stage.cluster.standin().set_faults(Faults { events, ..Faults::default() });
    load.mark("3 to 6");
    stage.cluster.scale(APP, 6).unwrap();
    stage.served_by(&load, 6);
    load.mark("6 serve");
    std::thread::sleep(Duration::from_secs(60).saturating_sub(from.elapsed()));
    stage.cluster.standin().set_faults(Faults::default());
    load.mark("hears again");
    stage.cluster.scale(APP, 3).unwrap();
    stage.served_by(&load, 3);
    let account = load.stop();
    account.assert_lossless();
    println!("{account}");
}
