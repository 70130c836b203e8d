//! Asks the kernel, and hears what it tells of by itself.
//!
//! A question is answered before the call that sends it returns, so nothing here waits for an answer, and a hundred
//! questions cost little more than one.

use std::{
    future::poll_fn,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::Context;
use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::{
    MulticastGroup, RouteMessageBuilder,
    packet_core::{
        DecodeError, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkBuffer,
        NetlinkHeader, NetlinkMessage, NetlinkPayload,
    },
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        link::LinkMessage,
        neighbour::{
            NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage, NeighbourState,
        },
        route::{RouteFlags, RouteMessage},
    },
    sys::{AsyncSocket, Socket, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE},
};
use tracing::debug;

use super::{
    message::{self, Event},
    way::{Links, Neighbours, NextHop, Route},
};

/// So many answers fit into a socket's queue.
const BATCH: usize = 64;
/// A message of the kernel's is at most half as long.
const BUFFER: usize = 64 * 1024;
/// A burst of some thousand events; the system's default holds two hundred.
const EVENTS: usize = 4 * 1024 * 1024;
/// A table that changes while it is listed is listed again, so often at most.
const LISTINGS: usize = 3;

type Message = NetlinkMessage<RouteNetlinkMessage>;

/// A socket for questions, of the network namespace that it was opened in.
#[derive(Debug)]
pub(crate) struct Kernel {
    socket: Socket,
    sequence: u32,
    buffer: Box<[u8]>,
}

impl Kernel {
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_non_blocking(true)?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; BUFFER].into() })
    }

    /// The routes to addresses, one for each; an address without one has one without paths.
    pub(crate) fn routes(&mut self, addresses: &[IpAddr]) -> io::Result<Vec<Route>> {
        // The route as it is written, with all its paths, rather than the one path that the kernel would choose.
        let mut routes = self.ask_routes(addresses, RouteFlags::FibMatch)?;
        let objects: Vec<usize> =
            routes.iter().enumerate().filter(|(_, route)| route.is_none()).map(|(at, _)| at).collect();
        if !objects.is_empty() {
            let again: Vec<IpAddr> = objects.iter().map(|at| addresses[*at]).collect();
            for (at, route) in objects.into_iter().zip(self.ask_routes(&again, RouteFlags::empty())?) {
                routes[at] = route;
            }
        }
        Ok(routes.into_iter().map(Option::unwrap_or_default).collect())
    }

    fn ask_routes(&mut self, addresses: &[IpAddr], flags: RouteFlags) -> io::Result<Vec<Option<Route>>> {
        let mut routes = vec![Some(Route::default()); addresses.len()];
        for (at, addresses) in addresses.chunks(BATCH).enumerate() {
            let questions = addresses.iter().map(|address| {
                let mut question: RouteMessage = match address {
                    IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(*v4, 32).build(),
                    IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(*v6, 128).build(),
                };
                question.header.flags = flags;
                RouteNetlinkMessage::GetRoute(question)
            });
            self.ask(questions, NLM_F_REQUEST, |nth, answer| {
                // An error says that there is no route.
                if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(answer)) = answer {
                    routes[at * BATCH + nth] = message::route(addresses[nth], &answer);
                }
            })?;
        }
        Ok(routes)
    }

    /// Has the kernel resolve next hops now and, when `keep` is set, keep them resolved by itself from now on (Linux
    /// 5.16 and later), so that packets flow also while no process of ours runs. Returns what it refused.
    pub(crate) fn resolve(&mut self, hops: &[NextHop], keep: bool) -> io::Result<Vec<(NextHop, io::Error)>> {
        let mut refused = Vec::new();
        for hops in hops.chunks(BATCH) {
            let requests = hops.iter().map(|hop| {
                let mut request = NeighbourMessage::default();
                request.header.ifindex = hop.index;
                request.header.state = NeighbourState::None;
                request.header.flags = NeighbourFlags::Use;
                let address = match hop.address {
                    IpAddr::V4(v4) => {
                        request.header.family = AddressFamily::Inet;
                        NeighbourAddress::Inet(v4)
                    }
                    IpAddr::V6(v6) => {
                        request.header.family = AddressFamily::Inet6;
                        NeighbourAddress::Inet6(v6)
                    }
                };
                request.attributes.push(NeighbourAttribute::Destination(address));
                if keep {
                    request.attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
                }
                RouteNetlinkMessage::NewNeighbour(request)
            });
            self.ask(requests, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, |nth, answer| {
                if let NetlinkPayload::Error(error) = answer
                    && let Some(code) = error.code
                {
                    refused.push((hops[nth], io::Error::from_raw_os_error(-code.get())));
                }
            })?;
        }
        Ok(refused)
    }

    pub(crate) fn links(&mut self) -> io::Result<Links> {
        let mut links = Links::new();
        self.list(&RouteNetlinkMessage::GetLink(LinkMessage::default()), |message| {
            if let RouteNetlinkMessage::NewLink(link) = message {
                links.extend([message::egress(&link)]);
            }
        })?;
        Ok(links)
    }

    pub(crate) fn neighbours(&mut self) -> io::Result<Neighbours> {
        let mut neighbours = Neighbours::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut question = NeighbourMessage::default();
            question.header.family = family;
            self.list(&RouteNetlinkMessage::GetNeighbour(question), |message| {
                if let RouteNetlinkMessage::NewNeighbour(message) = message {
                    neighbours.extend(message::neighbour(&message));
                }
            })?;
        }
        Ok(neighbours)
    }

    /// Sends questions in one go, at most `BATCH`, and takes the answer to each.
    fn ask(
        &mut self,
        questions: impl ExactSizeIterator<Item = RouteNetlinkMessage>,
        flags: u16,
        mut take: impl FnMut(usize, NetlinkPayload<RouteNetlinkMessage>),
    ) -> io::Result<()> {
        let count = questions.len();
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::with_capacity(count * 64);
        for question in questions {
            self.write(question, flags, &mut bytes);
        }
        self.socket.send(&bytes, 0)?;
        let mut missing = count;
        while missing > 0 {
            let length = self.receive()?;
            for message in messages(&self.buffer[..length]) {
                let Ok(message) = message else { continue };
                let nth = message.header.sequence_number.wrapping_sub(first) as usize;
                // What is left of a question that was given up is older.
                if nth < count {
                    missing -= 1;
                    take(nth, message.payload);
                }
            }
        }
        Ok(())
    }

    fn list(&mut self, question: &RouteNetlinkMessage, mut take: impl FnMut(RouteNetlinkMessage)) -> io::Result<()> {
        for _ in 0..LISTINGS {
            if self.list_once(question, &mut take)? {
                break;
            }
        }
        Ok(())
    }

    /// Whether the table stood still meanwhile.
    fn list_once(
        &mut self,
        question: &RouteNetlinkMessage,
        take: &mut impl FnMut(RouteNetlinkMessage),
    ) -> io::Result<bool> {
        let mut bytes = Vec::new();
        self.write(question.clone(), NLM_F_REQUEST | NLM_F_DUMP, &mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut still = true;
        loop {
            let length = self.receive()?;
            for message in messages(&self.buffer[..length]) {
                // One that cannot be read must not hide the others.
                let Ok(message) = message.inspect_err(|error| debug!("a listed entry is skipped: {error}")) else {
                    continue;
                };
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                still &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(message) => take(message),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::Done(_) => return Ok(still),
                    _ => {}
                }
            }
        }
    }

    fn write(&mut self, message: RouteNetlinkMessage, flags: u16, bytes: &mut Vec<u8>) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = Message::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let at = bytes.len();
        // Messages start at multiples of four.
        bytes.resize(at + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut bytes[at..]);
    }

    fn receive(&mut self) -> io::Result<usize> {
        self.socket.recv(&mut &mut self.buffer[..], 0)
    }
}

