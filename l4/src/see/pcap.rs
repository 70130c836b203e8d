//! Captured packets as a file that Wireshark and tcpdump read: pcapng (draft-ietf-opsawg-pcapng), since its packets have
//! comments and directions.

use std::io::{self, Write};

use tidegate_ebpf::abi::CAPTURE_BYTES;

use super::{
    capture::{Packet, Verdict, What},
    interface,
};

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const ETHERNET: u16 = 1;
/// Options: the end, a comment; of an interface: its name, its clock's resolution; of a packet: its flags.
const END: u16 = 0;
const COMMENT: u16 = 1;
const NAME: u16 = 2;
const RESOLUTION: u16 = 9;
const FLAGS: u16 = 2;
const NANOSECONDS: u8 = 9;
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// Writes a section with an interface for each that packets come by or leave.
#[derive(Debug)]
pub struct Writer<W> {
    to: W,
    /// What is added to the monotonic clock to make it the time of day, ns.
    epoch: u64,
    interfaces: Vec<u32>,
}

impl<W: Write> Writer<W> {
    pub fn new(mut to: W, epoch: u64) -> io::Result<Self> {
        let mut body = Vec::new();
        body.extend(BYTE_ORDER.to_ne_bytes());
        // Version 1.0, of unknown length.
        body.extend(1_u16.to_ne_bytes());
        body.extend(0_u16.to_ne_bytes());
        body.extend(u64::MAX.to_ne_bytes());
        block(&mut to, SECTION, &body)?;
        Ok(Self { to, epoch, interfaces: Vec::new() })
    }

    pub fn packet(&mut self, packet: &Packet) -> io::Result<()> {
        let interface = self.interface(packet.ifindex)?;
        let at = self.epoch.wrapping_add(packet.at);
        let mut body = Vec::new();
        for word in [interface, (at >> 32) as u32, at as u32, packet.bytes.len() as u32, packet.length] {
            body.extend(word.to_ne_bytes());
        }
        body.extend(&packet.bytes);
        pad(&mut body);
        let flags = if packet.what == What::Sent { OUTBOUND } else { INBOUND };
        option(&mut body, COMMENT, comment(packet.what).as_bytes());
        option(&mut body, FLAGS, &flags.to_ne_bytes());
        option(&mut body, END, &[]);
        block(&mut self.to, PACKET, &body)
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }

    fn interface(&mut self, index: u32) -> io::Result<u32> {
        if let Some(known) = self.interfaces.iter().position(|known| *known == index) {
            return Ok(known as u32);
        }
        let mut body = Vec::new();
        body.extend(ETHERNET.to_ne_bytes());
        body.extend([0, 0]);
        body.extend((CAPTURE_BYTES as u32).to_ne_bytes());
        option(&mut body, NAME, interface(index).as_bytes());
        option(&mut body, RESOLUTION, &[NANOSECONDS]);
        option(&mut body, END, &[]);
        block(&mut self.to, INTERFACE, &body)?;
        self.interfaces.push(index);
        Ok(self.interfaces.len() as u32 - 1)
    }
}

/// What stands beside a packet.
#[must_use]
pub fn comment(what: What) -> String {
    match what {
        What::Sent => "out".to_owned(),
        What::Came(Verdict::Sent) => "in".to_owned(),
        What::Came(Verdict::Passed) => "in: passed to the host".to_owned(),
        What::Came(Verdict::Dropped(reason)) => {
            format!("in: DROPPED ({})", tidegate_ebpf::abi::Reason::NAMES[reason as usize])
        }
        What::Came(Verdict::Aborted) => "in: LOST (the interface that it should leave by is gone)".to_owned(),
        What::Came(Verdict::Unknown) => "in: what became of it was not captured".to_owned(),
    }
}

/// The length stands before and behind the body, which is a whole number of words.
fn block(to: &mut impl Write, kind: u32, body: &[u8]) -> io::Result<()> {
    let length = (body.len() as u32 + 12).to_ne_bytes();
    to.write_all(&[&kind.to_ne_bytes()[..], &length, body, &length].concat())
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    body.extend(code.to_ne_bytes());
    body.extend((value.len() as u16).to_ne_bytes());
    body.extend(value);
    pad(body);
}

fn pad(body: &mut Vec<u8>) {
    body.resize(body.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_follow_one_another_and_hold_what_they_say() {
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file, 1_000_000_000).unwrap();
        let came = Packet { at: 5, length: 300, bytes: vec![7; 61], ifindex: 1, what: What::Came(Verdict::Sent) };
        writer.packet(&came).unwrap();
        writer.packet(&Packet { what: What::Sent, ..came }).unwrap();
        let word = |at: usize| u32::from_ne_bytes(file[at..at + 4].try_into().unwrap());
        let (mut at, mut kinds) = (0, Vec::new());
        while at < file.len() {
            let length = word(at + 4) as usize;
            assert_eq!(length as u32, word(at + length - 4), "the length stands twice");
            kinds.push(word(at));
            if word(at) == PACKET {
                assert_eq!((word(at + 16), word(at + 20), word(at + 24)), (1_000_000_005, 61, 300));
                assert_eq!(&file[at + 28..at + 28 + 61], [7; 61]);
            }
            at += length;
        }
        assert_eq!(kinds, [SECTION, INTERFACE, PACKET, PACKET]);
    }
}
