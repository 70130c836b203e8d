//! A DNS client that keeps a fixed number of queries in flight, in as few system calls as the kernel allows.
//!
//! dnsperf itself is full at about 380 k queries a second on one core; this one goes beyond what the servers do.

use std::{
    io,
    mem::{MaybeUninit, zeroed},
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    ptr::null_mut,
    time::{Duration, Instant},
};

use anyhow::Context;

/// Sockets, and queries in flight on each: 128 together. At 256 a server that the scheduler leaves out for a moment loses
/// some, because its receive buffer (208 KiB by default) holds about 200.
const LANES: usize = 8;
const WINDOW: usize = 16;

/// Longer answers than ours to these queries do not come.
const ANSWER: usize = 512;

/// After so much silence a query is lost. On loopback an answer takes microseconds, or a turn of the scheduler.
const LOST_AFTER: Duration = Duration::from_millis(500);

/// What every answer must say, beside the question.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Expect {
    pub(crate) code: u8,
    pub(crate) answers: u16,
}

/// One client of one server.
#[derive(Debug)]
pub(crate) struct Load {
    lanes: Vec<Lane>,
    queries: Vec<Vec<u8>>,
    next: usize,
}

#[derive(Debug)]
struct Lane {
    socket: UdpSocket,
    in_flight: usize,
}

/// What came of a turn.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Turn {
    pub(crate) answers: u64,
    pub(crate) wrong: u64,
    pub(crate) lost: u64,
    pub(crate) took: Duration,
}

impl Load {
    /// Asks `server` for the A records of `names`, over and over.
    pub(crate) fn new(server: SocketAddr, names: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let queries: Vec<_> = names.enumerate().map(|(id, name)| query(id as u16, &name)).collect();
        anyhow::ensure!((1..=1 << 16).contains(&queries.len()), "an id names one of at most 65,536 queries");
        let lane = |_| {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            socket.connect(server)?;
            socket.set_nonblocking(true)?;
            Ok(Lane { socket, in_flight: 0 })
        };
        let lanes = (0..LANES).map(lane).collect::<io::Result<_>>().context("opening the client's sockets")?;
        Ok(Self { lanes, queries, next: 0 })
    }

    /// Whether the server answers one query as expected, within a moment.
    pub(crate) fn answers(&mut self, expect: Expect) -> bool {
        let socket = &self.lanes[0].socket;
        let mut answer = [0; ANSWER];
        while socket.recv(&mut answer).is_ok() {}
        if socket.send(&self.queries[0]).is_err() {
            return false;
        }
        let _silent = wait(std::slice::from_ref(&self.lanes[0]), Duration::from_millis(100));
        socket.recv(&mut answer).is_ok_and(|len| is_right(&answer[..len], &self.queries, expect))
    }

    /// Keeps the server busy for `time`.
    pub(crate) fn turn(&mut self, time: Duration, expect: Expect) -> anyhow::Result<Turn> {
        let mut turn = Turn::default();
        let mut buffers = [[0u8; ANSWER]; WINDOW];
        let began = Instant::now();
        loop {
            let sending = began.elapsed() < time;
            let mut quiet = true;
            for lane in &mut self.lanes {
                let lens = lane.receive(&mut buffers).context("receiving answers")?;
                quiet &= lens.is_empty();
                lane.in_flight = lane.in_flight.saturating_sub(lens.len());
                for (buffer, &len) in buffers.iter().zip(lens.as_slice()) {
                    turn.answers += 1;
                    turn.wrong += u64::from(!is_right(&buffer[..len], &self.queries, expect));
                }
                if sending && lane.in_flight < WINDOW {
                    let room = WINDOW - lane.in_flight;
                    let count = self.queries.len();
                    let next = self.next;
                    // A stride, so that neighbours in the server's tables are not asked one after another.
                    let batch = (0..room).map(|n| &*self.queries[(next + n) * 7919 % count]);
                    let sent = lane.send(batch).context("sending queries")?;
                    self.next = (next + sent) % count;
                    lane.in_flight += sent;
                }
            }
            if !sending && self.lanes.iter().all(|lane| lane.in_flight == 0) {
                break;
            }
            if quiet && !wait(&self.lanes, LOST_AFTER)? {
                for lane in &mut self.lanes {
                    turn.lost += lane.in_flight as u64;
                    lane.in_flight = 0;
                }
            }
        }
        turn.took = began.elapsed();
        Ok(turn)
    }
}

/// How long each of the received messages is.
struct Lens {
    lens: [usize; WINDOW],
    count: usize,
}

impl Lens {
    fn as_slice(&self) -> &[usize] {
        &self.lens[..self.count]
    }

    fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn len(&self) -> usize {
        self.count
    }
}

