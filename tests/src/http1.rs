//! A small HTTP/1.1 client that hides nothing: every way in which an exchange can end badly has a name.

use std::{fmt, io, net::SocketAddr};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// How an exchange failed.
#[derive(Debug)]
pub enum Failure {
    Connect(io::Error),
    Write(io::Error),
    Read(io::Error),
    /// The connection ended after so many bytes of an answer.
    Short(usize),
    /// Not HTTP, or an answer whose end cannot be known.
    Malformed(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => write!(f, "connect: {error}"),
            Self::Write(error) => write!(f, "sending the request: {error}"),
            Self::Read(error) => write!(f, "waiting for the answer: {error}"),
            Self::Short(0) => write!(f, "closed without an answer"),
            Self::Short(bytes) => write!(f, "closed in the middle of the answer, after {bytes} bytes"),
            Self::Malformed(why) => write!(f, "not an answer: {why}"),
        }
    }
}

impl std::error::Error for Failure {}

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether the server said that this was the connection's last answer.
    pub fn closes(&self) -> bool {
        self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Result<serde_json::Value> {
        serde_json::from_slice(&self.body)
    }
}

/// What came on a connection on which nothing was asked.
#[derive(Debug)]
pub enum Idle {
    Closed,
    Broken(io::Error),
    /// Bytes that nobody asked for.
    Spoke,
}

#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Connection {
    pub async fn open(at: SocketAddr) -> Result<Self, Failure> {
        let stream = TcpStream::connect(at).await.map_err(Failure::Connect)?;
        stream.set_nodelay(true).map_err(Failure::Connect)?;
        Ok(Self { stream, buffer: BytesMut::new() })
    }

    /// One request and its whole answer.
    pub async fn exchange(&mut self, method: &str, host: &str, path: &str, body: &[u8]) -> Result<Response, Failure> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.stream.write_all(&[head.as_bytes(), body].concat()).await.map_err(Failure::Write)?;
        loop {
            let response = self.response(method == "HEAD").await?;
            // 1xx answers come before the real one.
            if response.status >= 200 {
                return Ok(response);
            }
        }
    }

    /// Resolves when anything happens on the connection; for the time in which nothing should.
    pub async fn idle(&mut self) -> Idle {
        if !self.buffer.is_empty() {
            return Idle::Spoke;
        }
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(0) => Idle::Closed,
            Ok(_) => Idle::Spoke,
            Err(error) => Idle::Broken(error),
        }
    }

    async fn response(&mut self, bodiless: bool) -> Result<Response, Failure> {
        let end = self.find(b"\r\n\r\n").await?;
        let head = self.buffer.split_to(end + 4);
        let head = std::str::from_utf8(&head).map_err(|_| Failure::Malformed("the head is not text".to_owned()))?;
        let mut lines = head.lines();
        let first = lines.next().unwrap_or_default();
        let status = first
            .strip_prefix("HTTP/1.1 ")
            .or_else(|| first.strip_prefix("HTTP/1.0 "))
            .and_then(|rest| rest.get(..3)?.parse().ok())
            .ok_or_else(|| Failure::Malformed(format!("the first line is {first:?}")))?;
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut response = Response { status, headers, body: Vec::new() };
        if bodiless || status < 200 || status == 204 || status == 304 {
            return Ok(response);
        }
        if response.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
            response.body = self.chunks().await?;
        } else {
            let length = response.header("content-length").and_then(|value| value.parse().ok());
            let length = length.ok_or_else(|| Failure::Malformed(format!("{status} without a length")))?;
            response.body = self.take(length).await?;
        }
        Ok(response)
    }

    async fn chunks(&mut self) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        loop {
            let end = self.find(b"\r\n").await?;
            let line = self.buffer.split_to(end + 2);
            let size = std::str::from_utf8(&line).unwrap_or_default();
            let size = size.split(';').next().unwrap_or_default().trim();
            let size =
                usize::from_str_radix(size, 16).map_err(|_| Failure::Malformed(format!("chunk size {size:?}")))?;
            body.extend(self.take(size).await?);
            let end = self.take(2).await?;
            if end != b"\r\n" {
                return Err(Failure::Malformed("a chunk without its end (or with trailers)".to_owned()));
            }
            if size == 0 {
                return Ok(body);
            }
        }
    }

    async fn find(&mut self, what: &[u8]) -> Result<usize, Failure> {
        loop {
            if let Some(at) = self.buffer.windows(what.len()).position(|window| window == what) {
                return Ok(at);
            }
            self.more().await?;
        }
    }

    async fn take(&mut self, length: usize) -> Result<Vec<u8>, Failure> {
        while self.buffer.len() < length {
            self.more().await?;
        }
        let bytes = self.buffer[..length].to_vec();
        self.buffer.advance(length);
        Ok(bytes)
    }

    async fn more(&mut self) -> Result<(), Failure> {
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(0) => Err(Failure::Short(self.buffer.len())),
            Ok(_) => Ok(()),
            Err(error) => Err(Failure::Read(error)),
        }
    }
}

/// One request on a connection of its own.
pub async fn once(at: SocketAddr, method: &str, path: &str, body: &[u8]) -> Result<Response, Failure> {
    Connection::open(at).await?.exchange(method, &at.to_string(), path, body).await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// What the client makes of the bytes that a server says before it closes.
    async fn told(bytes: &'static [u8]) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            stream.write_all(bytes).await.unwrap();
        });
        let answer = tokio::time::timeout(Duration::from_secs(5), once(at, "GET", "/", b"")).await.unwrap();
        server.await.unwrap();
        match answer {
            Ok(response) => {
                format!("{} {:?}{}", response.status, response.text(), if response.closes() { " closes" } else { "" })
            }
            Err(failure) => failure.to_string(),
        }
    }

    #[tokio::test]
    async fn an_answer_counts_only_when_it_is_whole() {
        let table: &[(&[u8], &str)] = &[
            (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", r#"200 "hi""#),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nConnection: Close\r\n\r\n", r#"200 "" closes"#),
            (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", r#"204 """#),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x\r\n0123456789\r\n0\r\n\r\n",
                r#"200 "abc0123456789""#,
            ),
            (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", r#"503 """#),
            (b"", "closed without an answer"),
            (b"HTTP/1.1 200 OK\r\n", "closed in the middle of the answer, after 17 bytes"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi", "closed in the middle of the answer, after 2 bytes"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", "closed without an answer"),
            (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", "not an answer: 200 without a length"),
            (b"SSH-2.0-x\r\n\r\n", r#"not an answer: the first line is "SSH-2.0-x""#),
        ];
        for (bytes, want) in table {
            assert_eq!(told(bytes).await, *want, "{:?}", String::from_utf8_lossy(bytes));
        }
    }
}
