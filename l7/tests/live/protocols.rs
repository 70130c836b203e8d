//! HTTP/1.1, HTTP/2 by prior knowledge, WebSocket: all on one port.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
};

use crate::lab::{Connection, Lab, Server, active, all_to, fresh_address};

async fn one_server(address: std::net::SocketAddr) -> (Lab, Server) {
    let server = Server::start("shop").await;
    let mut lab = Lab::start();
    lab.change(|input| {
        input.pools.insert("shop".into(), active(&[server.address]));
        input.listeners.insert(address, all_to("shop"));
    })
    .await;
    (lab, server)
}

#[tokio::test(flavor = "multi_thread")]
async fn keeps_connections_of_clients_and_to_upstreams() {
    let address = fresh_address();
    let (lab, server) = one_server(address).await;
    let mut connection = Connection::to(address).await.unwrap();
    for round in 0..50 {
        let answer = connection.ask(&format!("GET /{round} HTTP/1.1\r\nHost: a\r\n\r\n")).await.unwrap();
        assert!(answer.text().starts_with(&format!("shop\nGET /{round} ")));
        assert!(!answer.head.contains("connection: close"), "{}", answer.head);
    }
    assert_eq!(server.hits(), 50);
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn serves_the_shortest_requests_and_the_slowest_ones() {
    let address = fresh_address();
    let (lab, _server) = one_server(address).await;
    // Fewer bytes than the preface of HTTP/2.
    let mut connection = Connection::to(address).await.unwrap();
    let answer = connection.ask("GET / HTTP/1.0\r\n\r\n").await.unwrap();
    assert_eq!(answer.status, 200);
    assert!(connection.is_closed().await);
    // It even begins like HTTP/2.
    let mut connection = Connection::to(address).await.unwrap();
    for byte in b"PROPFIND /x HTTP/1.1\r\nHost: a\r\n\r\n" {
        connection.tcp.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert!(connection.answer(true).await.unwrap().text().starts_with("shop\nPROPFIND /x HTTP/1.1"));
    let answer = connection.ask("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(connection.ask("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap().status, 200);
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_pass_both_ways() {
    const SIZE: usize = 8 << 20;
    let address = fresh_address();
    let (lab, _server) = one_server(address).await;
    let mut connection = Connection::to(address).await.unwrap();
    let answer = connection.ask(&format!("GET /big/{SIZE} HTTP/1.1\r\nHost: a\r\n\r\n")).await.unwrap();
    assert_eq!(answer.body.len(), SIZE);

    let body: String = (0..SIZE / 8).map(|number| format!("{number:07} ")).collect();
    let plain = format!("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n{body}");
    assert!(connection.ask(&plain).await.unwrap().body == body.as_bytes());
    let chunks: String = body.as_bytes().chunks(60_000).fold(String::new(), |mut all, chunk| {
        all += &format!("{:x}\r\n{}\r\n", chunk.len(), std::str::from_utf8(chunk).unwrap());
        all
    });
    let chunked = format!("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n");
    assert!(connection.ask(&chunked).await.unwrap().body == body.as_bytes());
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_pass_through_however_quick_the_upstream_is() {
    const CONNECTIONS: u64 = 50;
    let address = fresh_address();
    let (mut lab, _server) = one_server(address).await;
    let upgrade = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut connection = Connection::to(address).await.unwrap();
        assert_eq!(connection.ask(upgrade).await.unwrap().status, 101);
        for round in 0..5_u8 {
            connection.tcp.write_all(&[round; 1000]).await.unwrap();
            let mut back = [0; 1000];
            connection.tcp.read_exact(&mut back).await.unwrap();
            assert_eq!(back, [round; 1000]);
        }
        connections.push(connection);
    }
    lab.until(|report| report.pools["shop"].in_flight == CONNECTIONS).await;
    drop(connections);
    let report = lab.until(|report| report.pools["shop"].in_flight == 0).await;
    assert_eq!(report.pools["shop"].status, [CONNECTIONS, 0, 0, 0, 0]);
    lab.end().await;
}

/// Runs a program, `None` when it is not here (or, with `needs`, not with that feature), which is said.
async fn run(program: &str, needs: &str, package: &str, arguments: &[&str]) -> Option<String> {
    let version = Command::new(program).arg("--version").output().await;
    if !version.is_ok_and(|version| String::from_utf8_lossy(&version.stdout).contains(needs)) {
        let required = std::env::var_os("LAB_REQUIRE").is_some_and(|value| value == "1");
        assert!(!required, "{program} with {needs} is required: apt-get install {package}");
        eprintln!("skipped: there is no {program} with {needs} here (apt-get install {package})");
        return None;
    }
    let output = Command::new(program).args(arguments).output().await.expect("it ran for its version");
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).expect("it prints text"))
}

/// One request with HTTP/2 by prior knowledge. (Two on one connection are more than curl 7.88 can do.)
async fn curl_h2(arguments: &[&str]) -> Option<String> {
    let common = ["--silent", "--show-error", "--http2-prior-knowledge", "--max-time", "30"];
    run("curl", "HTTP2", "curl", &[&common, arguments].concat()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_by_prior_knowledge_is_served_on_the_same_port() {
    let address = fresh_address();
    let (mut lab, server) = one_server(address).await;
    let url = |path: &str| format!("http://{address}{path}");
    let version = "\n%{http_version} %{http_code}";
    let Some(one) = curl_h2(&["-H", "Host: shop.example", "-w", version, &url("/one")]).await else {
        return lab.end().await;
    };
    assert!(one.contains("GET /one HTTP/1.1") && one.ends_with("\n2 200"), "{one}");
    assert!(one.to_ascii_lowercase().contains("host: shop.example\r\n"), "{one}");

    let body = "y".repeat(300_000);
    let file = std::env::temp_dir().join(format!("tidegate-l7-{}-{}", std::process::id(), address.port()));
    std::fs::write(&file, &body).unwrap();
    let data = format!("@{}", file.display());
    let echoed = curl_h2(&["--data-binary", &data, &url("/echo")]).await;
    std::fs::remove_file(&file).unwrap();
    assert!(echoed.unwrap() == body);

    lab.change(|input| drop(input.pools.insert("shop".into(), active(&[])))).await;
    let refused = curl_h2(&["-w", version, &url("/")]).await.unwrap();
    assert!(refused.starts_with("503 the pool shop has no upstream") && refused.ends_with("\n2 503"), "{refused}");
    assert_eq!(server.hits(), 2);
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_http2_streams_share_a_connection() {
    let address = fresh_address();
    let (mut lab, _server) = one_server(address).await;
    let arguments = ["-n", "500", "-c", "2", "-m", "20", &format!("http://{address}/big/50000")];
    if let Some(told) = run("h2load", "nghttp2", "nghttp2-client", &arguments).await {
        assert!(told.contains("500 succeeded, 0 failed, 0 errored"), "{told}");
        lab.until(|report| report.pools["shop"].status == [0, 500, 0, 0, 0]).await;
    }
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_listener_lets_http2_streams_finish() {
    let address = fresh_address();
    let (mut lab, server) = one_server(address).await;
    let asking = tokio::spawn(async move { curl_h2(&[&format!("http://{address}/gate")]).await });
    let no_curl = async {
        while !asking.is_finished() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = server.until_hits(1) => {}
        // Skipped, or failed: the end of the task tells.
        () = no_curl => {}
    }
    lab.change(|input| input.listeners.clear()).await;
    server.open();
    if let Some(answer) = asking.await.unwrap() {
        assert_eq!(answer, "through the gate");
    }
    lab.end().await;
}
