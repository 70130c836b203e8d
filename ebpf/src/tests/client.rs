//! Conversations in which the client's address is told, or that began with a cookie: what the real sees is a whole
//! stream, and what the client sees fits what it sent.

use std::net::SocketAddr;

use proptest::prelude::*;

use super::wire::{self, Segment, checked, frame};
use crate::{
    abi::{Flow, Limits, Reason, SECOND, Service, ServiceKey, TCP},
    balance::{Verdict, balance},
    host::{Frame, Memory},
    scripts,
};

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
const FIN: u8 = 1;

/// A client and its service; what becomes of the flow's far end is learnt from its SYN.
struct Talk {
    memory: Memory,
    client: SocketAddr,
    vip: SocketAddr,
    /// The local address and the real, as the real's packets name them.
    real: Option<(SocketAddr, SocketAddr)>,
}

impl Talk {
    fn new(v4: bool, client: u8, checks: u8) -> Self {
        let memory = scripts::world(1000 * SECOND);
        let (from, vip) =
            if v4 { ("10.77.0.10:4000", "10.77.100.1:80") } else { ("[fd77::10]:4000", "[fd77:0:100::1]:80") };
        let vip: SocketAddr = vip.parse().unwrap();
        let key = ServiceKey { vip: vip.ip().into(), port: 80, protocol: TCP, pad: 0 };
        let service = memory.0.borrow().services[&key];
        memory.set_service(key, Service { client, checks, ..service });
        // No SYN goes through without a cookie.
        memory.set_limits(service.id, Limits { cookie_gap: SECOND, ..Limits::default() });
        Self { memory, client: from.parse().unwrap(), vip, real: None }
    }

    fn header(&self) -> Vec<u8> {
        let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21".to_vec();
        let ends = [self.client, self.vip];
        header.extend(if self.client.is_ipv4() { [0x11, 0, 12] } else { [0x21, 0, 36] });
        for end in ends {
            match end.ip() {
                std::net::IpAddr::V4(ip) => header.extend(ip.octets()),
                std::net::IpAddr::V6(ip) => header.extend(ip.octets()),
            }
        }
        ends.iter().for_each(|end| header.extend(end.port().to_be_bytes()));
        header
    }

    fn toa(&self) -> Vec<u8> {
        let mut option = self.client.port().to_be_bytes().to_vec();
        match self.client.ip() {
            std::net::IpAddr::V4(ip) => option.extend(ip.octets()),
            std::net::IpAddr::V6(ip) => option.extend(ip.octets()),
        }
        [&[254, option.len() as u8 + 2], &option[..]].concat()
    }

    fn run(&self, segment: &Segment) -> (Verdict, Option<Segment>) {
        let mut frame = Frame::new(&frame(segment), scripts::LINK);
        let verdict = balance(&mut frame, &self.memory);
        let sent = matches!(verdict, Verdict::Transmit | Verdict::Redirect(_));
        (verdict, sent.then(|| checked(&frame.bytes())))
    }

    fn of_client(&self, segment: Segment) -> Segment {
        Segment { source: self.client, destination: self.vip, ..segment }
    }

    fn of_real(&self, segment: Segment) -> Segment {
        let (local, real) = self.real.unwrap();
        Segment { source: real, destination: local, ..segment }
    }

    /// From the client; what goes to the real.
    fn out(&mut self, segment: Segment) -> Segment {
        let (verdict, sent) = self.run(&self.of_client(segment));
        let sent = sent.unwrap_or_else(|| panic!("{verdict:?}"));
        let ends = (sent.source, sent.destination);
        assert_eq!(*self.real.get_or_insert(ends), ends, "not the flow's real");
        assert_eq!(sent.destination.port(), 8080);
        sent
    }

    /// From the real; what goes to the client.
    fn back(&self, segment: Segment) -> Segment {
        let (verdict, sent) = self.run(&self.of_real(segment));
        let sent = sent.unwrap_or_else(|| panic!("{verdict:?}"));
        assert_eq!((sent.source, sent.destination), (self.vip, self.client));
        sent
    }

    fn dropped(&self, segment: Segment) -> Reason {
        match self.run(&self.of_client(segment)).0 {
            Verdict::Drop(reason) => reason,
            verdict => panic!("{verdict:?}"),
        }
    }

    fn answers(&self) -> u64 {
        self.memory.0.borrow().real_counters.values().map(|counters| counters.answers).sum()
    }

