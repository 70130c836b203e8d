//! What is remembered of flows: FULLNAT's translations, and the reals of flows on moving slots.

use super::{Address, FIRST_PORT, LOCALS, Mac, PORTS, REAL_ID_BITS, SECOND, TCP, UDP};

/// A FULLNAT flow in one cache line. Its place in the map *is* its local address and port, so the real's answers find
/// it without a search, and no two flows can have the same port. Clients' packets find it by their hash.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Flow {
    pub client: Address,
    pub client_port: u16,
    /// 0: never used.
    pub protocol: u8,
    /// [`Flow::TOA`] and others, or-ed: what is still to be done, or done with every packet.
    pub work: u8,
    pub service: u32,
    /// The real's id, and above [`REAL_ID_BITS`] the VLAN that the client's packets come by.
    pub real_vlan: u32,
    /// When a packet of either direction was last seen, in [`Flow::TICK`]s of the coarse monotonic clock.
    pub seen: u32,
    /// The way back is the way that the client's packets come: the kernel never hears the client, since XDP takes
    /// every packet before it, and might not know its neighbour entry.
    pub ifindex: u32,
    pub client_mac: Mac,
    pub own_mac: Mac,
    /// How each side ended, in a byte of its own, since two CPUs may write them at once.
    pub client_end: u8,
    pub real_end: u8,
    /// 1 once the real has answered, [`Flow::HEARD`] once it has heard the client.
    pub answered: u8,
    /// How many places elsewhere have a flow whose first choice this place is, or had one and were not given away since.
    /// Changed by [`Tables::spill`](crate::Tables::spill) alone, for CPUs may do it at once.
    pub spilled: u8,
    /// [`Flow::PROXY`] and [`Flow::SPLICED`]: the sequence number of the client's first byte.
    pub start: u32,
    /// What our cookie's sequence number is ahead of the real's; [`Flow::WAITING`]: the cookie's.
    pub ahead: u32,
    /// [`Flow::LOCKED`] is not 0 while a CPU gives the place to a flow; above is [`Flow::from`].
    pub lock: u32,
}

impl Flow {
    /// About a second.
    pub const TICK: u64 = 1 << 30;

    /// The side sent a FIN.
    pub const FIN: u8 = 1;
    /// The side sent a RST.
    pub const RST: u8 = 2;

    /// The client's address goes into a TCP option until the real has it.
    pub const TOA: u8 = 1;
    /// A PROXY header stands before the client's first byte.
    pub const PROXY: u8 = 2;
    /// The real acknowledged the PROXY header: only numbers are shifted any more.
    pub const TOLD: u8 = 4;
    /// The client's handshake was ours (a cookie): the real's is under way.
    pub const WAITING: u8 = 8;
    /// The client's handshake was ours: sequence numbers differ by `ahead`.
    pub const SPLICED: u8 = 16;
    /// The PROXY header was sent at least once.
    pub const SENT: u8 = 32;

    /// The real has said more than that it takes the connection, which it says to addresses that somebody made up, too.
    pub const HEARD: u8 = 2;

    /// A UDP flow that was silent for so long is over.
    pub const UDP_IDLE: u64 = 30 * SECOND;
    /// A TCP handshake that is not over after so long never will be (Linux gives up after about two minutes).
    pub const TCP_OPENING: u64 = 130 * SECOND;
    /// Where no place is free, a handshake gives way after so long.
    pub const TCP_OPENING_PRESSED: u64 = 3 * SECOND;
    /// A TCP connection that was silent for so long lost its peers.
    pub const TCP_IDLE: u64 = 3600 * SECOND;
    /// The real may hold a closed connection in TIME_WAIT for so long.
    pub const TIME_WAIT: u64 = 60 * SECOND;

    /// More flows than so many are not sent elsewhere from one place: [`Flow::spilled`] has to count them.
    pub const MOST_SPILLED: u8 = 128;

    /// Places that are tried one after the other: neighbours in memory, which the processor fetches together.
    pub const GROUP: u32 = 8;

    /// In [`Flow::lock`]: as many CPUs as want the place.
    pub const LOCKED: u32 = 0xff;

    /// The first choice of the flow if it had to come here from elsewhere, else 0.
    #[inline(always)]
    #[must_use]
    pub fn from(&self) -> u32 {
        self.lock >> 8
    }

    /// [`Flow::lock`] of a place that nobody holds.
    #[inline(always)]
    #[must_use]
    pub fn unlocked(from: u32) -> u32 {
        from << 8
    }

    #[inline(always)]
    #[must_use]
    pub fn real(&self) -> u32 {
        self.real_vlan & ((1 << REAL_ID_BITS) - 1)
    }

