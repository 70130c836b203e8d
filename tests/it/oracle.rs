//! The oracle must see every kind of loss, and must not cry over what a client would not notice.

use std::{net::SocketAddr, time::Duration};

use tidegate_tests::{
    lab::{self, Ns},
    oracle::{Account, Lifetime, Load, Target},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinHandle,
};

#[derive(Clone, Copy)]
enum Manner {
    Good,
    Unavailable,
    /// Says that it closes, and closes.
    Announces,
    /// Closes a moment after its answer.
    ClosesIdle,
    /// Stops in the middle of the answer.
    Half,
    /// Resets the connection a moment after its answer.
    Resets,
}

const AT: &str = "127.0.0.1:80";

fn serve(ns: &Ns, manner: Manner) -> JoinHandle<()> {
    let listener = ns.block_on(TcpListener::bind(AT)).unwrap();
    ns.spawn(async move {
        // Owned by this task, so that aborting it drops every connection, as the end of a process does.
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            connections.spawn(converse(stream, manner));
        }
    })
}

async fn converse(mut stream: TcpStream, manner: Manner) {
    let mut request = [0; 4096];
    while stream.read(&mut request).await.is_ok_and(|bytes| bytes > 0) {
        let head = match manner {
            Manner::Unavailable => "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 12\r\n\r\n",
            Manner::Announces => "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 12\r\n\r\n",
            Manner::Half => "HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n",
            Manner::Good | Manner::ClosesIdle | Manner::Resets => "HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n",
        };
        if stream.write_all(format!("{head}{{\"task\":\"a\"}}").as_bytes()).await.is_err() {
            return;
        }
        match manner {
            Manner::Good | Manner::Unavailable => {}
            Manner::Announces | Manner::ClosesIdle | Manner::Half => return,
            Manner::Resets => {
                tokio::time::sleep(Duration::from_millis(1)).await;
                let _ = stream.set_zero_linger();
                return;
            }
        }
    }
}

fn web(lifetime: Lifetime) -> Target {
    Target::http("web", AT.parse().unwrap(), "web", lifetime).workers(1)
}

/// The account of a client that was served in this manner.
fn account(manner: Manner, lifetime: Lifetime) -> Account {
    let ns = Ns::new().unwrap();
    let server = serve(&ns, manner);
    let load = Load::start(&ns, [web(lifetime)]);
    load.wait("some requests", Duration::from_secs(20), |account| account.of("web").requests > 5);
    let account = load.stop();
    server.abort();
    account
}

#[test]
fn every_good_answer_is_counted_with_who_gave_it() {
    if !lab::require() {
        return;
    }
    for (lifetime, connections) in
        [(Lifetime::Request, 6..=u64::MAX), (Lifetime::KeepAlive, 1..=1), (Lifetime::Long, 1..=1)]
    {
        let account = account(Manner::Good, lifetime);
        account.assert_lossless();
        let counts = account.of("web");
        assert_eq!(counts.requests, counts.answered, "{account}");
        assert_eq!(account.served_by["a"].count, counts.answered, "{account}");
        assert!(connections.contains(&counts.connections), "{account}");
    }
}

#[test]
fn what_a_client_would_not_notice_is_no_loss() {
    if !lab::require() {
        return;
    }
    let announced = account(Manner::Announces, Lifetime::Long);
    announced.assert_lossless();
    assert!(announced.of("web").announced_closes >= 5, "{announced}");
    let idle = account(Manner::ClosesIdle, Lifetime::Long);
    idle.assert_lossless();
    assert!(idle.of("web").idle_closes >= 4, "{idle}");
}

#[test]
fn a_wrong_answer_is_a_lost_request_on_a_whole_connection() {
    if !lab::require() {
        return;
    }
    let account = account(Manner::Unavailable, Lifetime::Long);
    assert!(account.failed.len() >= 5, "{account}");
    assert!(account.failed[0].reason.contains("503"), "{account}");
    assert!(account.broken.is_empty(), "{account}");
}

#[test]
fn half_an_answer_is_a_lost_request_and_a_broken_connection() {
    if !lab::require() {
        return;
    }
    let account = account(Manner::Half, Lifetime::KeepAlive);
    assert!(account.failed.len() >= 5 && account.broken.len() == account.failed.len(), "{account}");
    assert!(account.failed[0].reason.contains("in the middle"), "{account}");
}

