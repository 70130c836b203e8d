//! One probe of one real: a connection, a GET, a datagram.
//!
//! A probe by TCP ends with a RST, so that neither side is left with a TIME_WAIT for each of them.

use std::{
    borrow::Cow,
    io,
    net::SocketAddr,
    sync::{Arc, LazyLock},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, DigitallySignedStruct, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::{CryptoProvider, ring},
        pki_types::{CertificateDer, ServerName, UnixTime},
    },
};

use super::{path::Traffic, source::Sources};
use crate::input::{Probe, ProbeKind};

/// A status line is shorter than this, or it is none.
const STATUS_LINE: u64 = 1024;
/// The longest datagram that is looked at.
const DATAGRAM: usize = 2048;

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Good,
    /// It is the real that failed, or the way to it.
    Bad(Cow<'static, str>),
    /// It is us: the probe says nothing about the real.
    Unable(String),
}

/// Why a probe is not good.
pub(crate) enum Failure {
    Bad(Cow<'static, str>),
    Unable(String),
}

impl Failure {
    fn bad(why: impl Into<Cow<'static, str>>) -> Self {
        Self::Bad(why.into())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::bad("connection refused"),
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::bad("connection reset"),
            io::ErrorKind::UnexpectedEof => Self::bad("closed without an answer"),
            io::ErrorKind::HostUnreachable => Self::bad("host unreachable"),
            io::ErrorKind::NetworkUnreachable => Self::bad("network unreachable"),
            io::ErrorKind::TimedOut => Self::bad("no answer"),
            _ => match error.raw_os_error() {
                Some(
                    libc::EACCES
                    | libc::EPERM
                    | libc::EADDRINUSE
                    | libc::EADDRNOTAVAIL
                    | libc::EMFILE
                    | libc::ENFILE
                    | libc::ENOBUFS
                    | libc::ENOMEM,
                ) => Self::Unable(error.to_string()),
                _ => Self::bad(error.to_string().to_lowercase()),
            },
        }
    }
}

/// Probes the real at `to`, and says how long it took.
pub(crate) async fn probe(
    probe: &Probe,
    to: SocketAddr,
    way: Option<&Traffic>,
    sources: &Sources,
) -> (Outcome, Duration) {
    let began = Instant::now();
    let deadline = began + Duration::from_millis(probe.timeout_ms.into());
    let outcome = match (Attempt { probe, to, way, sources, deadline }).run().await {
        Ok(()) => Outcome::Good,
        Err(Failure::Bad(why)) => Outcome::Bad(why),
        Err(Failure::Unable(why)) => Outcome::Unable(why),
    };
    (outcome, began.elapsed())
}

struct Attempt<'a> {
    probe: &'a Probe,
    to: SocketAddr,
    way: Option<&'a Traffic>,
    sources: &'a Sources,
    deadline: Instant,
}

impl Attempt<'_> {
    async fn run(&self) -> Result<(), Failure> {
        if let ProbeKind::Udp { send, expect } = &self.probe.kind {
            return self.datagram(send, expect).await;
        }
        // The lease outlives the stream, whose RST still needs its way.
        let (socket, _lease) = self.sources.tcp(self.to, self.way)?;
        let stream = self.within("no answer", socket.connect(self.to)).await?;
        let ProbeKind::Http { tls, host, path, status } = &self.probe.kind else { return Ok(()) };
        let request = request(host.as_deref(), path, self.asked())?;
        let got = if *tls {
            self.within("connected, but no status", async {
                get(handshake(stream, host.as_deref(), self.to).await?, &request).await
            })
            .await?
        } else {
            self.within("connected, but no status", get(stream, &request)).await?
        };
        if (status.0..=status.1).contains(&got) { Ok(()) } else { Err(Failure::bad(format!("status {got}"))) }
    }

    /// Whom it asks, as clients would write it.
    fn asked(&self) -> SocketAddr {
        self.way.map_or(self.to, |way| SocketAddr::new(way.frontend.vip, way.frontend.port))
    }

    async fn datagram(&self, send: &[u8], expect: &[u8]) -> Result<(), Failure> {
        let (socket, _lease) = self.sources.udp(self.to, self.way)?;
        socket.connect(self.to).await?;
        socket.send(send).await?;
        let mut answer = [0; DATAGRAM];
        let length = self.within("no answer", socket.recv(&mut answer)).await?;
        if answer[..length].starts_with(expect) {
            Ok(())
        } else {
            Err(Failure::bad("answered with something else than what is expected"))
        }
    }

    async fn within<T, E>(&self, otherwise: &str, work: impl Future<Output = Result<T, E>>) -> Result<T, Failure>
    where
        Failure: From<E>,
    {
        match timeout_at(self.deadline, work).await {
            Ok(done) => Ok(done?),
            Err(_) => Err(Failure::bad(format!("{otherwise} in {} ms", self.probe.timeout_ms))),
        }
    }
}

