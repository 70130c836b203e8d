//! Who gets a request, and what is said when nobody does.

use std::sync::Arc;

use tidegate_l7::{Listener, UpstreamState};

use crate::lab::{Connection, Lab, Server, active, all_to, fresh_address, get, pool, route};

#[tokio::test(flavor = "multi_thread")]
async fn routes_by_host_and_path_and_tells_upstreams_who_asked() {
    let (shop, api) = (Server::start("shop").await, Server::start("api").await);
    let address = fresh_address();
    let mut lab = Lab::start();
    lab.change(|input| {
        let routes = vec![route(Some("shop.example"), "/", "shop"), route(Some("*.example"), "/api", "api")];
        input.listeners.insert(address, Arc::new(Listener { routes }));
        input.pools.insert("shop".into(), active(&[shop.address]));
        input.pools.insert("api".into(), active(&[api.address]));
    })
    .await;

    let answer = get(address, "Shop.Example:8080", "/api?q=1").await.unwrap();
    assert!(answer.text().starts_with("shop\nGET /api?q=1 HTTP/1.1\r\n"), "{answer:?}");
    let echoed = answer.text().to_ascii_lowercase();
    for line in [
        "host: shop.example:8080\r\n",
        "x-forwarded-for: 127.0.0.1\r\n",
        "x-forwarded-proto: http\r\n",
        "x-forwarded-host: shop.example:8080\r\n",
    ] {
        assert!(echoed.contains(line), "{line} should be in {echoed}");
    }
    assert!(!answer.head.contains("pingora"), "{}", answer.head);
    assert!(get(address, "other.example", "/api/x").await.unwrap().text().starts_with("api\n"));
    let absolute = get(address, "other.example", "http://other.example/api/y").await.unwrap();
    assert!(absolute.text().starts_with("api\nGET /api/y HTTP/1.1\r\n"), "{absolute:?}");

    let mut connection = Connection::to(address).await.unwrap();
    for (host, target, words) in [
        ("other.example", "/apix", "404 no route for the path /apix of the host other.example at 127."),
        ("elsewhere", "/x?y", "404 no route for the host elsewhere (path /x) at 127."),
    ] {
        // The same connection goes on after a refusal.
        let answer = connection.ask(&format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await.unwrap();
        assert_eq!(answer.status, 404);
        assert!(answer.text().starts_with(words), "{answer:?}");
        assert!(!answer.head.contains("server:"), "{}", answer.head);
    }
    let answer = connection.ask("HEAD /x HTTP/1.1\r\nHost: elsewhere\r\n\r\n").await.unwrap();
    assert_eq!(answer.status, 404);
    let answer = connection.ask("GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n").await.unwrap();
    assert!(answer.text().starts_with("shop\n"));

    let report = lab.until(|report| report.pools["shop"].status[1] == 2 && report.pools["api"].status[1] == 2).await;
    assert_eq!(report.pools["shop"].requests, 2);
    assert_eq!(report.pools["shop"].upstreams[0].requests, 2);
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn asks_another_upstream_when_one_refuses_the_connection_whatever_the_method() {
    let server = Server::start("alive").await;
    let (address, dead) = (fresh_address(), fresh_address());
    let mut lab = Lab::start();
    lab.change(|input| {
        input.listeners.insert(address, all_to("shop"));
        input.pools.insert("shop".into(), active(&[server.address, dead]));
    })
    .await;
    let body = "x".repeat(200_000);
    for _ in 0..20 {
        let post = format!("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let answer = Connection::to(address).await.unwrap().ask(&post).await.unwrap();
        assert_eq!((answer.status, answer.body.len()), (200, body.len()));
    }
    assert_eq!(server.hits(), 20);
    let report = lab.until(|report| report.pools["shop"].status[1] == 20).await;
    let counters = &report.pools["shop"];
    let of_dead = counters.upstreams.iter().find(|upstream| upstream.address == dead).unwrap();
    assert!(of_dead.connect_failures > 0 && of_dead.connect_failures == counters.retries, "{counters:?}");
    assert_eq!((of_dead.requests, of_dead.in_flight, counters.unavailable), (0, 0, 0));
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn says_why_a_pool_cannot_answer() {
    let (address, dead, second) = (fresh_address(), fresh_address(), fresh_address());
    let mut lab = Lab::start();
    let cases = [
        (pool([]), "503 the pool shop has no upstream".to_owned()),
        (pool([(dead, UpstreamState::Draining)]), "503 the pool shop has no active upstream: 1 draining".to_owned()),
        (
            pool([(dead, UpstreamState::Active), (second, UpstreamState::Draining)]),
            format!(
                "503 the pool shop did not take the connection: 1 tried, 1 active, 1 draining; the last one, {dead}, refuses connections"
            ),
        ),
    ];
    for (index, (pool, words)) in cases.into_iter().enumerate() {
        lab.change(|input| {
            input.listeners.insert(address, all_to("shop"));
            input.pools.insert("shop".into(), pool);
        })
        .await;
        let answer = get(address, "a", "/").await.unwrap();
        assert_eq!(answer.status, 503);
        assert!(answer.text().starts_with(&words), "{answer:?}");
        assert!(answer.head.contains("\r\nretry-after: 1\r\n") && !answer.head.contains("server:"), "{}", answer.head);
        let unavailable = index as u64 + 1;
        let told = |report: &tidegate_l7::Report| {
            let counters = &report.pools["shop"];
            (counters.unavailable, counters.status[4], counters.in_flight) == (unavailable, unavailable, 0)
        };
        lab.until(told).await;
    }
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spreads_requests_evenly() {
    let servers = [Server::start("a").await, Server::start("b").await, Server::start("c").await];
    let address = fresh_address();
    let mut lab = Lab::start();
    lab.change(|input| {
        input.listeners.insert(address, all_to("shop"));
        input.pools.insert("shop".into(), active(&servers.each_ref().map(|server| server.address)));
    })
    .await;
    let mut connection = Connection::to(address).await.unwrap();
    for _ in 0..300 {
        assert_eq!(connection.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap().status, 200);
    }
    let hits = servers.each_ref().map(Server::hits);
    assert!(hits.iter().all(|hits| (95..=105).contains(hits)), "{hits:?}");
    lab.end().await;
}