#[test]
fn a_reset_between_requests_is_a_broken_connection() {
    if !lab::require() {
        return;
    }
    let account = account(Manner::Resets, Lifetime::Long);
    assert!(account.broken.len() >= 4 && account.failed.is_empty(), "{account}");
}

#[test]
fn a_server_that_is_killed_under_load_is_reported_by_every_kind_of_client() {
    if !lab::require() {
        return;
    }
    let ns = Ns::new().unwrap();
    let server = serve(&ns, Manner::Good);
    let at: SocketAddr = AT.parse().unwrap();
    let kinds = [("request", Lifetime::Request), ("keep-alive", Lifetime::KeepAlive), ("long", Lifetime::Long)];
    let load = Load::start(&ns, kinds.map(|(label, lifetime)| Target::http(label, at, "web", lifetime)));
    load.wait_for_answers(5);
    load.mark("kill");
    server.abort();
    load.wait("every kind fails", Duration::from_secs(20), |account| {
        kinds.iter().all(|(label, _)| account.failed.iter().any(|loss| loss.label == *label))
    });
    let account = load.stop();
    let verdict = std::panic::catch_unwind(|| account.assert_lossless()).unwrap_err();
    let said = verdict.downcast::<String>().unwrap();
    assert!(said.contains("after \"kill\"") && said.contains("Connection refused"), "{said}");
    assert!(account.marked("kill") <= account.failed[0].at, "{account}");
    assert!(account.served_since(account.failed.last().unwrap().at).is_empty(), "{account}");
}

#[test]
fn datagrams_are_counted_and_their_loss_is_told_apart() {
    if !lab::require() {
        return;
    }
    let ns = Ns::new().unwrap();
    let at: SocketAddr = "127.0.0.1:53".parse().unwrap();
    let socket = ns.block_on(UdpSocket::bind(at)).unwrap();
    let echo = ns.spawn(async move {
        let mut bytes = [0; 512];
        loop {
            let (length, from) = socket.recv_from(&mut bytes).await.unwrap();
            let nonce = String::from_utf8_lossy(&bytes[..length]);
            let _ = socket.send_to(format!(r#"{{"task":"a","echo":"{nonce}"}}"#).as_bytes(), from).await;
        }
    });
    let load = Load::start(&ns, [Target::udp("echo", at)]);
    load.wait_for_answers(5);
    echo.abort();
    load.wait("a datagram is lost", Duration::from_secs(20), |account| !account.lost_datagrams.is_empty());
    let account = load.stop();
    account.assert_lossless();
    assert_eq!(account.served_by["a"].count, account.of("echo").answered);
}

#[test]
fn only_a_dns_answer_with_an_address_is_a_good_one() {
    use hickory_proto::{
        op::{Message, ResponseCode},
        rr::{RData, Record, rdata::A},
    };
    if !lab::require() {
        return;
    }
    let address = std::net::Ipv4Addr::new(10, 77, 100, 1);
    let cases = [
        (ResponseCode::NoError, Some(address), None),
        (ResponseCode::NoError, None, Some("without an address")),
        (ResponseCode::NXDomain, None, Some("Non-Existent Domain")),
    ];
    for (code, answer, complaint) in cases {
        let ns = Ns::new().unwrap();
        let at: SocketAddr = "127.0.0.1:53".parse().unwrap();
        let socket = ns.block_on(UdpSocket::bind(at)).unwrap();
        ns.spawn(async move {
            let mut bytes = [0; 512];
            loop {
                let (length, from) = socket.recv_from(&mut bytes).await.unwrap();
                let mut reply = Message::from_vec(&bytes[..length]).unwrap().into_response();
                reply.metadata.response_code = code;
                let name = reply.queries[0].name().clone();
                reply.answers.extend(answer.map(|address| Record::from_rdata(name, 5, RData::A(A(address)))));
                let _ = socket.send_to(&reply.to_vec().unwrap(), from).await;
            }
        });
        let load = Load::start(&ns, [Target::dns("dns", at, "web.elb.mesos.")]);
        load.wait("some questions", Duration::from_secs(20), |account| account.of("dns").requests > 5);
        let account = load.stop();
        match complaint {
            None => {
                account.assert_lossless();
                assert!(account.resolved.contains_key(&address.into()), "{account}");
            }
            Some(words) => assert!(account.failed[0].reason.contains(words), "{account}"),
        }
    }
}