    #[inline(always)]
    #[must_use]
    pub fn vlan(&self) -> u16 {
        (self.real_vlan >> REAL_ID_BITS) as u16
    }

    #[inline(always)]
    pub fn set_real(&mut self, id: u32, vlan: u16) {
        self.real_vlan = id & ((1 << REAL_ID_BITS) - 1) | u32::from(vlan) << REAL_ID_BITS;
    }

    #[inline(always)]
    #[must_use]
    pub fn tick(now: u64) -> u32 {
        (now / Self::TICK) as u32
    }

    /// How long ago the last packet was, in ns, to a tick.
    #[inline(always)]
    #[must_use]
    pub fn idle(&self, now: u64) -> u64 {
        u64::from(Self::tick(now).wrapping_sub(self.seen)) * Self::TICK
    }

    /// One side began to close: a SYN now is a new connection.
    #[inline(always)]
    #[must_use]
    pub fn closing(&self) -> bool {
        self.client_end | self.real_end != 0
    }

    /// Nothing more will be sent.
    #[inline(always)]
    #[must_use]
    pub fn closed(&self) -> bool {
        (self.client_end | self.real_end) & Self::RST != 0 || (self.client_end != 0 && self.real_end != 0)
    }

    /// Never used, closed, or silent for longer than its protocol allows.
    #[inline(always)]
    #[must_use]
    pub fn over(&self, now: u64) -> bool {
        match self.protocol {
            0 => true,
            UDP => self.idle(now) > Self::UDP_IDLE,
            _ if self.closed() => true,
            _ => self.idle(now) > if self.answered < Self::HEARD { Self::TCP_OPENING } else { Self::TCP_IDLE },
        }
    }

    /// The flow's place: `local` is the index of its local address.
    #[inline(always)]
    #[must_use]
    pub fn index(local: u32, port: u16) -> u32 {
        local * PORTS + port as u32
    }

    /// The first choice of a flow with this hash among `locals` addresses from `first` on.
    #[inline(always)]
    #[must_use]
    pub fn home(hash: u64, first: u32, locals: u32) -> u32 {
        Self::place((hash >> 48) as u32, (hash >> 32) as u32 & 0xffff, first, locals)
    }

    /// The second choice, in another group.
    #[inline(always)]
    #[must_use]
    pub fn second(hash: u64, first: u32, locals: u32) -> u32 {
        Self::place((hash >> 16) as u32 & 0xffff, (hash >> 40) as u32 & 0xffff ^ 0x5a5a, first, locals)
    }

    /// Shares of 16 bits each, instead of divisions.
    #[inline(always)]
    fn place(address: u32, port: u32, first: u32, locals: u32) -> u32 {
        let local = first + (address.wrapping_mul(locals) >> 16);
        local * PORTS + FIRST_PORT + (port.wrapping_mul(PORTS - FIRST_PORT) >> 16)
    }

    /// The `step`th place of a group, from `home` on.
    #[inline(always)]
    #[must_use]
    pub fn neighbour(home: u32, step: u32) -> u32 {
        home & !(Self::GROUP - 1) | (home.wrapping_add(step)) & (Self::GROUP - 1)
    }
}

/// A slot that changes hands points here.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Move {
    /// The real of new flows.
    pub current: u32,
    /// The real of flows from before.
    pub previous: u32,
    /// [`Move::FREE`], [`Move::LEARNING`] or [`Move::KEEPING`].
    pub phase: u32,
    pub pad: u32,
}

impl Move {
    pub const FREE: u32 = 0;
    /// A flow that nobody recorded is one from before, unless it opens. For UDP this phase is short: a datagram does
    /// not say whether it is the first.
    pub const LEARNING: u32 = 1;
    /// As before for TCP; a UDP flow that was not recorded is new.
    pub const KEEPING: u32 = 2;
}

/// One flow on a moving slot: its mark, and its real.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Record {
    /// Of the flow's hash; not 0.
    pub mark: u32,
    pub real: u32,
    /// [`Record::OPENING`], [`Record::OPEN`], [`Record::CLOSING`] or [`Record::SHOWN`].
    pub state: u8,
    /// When it was last seen, in [`Record::AGE`]s.
    pub age: u8,
}

pub const RECORDS_PER_LINE: usize = 8;

/// Eight packed records: one cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct RecordLine(pub [u64; RECORDS_PER_LINE]);

impl Record {
    /// About 17 s: an age wraps after 73 minutes.
    pub const AGE: u64 = 1 << 34;
    /// A SYN that its client has not followed up: any other flow may take its place.
    pub const OPENING: u8 = 0;
    pub const OPEN: u8 = 1;
    pub const CLOSING: u8 = 2;
    /// A flow from before that has shown itself once. Who makes that up gets no more by it than by a SYN.
    pub const SHOWN: u8 = 3;

