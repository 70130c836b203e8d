//! Bytes of `text/event-stream` to messages, however they are cut.

/// A message of the stream. Marathon writes one line of each.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Message {
    pub(super) event: String,
    pub(super) data: String,
}

/// More than any message of Marathon's (a whole deployment plan of a large group).
const LONGEST: usize = 64 << 20;

#[derive(Debug, Eq, PartialEq, thiserror::Error)]
#[error("a message of more than {LONGEST} bytes: this is not Marathon's event stream")]
pub(super) struct TooLong;

/// What has come of a message that is not whole yet.
#[derive(Debug, Default)]
pub(super) struct Messages {
    line: Vec<u8>,
    message: Message,
}

impl Messages {
    /// Takes the next bytes, gives the messages that they complete.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<Vec<Message>, TooLong> {
        let mut whole = Vec::new();
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            self.line.extend_from_slice(&bytes[..end]);
            bytes = &bytes[end + 1..];
            let line = std::mem::take(&mut self.line);
            whole.extend(self.take_line(line.strip_suffix(b"\r").unwrap_or(&line)));
        }
        self.line.extend_from_slice(bytes);
        if self.line.len() + self.message.data.len() > LONGEST { Err(TooLong) } else { Ok(whole) }
    }

    fn take_line(&mut self, line: &[u8]) -> Option<Message> {
        if line.is_empty() {
            // Blank lines alone keep the connection alive.
            let message = std::mem::take(&mut self.message);
            return (!message.data.is_empty()).then_some(message);
        }
        let line = String::from_utf8_lossy(line);
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.message.event = value.to_owned(),
            "data" => {
                if !self.message.data.is_empty() {
                    self.message.data.push('\n');
                }
                self.message.data.push_str(value);
            }
            // Comments (an empty field) and fields that Marathon does not use.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(event: &str, data: &str) -> Message {
        Message { event: event.to_owned(), data: data.to_owned() }
    }

    #[test]
    fn messages_are_framed_as_the_wire_has_them() {
        let table: [(&str, Vec<Message>); 8] = [
            ("event: a\r\ndata: {}\r\n\r\n", vec![message("a", "{}")]),
            ("event: a\ndata: {}\n\n", vec![message("a", "{}")]),
            ("event: a\r\ndata: 1\r\n\r\nevent: b\r\ndata: 2\r\n\r\n", vec![message("a", "1"), message("b", "2")]),
            ("\r\n\r\n\r\n", vec![]),
            (": a comment\r\n\r\nevent: a\r\ndata: 1\r\n\r\n", vec![message("a", "1")]),
            ("event:a\r\ndata:1\r\ndata:2\r\n\r\n", vec![message("a", "1\n2")]),
            ("id: 7\r\nretry: 5\r\ndata: x\r\n\r\n", vec![message("", "x")]),
            ("event: a\r\ndata: cut", vec![]),
        ];
        for (wire, expected) in table {
            assert_eq!(Messages::default().push(wire.as_bytes()), Ok(expected), "{wire:?}");
        }
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(
            data in prop::collection::vec("[a-z{}:, ]{1,40}", 1..6),
            sizes in prop::collection::vec(1usize..9, 1..200),
        ) {
            let data: Vec<String> = data.iter().map(|data| format!("x{data}")).collect();
            let wire: String = data.iter().map(|data| format!("event: e\r\ndata: {data}\r\n\r\n\r\n")).collect();
            let mut messages = Messages::default();
            let (mut rest, mut got) = (wire.as_bytes(), Vec::new());
            for size in sizes.into_iter().cycle() {
                let (now, later) = rest.split_at(size.min(rest.len()));
                got.extend(messages.push(now).unwrap());
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            let expected: Vec<Message> = data.iter().map(|data| message("e", data)).collect();
            prop_assert_eq!(got, expected);
        }

        #[test]
        fn no_bytes_break_it(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..10)) {
            let mut messages = Messages::default();
            for chunk in chunks {
                messages.push(&chunk).unwrap();
            }
        }
    }
}
