//! Bytes to text.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, Ipv6Addr},
};

use super::{LETTERS, MACS, checksum, say};

/// The frame as [`super::write`] would take it, or with `BAD` where it could not have made it.
#[must_use]
pub fn read(frame: &[u8]) -> String {
    let mut text = String::new();
    if ethernet(frame, &mut text).is_none() {
        text.push_str(" BAD cut");
    }
    text
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn mac(bytes: &[u8]) -> String {
    let known = MACS.iter().find(|(_, tail)| bytes[..4] == [2, 0, 0, 0] && bytes[4..] == *tail);
    known.map_or_else(|| format!("{bytes:02x?}").replace(' ', ""), |(name, _)| (*name).to_owned())
}

fn ethernet(frame: &[u8], text: &mut String) -> Option<()> {
    let _ = write!(text, "eth {}>{}", mac(frame.get(6..12)?), mac(frame.get(..6)?));
    let (mut ethertype, mut at) = (half(frame, 12)?, 14);
    if ethertype == 0x8100 {
        let _ = write!(text, " vlan={}", half(frame, 14)?);
        (ethertype, at) = (half(frame, 16)?, 18);
    }
    let packet = frame.get(at..)?;
    match ethertype {
        0x0800 => v4(packet, text),
        0x86dd => v6(packet, text),
        other => {
            let _ = write!(text, " type={other}");
            Some(())
        }
    }
}

fn v4(packet: &[u8], text: &mut String) -> Option<()> {
    let header = usize::from(packet.first()? & 15) * 4;
    let length = usize::from(half(packet, 2)?);
    let address = |at: usize| Some(Ipv4Addr::from(word(packet, at)?));
    let _ = write!(text, " / ip4 {} > {}", address(12)?, address(16)?);
    v4_fields(packet, text)?;
    say(text, "opt", (header as u64).saturating_sub(20) / 4, 0);
    let fragment = half(packet, 6)?;
    let body = packet.get(header..length)?;
    if fragment & 0x1fff != 0 {
        let _ = write!(text, " / piece proto={} +{}", packet[9], body.len());
        return Some(());
    }
    transport(packet[9], body, &packet[12..20], fragment & 0x2000 != 0, text)
}

fn v4_fields(packet: &[u8], text: &mut String) -> Option<()> {
    let header = usize::from(packet.first()? & 15) * 4;
    say(text, "tos", packet[1].into(), 0);
    say(text, "id", half(packet, 4)?.into(), 0);
    let fragment = half(packet, 6)?;
    for (bit, name) in [(0x4000, " df"), (0x2000, " mf")] {
        if fragment & bit != 0 {
            text.push_str(name);
        }
    }
    say(text, "off", (fragment & 0x1fff).into(), 0);
    say(text, "ttl", packet[8].into(), 64);
    if checksum(&[packet.get(..header)?]) != 0 {
        text.push_str(" BAD header sum");
    }
    Some(())
}

fn v6(packet: &[u8], text: &mut String) -> Option<()> {
    let address = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?));
    let _ = write!(text, " / ip6 {} > {}", address(8)?, address(24)?);
    let class = word(packet, 0)?;
    say(text, "tos", (class >> 20 & 0xff).into(), 0);
    say(text, "flow", (class & 0xf_ffff).into(), 0);
    say(text, "ttl", packet[7].into(), 64);
    let body = packet.get(40..40 + usize::from(half(packet, 4)?))?;
    transport(packet[6], body, &packet[8..40], false, text)
}

