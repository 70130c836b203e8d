//! A client that sees every byte: HTTP/1.1 by hand, one connection per request.

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

/// Nothing in these tests takes longer; everything waits for a condition, never for a time.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(crate) struct Reply {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let fields = self.head.lines().filter_map(|line| line.split_once(": "));
        fields.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

fn address(url: &str) -> SocketAddr {
    url.trim_start_matches("http://").parse().unwrap()
}

pub(crate) async fn send(url: &str, line: &str, headers: &str, body: Option<&Value>) -> Reply {
    try_send(url, line, headers, body).await.unwrap_or_else(|e| panic!("{line}: {e}"))
}

/// `line` is `METHOD /path`.
pub(crate) async fn try_send(url: &str, line: &str, headers: &str, body: Option<&Value>) -> std::io::Result<Reply> {
    let mut stream = timeout(LIMIT, TcpStream::connect(address(url))).await.map_err(std::io::Error::other)??;
    let body = body.map(Value::to_string).unwrap_or_default();
    let request = format!(
        "{line} HTTP/1.1\r\nHost: {url}\r\nConnection: close\r\nContent-Type: application/json\r\n{headers}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await?;
    let mut bytes = Vec::new();
    timeout(LIMIT, stream.read_to_end(&mut bytes)).await.map_err(std::io::Error::other)??;
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body = bytes[end + 4..].to_vec();
    let body = if head.to_lowercase().contains("transfer-encoding: chunked") { unchunk(&body).0 } else { body };
    Ok(Reply { status, head, body })
}

/// The content of whole chunks, how many bytes they took, and whether the last one came.
fn unchunk(mut bytes: &[u8]) -> (Vec<u8>, usize, bool) {
    let (mut content, all) = (Vec::new(), bytes.len());
    while let Some(at) = bytes.windows(2).position(|w| w == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..at]).unwrap(), 16).unwrap();
        if bytes.len() < at + 2 + size + 2 {
            break;
        }
        content.extend(&bytes[at + 2..at + 2 + size]);
        bytes = &bytes[at + 2 + size + 2..];
        if size == 0 {
            return (content, all - bytes.len(), true);
        }
    }
    (content, all - bytes.len(), false)
}

/// An open event stream.
#[derive(Debug)]
pub(crate) struct Events {
    stream: TcpStream,
    pub head: String,
    /// Bytes that came and are not yet whole chunks.
    raw: Vec<u8>,
    /// The content so far, frames not yet taken.
    pub content: Vec<u8>,
    ready: VecDeque<(String, Value)>,
    pub ended: bool,
}

impl Events {
    /// `query` as `?event_type=x`, or empty.
    pub(crate) async fn open(url: &str, query: &str) -> Events {
        Self::open_with_buffer(url, query, None).await
    }

    pub(crate) async fn open_with_buffer(url: &str, query: &str, receive_buffer: Option<u32>) -> Events {
        let socket = TcpSocket::new_v4().unwrap();
        if let Some(size) = receive_buffer {
            socket.set_recv_buffer_size(size).unwrap();
        }
        let mut stream = socket.connect(address(url)).await.unwrap();
        let request = format!("GET /v2/events{query} HTTP/1.1\r\nHost: {url}\r\nAccept: text/event-stream\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut raw = Vec::new();
        let end = loop {
            assert!(timeout(LIMIT, stream.read_buf(&mut raw)).await.unwrap().unwrap() > 0, "closed before the head");
            if let Some(end) = raw.windows(4).position(|w| w == b"\r\n\r\n") {
                break end + 4;
            }
        };
        let head = String::from_utf8(raw.drain(..end).collect()).unwrap();
        Events { stream, head, raw, content: Vec::new(), ready: VecDeque::new(), ended: false }
    }

    /// Reads until at least one more byte of content is there, or the end.
    pub(crate) async fn more(&mut self) {
        loop {
            let (content, used, last) = unchunk(&self.raw);
            self.raw.drain(..used);
            self.ended |= last;
            if !content.is_empty() || self.ended {
                self.content.extend(content);
                return;
            }
            match timeout(LIMIT, self.stream.read_buf(&mut self.raw)).await.expect("nothing comes") {
                Ok(n) if n > 0 => {}
                _ => self.ended = true,
            }
        }
    }

    /// The next event; `None` when the stream has ended.
    pub(crate) async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            self.more().await;
            while let Some(end) = self.content.windows(4).position(|w| w == b"\r\n\r\n") {
                let frame: Vec<u8> = self.content.drain(..end + 4).collect();
                let frame = String::from_utf8(frame).unwrap();
                // Keep-alives are empty lines before a frame.
                let frame = frame.trim_start_matches("\r\n").trim_end_matches("\r\n");
                let mut lines = frame.split("\r\n");
                let kind = lines.next().unwrap().strip_prefix("event: ").unwrap().to_owned();
                let data = lines.next().unwrap().strip_prefix("data: ").unwrap();
                assert_eq!(lines.next(), None, "a frame has two lines");
                self.ready.push_back((kind, serde_json::from_str(data).unwrap()));
            }
        }
    }

    /// Events up to and with the first that `last` says yes to.
    pub(crate) async fn until(&mut self, mut last: impl FnMut(&str, &Value) -> bool) -> Vec<(String, Value)> {
        let mut seen = Vec::new();
        loop {
            let event = timeout(LIMIT, self.next()).await.unwrap_or_else(|_| panic!("only came: {seen:#?}"));
            let Some(event) = event else { panic!("the stream ended after {seen:#?}") };
            let found = last(&event.0, &event.1);
            seen.push(event);
            if found {
                return seen;
            }
        }
    }

    pub(crate) async fn until_kind(&mut self, kind: &str) -> Vec<(String, Value)> {
        self.until(|k, _| k == kind).await
    }
}

/// Asks again until the answer is right.
pub(crate) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let asked = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LIMIT, asked).await.unwrap_or_else(|_| panic!("not within {LIMIT:?}: {what}"))
}
