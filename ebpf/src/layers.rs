//! Frames as text and back, layer by layer, for tests:
//! `eth c>b / ip4 10.77.0.10 > 10.77.100.1 ttl=9 df / tcp 4000 > 80 SA seq=7 +100`.
//!
//! Writing computes every length and checksum from the whole; reading says `BAD` where one is wrong. What is not said
//! has its usual value, and is not said by reading either.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, Ipv6Addr},
};

mod read;

pub use read::read;

/// Names of hardware addresses: `02:00:00:00:xx:yy`.
const MACS: [(&str, [u8; 2]); 5] = [("c", [0, 0xc]), ("b", [0, 1]), ("r1", [1, 1]), ("r2", [1, 2]), ("g", [0, 0xf])];
const LETTERS: [(char, u8); 6] = [('S', 2), ('F', 1), ('R', 4), ('P', 8), ('A', 16), ('U', 32)];

/// The frame's bytes. Panics on what it cannot read: tests are written by hand.
#[must_use]
pub fn write(text: &str) -> Vec<u8> {
    let layers: Vec<Layer<'_>> = text.split(" / ").map(Layer::new).collect();
    let (eth, rest) = layers.split_first().expect("a frame has a layer");
    assert_eq!(eth.name, "eth", "{text}");
    let (source, destination) = eth.words[0].split_once('>').expect("eth FROM>TO");
    let mut frame = [mac(destination), mac(source)].concat();
    if let Some(vlan) = eth.number("vlan") {
        frame.extend([0x81, 0]);
        frame.extend((vlan as u16).to_be_bytes());
    }
    let ethertype = match rest.first().map(|layer| layer.name) {
        Some("ip4") => 0x0800,
        Some("ip6") => 0x86dd,
        _ => eth.number("type").unwrap_or(0x0806) as u16,
    };
    frame.extend(ethertype.to_be_bytes());
    frame.extend(network(rest));
    frame.resize(frame.len() + eth.number("pad").unwrap_or(0) as usize, 0);
    frame
}

struct Layer<'a> {
    name: &'a str,
    words: Vec<&'a str>,
}

impl<'a> Layer<'a> {
    fn new(text: &'a str) -> Self {
        let mut words = text.split_whitespace().filter(|word| *word != ">");
        Self { name: words.next().expect("a layer has a name"), words: words.collect() }
    }

    fn value(&self, key: &str) -> Option<&'a str> {
        self.words.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.value(key).map(|value| value.parse().unwrap_or_else(|error| panic!("{key}={value}: {error}")))
    }

    fn has(&self, word: &str) -> bool {
        self.words.contains(&word)
    }

    /// `+N`: so many bytes, that count up.
    fn payload(&self) -> Vec<u8> {
        let length = self.words.iter().find_map(|word| word.strip_prefix('+')).map_or(0, |n| n.parse().expect("+N"));
        (0..length).map(|i: usize| i as u8).collect()
    }
}

fn mac(name: &str) -> Vec<u8> {
    let tail = MACS.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("no mac is called {name}")).1;
    [&[2, 0, 0, 0][..], &tail].concat()
}