    /// Both sides' handshake from these initial numbers, up to the real's SYN-ACK.
    fn open(&mut self, client: u32, real: u32) -> Segment {
        let syn = self.out(Segment { sequence: client, flags: SYN, options: MSS_SACK.into(), ..Segment::default() });
        assert_eq!((syn.sequence, syn.flags), (client, SYN));
        self.back(Segment {
            sequence: real,
            acknowledgement: client.wrapping_add(1),
            flags: SYN | ACK,
            options: MSS_SACK.into(),
            ..Segment::default()
        })
    }
}

const MSS_SACK: &[u8] = &[2, 4, 5, 0xb4, 4, 2, 1, 1];

fn segment(sequence: u32, acknowledgement: u32, flags: u8, payload: &[u8]) -> Segment {
    Segment { sequence, acknowledgement, flags, payload: payload.into(), ..Segment::default() }
}

/// A receiver: what it has of a stream from `start` on.
struct Stream {
    start: u32,
    bytes: Vec<Option<u8>>,
}

impl Stream {
    fn take(&mut self, segment: &Segment) {
        let at = segment.sequence.wrapping_sub(self.start) as i32;
        for (place, byte) in (at..).zip(&segment.payload) {
            let place = usize::try_from(place).expect("no byte before the stream");
            if self.bytes.len() <= place {
                self.bytes.resize(place + 1, None);
            }
            assert!(self.bytes[place].is_none_or(|before| before == *byte), "byte {place} changed");
            self.bytes[place] = Some(*byte);
        }
    }

    fn whole(&self) -> Vec<u8> {
        self.bytes.iter().map_while(|byte| *byte).collect()
    }

    fn next(&self) -> u32 {
        self.start.wrapping_add(self.whole().len() as u32)
    }
}

#[test]
fn an_answer_is_counted_once_however_the_address_is_told() {
    for v4 in [true, false] {
        for client in [Service::HIDDEN, Service::TOA, Service::PROXY] {
            let mut talk = Talk::new(v4, client, 0);
            talk.open(1000, 5000);
            assert_eq!(talk.answers(), 1, "client {client}");
        }
    }
}

#[test]
fn a_told_flow_takes_the_quick_way_again_once_the_real_knows() {
    let mut talk = Talk::new(true, Service::TOA, 0);
    let answer = talk.open(1000, 5000);
    assert_eq!(answer.options, MSS_SACK);
    let first = talk.out(segment(1001, 5001, ACK, b"hello"));
    assert_eq!((first.options, first.payload), (talk.toa(), b"hello".to_vec()));
    talk.back(segment(5001, 1006, ACK, b""));
    assert!(talk.memory.0.borrow().flows.values().all(|flow| flow.work == 0));
    assert_eq!(talk.out(segment(1006, 5001, ACK | FIN, b"")).options, b"");
}

#[test]
fn a_client_that_leaves_no_room_to_tell_of_it_tells_nothing_else() {
    for v4 in [true, false] {
        for before in [0, 1, 20] {
            let mut talk = Talk::new(v4, Service::TOA, 0);
            let told = talk.toa();
            let lie = |kind: u8| {
                let mut options = vec![1; before];
                options.extend([&[kind], &told[1..], &[8, 10, 0, 0, 0, 1, 0, 0, 0, 0]].concat());
                options.resize(40, 1);
                options
            };
            let syn = talk.out(Segment { sequence: 1000, flags: SYN, options: lie(254), ..Segment::default() });
            assert_eq!((syn.flags, syn.options), (SYN, lie(253)), "{before}");
            let last = talk.out(Segment { options: lie(254), ..segment(1001, 5001, ACK, b"") });
            assert_eq!(last.options, lie(253), "{before}");
        }
    }
}

#[test]
fn a_new_connection_in_an_old_ones_port_gets_its_own_header() {
    let mut talk = Talk::new(true, Service::PROXY, 0);
    talk.open(1000, 5000);
    talk.out(segment(1001, 5001, ACK, b""));
    talk.back(segment(5001, 1001 + 28, ACK, b""));
    // The client lost its state and did not say so, and the real did as well.
    talk.open(70_000, 9000);
    let first = talk.out(segment(70_001, 9001, ACK, b"x"));
    assert_eq!((first.sequence, first.payload), (70_001, [talk.header(), b"x".to_vec()].concat()));
    // But a stray SYN leaves the connection that is there as it is.
    talk.back(segment(9001, 70_001 + 29, ACK, b""));
    talk.out(Segment { sequence: 5, flags: SYN, ..Segment::default() });
    assert_eq!(talk.out(segment(70_002, 9001, ACK, b"y")).sequence, 70_002 + 28);
    assert_eq!(talk.back(segment(9001, 70_002 + 29, ACK, b"")).acknowledgement, 70_003);
}

