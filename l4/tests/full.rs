//! A table without room, and somebody who makes it so: what is established goes on.

#![allow(clippy::unwrap_used, reason = "a test says so by panicking")]

mod lab;

use std::{sync::Arc, time::Duration};

use aya::maps::{Array, Map, MapData};
use lab::{
    Lab,
    echo::{Connection, serve},
    flood,
    plane::{Plane, input},
};
use tidegate_ebpf::abi::{FIRST_PORT, Flow, PORTS, TCP, map};
use tidegate_l4::{Protection, Report, Service};

const VIP: &str = "10.77.100.1:80";
const VIPS: &[(&str, &[&str])] = &[("10.77.100.1", &["10.77.1.1", "10.77.1.2"])];

fn lab() -> Lab {
    let lab = Lab::new();
    serve(&lab.reals[0], 8080, b'a');
    serve(&lab.reals[1], 8080, b'b');
    lab
}

fn dropped(report: &Report, reason: &str) -> u64 {
    report.drops.iter().find(|(name, _)| *name == reason).map_or(0, |(_, count)| *count)
}

fn open(lab: &Lab, count: usize) -> Vec<Connection> {
    let mut open: Vec<Connection> = (0..count).map(|_| Connection::open(&lab.client, VIP).unwrap()).collect();
    open.iter_mut().for_each(|connection| connection.echo(1000).unwrap());
    open
}

#[test]
fn where_every_port_is_taken_connections_go_on_and_new_ones_wait_for_one_that_ends() {
    if lab::skip() {
        return;
    }
    let lab = lab();
    let plane = Plane::start(&lab, &["eth0"]);
    plane.give(input(1, VIPS, &Service::default()));
    let mut old = open(&lab, 8);

    // One local address: its every place gets a flow that lives.
    let data = MapData::from_pin(lab.pin_dir.join(map::FLOWS)).unwrap();
    let mut flows: Array<_, Flow> = Map::Array(data).try_into().unwrap();
    let places: Vec<u32> = (FIRST_PORT..PORTS).filter(|place| flows.get(place, 0).unwrap().protocol == 0).collect();
    let taken = (FIRST_PORT..PORTS).map(|place| flows.get(&place, 0).unwrap()).find(|flow| flow.protocol == TCP);
    let live = Flow { client_port: 9, spilled: 1, ..taken.unwrap() };
    places.iter().for_each(|place| flows.set(*place, live, 0).unwrap());
    let before = dropped(&plane.until("it is counted", |report| !report.drops.is_empty()), "no-port");
    let waiting = [(); 3].map(|()| Connection::wait(&lab.client, VIP));
    plane.until("it is said why", |report| dropped(report, "no-port") >= before + 3);
    assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
    old.iter_mut().for_each(|connection| connection.echo(100_000).unwrap());

    // One in eight ends: a new flow has sixteen places to look at.
    let ended = Flow { client_end: Flow::FIN, real_end: Flow::FIN, ..live };
    places.iter().step_by(8).for_each(|place| flows.set(*place, ended, 0).unwrap());
    let mut new = open(&lab, 8);
    new.extend(waiting.map(|waiting| waiting.join().unwrap().unwrap()));
    new.iter_mut().chain(&mut old).for_each(|connection| connection.echo(100_000).unwrap());
}

#[test]
fn a_flood_of_syns_breaks_no_connection_and_is_forgotten_in_seconds() {
    if lab::skip() {
        return;
    }
    let lab = lab();
    let plane = Plane::start(&lab, &["eth0"]);
    plane.give(input(1, VIPS, &Service::default()));
    let mut old = open(&lab, 24);
    // Twice as many as there are places.
    let flood = flood::syns(&lab.client, &lab.appliance, VIP.parse().unwrap(), 2 * PORTS);
    while !flood.is_finished() {
        old.iter_mut().for_each(|connection| connection.echo(1000).unwrap());
    }
    flood.join().unwrap();
    plane.until("the table was full", |report| dropped(report, "no-port") > 0);
    old.iter_mut().for_each(|connection| connection.echo(100_000).unwrap());
    // A handshake that nobody finished gives way after three seconds, also one that a real answered. The clients' own
    // repeats wait for that.
    for connection in &mut open(&lab, 24) {
        connection.echo(100_000).unwrap();
    }
    old.iter_mut().for_each(|connection| connection.echo(100_000).unwrap());
}

#[test]
fn with_cookies_nearly_everybody_gets_in_during_a_flood_of_syns() {
    if lab::skip() {
        return;
    }
    let lab = lab();
    let plane = Plane::start(&lab, &["eth0"]);
    let protection = Protection { syn_cookies_above: Some(500), ..Protection::default() };
    plane.give(input(1, VIPS, &Service { protection, ..Service::default() }));
    let mut old = open(&lab, 24);
    let flood = flood::syns(&lab.client, &lab.appliance, VIP.parse().unwrap(), 200_000);
    let (mut tried, mut came) = (0, 0);
    while !flood.is_finished() {
        tried += 1;
        let good = Connection::open_within(&lab.client, VIP, Duration::from_secs(5));
        came += u32::from(good.is_ok_and(|mut connection| connection.echo(2000).is_ok()));
        old.iter_mut().for_each(|connection| connection.echo(1000).unwrap());
    }
    flood.join().unwrap();
    assert!(tried >= 20 && came * 100 >= tried * 95, "{came} of {tried} good clients got in");
    let report: Arc<Report> =
        plane.until("it was counted", |report| report.services.values().map(|service| service.opens).sum::<u64>() > 0);
    assert_eq!(dropped(&report, "no-port"), 0, "{:?}", report.drops);
    println!("{came} of {tried}; {:?}", report.drops);
}
