//! One client that asks, waits for the answer, pauses, and asks again.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use tokio::{net::UdpSocket, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{Ask, Lifetime, Loss, PATIENCE, Tally, Target};
use crate::http1::{Connection, Idle};

/// Requests on one connection of [`Lifetime::KeepAlive`].
const KEEP_ALIVE: u32 = 50;

pub(super) async fn work(target: Target, tally: Tally, stop: CancellationToken) {
    let worker = Worker { label: target.label, pause: target.pause, tally, stop };
    match target.ask {
        Ask::Http { at, host, connection } => worker.http(at, &host, connection).await,
        Ask::Udp { at } => worker.udp(at).await,
        Ask::Dns { server, name } => worker.dns(server, &name).await,
    }
}

struct Worker {
    label: String,
    pause: Duration,
    tally: Tally,
    stop: CancellationToken,
}

impl Worker {
    async fn http(&self, at: SocketAddr, host: &str, lifetime: Lifetime) {
        let limit = match lifetime {
            Lifetime::Request => 1,
            Lifetime::KeepAlive => KEEP_ALIVE,
            Lifetime::Long => u32::MAX,
        };
        while !self.stop.is_cancelled() {
            self.connection(at, host, limit).await;
            self.rest().await;
        }
    }

    /// The life of one connection.
    async fn connection(&self, at: SocketAddr, host: &str, limit: u32) {
        let mut begun = self.begin();
        let mut connection = match timeout(PATIENCE, Connection::open(at)).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(failure)) => return self.failed(failure.to_string()),
            Err(_) => return self.failed("connect: no answer for 5 s".to_owned()),
        };
        self.tally.account().counts.entry(self.label.clone()).or_default().connections += 1;
        for n in 1.. {
            let answer =
                timeout(PATIENCE.saturating_sub(begun.elapsed()), connection.exchange("GET", host, "/", b"")).await;
            let closes = match answer {
                Ok(Ok(response)) if response.status == 200 => {
                    let body = response.json().unwrap_or_default();
                    self.answered(begun, body["task"].as_str().unwrap_or("(nameless)"));
                    response.closes()
                }
                Ok(Ok(response)) => {
                    let body: String = response.text().chars().take(200).collect();
                    // The connection is whole: only the request is lost.
                    self.failed(format!("answered {} {body}", response.status));
                    response.closes()
                }
                Ok(Err(failure)) => return self.failed_and_broken(&failure),
                Err(_) => return self.failed_and_broken(&"no whole answer for 5 s"),
            };
            if closes {
                self.tally.account().counts.entry(self.label.clone()).or_default().announced_closes += 1;
                return;
            }
            if n >= limit {
                return;
            }
            // The pause, in which the server may close the connection but must not say anything.
            tokio::select! {
                biased;
                idle = connection.idle() => return self.ended_idle(idle),
                () = self.rest() => {}
            }
            if self.stop.is_cancelled() {
                return;
            }
            begun = self.begin();
        }
    }

    async fn udp(&self, at: SocketAddr) {
        while !self.stop.is_cancelled() {
            let begun = self.begin();
            let nonce = format!("{:016x}", fastrand::u64(..));
            match timeout(PATIENCE, ask(at, nonce.as_bytes())).await {
                Ok(Ok(answer)) if String::from_utf8_lossy(&answer).contains(&nonce) => {
                    let body: serde_json::Value = serde_json::from_slice(&answer).unwrap_or_default();
                    self.answered(begun, body["task"].as_str().unwrap_or("(nameless)"));
                }
                Ok(Ok(answer)) => self.failed(format!("not the answer to what was sent: {answer:?}")),
                // Refused: the kernel was told by ICMP that nobody is there.
                Ok(Err(error)) => self.lost(error.to_string()),
                Err(_) => self.lost("no answer for 5 s".to_owned()),
            }
            self.rest().await;
        }
    }

    async fn dns(&self, server: SocketAddr, name: &str) {
        let name = Name::from_ascii(name).expect("stories ask for proper names");
        while !self.stop.is_cancelled() {
            let begun = self.begin();
            let mut query = Message::new(fastrand::u16(..), MessageType::Query, OpCode::Query);
            query.add_query(Query::query(name.clone(), RecordType::A));
            let bytes = query.to_vec().expect("a query with one short name fits");
            match timeout(PATIENCE, ask(server, &bytes)).await {
                Ok(Ok(answer)) => match addresses(&answer, query.metadata.id) {
                    Ok(addresses) => {
                        self.answered(begun, "dns");
                        let at = self.tally.elapsed();
                        let mut account = self.tally.account();
                        addresses.into_iter().for_each(|address| account.resolved.entry(address).or_default().seen(at));
                    }
                    Err(reason) => self.failed(reason),
                },
                Ok(Err(error)) => self.failed(error.to_string()),
                Err(_) => self.failed("no answer for 5 s".to_owned()),
            }
            self.rest().await;
        }
    }

    fn begin(&self) -> Instant {
        self.tally.account().counts.entry(self.label.clone()).or_default().requests += 1;
        Instant::now()
    }

    fn answered(&self, begun: Instant, by: &str) {
        let at = self.tally.elapsed();
        let mut account = self.tally.account();
        let counts = account.counts.entry(self.label.clone()).or_default();
        counts.answered += 1;
        counts.slowest = counts.slowest.max(begun.elapsed());
        account.served_by.entry(by.to_owned()).or_default().seen(at);
    }

    fn failed(&self, reason: String) {
        self.tally.account().failed.push(self.loss(reason));
    }

    fn failed_and_broken(&self, reason: &dyn ToString) {
        let reason = reason.to_string();
        self.failed(reason.clone());
        self.tally.account().broken.push(self.loss(reason));
    }

    fn lost(&self, reason: String) {
        self.tally.account().lost_datagrams.push(self.loss(reason));
    }

    fn ended_idle(&self, idle: Idle) {
        let reason = match idle {
            Idle::Closed => {
                self.tally.account().counts.entry(self.label.clone()).or_default().idle_closes += 1;
                return;
            }
            Idle::Broken(error) => format!("idle: {error}"),
            Idle::Spoke => "idle: the server spoke unasked".to_owned(),
        };
        self.tally.account().broken.push(self.loss(reason));
    }

    fn loss(&self, reason: String) -> Loss {
        Loss { at: self.tally.elapsed(), label: self.label.clone(), reason }
    }

    async fn rest(&self) {
        tokio::select! {
            () = tokio::time::sleep(self.pause) => {}
            () = self.stop.cancelled() => {}
        }
    }
}

/// One datagram and its answer, on a socket of its own.
async fn ask(at: SocketAddr, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: IpAddr = if at.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    // Connected: an answer from another address is no answer.
    socket.connect(at).await?;
    socket.send(bytes).await?;
    let mut answer = vec![0; 4096];
    let length = socket.recv(&mut answer).await?;
    answer.truncate(length);
    Ok(answer)
}

fn addresses(answer: &[u8], id: u16) -> Result<Vec<IpAddr>, String> {
    let answer = Message::from_vec(answer).map_err(|error| format!("not DNS: {error}"))?;
    if answer.metadata.id != id {
        return Err("the answer to another question".to_owned());
    }
    if answer.metadata.response_code != ResponseCode::NoError {
        return Err(format!("answered {}", answer.metadata.response_code));
    }
    let addresses: Vec<IpAddr> = answer
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(a) => Some(a.0.into()),
            RData::AAAA(aaaa) => Some(aaaa.0.into()),
            _ => None,
        })
        .collect();
    if addresses.is_empty() { Err("answered without an address".to_owned()) } else { Ok(addresses) }
}
