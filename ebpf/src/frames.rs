//! Frames as text and back, for tests: `tcp 10.77.0.10:4000 > 10.77.100.1:80 S ttl=64`.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use crate::abi::{TCP, UDP};

/// A TCP or UDP frame.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Build {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub protocol: u8,
    /// TCP's; 0 for UDP.
    pub flags: u8,
    pub ttl: u8,
    pub payload: Vec<u8>,
    pub source_mac: [u8; 6],
    pub destination_mac: [u8; 6],
}

const LETTERS: [(char, u8); 5] = [('F', 1), ('S', 2), ('R', 4), ('P', 8), ('A', 16)];

impl FromStr for Build {
    type Err = String;

    /// `PROTOCOL SOURCE > DESTINATION [FLAGS] [ttl=N] [+PAYLOAD BYTES]`
    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace();
        let mut word = || words.next().ok_or_else(|| format!("{text:?} is too short"));
        let protocol = match word()? {
            "tcp" => TCP,
            "udp" => UDP,
            other => return Err(format!("unknown protocol {other:?}")),
        };
        let address = |text: &str| text.parse().map_err(|error| format!("{text:?}: {error}"));
        let source = address(word()?)?;
        let _arrow = word()?;
        let destination = address(word()?)?;
        let mut build = Self {
            source,
            destination,
            protocol,
            flags: 0,
            ttl: 64,
            payload: Vec::new(),
            source_mac: [2, 0, 0, 0, 0, 0xc],
            destination_mac: [2, 0, 0, 0, 0, 1],
        };
        for word in words {
            if let Some(ttl) = word.strip_prefix("ttl=") {
                build.ttl = ttl.parse().map_err(|error| format!("{word:?}: {error}"))?;
            } else if let Some(length) = word.strip_prefix('+') {
                let length: usize = length.parse().map_err(|error| format!("{word:?}: {error}"))?;
                build.payload = (0..length).map(|i| i as u8).collect();
            } else {
                for letter in word.chars() {
                    let flag = LETTERS.iter().find(|(name, _)| *name == letter);
                    build.flags |= flag.ok_or_else(|| format!("unknown flag {letter:?}"))?.1;
                }
            }
        }
        Ok(build)
    }
}

impl fmt::Display for Build {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.protocol == TCP { "tcp" } else { "udp" };
        write!(f, "{name} {} > {}", self.source, self.destination)?;
        let flags: String = LETTERS.iter().filter(|(_, bit)| self.flags & bit != 0).map(|(name, _)| name).collect();
        if !flags.is_empty() {
            write!(f, " {flags}")?;
        }
        write!(f, " ttl={}", self.ttl)?;
        if !self.payload.is_empty() {
            write!(f, " +{}", self.payload.len())?;
        }
        Ok(())
    }
}

impl Build {
    /// With all checksums computed from the whole.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let ports = [self.source.port().to_be_bytes(), self.destination.port().to_be_bytes()].concat();
        let mut segment = ports;
        if self.protocol == TCP {
            segment.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        } else {
            segment.extend((8 + self.payload.len() as u16).to_be_bytes());
            segment.extend([0, 0]);
        }
        segment.extend(&self.payload);
        let at = checksum_offset(self.protocol);
        let sum = match checksum(&[&pseudo(self, segment.len()), &segment]) {
            0 if self.protocol == UDP => 0xffff,
            sum => sum,
        };
        segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());

        let mut frame = [self.destination_mac, self.source_mac].concat();
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend([0x08, 0x00]);
                let mut header = vec![0x45, 0];
                header.extend((20 + segment.len() as u16).to_be_bytes());
                header.extend([0x12, 0x34, 0x40, 0, self.ttl, self.protocol, 0, 0]);
                header.extend(source.octets());
                header.extend(destination.octets());
                let sum = checksum(&[&header]);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                frame.extend(header);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend((segment.len() as u16).to_be_bytes());
                frame.extend([self.protocol, self.ttl]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
            }
            _ => unreachable!("a test mixes address families"),
        }
        frame.extend(segment);
        frame
    }

    /// Reads a frame that [`Build::bytes`] could have made; `None` for others, also those with a wrong checksum.
    #[must_use]
    pub fn read(frame: &[u8]) -> Option<Self> {
        let v4 = frame.get(12..14)? == [0x08, 0x00];
        let at = |from: usize, length: usize| frame.get(from..from + length);
        let (source, destination, protocol, ttl, start): (IpAddr, IpAddr, u8, u8, usize) = if v4 {
            let ip = |from| Some(<[u8; 4]>::try_from(at(from, 4)?).ok()?.into());
            (ip(26)?, ip(30)?, *frame.get(23)?, *frame.get(22)?, 34)
        } else {
            let ip = |from| Some(<[u8; 16]>::try_from(at(from, 16)?).ok()?.into());
            (ip(22)?, ip(38)?, *frame.get(20)?, *frame.get(21)?, 54)
        };
        let port = |from| Some(u16::from_be_bytes(at(from, 2)?.try_into().ok()?));
        let header = if protocol == TCP { 20 } else { 8 };
        let build = Self {
            source: (source, port(start)?).into(),
            destination: (destination, port(start + 2)?).into(),
            protocol,
            flags: if protocol == TCP { *frame.get(start + 13)? } else { 0 },
            ttl,
            payload: frame.get(start + header..)?.to_vec(),
            source_mac: at(6, 6)?.try_into().ok()?,
            destination_mac: at(0, 6)?.try_into().ok()?,
        };
        (build.bytes() == frame).then_some(build)
    }
}

/// Within the transport header.
#[must_use]
pub fn checksum_offset(protocol: u8) -> usize {
    if protocol == TCP { 16 } else { 6 }
}

fn pseudo(build: &Build, length: usize) -> Vec<u8> {
    let mut bytes = match (build.source.ip(), build.destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => [source.octets(), destination.octets()].concat(),
        (IpAddr::V6(source), IpAddr::V6(destination)) => [source.octets(), destination.octets()].concat(),
        _ => unreachable!("a test mixes address families"),
    };
    bytes.extend([0, build.protocol]);
    bytes.extend((length as u16).to_be_bytes());
    bytes
}

/// RFC 1071, over parts that all but the last have an even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = words.map(|word| u32::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
