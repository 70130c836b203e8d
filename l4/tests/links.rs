//! Interfaces that go while the plane runs.

#![allow(clippy::unwrap_used, reason = "a test says so by panicking")]

mod lab;

use std::time::{Duration, Instant};

use lab::{
    Lab,
    echo::{Connection, serve},
    plane::{Plane, input},
};
use tidegate_l4::Service;

const V4: &str = "10.77.100.1:80";
const V6: &str = "[fd77:0:100::1]:80";
const VIPS: &[(&str, &[&str])] = &[("10.77.100.1", &["10.77.1.1"]), ("fd77:0:100::1", &["fd77:0:1::1"])];

#[test]
fn an_interface_that_goes_is_told_and_gets_the_program_again_when_it_is_back() {
    if lab::skip() {
        return;
    }
    let lab = Lab::new();
    serve(&lab.reals[0], 8080, b'a');
    lab.appliance.ip("link add side0 type veth peer name side1
         link set side0 up
         link set side1 up");
    let plane = Plane::start(&lab, &["eth0", "side0"]);
    let report = plane.give(input(1, VIPS, &Service::default()));
    assert_eq!(report.attached.len(), 2);
    let mut open: Vec<Connection> = [V4, V6].map(|vip| Connection::open(&lab.client, vip).unwrap()).into();

    lab.appliance.ip("link del side0");
    let report = plane.until("it is told", |report| report.problems.iter().any(|text| text.contains("side0 is gone")));
    assert_eq!(report.attached.len(), 1);
    open.iter_mut().for_each(|connection| connection.echo(100_000).unwrap());
    plane.give(input(2, VIPS, &Service::default()));
    lab.appliance.ip("link add side0 type veth peer name side1");
    let report = plane.until("it is back", |report| report.attached.len() == 2);
    assert!(report.problems.is_empty(), "{:?}", report.problems);

    // The one that has the addresses; its machine gives it its own ones, and the plane the others.
    lab.switch.ip("link del p-appl");
    plane.until("it is told", |report| report.problems.iter().any(|text| text.contains("eth0 is gone")));
    lab.plug();
    plane.until("it is back", |report| report.attached.len() == 2 && report.problems.is_empty());
    for vip in [V4, V6] {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match Connection::open_within(&lab.client, vip, Duration::from_secs(1)) {
                Ok(mut connection) => break connection.echo(100_000).unwrap(),
                Err(error) => assert!(Instant::now() < deadline, "{vip}: {error}"),
            }
        }
    }
}