#[test]
fn a_client_that_takes_back_its_connection_is_understood() {
    let mut talk = Talk::new(false, Service::PROXY, 0);
    // Before it said anything, and after.
    talk.open(1000, 5000);
    assert_eq!(talk.out(segment(1001, 0, RST, b"")).sequence, 1001);
    let mut talk = Talk::new(false, Service::PROXY, 0);
    talk.open(1000, 5000);
    talk.out(segment(1001, 5001, ACK, b""));
    assert_eq!(talk.out(segment(1001, 0, RST, b"")).sequence, 1001 + 52);
}

/// A client's way through a cookie, up to its SYN at the real; the cookie's number.
fn accepted(talk: &mut Talk, mss: u16) -> u32 {
    talk.memory.0.borrow_mut().cookie = 0xffff_fff0;
    let options = [&[2, 4], &mss.to_be_bytes()[..], &[4, 2, 1, 1]].concat();
    let syn = talk.of_client(Segment { sequence: 1000, flags: SYN, options, ..Segment::default() });
    let answer = talk.run(&syn).1.expect("a cookie");
    assert_eq!((answer.source, answer.destination, answer.flags), (talk.vip, talk.client, SYN | ACK));
    assert_eq!(answer.acknowledgement, 1001);
    assert!(talk.memory.0.borrow().flows.values().all(|flow| flow.protocol == 0), "a SYN was remembered");
    let cookie = answer.sequence;
    let syn = talk.out(segment(1001, cookie.wrapping_add(1), ACK, b""));
    assert_eq!((syn.flags, syn.sequence, syn.acknowledgement, syn.payload.len()), (SYN, 1000, 0, 0));
    let told = if talk.client.is_ipv4() { [1460, 1440, 1300, 536] } else { [1440, 1420, 1220, 1220] };
    let expect = told.into_iter().find(|told| *told <= mss).unwrap_or(told[3]);
    assert_eq!(&syn.options[..4], [&[2, 4], &u16::to_be_bytes(expect)[..]].concat());
    cookie
}

#[test]
fn who_returns_a_cookie_talks_to_a_real() {
    for v4 in [true, false] {
        for client in [Service::HIDDEN, Service::TOA, Service::PROXY] {
            let mut talk = Talk::new(v4, client, Service::COOKIES);
            let cookie = accepted(&mut talk, 1460);
            let next = cookie.wrapping_add(1);
            let (toa, header) = match client {
                Service::TOA => (talk.toa(), Vec::new()),
                Service::PROXY => (Vec::new(), talk.header()),
                _ => (Vec::new(), Vec::new()),
            };
            let shift = header.len() as u32;
            // What comes too early knocks again; what follows it waits.
            let again = talk.out(segment(1001, next, ACK, b"hello"));
            assert_eq!((again.flags, &again.options[4..]), (SYN, &toa[..]));
            assert_eq!(talk.dropped(segment(1006, next, ACK, b"more")), Reason::NotReady);
            assert_eq!(talk.dropped(Segment { sequence: 1000, flags: SYN, ..Segment::default() }), Reason::NotReady);
            // The real answers, twice: it is told the same both times.
            for _ in 0..2 {
                let answer = talk.of_real(Segment { options: MSS_SACK.into(), ..segment(5000, 1001, SYN | ACK, b"") });
                let turned = talk.run(&answer).1.expect("the handshake's end");
                assert_eq!((turned.source, turned.destination), (answer.destination, answer.source));
                assert_eq!((turned.flags, turned.sequence, turned.acknowledgement), (ACK, 1001, 5001));
                assert_eq!((&turned.options, &turned.payload), (&toa, &header));
            }
            // The server speaks first, and the client's numbers go on where the cookie was.
            let greeting = talk.back(segment(5001, 1001 + shift, ACK, b"welcome"));
            assert_eq!((greeting.sequence, greeting.acknowledgement), (next, 1001));
            let heard = talk.out(segment(1001, next.wrapping_add(7), ACK, b"hello"));
            assert_eq!((heard.sequence, heard.acknowledgement), (1001 + shift, 5008));
            assert_eq!((&heard.options[..], &heard.payload[..]), (&b""[..], &b"hello"[..]));
            let end = talk.back(segment(5008, 1006 + shift, ACK | FIN, b""));
            assert_eq!((end.sequence, end.acknowledgement), (next.wrapping_add(7), 1006));
        }
    }
}

