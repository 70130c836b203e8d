//! Upstreams and clients that misbehave.

use tidegate_l7::Config;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::lab::{Connection, DEADLINE, Lab, Server, active, all_to, fresh_address, get};

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_breaks_off_or_is_silent_is_named() {
    let (server, address) = (Server::start("shop").await, fresh_address());
    let mut lab = Lab::start_with(Config { upstream_read_timeout_ms: 200, ..Config::default() });
    lab.change(|input| {
        input.pools.insert("shop".into(), active(&[server.address]));
        input.listeners.insert(address, all_to("shop"));
    })
    .await;
    let broken = get(address, "a", "/break").await.unwrap();
    assert_eq!(broken.status, 502);
    assert!(broken.text().starts_with(&format!("502 {} of the pool shop broke off", server.address)), "{broken:?}");
    let silent = get(address, "a", "/gate").await.unwrap();
    assert_eq!(silent.status, 504);
    assert!(silent.text().ends_with("of the pool shop did not answer within 200 ms\n"), "{silent:?}");
    let report = lab.until(|report| report.pools["shop"].status[4] == 2 && report.pools["shop"].in_flight == 0).await;
    assert_eq!(report.pools["shop"].upstreams[0].in_flight, 0);
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_connections_that_upstreams_closed_cost_no_request() {
    let (server, address) = (Server::start("shop").await, fresh_address());
    let mut lab = Lab::start();
    lab.change(|input| {
        input.pools.insert("shop".into(), active(&[server.address]));
        input.listeners.insert(address, all_to("shop"));
    })
    .await;
    let mut connection = Connection::to(address).await.unwrap();
    for _ in 0..100 {
        assert_eq!(connection.ask("GET /stale HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap().status, 200);
    }
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_are_refused_and_break_nothing() {
    let (server, address) = (Server::start("shop").await, fresh_address());
    let mut lab = Lab::start();
    lab.change(|input| {
        input.pools.insert("shop".into(), active(&[server.address]));
        input.listeners.insert(address, all_to("shop"));
    })
    .await;
    let many = (0..300).map(|number| format!("X-{number}: y\r\n")).collect::<String>();
    let corpus: [Vec<u8>; 22] = [
        b"\r\n\r\n\r\n".to_vec(),
        b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\r\n\r\n".to_vec(),
        b"GET\r\n\r\n".to_vec(),
        b"GET / HTTP/9.9\r\nHost: a\r\n\r\n".to_vec(),
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_vec(),
        b"GET / HTTP/1.1\r\nHost: a\r\nBad Header\r\n\r\n".to_vec(),
        b"GET / HTTP/1.1\r\nHost: a\r\nName : x\r\n\r\n".to_vec(),
        b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n".to_vec(),
        b"GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n".to_vec(),
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: nine\r\n\r\n".to_vec(),
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n".to_vec(),
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab".to_vec(),
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n".to_vec(),
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec(),
        b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n".to_vec(),
        b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n".to_vec(),
        b"CONNECT b:443 HTTP/1.1\r\nHost: b:443\r\n\r\n".to_vec(),
        format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n").into_bytes(),
        [&b"GET /"[..], &vec![b'a'; 2 << 20], b" HTTP/1.1\r\nHost: a\r\n\r\n"].concat(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello to a plaintext port\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nand then no frames but this text, over and over again".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".to_vec(),
    ];
    for request in &corpus {
        let shown = String::from_utf8_lossy(&request[..request.len().min(80)]).into_owned();
        let mut tcp = TcpStream::connect(address).await.unwrap();
        // A refusal may come before all of it is written.
        let _ = tcp.write_all(request).await;
        let _ = tcp.shutdown().await;
        let mut answer = Vec::new();
        // However the connection ends, it ends.
        let _ = timeout(DEADLINE, tcp.read_to_end(&mut answer)).await.unwrap_or_else(|_| panic!("hangs: {shown:?}"));
        let answer = String::from_utf8_lossy(&answer);
        let refused = answer.is_empty() || answer.starts_with("HTTP/1.1 40") || !answer.starts_with("HTTP/");
        assert!(refused, "{shown:?} was answered {answer:?}");
        assert_eq!(get(address, "a", "/").await.unwrap().status, 200, "after {shown:?}");
    }
    let report = lab.until(|report| report.pools["shop"].in_flight == 0).await;
    assert_eq!(report.pools["shop"].upstreams[0].in_flight, 0);
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_sent_before_the_last_answer_do_not_get_mixed_up() {
    let (server, address) = (Server::start("shop").await, fresh_address());
    let mut lab = Lab::start();
    lab.change(|input| {
        input.pools.insert("shop".into(), active(&[server.address]));
        input.listeners.insert(address, all_to("shop"));
    })
    .await;
    let mut connection = Connection::to(address).await.unwrap();
    let two = "GET /one HTTP/1.1\r\nHost: a\r\n\r\nGET /two HTTP/1.1\r\nHost: a\r\n\r\n";
    let answer = connection.ask(two).await.unwrap();
    assert!(answer.text().starts_with("shop\nGET /one "), "{answer:?}");
    // Pipelining is off: the connection ends, and the client asks again.
    assert!(connection.is_closed().await);
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_does_not_answer_the_handshake_is_passed_over() {
    let (server, address) = (Server::start("shop").await, fresh_address());
    // A full backlog: the kernel answers no further SYN.
    let deaf = fresh_address();
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&deaf.into()).unwrap();
    socket.listen(0).unwrap();
    socket.set_nonblocking(true).unwrap();
    let _deaf = TcpListener::from_std(socket.into()).unwrap();
    let mut fillers = Vec::new();
    while let Ok(filler) = timeout(std::time::Duration::from_millis(200), TcpStream::connect(deaf)).await {
        fillers.push(filler.unwrap());
    }
    let mut lab = Lab::start_with(Config { connect_timeout_ms: 100, ..Config::default() });
    lab.change(|input| {
        input.pools.insert("shop".into(), active(&[server.address, deaf]));
        input.listeners.insert(address, all_to("shop"));
    })
    .await;
    for _ in 0..6 {
        assert_eq!(get(address, "a", "/").await.unwrap().status, 200);
    }
    let report = lab.until(|report| report.pools["shop"].status[1] == 6).await;
    assert!(report.pools["shop"].retries > 0);
    lab.end().await;
}
