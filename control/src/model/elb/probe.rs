//! An active check of the instances, as operators ask for it.

use std::{fmt, str::FromStr};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Transport;

/// An active check of every instance. `tcp`, `http` and `https` check the TCP ports of the ELB, `udp` its UDP ports.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    #[serde(rename = "type")]
    pub kind: ProbeType,
    /// What is asked for by `http` and `https`. Absent: `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The host that `http` and `https` name. Absent: the instance's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The answers to `http` and `https` that are good: `200-399`, `204`. Absent: `200-399`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub status: Option<StatusRange>,
    /// The datagram of `udp`: text with `\xNN` for any byte, and `\r`, `\n`, `\t`, `\0`, `\\`. At most 512 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub send: Option<Payload>,
    /// What the answer to `udp` must begin with, written as `send` is. Absent: any answer is good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub expect: Option<Payload>,
    /// Milliseconds between two checks of an instance, 10 to 3,600,000.
    #[serde(default = "two_seconds")]
    pub interval_ms: u32,
    /// Milliseconds that an answer may take, `interval_ms` at most. Absent: 1,000, or `interval_ms` if that is less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u32>,
    /// So many good checks in a row make an instance healthy again.
    #[serde(default = "two")]
    pub rise: u8,
    /// So many bad checks in a row make it unhealthy.
    #[serde(default = "three")]
    pub fall: u8,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ProbeType {
    /// A connection that is accepted
    Tcp,
    /// A GET that is answered with a good status
    Http,
    /// The same over TLS
    Https,
    /// A datagram that is answered
    Udp,
}

/// The longest datagram: every link carries it whole, also in a tunnel.
pub const LONGEST_PAYLOAD: usize = 512;

fn two_seconds() -> u32 {
    2_000
}

fn two() -> u8 {
    2
}

fn three() -> u8 {
    3
}

impl Probe {
    pub fn new(kind: ProbeType) -> Self {
        Self {
            kind,
            path: None,
            host: None,
            status: None,
            send: None,
            expect: None,
            interval_ms: two_seconds(),
            timeout_ms: None,
            rise: two(),
            fall: three(),
        }
    }

    /// What [`Probe::timeout_ms`] comes to.
    pub fn timeout_ms(&self) -> u32 {
        self.timeout_ms.unwrap_or(1_000.min(self.interval_ms))
    }
}

impl ProbeType {
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Https)
    }

    /// Whose ports it checks.
    pub fn transport(self) -> Transport {
        match self {
            Self::Tcp | Self::Http | Self::Https => Transport::Tcp,
            Self::Udp => Transport::Udp,
        }
    }
}

impl fmt::Display for ProbeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Https => "https",
            Self::Udp => "udp",
        })
    }
}

/// HTTP statuses, both ends included.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct StatusRange {
    pub first: u16,
    pub last: u16,
}

impl Default for StatusRange {
    fn default() -> Self {
        Self { first: 200, last: 399 }
    }
}

impl FromStr for StatusRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Without a check of the length and the digits, Rust reads `+200` and `0200` as well.
        let digits = |text: &&str| text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
        let status = |text: &str| Some(text).filter(digits)?.parse().ok().filter(|status| (100..=599).contains(status));
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (status(first), status(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(format!("`{text}` is not a range of HTTP statuses from 100 to 599: write it like 200-399 or 204")),
        }
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => self.first.fmt(f),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

/// Bytes, written as text with escapes.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Payload(pub Vec<u8>);

impl FromStr for Payload {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` has a \\ that means nothing: write \\xNN, \\r, \\n, \\t, \\0 or \\\\");
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let [first, after @ ..] = rest {
            let (byte, after) = match (first, after) {
                (b'\\', [b'x', high, low, after @ ..]) => (hexadecimal(*high, *low).ok_or_else(wrong)?, after),
                (b'\\', [b'r', after @ ..]) => (b'\r', after),
                (b'\\', [b'n', after @ ..]) => (b'\n', after),
                (b'\\', [b't', after @ ..]) => (b'\t', after),
                (b'\\', [b'0', after @ ..]) => (b'\0', after),
                (b'\\', [b'\\', after @ ..]) => (b'\\', after),
                (b'\\', _) => return Err(wrong()),
                (plain, after) => (*plain, after),
            };
            bytes.push(byte);
            rest = after;
        }
        Ok(Self(bytes))
    }
}

/// Two hexadecimal digits.
fn hexadecimal(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &byte in &self.0 {
            match byte {
                b'\r' => f.write_str("\\r"),
                b'\n' => f.write_str("\\n"),
                b'\t' => f.write_str("\\t"),
                b'\\' => f.write_str("\\\\"),
                b' '..=b'~' => write!(f, "{}", char::from(byte)),
                _ => write!(f, "\\x{byte:02x}"),
            }?;
        }
        Ok(())
    }
}

impl TryFrom<String> for StatusRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<StatusRange> for String {
    fn from(range: StatusRange) -> Self {
        range.to_string()
    }
}

impl TryFrom<String> for Payload {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Payload> for String {
    fn from(payload: Payload) -> Self {
        payload.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_can_be_written_as_text_and_read_again() {
        let all = Payload((0..=255).collect());
        assert_eq!(all.to_string().parse(), Ok(all));
        let table: [(&str, &[u8]); 4] =
            [("PING\\r\\n", b"PING\r\n"), ("\\x00\\xfF\\0", &[0, 255, 0]), ("\\\\x41", b"\\x41"), ("", b"")];
        for (text, bytes) in table {
            assert_eq!(text.parse(), Ok(Payload(bytes.to_vec())), "{text}");
        }
        for text in ["\\", "\\q", "\\x4", "\\xg0", "a\\"] {
            assert!(text.parse::<Payload>().is_err_and(|why| why.contains("write \\xNN")), "{text}");
        }
    }

    #[test]
    fn statuses_are_a_range_or_one() {
        for (text, first, last) in [("200-399", 200, 399), ("204", 204, 204), ("100-599", 100, 599)] {
            assert_eq!(text.parse(), Ok(StatusRange { first, last }), "{text}");
            assert_eq!(StatusRange { first, last }.to_string(), text);
        }
        for text in ["", "-", "200-", "399-200", "99", "600", "200-600", "2xx", "200-399-400", "+200"] {
            assert!(text.parse::<StatusRange>().is_err_and(|why| why.contains("like 200-399")), "{text}");
        }
    }
}