fn request(host: Option<&str>, path: &str, asked: SocketAddr) -> Result<String, Failure> {
    let host = host.map_or_else(|| asked.to_string(), str::to_owned);
    // Nobody may add headers by way of a path.
    if let Some(bad) = [&*host, path].into_iter().find(|text| text.bytes().any(|byte| byte <= b' ' || byte == 0x7f)) {
        return Err(Failure::Unable(format!("the probe's host or path {bad:?} holds a space or control character")));
    }
    Ok(format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: tidegate-probe\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    ))
}

/// Sends a request and reads the status, and nothing more.
async fn get(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> Result<u16, Failure> {
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut line = Vec::new();
    BufReader::new(stream.take(STATUS_LINE)).read_until(b'\n', &mut line).await?;
    if line.is_empty() {
        return Err(Failure::bad("closed without an answer"));
    }
    status(&line).ok_or_else(|| Failure::bad("answered with something that is not HTTP/1.1"))
}

/// `HTTP/1.1 200 OK`.
fn status(line: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(line).ok()?;
    let (version, rest) = line.split_once(' ')?;
    let code = rest.trim_end().split(' ').next()?;
    let digits = code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_digit());
    (version.starts_with("HTTP/1.") && digits).then(|| code.parse().ok())?
}

async fn handshake(
    stream: TcpStream,
    host: Option<&str>,
    to: SocketAddr,
) -> Result<impl AsyncRead + AsyncWrite + Unpin, Failure> {
    static CONFIG: LazyLock<Result<Arc<ClientConfig>, String>> = LazyLock::new(|| {
        let provider = Arc::new(ring::default_provider());
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
            .with_no_client_auth();
        Ok(Arc::new(config))
    });
    let config = CONFIG.as_ref().map_err(|error| Failure::Unable(error.clone()))?;
    let name = host.and_then(|host| ServerName::try_from(host.to_owned()).ok());
    let name = name.unwrap_or_else(|| ServerName::IpAddress(to.ip().into()));
    TlsConnector::from(Arc::clone(config)).connect(name, stream).await.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => Failure::bad(format!("tls: {error}")),
        _ => error.into(),
    })
}

/// A probe asks whether a real answers, not who it is: it comes by address, for which few certificates are made out,
/// sends no secret, and believes nothing of the answer but its status.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, tokio_rustls::rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, tokio_rustls::rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, tokio_rustls::rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_from_what_is_http_and_from_nothing_else() {
        let cases: [(&[u8], Option<u16>); 8] = [
            (b"HTTP/1.1 200 OK\r\n", Some(200)),
            (b"HTTP/1.0 404\r\n", Some(404)),
            (b"HTTP/1.1 503 Service Unavailable", Some(503)),
            (b"HTTP/2 200\r\n", None),
            (b"HTTP/1.1 20 OK\r\n", None),
            (b"HTTP/1.1 +20 OK\r\n", None),
            (b"220 mail ESMTP\r\n", None),
            (b"HTTP/1.1 \xff00\r\n", None),
        ];
        for (line, expected) in cases {
            assert_eq!(status(line), expected, "{}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn a_path_adds_no_headers_and_a_host_is_named_when_none_is_given() {
        let asked = "[fd77::1]:80".parse().unwrap();
        let built = request(None, "/", asked).ok().unwrap();
        assert!(built.starts_with("GET / HTTP/1.1\r\nHost: [fd77::1]:80\r\n") && built.ends_with("\r\n\r\n"));
        assert!(matches!(request(None, "/ HTTP/1.1\r\nX: y", asked), Err(Failure::Unable(_))));
        assert!(matches!(request(Some("a\r\nb"), "/", asked), Err(Failure::Unable(_))));
    }
}
