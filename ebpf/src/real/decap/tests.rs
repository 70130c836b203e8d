use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::{frames::Build, host};

const CLIENTS: [&str; 2] = ["tcp 192.0.2.7:4000 > 10.77.100.1:80 S", "tcp [2001:db8::7]:4000 > [fd77:0:100::1]:80 S"];

struct Host {
    settings: Settings,
    from: &'static str,
}

impl Known for Host {
    fn settings(&self) -> Settings {
        self.settings
    }

    fn is_host(&self, address: &Address) -> bool {
        ["10.77.1.1", "fd77:0:1::1"].iter().any(|host| *address == of(host))
    }

    fn is_vip(&self, address: &Address) -> bool {
        ["10.77.100.1", "fd77:0:100::1"].iter().any(|vip| *address == of(vip))
    }

    fn is_from(&self, address: &Address) -> bool {
        *address == of(self.from)
    }
}

fn of(text: &str) -> Address {
    text.parse::<IpAddr>().unwrap().into()
}

fn host() -> Host {
    Host { settings: Settings { ipip: 1, gue_port: 6080, ..Settings::default() }, from: "10.77.101.1" }
}

fn inner(v4: bool) -> Vec<u8> {
    CLIENTS[usize::from(!v4)].parse::<Build>().unwrap().bytes()[14..].to_vec()
}