/// A socket that hears what changes.
pub(crate) struct Watch {
    socket: TokioSocket,
    buffer: Box<[u8]>,
}

/// What was heard.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Heard {
    Events,
    /// The kernel had more to tell than the queue holds: what is known may be wrong.
    Lost,
}

impl Watch {
    pub(crate) fn open() -> anyhow::Result<Self> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
            MulticastGroup::Nexthop,
        ];
        let mut socket = TokioSocket::new(NETLINK_ROUTE).context("opening a netlink socket")?;
        socket.socket_mut().bind(&SocketAddr::new(0, 0)).context("binding a netlink socket")?;
        for group in groups {
            let joined = socket.socket_ref().add_membership(group as u32);
            joined.with_context(|| format!("listening to the kernel's {group:?} events"))?;
        }
        if let Err(error) = setsockopt(socket.socket_ref(), sockopt::RcvBufForce, &EVENTS) {
            debug!("events are lost sooner: their queue stays small: {error}");
        }
        Ok(Self { socket, buffer: vec![0; BUFFER].into() })
    }

    /// Waits until there is something, and takes at most about `most` events.
    pub(crate) async fn hear(&mut self, most: usize, events: &mut Vec<Event>) -> io::Result<Heard> {
        let Self { socket, buffer } = self;
        let first = poll_fn(|context| {
            let mut rest = &mut buffer[..];
            socket.poll_recv(context, &mut rest).map_ok(|()| BUFFER - rest.len())
        });
        let mut received = first.await;
        loop {
            match received {
                Ok(length) => take(&buffer[..length], events),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Heard::Events),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(Heard::Lost),
                Err(error) => return Err(error),
            }
            if events.len() >= most {
                return Ok(Heard::Events);
            }
            received = socket.socket_ref().recv(&mut &mut buffer[..], 0);
        }
    }

    /// Throws away what is waiting.
    pub(crate) fn skip(&mut self) {
        // As often as the queue can be long: whoever fills it at this very moment must not hold us up.
        for _ in 0..EVENTS / 256 {
            match self.socket.socket_ref().recv(&mut &mut self.buffer[..], 0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                _ => {}
            }
        }
    }
}

fn take(bytes: &[u8], events: &mut Vec<Event>) {
    for message in messages(bytes) {
        match message.map(|message| message.payload) {
            Ok(NetlinkPayload::InnerMessage(message)) => events.extend(message::event(message)),
            Ok(_) => {}
            // A next hop object, or something new.
            Err(_) => events.push(Event::AllRoutes),
        }
    }
}

/// The messages of a datagram.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Result<Message, DecodeError>> {
    std::iter::from_fn(move || {
        let length = NetlinkBuffer::new_checked(bytes).ok()?.length() as usize;
        let message = Message::deserialize(&bytes[..length]);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}