impl Lane {
    fn receive(&self, buffers: &mut [[u8; ANSWER]; WINDOW]) -> io::Result<Lens> {
        let mut places =
            buffers.each_mut().map(|buffer| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: ANSWER });
        let mut messages = places.each_mut().map(|place| header(place));
        // SAFETY: each message points to one place, each place to one buffer of that length; all outlive the call.
        let count = unsafe {
            libc::recvmmsg(
                self.socket.as_raw_fd(),
                messages.as_mut_ptr(),
                WINDOW as u32,
                libc::MSG_DONTWAIT,
                null_mut(),
            )
        };
        let count = or_none(count)?;
        Ok(Lens { lens: messages.map(|message| message.msg_len as usize), count })
    }

    fn send<'q>(&self, queries: impl Iterator<Item = &'q [u8]>) -> io::Result<usize> {
        let mut places = [const { MaybeUninit::<libc::iovec>::uninit() }; WINDOW];
        let mut count = 0;
        for (place, query) in places.iter_mut().zip(queries) {
            place.write(libc::iovec { iov_base: query.as_ptr().cast_mut().cast(), iov_len: query.len() });
            count += 1;
        }
        let mut messages = places.each_mut().map(|place| header(place.as_mut_ptr()));
        // SAFETY: the first `count` messages point to a place that was written, which points to a query that outlives
        // the call; the kernel only reads them.
        let sent = unsafe { libc::sendmmsg(self.socket.as_raw_fd(), messages.as_mut_ptr(), count, libc::MSG_DONTWAIT) };
        or_none(sent)
    }
}

fn header(place: *mut libc::iovec) -> libc::mmsghdr {
    // SAFETY: zero is a value of every field: no name, no control data.
    let mut message: libc::mmsghdr = unsafe { zeroed() };
    message.msg_hdr.msg_iov = place;
    message.msg_hdr.msg_iovlen = 1;
    message
}

/// A count, or nothing when there is nothing to do now. A refusal is the server not yet there.
fn or_none(result: i32) -> io::Result<usize> {
    usize::try_from(result).or_else(|_| {
        let e = io::Error::last_os_error();
        match e.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionRefused => Ok(0),
            _ => Err(e),
        }
    })
}

/// Waits until a lane has an answer. False: none came in time.
fn wait(lanes: &[Lane], time: Duration) -> io::Result<bool> {
    let mut polled: Vec<_> = lanes
        .iter()
        .map(|lane| libc::pollfd { fd: lane.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 })
        .collect();
    // SAFETY: the pointer and the count are those of the vector, which outlives the call.
    let ready = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, time.as_millis() as i32) };
    or_none(ready).map(|ready| ready > 0)
}

fn query(id: u16, name: &str) -> Vec<u8> {
    let mut query = Vec::with_capacity(64);
    query.extend(id.to_be_bytes());
    // Flags: a query, recursion not wanted. One question.
    query.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend(label.as_bytes());
    }
    // The root; type A, class IN.
    query.extend([0, 0, 1, 0, 1]);
    query
}

/// Whether an answer has the code and the count, and repeats the question that its id names.
fn is_right(answer: &[u8], queries: &[Vec<u8>], expect: Expect) -> bool {
    let &[id1, id2, flags, code, _, _, count1, count2, ..] = answer else { return false };
    let Some(query) = queries.get(usize::from(u16::from_be_bytes([id1, id2]))) else { return false };
    flags & 0x80 != 0
        && code & 0xF == expect.code
        && u16::from_be_bytes([count1, count2]) == expect.answers
        && answer.get(12..query.len()) == Some(&query[12..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_must_repeat_its_question() {
        let queries = vec![query(0, "a.mesos"), query(1, "b.mesos")];
        let expect = Expect { code: 0, answers: 1 };
        let mut answer = queries[1].clone();
        answer[2] |= 0x80;
        answer[7] = 1;
        assert!(is_right(&answer, &queries, expect));
        assert!(!is_right(&answer, &queries, Expect { code: 3, ..expect }));
        answer[13] = b'c';
        assert!(!is_right(&answer, &queries, expect));
        assert!(!is_right(&answer[..5], &queries, expect));
    }

    #[test]
    fn every_answer_of_an_honest_server_is_counted_and_none_lost() {
        let server = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let address = server.local_addr().expect("an address");
        let echo = std::thread::spawn(move || {
            let mut message = [0; ANSWER];
            let mut count = 0;
            while let Ok((len, client)) = server.recv_from(&mut message)
                && len > 1
            {
                message[2] |= 0x80;
                server.send_to(&message[..len], client).expect("sending on loopback");
                count += 1;
            }
            count
        });
        let mut load = Load::new(address, (0..100).map(|n| format!("n{n}.mesos"))).expect("a client");
        let turn = load.turn(Duration::from_millis(50), Expect { code: 0, answers: 0 }).expect("a turn");
        UdpSocket::bind("127.0.0.1:0").and_then(|end| end.send_to(&[0], address)).expect("the end");
        assert_eq!((turn.wrong, turn.lost, turn.answers), (0, 0, echo.join().expect("no panic")));
        assert!(turn.answers > 0);
    }
}
