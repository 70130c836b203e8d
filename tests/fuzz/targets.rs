//! Every decoder, its words and what must hold for whatever it lets through.

use std::{fs, net::IpAddr, path::Path, sync::Arc};

use anyhow::{Context, bail};
use hickory_proto::op::Message;
use serde::{Serialize, de::DeserializeOwned};
use tidegate_control::{
    config::Loaded,
    io::marathon::decode,
    model::{
        app::App,
        desired::{Change, Desired, Pools},
        elb::{Elb, ElbSpec},
    },
};
use tidegate_ebpf::{
    Verdict,
    abi::{Address, Limits, SECOND, Service, ServiceKey, TCP},
    balance,
    host::{Frame, Memory},
    scripts,
};

/// A decoder of bytes that somebody else chose.
pub(crate) struct Target {
    /// Also its folder's name in `corpus/`.
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// Panics when something does not hold.
    pub(crate) run: fn(&[u8]),
    /// What the format is made of: the mutator strews it in.
    pub(crate) words: &'static [&'static [u8]],
}

pub(crate) const TARGETS: &[Target] = &[
    Target { name: "elb", about: "the body of PUT /v1/elbs/{name}, and the stored record", run: elb, words: JSON },
    Target { name: "config", about: "the configuration file", run: config, words: TOML },
    Target { name: "packet", about: "a frame, through the whole packet core", run: packet, words: PACKET },
    Target { name: "dns", about: "a DNS message, through the whole DNS plane", run: dns, words: DNS },
    Target { name: "apps", about: "Marathon's list of apps", run: apps, words: MARATHON },
    Target { name: "events", about: "Marathon's event stream", run: events, words: MARATHON },
];

const JSON: &[&[u8]] = &[
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b":",
    b",",
    b"null",
    b"true",
    b"1e999",
    b"-0",
    b"\\u0000",
    b"\\ud800",
    b"\xff",
    b"\"type\"",
    b"\"layer4\"",
    b"\"layer7\"",
    b"\"vips\"",
    b"\"::ffff:10.0.0.1\"",
    b"\"app\"",
    b"\"ports\"",
    b"\"listen\"",
    b"\"target\"",
    b"\"rules\"",
    b"\"host\"",
    b"\"*.\"",
    b"\"path\"",
    b"\"forward\"",
    b"\"ipip\"",
    b"\"client_address\"",
    b"\"protection\"",
    b"\"::/0\"",
    b"\"health\"",
    b"\"send\"",
    b"\\\\x0",
];

const TOML: &[&[u8]] = &[
    b"[",
    b"]",
    b"[[",
    b"]]",
    b"=",
    b"\"\"\"",
    b"'''",
    b".",
    b"\n",
    b"#",
    b"{",
    b"}",
    b"inf",
    b"nan",
    b"0x",
    b"1_0",
    b"1979-05-27T07:32:00Z",
    b"\\uD800",
    b"interfaces",
    b"listen",
    b"\"10.0.0.0/33\"",
    b"\"::/0\"",
];

const MARATHON: &[&[u8]] = &[
    b"{",
    b"}",
    b"[",
    b"]",
    b"null",
    b"-1",
    b"65536",
    b"1e999",
    b"\\ud800",
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b"event: ",
    b"data: ",
    b":",
    b"\"apps\"",
    b"\"id\"",
    b"\"/a\"",
    b"\"tasks\"",
    b"\"ports\"",
    b"\"ipAddresses\"",
    b"\"portMappings\"",
    b"\"hostPort\"",
    b"\"networks\"",
    b"\"healthCheckResults\"",
    b"\"alive\"",
    b"\"readinessCheckResults\"",
    b"\"version\"",
    b"TASK_RUNNING",
    b"status_update_event",
    b"instance_changed_event",
];

/// A pointer to the header, to itself and forward; the root; the types and classes that have rules of their own.
const DNS: &[&[u8]] = &[
    b"\xc0\x0c",
    b"\xc0\x00",
    b"\xff\xff",
    b"\x00",
    b"\x3f",
    b"\x40",
    b"\x00\x29",
    b"\x00\xff",
    b"\x00\x06",
    b"\x00\x21",
    b"\x00\xfa",
    b"\x00\xfb",
    b"\x00\xfc",
    b"\x00\x01\x00\x01",
];

/// Headers' first words, protocols, flags that exclude one another, and the addresses that are served.
const PACKET: &[&[u8]] = &[
    b"\x08\x00",
    b"\x86\xdd",
    b"\x81\x00",
    b"\x88\xa8",
    b"\x45\x00",
    b"\x4f\x00",
    b"\x60\x00",
    b"\x06",
    b"\x11",
    b"\x01",
    b"\x2c",
    b"\x50\x02",
    b"\x50\x03",
    b"\xf0\xff",
    b"\x00\x50",
    b"\x00\x35",
    b"\x20\x00",
    b"\x1f\xff",
    b"\x0a\x4d\x64\x01",
    b"\x0a\x4d\x65\x01",
    b"\x0a\x4d\x02\x01",
];

/// One frame twice, then once more when its flow is known and old; to services of every kind, some of which tell their
/// reals who the client is, limit it, or want a cookie.
fn packet(bytes: &[u8]) {
    thread_local! {
        // What a world is made of is never freed.
        static WORLD: Memory = guarded_world();
    }
    let tables = WORLD.with(Memory::clone);
    for age in [0, 1, 7_200] {
        tables.0.borrow_mut().now += age * SECOND;
        let mut frame = Frame::new(bytes, scripts::LINK);
        let verdict = balance(&mut frame, &tables);
        let after = frame.bytes();
        assert!(after.len() <= bytes.len() + LONGER, "{verdict:?}: {} of {} bytes", after.len(), bytes.len());
        if verdict == Verdict::Pass {
            assert_eq!(after, bytes, "what passes is not changed");
        }
    }
}