/// A tunnelled frame.
fn wrap(inner: &[u8], gue: bool, outer_v4: bool) -> Vec<u8> {
    let protocol = match (gue, inner[0] >> 4) {
        (true, _) => UDP,
        (false, 4) => IPV4_INSIDE,
        (false, _) => IPV6_INSIDE,
    };
    let mut payload = Vec::new();
    if gue {
        payload.extend([0xc0, 0, 0x17, 0xc0]);
        payload.extend((8 + inner.len() as u16).to_be_bytes());
        payload.extend([0, 0]);
    }
    payload.extend(inner);
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    if outer_v4 {
        frame.extend([8, 0, 0x45, 0]);
        frame.extend((20 + payload.len() as u16).to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 77, 101, 1, 10, 77, 1, 1]);
    } else {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend((payload.len() as u16).to_be_bytes());
        frame.extend([protocol, 64]);
        frame.extend([0xfd, 0x77, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        frame.extend([0xfd, 0x77, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    }
    frame.extend(payload);
    frame
}

fn looked(frame: &[u8], host: &Host) -> (Look, Vec<u8>) {
    let mut packet = host::Frame::new(frame, 1);
    let look = open(&mut packet, host);
    (look, packet.bytes())
}

#[test]
fn every_tunnel_is_taken_away_to_the_byte() {
    for gue in [false, true] {
        for outer_v4 in [true, false] {
            for inner_v4 in [true, false] {
                let inside = inner(inner_v4);
                let (look, after) = looked(&wrap(&inside, gue, outer_v4), &host());
                let Look::Peel(peel) = look else { panic!("{gue} {outer_v4} {inner_v4}: {look:?}") };
                assert_eq!(after[14..], inside);
                assert_eq!(after[..12], [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
                assert_eq!(after[12..14], if inner_v4 { [8, 0] } else { [0x86, 0xdd] });
                assert_eq!(peel.count, Count::tunnel(gue, outer_v4, inner_v4));
            }
        }
    }
}

#[test]
fn what_is_not_tunnelled_to_this_host_is_not_ours() {
    let plain = CLIENTS[0].parse::<Build>().unwrap().bytes();
    let tunnel = wrap(&inner(true), false, true);
    let changed = |at: usize, byte: u8| {
        let mut frame = tunnel.clone();
        frame[at] = byte;
        frame
    };
    let mut gue = wrap(&inner(true), true, true);
    gue[42] = 0x05;
    let mut port = wrap(&inner(true), true, true);
    port[37] = 0xc1;
    let cases = [
        ("no tunnel", plain),
        ("another host", changed(33, 2)),
        ("a fragment", changed(20, 0x20)),
        ("options", changed(14, 0x46)),
        ("a multicast frame", changed(0, 1)),
        ("longer than the frame", changed(16, 1)),
        ("another protocol", changed(23, 47)),
        ("GUE's variant 0", gue),
        ("another port", port),
        ("nothing", Vec::new()),
    ];
    for (what, frame) in cases {
        assert_eq!(looked(&frame, &host()), (Look::Other, frame), "{what}");
    }
    let direct = Host { settings: Settings::default(), ..host() };
    for gue in [false, true] {
        assert_eq!(looked(&wrap(&inner(true), gue, true), &direct).0, Look::Other);
    }
}

#[test]
fn a_tunnel_is_believed_from_balancers_alone_when_they_are_named() {
    let mut host = host();
    host.settings.only_from = 1;
    let frame = wrap(&inner(true), false, true);
    assert!(matches!(looked(&frame, &host).0, Look::Peel(_)));
    host.from = "10.77.101.2";
    assert_eq!(looked(&frame, &host), (Look::Refused(Count::Stranger), frame));
}

#[test]
fn a_tunnel_leads_to_the_joined_vips_alone() {
    let inside = "tcp 192.0.2.7:4000 > 10.77.100.2:80 S".parse::<Build>().unwrap().bytes()[14..].to_vec();
    let frame = wrap(&inside, false, true);
    assert_eq!(looked(&frame, &host()), (Look::Refused(Count::NotVip), frame));
}

#[test]
fn a_tunnel_that_holds_something_else_than_it_says_is_refused() {
    let good = wrap(&inner(true), false, true);
    // The inner header: its version, its length field, its total length.
    for (at, byte) in [(34, 0x65), (34, 0x44), (37, 200), (37, 19)] {
        let mut frame = good.clone();
        frame[at] = byte;
        assert_eq!(looked(&frame, &host()), (Look::Refused(Count::Broken), frame), "{at}");
    }
    let short = wrap(&inner(true)[..12], false, true);
    assert_eq!(looked(&short, &host()).0, Look::Refused(Count::Broken));
}

#[test]
fn congestion_on_the_way_is_told_to_the_receiver() {
    for inner_v4 in [true, false] {
        // The outer header's mark, the inner one's before and after; `None`: refused.
        for (outer, before, after) in
            [(0, 0, Some(0)), (3, 0, None), (3, 1, Some(3)), (3, 2, Some(3)), (2, 1, Some(1)), (3, 3, Some(3))]
        {
            let mut inside = inner(inner_v4);
            let mark = |bytes: &mut [u8], ecn: u8| match inner_v4 {
                true => bytes[1] = bytes[1] & !3 | ecn,
                false => bytes[1] = bytes[1] & !0x30 | ecn << 4,
            };
            mark(&mut inside, before);
            if inner_v4 {
                inside[10..12].copy_from_slice(&[0, 0]);
                let sum = sum(&inside[..20]);
                inside[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            let mut frame = wrap(&inside, true, true);
            frame[15] = outer;
            let (look, changed) = looked(&frame, &host());
            let Some(after) = after else {
                assert_eq!((look, changed), (Look::Refused(Count::Broken), frame));
                continue;
            };
            mark(&mut inside, after);
            let got = &changed[14..];
            assert_eq!(got[1], inside[1], "{outer} {before}");
            assert_eq!(got[12..], inside[12..]);
            assert!(!inner_v4 || sum(&got[..20]) == 0, "the inner header's checksum is wrong");
        }
    }
}

fn sum(bytes: &[u8]) -> u16 {
    let sum = bytes.chunks(2).fold(0_u32, |sum, pair| sum + u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

proptest! {
    #[test]
    fn any_bytes_are_looked_at_without_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..120),
        at in 12_usize..74,
        byte: u8,
        length in 0_usize..140,
        gue: bool,
        outer_v4: bool,
        inner_v4: bool,
    ) {
        looked(&bytes, &host());
        let mut frame = wrap(&inner(inner_v4), gue, outer_v4);
        frame[at] = byte;
        frame.truncate(length);
        if let (Look::Peel(peel), after) = looked(&frame, &host()) {
            prop_assert_eq!(after.len() + peel.length, frame.len());
            prop_assert!(after.len() >= 14 + 20);
        }
    }
}