#[test]
fn a_cookie_remembers_how_much_its_client_takes() {
    for v4 in [true, false] {
        for mss in [9000, 1460, 1450, 1400, 1220, 600] {
            accepted(&mut Talk::new(v4, Service::HIDDEN, Service::COOKIES), mss);
        }
    }
}

#[test]
fn a_real_that_refuses_is_heard_behind_a_cookie() {
    let mut talk = Talk::new(true, Service::PROXY, Service::COOKIES);
    let cookie = accepted(&mut talk, 1460);
    let refusal = talk.back(segment(0, 1001, RST | ACK, b""));
    assert_eq!((refusal.sequence, refusal.acknowledgement), (cookie.wrapping_add(1), 1001));
}

#[test]
fn a_client_that_begins_anew_while_its_real_is_asked_is_let_through() {
    let mut talk = Talk::new(true, Service::HIDDEN, Service::COOKIES);
    accepted(&mut talk, 1460);
    let syn = talk.out(Segment { sequence: 88_000, flags: SYN, options: MSS_SACK.into(), ..Segment::default() });
    assert_eq!((syn.sequence, syn.flags, &syn.options[..]), (88_000, SYN, MSS_SACK));
    assert_eq!(talk.back(segment(5000, 88_001, SYN | ACK, b"")).sequence, 5000);
}

#[test]
fn what_acknowledges_no_cookie_is_dropped_under_a_flood_and_taken_up_otherwise() {
    let mut talk = Talk::new(false, Service::HIDDEN, Service::COOKIES);
    assert_eq!(talk.dropped(segment(1001, 7, ACK, b"x")), Reason::Cookie);
    let id = *talk.memory.0.borrow().limits.keys().next().unwrap();
    talk.memory.set_limits(id, Limits { cookie_gap: 1, cookie_ahead: SECOND, ..Limits::default() });
    let healed = talk.out(segment(1001, 7, ACK, b"x"));
    assert_eq!((healed.sequence, healed.acknowledgement, healed.flags), (1001, 7, ACK));
    let flows = talk.memory.0.borrow();
    assert!(flows.flows.values().all(|flow| flow.work & (Flow::SPLICED | Flow::WAITING) == 0));
}

/// An error about a segment, as a router sends it; what it quotes then.
fn complain(talk: &Talk, segment: &Segment) -> Segment {
    let mut body = frame(segment)[14..].to_vec();
    let v4 = segment.source.is_ipv4();
    body.truncate(if v4 { 28 } else { 60 });
    let message = wire::error(segment.source, &body);
    let mut frame = Frame::new(&message, scripts::LINK);
    assert_eq!(balance(&mut frame, &talk.memory), Verdict::Transmit);
    wire::quoted(&frame.bytes())
}

#[test]
fn an_error_quotes_the_numbers_that_its_receiver_knows() {
    for v4 in [true, false] {
        let mut talk = Talk::new(v4, Service::PROXY, Service::COOKIES);
        let cookie = accepted(&mut talk, 1460);
        let answer = talk.of_real(segment(5000, 1001, SYN | ACK, b""));
        talk.run(&answer).1.expect("the handshake's end");
        let first = talk.out(segment(1001, cookie.wrapping_add(1), ACK, b"one"));
        let second = talk.out(segment(1004, cookie.wrapping_add(1), ACK, b"two"));
        for (sent, sequence) in [(&first, 1001), (&second, 1004)] {
            let quoted = complain(&talk, sent);
            assert_eq!((quoted.sequence, quoted.source, quoted.destination), (sequence, talk.client, talk.vip));
        }
        let back = talk.back(segment(5001, 1001, ACK, b"three"));
        let quoted = complain(&talk, &back);
        let (local, real) = talk.real.unwrap();
        assert_eq!((quoted.sequence, quoted.source, quoted.destination), (5001, real, local));
    }
}

