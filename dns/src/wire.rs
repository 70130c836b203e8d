//! Bytes in, message out: what the header and EDNS ask for, and what fits where.
//!
//! Messages are hickory-proto's. Its own truncation leaves the bytes of what did not fit behind the message and drops
//! the OPT record, so what is too long is cut here, before it is encoded.

use hickory_proto::{
    op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode},
    rr::DNSClass,
};

use crate::{
    lookup::{Answer, Kind},
    zone::Zone,
};

/// RFC 1035, 4.2.1: what every client takes over UDP.
const PLAIN_UDP: u16 = 512;

/// A TCP message's length has 16 bits. The first owner is written in full by hickory-server's encoder (255 bytes at
/// most), where ours points to the question.
const STREAM_LIMIT: usize = u16::MAX as usize - 255;

/// What to send back, before it is fitted to its way.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) message: Message,
    pub(crate) outcome: Outcome,
    /// The largest datagram that the client takes, and we send.
    limit: u16,
}

/// For the counters.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    Answered,
    NoData,
    NoSuchName,
    Refused,
    Failed,
}

/// Answers a message. None: better silent (a reply to a reply goes round for ever).
pub(crate) fn reply(query: &[u8], zone: &Zone, udp_payload: u16, rotation: u32) -> Option<Reply> {
    let &[id1, id2, flags, _, questions1, questions2, ..] = query else { return None };
    if query.len() < 12 || flags & 0x80 != 0 {
        return None;
    }
    let id = u16::from_be_bytes([id1, id2]);
    let op_code = OpCode::from_u8((flags >> 3) & 0xF);
    let header_only = |code| {
        let mut message = Message::error_msg(id, op_code, code);
        message.metadata.recursion_desired = flags & 1 != 0;
        Some(Reply { message, outcome: Outcome::Failed, limit: PLAIN_UDP })
    };
    // Looked at before the rest is read: other operations have other sections, and 65,535 questions would be
    // room made for nothing.
    if op_code != OpCode::Query {
        return header_only(ResponseCode::NotImp);
    }
    if [questions1, questions2] != [0, 1] {
        return header_only(ResponseCode::FormErr);
    }
    let Ok(query) = Message::from_vec(query) else { return header_only(ResponseCode::FormErr) };
    answer(&query, zone, udp_payload, rotation).or_else(|| header_only(ResponseCode::FormErr))
}

fn answer(query: &Message, zone: &Zone, udp_payload: u16, rotation: u32) -> Option<Reply> {
    let [question] = query.queries.as_slice() else { return None };
    let mut message = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    message.metadata = Metadata::response_from_request(&query.metadata);
    message.add_query(question.clone());
    let own = udp_payload.max(PLAIN_UDP);
    let mut limit = PLAIN_UDP;
    if let Some(asked) = &query.edns {
        limit = asked.max_payload().clamp(PLAIN_UDP, own);
        let mut edns = Edns::new();
        // RFC 3225, 3: the DO bit comes back as it came.
        edns.set_max_payload(own).set_dnssec_ok(asked.flags().dnssec_ok);
        message.set_edns(edns);
        if asked.version() > 0 {
            message.metadata.response_code = ResponseCode::BADVERS;
            return Some(Reply { message, outcome: Outcome::Failed, limit });
        }
    }
    let found = if question.query_class() == DNSClass::IN {
        zone.lookup(question.name(), question.query_type(), rotation)
    } else {
        Answer { kind: Kind::OutsideZone, ..Answer::default() }
    };
    let (code, outcome) = match found.kind {
        Kind::Found => (ResponseCode::NoError, Outcome::Answered),
        Kind::NoData => (ResponseCode::NoError, Outcome::NoData),
        Kind::NoSuchName => (ResponseCode::NXDomain, Outcome::NoSuchName),
        Kind::OutsideZone => (ResponseCode::Refused, Outcome::Refused),
        Kind::NotReady => (ResponseCode::ServFail, Outcome::Failed),
    };
    message.metadata.response_code = code;
    message.metadata.authoritative = matches!(found.kind, Kind::Found | Kind::NoData | Kind::NoSuchName);
    message.answers = found.answers;
    message.authorities = found.authorities;
    message.additionals = found.additionals;
    Some(Reply { message, outcome, limit })
}