/// `part`: the checksum covers more than is here.
fn transport(protocol: u8, body: &[u8], pseudo: &[u8], part: bool, text: &mut String) -> Option<()> {
    let length = (body.len() as u32).to_be_bytes();
    let whole = || checksum(&[pseudo, &length, &[0, 0, 0, protocol], body]) == 0;
    let ports = |text: &mut String, name: &str| {
        let _ = write!(text, " / {name} {} > {}", half(body, 0)?, half(body, 2)?);
        Some(())
    };
    match protocol {
        6 => {
            ports(text, "tcp")?;
            let header = usize::from(body.get(12)? >> 4) * 4;
            let letters: String = LETTERS.iter().filter(|(_, bit)| body[13] & bit != 0).map(|(name, _)| name).collect();
            if !letters.is_empty() {
                let _ = write!(text, " {letters}");
            }
            say(text, "seq", word(body, 4)?.into(), 0);
            say(text, "ack", word(body, 8)?.into(), 0);
            say(text, "win", half(body, 14)?.into(), 65_535);
            options(body.get(20..header)?, text)?;
            payload(&body[header..], text);
            if !whole() && !part {
                text.push_str(" BAD tcp sum");
            }
            Some(())
        }
        17 => {
            ports(text, "udp")?;
            if half(body, 6)? == 0 {
                text.push_str(" nosum");
            } else if !whole() && !part {
                text.push_str(" BAD udp sum");
            }
            if usize::from(half(body, 4)?) != body.len() && !part {
                text.push_str(" BAD udp length");
            }
            match body.get(8).map(|byte| byte >> 4) {
                Some(4) if half(body, 6)? == 0 => v4(&body[8..], text),
                Some(6) if half(body, 6)? == 0 => v6(&body[8..], text),
                _ => {
                    payload(&body[8..], text);
                    Some(())
                }
            }
        }
        1 | 58 => {
            let _ = write!(text, " / icmp type={}", body.first()?);
            say(text, "code", body[1].into(), 0);
            say(text, "rest", word(body, 4)?.into(), 0);
            let good = if protocol == 1 { checksum(&[body]) == 0 } else { whole() };
            if !good {
                text.push_str(" BAD icmp sum");
            }
            let echo = matches!((protocol, body[0]), (1, 0 | 8) | (58, 128 | 129));
            if echo {
                payload(&body[8..], text);
                return Some(());
            }
            quote(&body[8..], protocol == 1, text)
        }
        4 => v4(body, text),
        41 => v6(body, text),
        0 | 60 => {
            text.push_str(if protocol == 0 { " / hbh" } else { " / dst" });
            transport(*body.first()?, body.get(8..)?, pseudo, part, text)
        }
        44 => {
            let field = half(body, 2)?;
            text.push_str(" / frag");
            if field & 1 != 0 {
                text.push_str(" mf");
            }
            say(text, "off", (field >> 3).into(), 0);
            say(text, "id", word(body, 4)?.into(), 0);
            let rest = body.get(8..)?;
            if field >> 3 != 0 {
                let _ = write!(text, " / piece proto={} +{}", body[0], rest.len());
                return Some(());
            }
            transport(body[0], rest, pseudo, true, text)
        }
        other => {
            let _ = write!(text, " proto={other}");
            payload(body, text);
            Some(())
        }
    }
}

fn quote(bytes: &[u8], v4: bool, text: &mut String) -> Option<()> {
    let (header, protocol) = if v4 { (20, *bytes.get(9)?) } else { (40, *bytes.get(6)?) };
    if v4 {
        let address = |at: usize| Some(Ipv4Addr::from(word(bytes, at)?));
        let _ = write!(text, " / quote ip4 {} > {} len={}", address(12)?, address(16)?, half(bytes, 2)?);
        v4_fields(bytes, text)?;
    } else {
        let address = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok()?));
        let _ = write!(text, " / quote ip6 {} > {} len={}", address(8)?, address(24)?, half(bytes, 4)?);
        say(text, "ttl", bytes[7].into(), 64);
    }
    let name = if protocol == 6 { "tcp" } else { "udp" };
    let body = bytes.get(header..)?;
    let _ = write!(text, " / {name} {} > {} +{}", half(body, 0)?, half(body, 2)?, body.len() - 4);
    Some(())
}

fn options(mut options: &[u8], text: &mut String) -> Option<()> {
    while let Some(kind) = options.first() {
        let length = match kind {
            0 => return Some(()),
            1 => 1,
            _ => usize::from(*options.get(1)?),
        };
        match (kind, length) {
            (1, _) => text.push_str(" nop"),
            (2, 4) => _ = write!(text, " mss={}", half(options, 2)?),
            (4, 2) => text.push_str(" sackok"),
            (254, 8) => _ = write!(text, " toa={}:{}", Ipv4Addr::from(word(options, 4)?), half(options, 2)?),
            (254, 20) => {
                let address = Ipv6Addr::from(<[u8; 16]>::try_from(options.get(4..20)?).ok()?);
                let _ = write!(text, " toa=[{address}]:{}", half(options, 2)?);
            }
            _ => _ = write!(text, " option={kind}"),
        }
        options = options.get(length.max(1)..)?;
    }
    Some(())
}

fn payload(bytes: &[u8], text: &mut String) {
    if bytes.is_empty() {
        return;
    }
    let _ = write!(text, " +{}", bytes.len());
    if bytes.iter().enumerate().any(|(at, byte)| *byte != at as u8) {
        text.push_str(" other");
    }
}