    #[inline(always)]
    #[must_use]
    pub fn now(now: u64) -> u8 {
        (now / Self::AGE) as u8
    }

    #[inline(always)]
    #[must_use]
    pub fn unpack(word: u64) -> Self {
        Self {
            mark: word as u32,
            real: (word >> 32) as u32 & ((1 << REAL_ID_BITS) - 1),
            state: (word >> 54) as u8 & 3,
            age: (word >> 56) as u8,
        }
    }

    #[inline(always)]
    #[must_use]
    pub fn pack(self) -> u64 {
        u64::from(self.mark)
            | u64::from(self.real & ((1 << REAL_ID_BITS) - 1)) << 32
            | u64::from(self.state & 3) << 54
            | u64::from(self.age) << 56
    }

    /// It was seen once, and gives way to others.
    #[inline(always)]
    #[must_use]
    pub fn once(self) -> bool {
        matches!(self.state, Self::OPENING | Self::SHOWN)
    }

    /// Nobody will ask for it any more: about an hour for an open connection; two minutes for one that was seen once, so
    /// that it is known when its slot's move may end; half a minute for one that closes, and for UDP.
    #[inline(always)]
    #[must_use]
    pub fn over(self, now: u64) -> bool {
        let age = Self::now(now).wrapping_sub(self.age);
        let most = match self.state {
            Self::OPEN => 210,
            Self::OPENING | Self::SHOWN => 8,
            _ => 2,
        };
        self.mark == 0 || age > most
    }
}

const _: () = {
    assert!(size_of::<Flow>() == 64 && align_of::<Flow>() == 64);
    assert!(size_of::<RecordLine>() == 64);
    assert!(size_of::<Move>() == 16);
    assert!(FIRST_PORT.is_multiple_of(Flow::GROUP));
    assert!(LOCALS * 2 * PORTS < 1 << 24 && TCP != UDP);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_over_when_both_sides_ended_or_one_reset_or_silence_was_long() {
        let began = 1000 * SECOND;
        let flow = Flow { seen: Flow::tick(began), answered: Flow::HEARD, protocol: TCP, ..Flow::default() };
        let check = |client_end, real_end, protocol, now, over| {
            let flow = Flow { client_end, real_end, protocol, ..flow };
            assert_eq!(flow.over(now), over, "{client_end} {real_end} {protocol}");
        };
        let now = began + 60 * SECOND;
        check(0, 0, TCP, now, false);
        check(Flow::FIN, 0, TCP, now, false);
        check(Flow::FIN, Flow::FIN, TCP, now, true);
        check(0, Flow::RST, TCP, now, true);
        check(0, 0, TCP, now + 3600 * SECOND, true);
        check(0, 0, UDP, now, true);
        check(0, 0, UDP, began + 28 * SECOND, false);
        check(0, 0, 0, began, true);
        for answered in [0, 1] {
            assert!(!Flow { answered, ..flow }.over(began + 100 * SECOND));
            assert!(Flow { answered, ..flow }.over(began + 133 * SECOND));
        }
    }

    #[test]
    fn a_real_and_a_vlan_share_a_word() {
        let mut flow = Flow::default();
        flow.set_real(131_071, 4094);
        assert_eq!((flow.real(), flow.vlan()), (131_071, 4094));
    }

    #[test]
    fn places_are_ports_that_may_be_given() {
        for step in 0..10_000_u64 {
            let hash = step.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ step << 7;
            for home in [Flow::home(hash, 3, 2), Flow::second(hash, 3, 2)] {
                for step in 0..Flow::GROUP {
                    let place = Flow::neighbour(home, step);
                    assert!((3..5).contains(&(place / PORTS)) && place % PORTS >= FIRST_PORT, "{place}");
                }
            }
        }
    }

    #[test]
    fn a_record_survives_being_packed() {
        let record = Record { mark: 0xdead_beef, real: 131_071, state: Record::CLOSING, age: 255 };
        assert_eq!(Record::unpack(record.pack()), record);
        let now = 500 * Record::AGE;
        let open = Record { state: Record::OPEN, age: Record::now(now), ..record };
        assert!(!open.over(now) && !open.over(now + 200 * Record::AGE) && open.over(now + 220 * Record::AGE));
        assert!(!Record { state: Record::OPENING, ..open }.over(now + 8 * Record::AGE));
        assert!(Record { state: Record::OPENING, ..open }.over(now + 9 * Record::AGE));
        assert!(Record { state: Record::CLOSING, ..open }.over(now + 3 * Record::AGE));
    }
}