impl Reply {
    /// The bytes for UDP. None only when the message cannot be encoded at all.
    pub(crate) fn datagram(mut self) -> Option<Vec<u8>> {
        let limit = usize::from(self.limit);
        if let Some(bytes) = whole(&self.message, limit) {
            return Some(bytes);
        }
        // RFC 2181, 9: what is only helpful may be missing without a word. Only a missing answer is a truncation.
        self.message.additionals.clear();
        whole(&self.message, limit).or_else(|| self.message.truncate().to_vec().ok())
    }

    /// The message for TCP. More records than 64 KiB hold are left out: the rotation brings others the next time.
    pub(crate) fn stream(mut self) -> Message {
        while whole(&self.message, STREAM_LIMIT).is_none() && !self.message.answers.is_empty() {
            self.message.additionals.clear();
            let fewer = self.message.answers.len() * 7 / 8;
            self.message.answers.truncate(fewer);
        }
        self.message
    }
}

/// Whether an encoded message has TC set.
pub(crate) fn is_truncated(bytes: &[u8]) -> bool {
    bytes.get(2).is_some_and(|flags| flags & 0x02 != 0)
}

fn whole(message: &Message, limit: usize) -> Option<Vec<u8>> {
    message.to_vec().ok().filter(|bytes| bytes.len() <= limit && !is_truncated(bytes))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hickory_proto::{
        op::Query,
        rr::{Name, RecordType},
    };
    use proptest::prelude::*;

    use super::*;
    use crate::input::{Input, Node, Srv};

    /// `small` has one address, `large` 100, `huge` 5,000; `_large._tcp` has 20 services on `large`.
    fn zone() -> Zone {
        let many = |count: u16| (0..count).map(|n| [10, 77, (n >> 8) as u8, n as u8].into()).collect();
        let services =
            (1..=20).map(|n| Srv { priority: 0, weight: 1, port: n, target: "large.mesos".into() }).collect();
        let names = [
            ("small.mesos", Node { addresses: many(1), services: vec![], ttl: 5 }),
            ("large.mesos", Node { addresses: many(100), services: vec![], ttl: 5 }),
            ("huge.mesos", Node { addresses: many(5_000), services: vec![], ttl: 5 }),
            ("_large._tcp.mesos", Node { addresses: vec![], services, ttl: 5 }),
        ];
        let names = names.into_iter().map(|(name, node)| (crate::Name::from(name), Arc::new(node))).collect();
        Zone::default().patch(Arc::new(Input { generation: 1, origin: "mesos".into(), names })).unwrap()
    }

    fn query(name: &str, kind: RecordType, payload: Option<u16>) -> Message {
        let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        if let Some(payload) = payload {
            let mut edns = Edns::new();
            edns.set_max_payload(payload).set_dnssec_ok(true);
            message.set_edns(edns);
        }
        message
    }

    fn ask(message: &Message) -> Reply {
        reply(&message.to_vec().unwrap(), &zone(), 1232, 0).expect("an answer")
    }

    #[test]
    fn the_header_says_what_this_server_is() {
        let metadata = ask(&query("small.mesos.", RecordType::A, None)).message.metadata;
        assert_eq!((metadata.id, metadata.message_type), (4711, MessageType::Response));
        assert!(metadata.authoritative && metadata.recursion_desired && !metadata.recursion_available);
        let refused = ask(&query("example.com.", RecordType::A, None)).message.metadata;
        assert_eq!((refused.response_code, refused.authoritative), (ResponseCode::Refused, false));
    }

    #[test]
    fn an_address_takes_sixteen_bytes_beyond_the_question() {
        let asked = query("SMALL.mesos.", RecordType::A, None).to_vec().unwrap();
        let bytes = reply(&asked, &zone(), 1232, 0).unwrap().datagram().unwrap();
        assert_eq!(bytes.len(), asked.len() + 16, "the owner must point to the question");
        assert_eq!(bytes[asked.len()..asked.len() + 2], [0xC0, 12]);
    }

    #[test]
    fn a_datagram_fits_what_both_sides_take_and_keeps_its_opt_record() {
        for (offered, at_most, opt) in
            [(None, 512, false), (Some(100), 512, true), (Some(512), 512, true), (Some(65_000), 1232, true)]
        {
            for name in ["large.mesos.", "huge.mesos."] {
                let bytes = ask(&query(name, RecordType::A, offered)).datagram().unwrap();
                let message = Message::from_vec(&bytes).unwrap();
                assert!(bytes.len() <= at_most && message.metadata.truncation, "{name} {offered:?}: {}", bytes.len());
                assert_eq!(message.to_vec().unwrap(), bytes, "{name} {offered:?}: bytes behind the message");
                assert_eq!(message.edns.as_ref().map(Edns::max_payload), opt.then_some(1232));
                assert_eq!(message.queries.len(), 1);
            }
        }
    }

    #[test]
    fn addresses_beside_the_answer_may_be_missing_without_truncation() {
        let bytes = ask(&query("_large._tcp.mesos.", RecordType::SRV, Some(1232))).datagram().unwrap();
        let message = Message::from_vec(&bytes).unwrap();
        assert_eq!((message.metadata.truncation, message.answers.len(), message.additionals.len()), (false, 20, 0));
    }

    #[test]
    fn a_stream_carries_all_that_64_kib_hold() {
        let count = |name: &str| ask(&query(name, RecordType::A, None)).stream().answers.len();
        assert_eq!(count("large.mesos."), 100);
        // hickory compresses the first thousand names only, else 4,000 would fit.
        assert!((2_000..5_000).contains(&count("huge.mesos.")), "{}", count("huge.mesos."));
    }

    #[test]
    fn what_is_not_a_query_of_ours_is_refused_by_name() {
        let edit = |change: &dyn Fn(&mut Message)| {
            let mut message = query("small.mesos.", RecordType::A, Some(1232));
            change(&mut message);
            let reply = ask(&message);
            Message::from_vec(&reply.datagram().unwrap()).unwrap().metadata.response_code
        };
        for code in [1, 2, 4, 5, 6, 15] {
            assert_eq!(edit(&|m| m.metadata.op_code = OpCode::from_u8(code)), ResponseCode::NotImp, "{code}");
        }
        assert_eq!(edit(&|m| m.queries.clear()), ResponseCode::FormErr);
        assert_eq!(edit(&|m| m.queries.push(m.queries[0].clone())), ResponseCode::FormErr);
        assert_eq!(edit(&|m| _ = m.queries[0].set_query_class(DNSClass::CH)), ResponseCode::Refused);
        assert_eq!(
            edit(&|m| _ = m.edns.as_mut().unwrap().set_version(1)),
            ResponseCode::BADSIG,
            "16 means BADVERS here"
        );
    }

    #[test]
    fn replies_and_scraps_get_no_answer() {
        let mut message = query("small.mesos.", RecordType::A, None);
        message.metadata.message_type = MessageType::Response;
        assert!(reply(&message.to_vec().unwrap(), &zone(), 1232, 0).is_none());
        let bytes = query("small.mesos.", RecordType::A, None).to_vec().unwrap();
        for len in 0..12 {
            assert!(reply(&bytes[..len], &zone(), 1232, 0).is_none(), "{len} bytes");
        }
        let cut = reply(&bytes[..20], &zone(), 1232, 0).unwrap();
        assert_eq!(cut.message.metadata.response_code, ResponseCode::FormErr);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_send_what_cannot_be_read(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            if let Some(reply) = reply(&bytes, &zone(), 1232, 0) {
                let sent = reply.datagram().expect("every reply can be encoded");
                prop_assert!(sent.len() <= 1232);
                prop_assert!(Message::from_vec(&sent).is_ok());
            }
        }

        /// Random bytes rarely get past the header: these are real queries with a few bytes changed.
        #[test]
        fn no_damage_to_a_query_makes_it_panic(
            large in any::<bool>(), damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            tail in prop::collection::vec(any::<u8>(), 0..30),
        ) {
            let name = if large { "_large._tcp.mesos." } else { "small.mesos." };
            let mut bytes = query(name, RecordType::ANY, Some(700)).to_vec().unwrap();
            bytes.extend(tail);
            for (index, byte) in damage {
                let at = index.index(bytes.len());
                bytes[at] = byte;
            }
            if let Some(reply) = reply(&bytes, &zone(), 1232, 0) {
                let sent = reply.datagram().expect("every reply can be encoded");
                prop_assert!(sent.len() <= 1232);
                prop_assert!(Message::from_vec(&sent).is_ok(), "{:?}", sent);
            }
        }
    }
}