proptest! {
    /// However the client cuts and repeats its stream, and whatever is lost: the real has the header and the stream,
    /// once and in order, and the client hears of nothing that it did not send.
    #[test]
    fn a_stream_arrives_behind_its_header(v4 in any::<bool>(), cookie in any::<bool>(), isn in any::<u32>(), theirs in any::<u32>(),
                                          length in 0_usize..3000, seed in any::<u8>(),
                                          acts in prop::collection::vec((0_usize..3000, 0_usize..1300, any::<[bool; 2]>()), 0..40)) {
        let mut talk = Talk::new(v4, Service::PROXY, if cookie { Service::COOKIES } else { 0 });
        let (start, answer) = (isn.wrapping_add(1), theirs.wrapping_add(1));
        let stream: Vec<u8> = (0..length).map(|at| (at as u8).wrapping_mul(31) ^ seed).collect();
        let mut real = Stream { start, bytes: Vec::new() };
        // What the client has to acknowledge.
        let ack = if cookie {
            let syn = talk.of_client(Segment { sequence: isn, flags: SYN, ..Segment::default() });
            let ack = talk.run(&syn).1.expect("a cookie").sequence.wrapping_add(1);
            talk.out(segment(start, ack, ACK, b""));
            let answer = talk.of_real(segment(theirs, start, SYN | ACK, b""));
            real.take(&talk.run(&answer).1.expect("the handshake's end"));
            ack
        } else {
            let seen = talk.open(isn, theirs);
            prop_assert_eq!(&seen.options[4..], &MSS_SACK[4..]);
            seen.sequence.wrapping_add(1)
        };
        let (mut acknowledged, mut sent) = (0, 0);
        let ends = acts.into_iter().chain((0..=length / 1000 + 2).map(|_| (usize::MAX, 1000, [false; 2])));
        for (at, size, [lost, silent]) in ends {
            // Anything from what is not acknowledged up to a window; at the end one after the other.
            let at = if at == usize::MAX { acknowledged } else { acknowledged + at % (length - acknowledged + 1) };
            let piece = &stream[at..length.min(at + size)];
            sent = sent.max(at + piece.len());
            let arrived = talk.out(segment(start.wrapping_add(at as u32), ack, ACK, piece));
            prop_assert_eq!(arrived.acknowledgement, answer);
            if !lost {
                real.take(&arrived);
                if !silent {
                    let heard = talk.back(segment(answer, real.next(), ACK, b""));
                    prop_assert_eq!(heard.sequence, ack);
                    let heard = heard.acknowledgement.wrapping_sub(start) as usize;
                    prop_assert!(heard >= acknowledged && heard <= sent, "{} of {}", heard, sent);
                    acknowledged = heard;
                }
            }
        }
        prop_assert_eq!(acknowledged, length);
        prop_assert_eq!(real.whole(), [talk.header(), stream].concat());
    }

    /// What each side says to the other comes back to it as it said it.
    #[test]
    fn numbers_that_are_shifted_come_back(v4 in any::<bool>(), client in 0..=2_u8, theirs in any::<u32>(), cookie in any::<u32>(),
                                          sizes in prop::collection::vec(1_usize..1000, 1..20)) {
        let mut talk = Talk::new(v4, client, Service::COOKIES);
        talk.memory.0.borrow_mut().cookie = cookie;
        let syn = talk.of_client(Segment { sequence: 1000, flags: SYN, ..Segment::default() });
        let mut to_client = talk.run(&syn).1.expect("a cookie").sequence.wrapping_add(1);
        talk.out(segment(1001, to_client, ACK, b""));
        let answer = talk.of_real(segment(theirs, 1001, SYN | ACK, b""));
        let turned = talk.run(&answer).1.expect("the handshake's end");
        let mut from_client = 1001_u32;
        let mut of_real = theirs.wrapping_add(1);
        let mut to_real = 1001 + turned.payload.len() as u32;
        for size in sizes {
            let answer = talk.back(segment(of_real, to_real, ACK, &vec![1; size]));
            prop_assert_eq!((answer.sequence, answer.acknowledgement), (to_client, from_client));
            to_client = to_client.wrapping_add(size as u32);
            of_real = of_real.wrapping_add(size as u32);
            let question = talk.out(segment(from_client, to_client, ACK, &vec![2; size]));
            prop_assert_eq!((question.sequence, question.acknowledgement), (to_real, of_real));
            from_client += size as u32;
            to_real += size as u32;
        }
    }
}