fn guarded_world() -> Memory {
    let tables = scripts::world(1000 * SECOND);
    for (last, client, checks) in [
        (1, Service::TOA, 0),
        (7, Service::PROXY, Service::ACCESS | Service::SOURCE_RATE | Service::SERVICE_RATE | Service::COOKIES),
    ] {
        for vip in [format!("10.77.100.{last}"), format!("fd77:0:100::{last}")] {
            let vip = Address::from(vip.parse::<IpAddr>().expect("a literal"));
            let key = ServiceKey { vip, port: 80, protocol: TCP, pad: 0 };
            let service = tables.0.borrow().services[&key];
            tables.set_service(key, Service { client, checks, ..service });
            // Room for all, and a cookie for every SYN.
            let (room, gap) = (u64::MAX / 2, 1);
            let limits = Limits {
                source_gap: gap,
                source_ahead: room,
                service_gap: gap,
                service_ahead: room,
                cookie_gap: gap,
                ..Limits::default()
            };
            tables.set_limits(service.id, limits);
        }
    }
    tables
}

/// The most that is put around or into a frame: IPv6 and UDP, a tag, and a PROXY header.
const LONGER: usize = 40 + 8 + 4 + 52;

fn elb(bytes: &[u8]) {
    if let Some(spec) = json::<ElbSpec>(bytes) {
        let pools = Pools { internal: vec![POOL.parse().expect("a literal")], external: Vec::new() };
        let put = Change::Put { name: "fuzz".to_owned(), spec };
        // Declarative: what was taken once is taken again, and changes nothing.
        if let Ok((desired, _)) = Desired::default().apply(put.clone(), &pools, None, true) {
            let (again, _) = desired.apply(put, &pools, None, true).expect("what was taken is taken again");
            assert_eq!(again, desired);
        }
    }
    json::<Elb>(bytes);
}

/// Small, so that it is also seen full.
const POOL: &str = "10.77.100.0/30";

fn config(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    match Loaded::parse(Path::new("fuzz.toml"), text.to_owned()) {
        Ok(loaded) => drop(loaded.place_of("vips.internal")),
        // The message points into the text, by line and by key.
        Err(misfit) => assert!(misfit.line >= 1 && misfit.line <= text.split('\n').count(), "{misfit}"),
    }
}

/// Whatever is asked, the answer is whole, small enough, and everything in it can be read.
fn dns(bytes: &[u8]) {
    let Some(reply) = tidegate_dns::answer(bytes, zone(), UDP_PAYLOAD).expect("a good zone") else { return };
    let message = Message::from_vec(&reply).expect("an answer can be read");
    assert!(reply.len() <= usize::from(UDP_PAYLOAD), "{} bytes", reply.len());
    assert_eq!(message.metadata.id, u16::from_be_bytes([bytes[0], bytes[1]]));
}

const UDP_PAYLOAD: u16 = 1232;

/// Names with enough addresses that an answer must be cut.
fn zone() -> Arc<tidegate_dns::Input> {
    let node = |count: u8| {
        let addresses = (0..count).map(|n| IpAddr::from([10, 77, 2, n])).collect();
        let services =
            vec![tidegate_dns::Srv { priority: 0, weight: 1, port: 8080, target: "web.marathon.mesos".into() }];
        Arc::new(tidegate_dns::Node { addresses, services, ttl: 5 })
    };
    let names = [("web.marathon.mesos", 3), ("_web._tcp.marathon.mesos", 0), ("many.marathon.mesos", 200)];
    Arc::new(tidegate_dns::Input {
        generation: 1,
        origin: "mesos".into(),
        names: names.into_iter().map(|(name, count)| (tidegate_dns::Name::from(name), node(count))).collect(),
    })
}

/// An app is read or named as broken; what was read can be kept and read again.
fn apps(bytes: &[u8]) {
    let Some((apps, _)) = decode::apps(bytes) else { return };
    for app in apps {
        json::<App>(&serde_json::to_vec(&app).expect("what was read can be written"));
    }
}

/// However the stream is cut, the messages are the same.
fn events(bytes: &[u8]) {
    let whole = decode::stream(&[bytes]);
    let (front, back) = bytes.split_at(bytes.len() / 2);
    assert_eq!(decode::stream(&[front, back]), whole);
    let single: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(decode::stream(&single), whole);
}

/// What is accepted is kept as it was meant: written and read again it is the same.
fn json<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(bytes: &[u8]) -> Option<T> {
    let value: T = serde_json::from_slice(bytes).ok()?;
    let written = serde_json::to_vec(&value).expect("what was read can be written");
    assert_eq!(serde_json::from_slice::<T>(&written).expect("what was written can be read"), value);
    Some(value)
}

impl Target {
    /// The good inputs, in the order of their names.
    pub(crate) fn corpus(&self) -> anyhow::Result<Vec<Vec<u8>>> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(self.name);
        let mut files: Vec<_> = fs::read_dir(&dir)
            .and_then(|files| files.map(|file| file.map(|file| file.path())).collect())
            .with_context(|| format!("listing {}", dir.display()))?;
        files.sort();
        if files.is_empty() {
            bail!("{} is empty: mutants of nothing reach nothing", dir.display());
        }
        files.iter().map(|file| fs::read(file).with_context(|| format!("reading {}", file.display()))).collect()
    }
}