fn network(layers: &[Layer<'_>]) -> Vec<u8> {
    let Some((ip, rest)) = layers.split_first() else { return Vec::new() };
    match ip.name {
        "ip4" => {
            let (source, destination): (Ipv4Addr, Ipv4Addr) =
                (ip.words[0].parse().expect("a source"), ip.words[1].parse().expect("a destination"));
            let pseudo = [source.octets(), destination.octets()].concat();
            let (protocol, body) = transport(rest, &pseudo, ip);
            let options = ip.number("opt").unwrap_or(0) as usize * 4;
            let mut header = vec![0x45 + options as u8 / 4, ip.number("tos").unwrap_or(0) as u8];
            let length = ip.number("len").unwrap_or((20 + options + body.len()) as u64) as u16;
            header.extend(length.to_be_bytes());
            header.extend((ip.number("id").unwrap_or(0) as u16).to_be_bytes());
            let fragment =
                u16::from(ip.has("df")) << 14 | u16::from(ip.has("mf")) << 13 | ip.number("off").unwrap_or(0) as u16;
            header.extend(fragment.to_be_bytes());
            header.extend([ip.number("ttl").unwrap_or(64) as u8, protocol, 0, 0]);
            header.extend(&pseudo);
            // No-operations.
            header.resize(20 + options, 1);
            let sum = checksum(&[&header]);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            header.extend(body);
            header
        }
        "ip6" => {
            let (source, destination): (Ipv6Addr, Ipv6Addr) =
                (ip.words[0].parse().expect("a source"), ip.words[1].parse().expect("a destination"));
            let pseudo = [source.octets(), destination.octets()].concat();
            let (protocol, body) = transport(rest, &pseudo, ip);
            let class =
                6_u32 << 28 | (ip.number("tos").unwrap_or(0) as u32) << 20 | ip.number("flow").unwrap_or(0) as u32;
            let mut header = class.to_be_bytes().to_vec();
            header.extend((ip.number("len").unwrap_or(body.len() as u64) as u16).to_be_bytes());
            header.extend([protocol, ip.number("ttl").unwrap_or(64) as u8]);
            header.extend(pseudo);
            header.extend(body);
            header
        }
        other => panic!("no network layer is called {other}"),
    }
}

/// The protocol's number and the bytes.
fn transport(layers: &[Layer<'_>], pseudo: &[u8], ip: &Layer<'_>) -> (u8, Vec<u8>) {
    let Some((layer, rest)) = layers.split_first() else {
        return (ip.number("proto").unwrap_or(59) as u8, ip.payload());
    };
    // A later fragment holds a piece of something.
    if ip.number("off").is_some() && layer.name == "piece" {
        return (layer.number("proto").expect("piece proto=N") as u8, layer.payload());
    }
    let seal = |mut bytes: Vec<u8>, at: usize, protocol: u8| {
        let length = (bytes.len() as u32).to_be_bytes();
        let sum = checksum(&[pseudo, &length, &[0, 0, 0, protocol], &bytes]);
        let sum = if sum == 0 && protocol == 17 { 0xffff } else { sum };
        bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        bytes
    };
    let ports = || {
        let port = |at: usize| layer.words[at].parse::<u16>().expect("a port").to_be_bytes();
        [port(0), port(1)].concat()
    };
    match layer.name {
        "tcp" => {
            let options = options(layer);
            let mut bytes = ports();
            bytes.extend((layer.number("seq").unwrap_or(0) as u32).to_be_bytes());
            bytes.extend((layer.number("ack").unwrap_or(0) as u32).to_be_bytes());
            let letters = layer.words[2..].iter().find(|word| word.chars().all(|c| LETTERS.iter().any(|l| l.0 == c)));
            let flags = letters.map_or(0, |word| {
                word.chars().map(|c| LETTERS.iter().find(|(letter, _)| *letter == c).expect("a flag").1).sum()
            });
            bytes.extend([((5 + options.len() / 4) << 4) as u8, flags]);
            bytes.extend((layer.number("win").unwrap_or(65_535) as u16).to_be_bytes());
            bytes.extend([0, 0, 0, 0]);
            bytes.extend(options);
            bytes.extend(layer.payload());
            (6, seal(bytes, 16, 6))
        }
        "udp" => {
            let inner = if rest.is_empty() { layer.payload() } else { network(rest) };
            let mut bytes = ports();
            bytes.extend((8 + inner.len() as u16).to_be_bytes());
            bytes.extend([0, 0]);
            bytes.extend(inner);
            (17, if layer.has("nosum") { bytes } else { seal(bytes, 6, 17) })
        }
        "icmp" => {
            let v4 = pseudo.len() == 8;
            let mut bytes =
                vec![layer.number("type").expect("icmp type=N") as u8, layer.number("code").unwrap_or(0) as u8];
            bytes.extend([0, 0]);
            bytes.extend((layer.number("rest").unwrap_or(0) as u32).to_be_bytes());
            if rest.is_empty() {
                bytes.extend(layer.payload());
            } else {
                bytes.extend(quote(rest));
            }
            if v4 {
                let sum = checksum(&[&bytes]);
                bytes[2..4].copy_from_slice(&sum.to_be_bytes());
                (1, bytes)
            } else {
                (58, seal(bytes, 2, 58))
            }
        }
        "ip4" => (4, network(layers)),
        "ip6" => (41, network(layers)),
        "hbh" | "dst" => {
            let (next, body) = transport(rest, pseudo, ip);
            let mut bytes = vec![next, 0, 1, 4, 0, 0, 0, 0];
            bytes.extend(body);
            (if layer.name == "hbh" { 0 } else { 60 }, bytes)
        }
        "frag" => {
            let (next, body) = match rest.first() {
                Some(piece) if piece.name == "piece" => (piece.number("proto").expect("proto") as u8, piece.payload()),
                _ => transport(rest, pseudo, ip),
            };
            let offset = (layer.number("off").unwrap_or(0) as u16) << 3 | u16::from(layer.has("mf"));
            let mut bytes = vec![next, 0];
            bytes.extend(offset.to_be_bytes());
            bytes.extend((layer.number("id").unwrap_or(0) as u32).to_be_bytes());
            bytes.extend(body);
            (44, bytes)
        }
        other => panic!("no transport layer is called {other}"),
    }
}

/// `quote ip4 A > B len=N / tcp 80 > 4000 +12`: the beginning of a packet: its header, ports, and more zeros.
fn quote(layers: &[Layer<'_>]) -> Vec<u8> {
    let [ip, ports] = layers else { panic!("a quote has a network and a transport layer") };
    let number = |layer: &Layer<'_>| if layer.name == "tcp" { 6 } else { 17 };
    let port = |at: usize| ports.words[at].parse::<u16>().expect("a port").to_be_bytes();
    let mut body = [port(0), port(1)].concat();
    body.resize(4 + ports.payload().len(), 0);
    let text = ip.words.join(" ");
    let words = ip.words.iter().skip(1).copied().collect();
    let header = Layer { name: ip.words.first().expect("quote ip4"), words };
    assert_eq!(ip.name, "quote", "{text}");
    let v4 = header.name == "ip4";
    let mut bytes = network(&[Layer { name: header.name, words: header.words }]);
    let (at, length) = if v4 { (9, 20) } else { (6, 40) };
    bytes.truncate(length);
    bytes[at] = number(ports);
    if v4 {
        bytes[10..12].fill(0);
        let sum = checksum(&[&bytes]);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    bytes.extend(body);
    bytes
}

fn options(layer: &Layer<'_>) -> Vec<u8> {
    let mut options = Vec::new();
    for word in &layer.words {
        match word.split_once('=') {
            Some(("toa", address)) => {
                let address: std::net::SocketAddr = address.parse().expect("toa=ADDRESS:PORT");
                let bytes = match address.ip() {
                    std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
                    std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
                };
                options.extend([254, 4 + bytes.len() as u8]);
                options.extend(address.port().to_be_bytes());
                options.extend(bytes);
            }
            Some(("mss", mss)) => {
                options.extend([2, 4]);
                options.extend(mss.parse::<u16>().expect("mss=N").to_be_bytes());
            }
            None if *word == "sackok" => options.extend([4, 2]),
            None if *word == "nop" => options.push(1),
            _ => {}
        }
    }
    options.resize(options.len().next_multiple_of(4), 0);
    options
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

/// Adds ` key=value` where the value is not the usual one.
fn say(text: &mut String, key: &str, value: u64, usual: u64) {
    if value != usual {
        let _ = write!(text, " {key}={value}");
    }
}

/// Whether a frame as text fits a pattern: word by word, `*` is any word, and `{name}` is the same word as before, or
/// any the first time (`{_}` is any always). What stands before a `{` must be equal.
pub fn fits(pattern: &str, text: &str, names: &mut std::collections::BTreeMap<String, String>) -> bool {
    let (pattern, text): (Vec<&str>, Vec<&str>) =
        (pattern.split_whitespace().collect(), text.split_whitespace().collect());
    pattern.len() == text.len()
        && pattern.iter().zip(text).all(|(pattern, word)| {
            if *pattern == "*" {
                return true;
            }
            let Some((before, name)) = pattern.strip_suffix('}').and_then(|rest| rest.split_once('{')) else {
                return *pattern == word;
            };
            let Some(value) = word.strip_prefix(before) else { return false };
            if name == "_" {
                return true;
            }
            names.entry(name.to_owned()).or_insert_with(|| value.to_owned()) == value
        })
}

/// Puts the values of `{name}` into a text.
#[must_use]
pub fn fill(text: &str, names: &std::collections::BTreeMap<String, String>) -> String {
    names.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("{{{name}}}"), value))
}
