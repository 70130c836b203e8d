//! What happens to requests while the Input changes.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tidegate_l7::{Config, Input, Refused, UpstreamState};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::lab::{Connection, Lab, Server, active, all_to, fresh_address, get, pool};

const GATE: &str = "GET /gate HTTP/1.1\r\nHost: a\r\n\r\n";

/// Asks on and on over kept connections; counts answers, and keeps the first failure.
async fn load(address: SocketAddr, stop: CancellationToken) -> anyhow::Result<usize> {
    let mut connection = Connection::to(address).await?;
    let mut answers = 0;
    while !stop.is_cancelled() {
        let answer = connection.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await?;
        anyhow::ensure!(answer.status == 200, "{answer:?}");
        answers += 1;
    }
    Ok(answers)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_swaps_of_upstreams_under_load_lose_no_request() {
    let servers = [Server::start("a").await, Server::start("b").await, Server::start("c").await];
    let addresses = servers.each_ref().map(|server| server.address);
    let address = fresh_address();
    let mut lab = Lab::start();
    lab.change(|input| {
        input.listeners.insert(address, all_to("shop"));
        input.pools.insert("shop".into(), active(&addresses[..1]));
    })
    .await;
    let stop = CancellationToken::new();
    let clients: Vec<_> = (0..8).map(|_| tokio::spawn(load(address, stop.clone()))).collect();
    for swap in 0..2_000 {
        // One of them, two of them, all with one draining; and each gets and loses its place.
        let rotated = [0, 1, 2].map(|step| addresses[(swap + step) % 3]);
        let pool = match swap % 4 {
            0 => active(&rotated[..1]),
            1 => active(&rotated[..2]),
            2 => pool([(rotated[0], UpstreamState::Draining), (rotated[1], UpstreamState::Active)]),
            _ => active(&rotated),
        };
        lab.change(|input| drop(input.pools.insert("shop".into(), pool))).await;
    }
    stop.cancel();
    let mut answers = 0;
    for client in clients {
        answers += client.await.unwrap().expect("no request may fail");
    }
    assert!(answers > 0 && servers.iter().all(|server| server.hits() > 0));
    let report = lab.until(|report| report.pools["shop"].in_flight == 0).await;
    assert_eq!(report.pools["shop"].unavailable, 0);
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_upstream_finishes_what_it_has_while_new_requests_go_elsewhere() {
    let (old, new) = (Server::start("old").await, Server::start("new").await);
    let address = fresh_address();
    let mut lab = Lab::start();
    lab.change(|input| {
        input.listeners.insert(address, all_to("shop"));
        input.pools.insert("shop".into(), active(&[old.address]));
    })
    .await;
    // An idle connection to the old one lies in the pool of connections; it must not tempt.
    assert!(get(address, "a", "/").await.unwrap().text().starts_with("old\n"));
    let asking = tokio::spawn(async move { Connection::to(address).await?.ask(GATE).await });
    old.until_hits(2).await;
    let draining = [(old.address, UpstreamState::Draining), (new.address, UpstreamState::Active)];
    lab.change(|input| drop(input.pools.insert("shop".into(), pool(draining)))).await;
    for _ in 0..50 {
        assert!(get(address, "a", "/").await.unwrap().text().starts_with("new\n"));
    }
    let of_old = |report: &tidegate_l7::Report| {
        report.pools["shop"].upstreams.iter().find(|upstream| upstream.address == old.address).map(|old| old.in_flight)
    };
    lab.until(|report| of_old(report) == Some(1)).await;
    assert!(!asking.is_finished());
    old.open();
    assert_eq!(asking.await.unwrap().unwrap().text(), "through the gate");
    lab.until(|report| of_old(report) == Some(0)).await;
    assert_eq!(old.hits(), 2);
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_come_and_go_while_requests_in_flight_finish() {
    let server = Server::start("shop").await;
    let (stays, goes) = (fresh_address(), fresh_address());
    let mut lab = Lab::start();
    lab.change(|input| {
        input.pools.insert("shop".into(), active(&[server.address]));
        input.listeners.insert(stays, all_to("shop"));
    })
    .await;
    assert!(TcpStream::connect(goes).await.is_err());
    lab.change(|input| drop(input.listeners.insert(goes, all_to("shop")))).await;
    let mut idle = Connection::to(goes).await.unwrap();
    assert_eq!(idle.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap().status, 200);
    let asking = tokio::spawn(async move {
        let mut connection = Connection::to(goes).await?;
        let answer = connection.ask(GATE).await?;
        anyhow::Ok((answer, connection.is_closed().await))
    });
    server.until_hits(2).await;

    lab.change(|input| drop(input.listeners.remove(&goes))).await;
    assert!(TcpStream::connect(goes).await.is_err(), "a removed listener accepts nothing");
    assert!(idle.is_closed().await);
    server.open();
    let (answer, closed) = asking.await.unwrap().unwrap();
    assert_eq!(answer.text(), "through the gate");
    assert!(answer.head.contains("connection: close") && closed, "{}", answer.head);
    assert_eq!(get(stays, "a", "/").await.unwrap().status, 200);

    // And back at once, on the same address.
    lab.change(|input| drop(input.listeners.insert(goes, all_to("shop")))).await;
    assert_eq!(get(goes, "a", "/").await.unwrap().status, 200);
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_finish_within_the_grace_period_is_cut() {
    let server = Server::start("shop").await;
    let address = fresh_address();
    let mut lab = Lab::start_with(Config { grace_ms: 300, ..Config::default() });
    lab.change(|input| {
        input.pools.insert("shop".into(), active(&[server.address]));
        input.listeners.insert(address, all_to("shop"));
    })
    .await;
    let asking = tokio::spawn(async move { Connection::to(address).await?.ask(GATE).await });
    server.until_hits(1).await;
    lab.change(|input| drop(input.listeners.remove(&address))).await;
    assert!(asking.await.unwrap().is_err());
    lab.until(|report| report.pools["shop"].in_flight == 0).await;
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plane_that_stops_finishes_its_requests() {
    let server = Server::start("shop").await;
    let address = fresh_address();
    let mut lab = Lab::start();
    lab.change(|input| {
        input.pools.insert("shop".into(), active(&[server.address]));
        input.listeners.insert(address, all_to("shop"));
    })
    .await;
    let asking = tokio::spawn(async move { Connection::to(address).await?.ask(GATE).await });
    server.until_hits(1).await;
    lab.stop.cancel();
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(!lab.running.is_finished() && !asking.is_finished());
    server.open();
    assert_eq!(asking.await.unwrap().unwrap().status, 200);
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_listeners_serve_at_once_and_leave_at_once() {
    let server = Server::start("shop").await;
    let addresses: Vec<_> = (0..100).map(|_| fresh_address()).collect();
    let mut lab = Lab::start();
    let report = lab
        .change(|input| {
            input.pools.insert("shop".into(), active(&[server.address]));
            input.listeners.extend(addresses.iter().map(|address| (*address, all_to("shop"))));
        })
        .await;
    assert_eq!(report.problems, Vec::<String>::new());
    for address in &addresses {
        assert_eq!(get(*address, "a", "/").await.unwrap().status, 200);
    }
    lab.change(|input| input.listeners.clear()).await;
    for address in &addresses {
        assert!(TcpStream::connect(address).await.is_err());
    }
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_a_problem_that_ends_when_the_port_is_free_and_hinders_nothing_else() {
    let server = Server::start("shop").await;
    let (taken, free) = (fresh_address(), fresh_address());
    let squatter = TcpListener::bind(taken).await.unwrap();
    let mut lab = Lab::start();
    let report = lab
        .change(|input| {
            input.pools.insert("shop".into(), active(&[server.address]));
            input.listeners.insert(taken, all_to("shop"));
            input.listeners.insert(free, all_to("shop"));
        })
        .await;
    let words = format!("port {} of {} is taken", taken.port(), taken.ip());
    assert!(report.problems.len() == 1 && report.problems[0].starts_with(&words), "{:?}", report.problems);
    assert_eq!((report.generation, &report.refused), (1, &None));
    assert_eq!(get(free, "a", "/").await.unwrap().status, 200);
    drop(squatter);
    lab.until(|report| report.problems.is_empty()).await;
    assert_eq!(get(taken, "a", "/").await.unwrap().status, 200);

    // A problem also goes away with its listener.
    let other = fresh_address();
    let squatter = TcpListener::bind(other).await.unwrap();
    let report = lab.change(|input| drop(input.listeners.insert(other, all_to("shop")))).await;
    assert_eq!(report.problems.len(), 1);
    let report = lab.change(|input| drop(input.listeners.remove(&other))).await;
    assert_eq!(report.problems.len(), 0);
    drop(squatter);
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn listens_on_addresses_that_are_on_no_interface_yet() {
    let mut lab = Lab::start();
    let report = lab
        .change(|input| {
            input.pools.insert("shop".into(), active(&[]));
            // TEST-NET-3 and the documentation prefix: on nobody's interface.
            let port = fresh_address().port();
            input.listeners.insert(SocketAddr::from(([203, 0, 113, 5], port)), all_to("shop"));
            input.listeners.insert(format!("[2001:db8::5]:{port}").parse().unwrap(), all_to("shop"));
        })
        .await;
    assert_eq!(report.problems, Vec::<String>::new());
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_input_changes_nothing_and_the_next_good_one_clears_the_complaint() {
    let server = Server::start("shop").await;
    let address = fresh_address();
    let mut lab = Lab::start();
    lab.change(|input| {
        input.pools.insert("shop".into(), active(&[server.address]));
        input.listeners.insert(address, all_to("shop"));
    })
    .await;
    let good = Input {
        generation: 1,
        listeners: imbl::OrdMap::unit(address, all_to("shop")),
        pools: imbl::OrdMap::unit(Arc::from("shop"), active(&[server.address])),
    };

    let bad = Input { generation: 2, listeners: imbl::OrdMap::unit(fresh_address(), all_to("none")), ..good.clone() };
    let report = lab.send(bad).await;
    assert!(matches!(report.refused, Some((2, Refused::NoPool { .. }))), "{report:?}");
    assert_eq!(report.generation, 1);
    assert_eq!(get(address, "a", "/").await.unwrap().status, 200);

    let old = Input { generation: 0, ..Input::default() };
    let report = lab.send(old).await;
    assert!(matches!(report.refused, Some((0, Refused::Older { got: 0, applied: 1 }))), "{report:?}");
    assert_eq!(get(address, "a", "/").await.unwrap().status, 200);

    let report = lab.send(Input { generation: 3, ..good }).await;
    assert_eq!((report.generation, &report.refused), (3, &None));
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_go_away_are_not_counted_for_ever() {
    let server = Server::start("shop").await;
    let address = fresh_address();
    let mut lab = Lab::start();
    lab.change(|input| {
        input.pools.insert("shop".into(), active(&[server.address]));
        input.listeners.insert(address, all_to("shop"));
    })
    .await;
    let asking: Vec<_> =
        (0..10).map(|_| tokio::spawn(async move { Connection::to(address).await?.ask(GATE).await })).collect();
    server.until_hits(10).await;
    lab.until(|report| report.pools["shop"].in_flight == 10).await;
    asking.iter().for_each(|client| client.abort());
    let report = lab.until(|report| report.pools["shop"].in_flight == 0).await;
    assert_eq!(report.pools["shop"].upstreams[0].in_flight, 0);
    assert_eq!(report.pools["shop"].requests, 10);
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_input_is_served_when_nobody_sends_inputs_any_more() {
    let server = Server::start("shop").await;
    let address = fresh_address();
    let (inputs, input) = tokio::sync::watch::channel(Arc::new(Input {
        generation: 1,
        listeners: imbl::OrdMap::unit(address, all_to("shop")),
        pools: imbl::OrdMap::unit(Arc::from("shop"), active(&[server.address])),
    }));
    let (report, mut reports) = tokio::sync::watch::channel(Arc::default());
    let stop = CancellationToken::new();
    let running = tokio::spawn(tidegate_l7::run(Config::default(), input, report, stop.clone()));
    drop(inputs);
    let applied = reports.wait_for(|report: &Arc<tidegate_l7::Report>| report.generation == 1);
    tokio::time::timeout(Duration::from_secs(30), applied).await.unwrap().unwrap();
    assert_eq!(get(address, "a", "/").await.unwrap().status, 200);
    stop.cancel();
    running.await.unwrap().unwrap();
}
