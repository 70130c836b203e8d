//! One count of what still names reals and services: FULLNAT's flows, and the records of flows on moving slots.

use tidegate_ebpf::abi::{Flow, Record};

/// What was found in one walk.
#[derive(Clone, Debug, Default)]
pub struct Census {
    /// When the walk began, ns of the monotonic clock.
    pub at: u64,
    reals: Vec<OfReal>,
    /// By id: whether any flow needs the service's entry.
    services: Vec<bool>,
}

#[derive(Clone, Copy, Debug, Default)]
struct OfReal {
    flows: u32,
    records: u32,
    /// Of the records: those whose client has not gone beyond its SYN, and those whose client has ended its side. Answers
    /// pass elsewhere, so the other side's end is not seen, and they are kept for a while.
    half: u32,
    named: bool,
}

impl Census {
    /// Of maps in which nothing is.
    #[must_use]
    pub fn empty(at: u64) -> Self {
        Self { at, ..Self::default() }
    }

    #[must_use]
    pub fn take(at: u64, flows: impl Iterator<Item = Flow>, records: impl Iterator<Item = Record>) -> Self {
        let mut census = Self::empty(at);
        for flow in flows.filter(|flow| flow.protocol != 0) {
            let over = flow.over(at);
            // A last acknowledgement, or a repeated FIN, still has to find its way.
            if over && flow.idle(at) > Flow::TIME_WAIT {
                continue;
            }
            let real = entry(&mut census.reals, flow.real());
            real.named = true;
            real.flows += u32::from(!over);
            *entry(&mut census.services, flow.service) = true;
        }
        for record in records.filter(|record| !record.over(at)) {
            let real = entry(&mut census.reals, record.real);
            real.named = true;
            real.records += 1;
            real.half += u32::from(matches!(record.state, Record::OPENING | Record::CLOSING));
        }
        census
    }

    /// The flows of a real that live, and that are known: of the direct and tunnelling modes those on moving slots that
    /// their clients have opened and not ended.
    #[must_use]
    pub fn live(&self, real: u32) -> u64 {
        let OfReal { flows, records, half, .. } = self.of(real);
        u64::from(flows) + u64::from(records - half)
    }

    /// The flows that would lose their real with their slots' moves.
    #[must_use]
    pub fn recorded(&self, real: u32) -> u64 {
        self.of(real).records.into()
    }

    #[must_use]
    pub fn names_real(&self, real: u32) -> bool {
        self.of(real).named
    }

    #[must_use]
    pub fn names_service(&self, service: u32) -> bool {
        self.services.get(service as usize).copied().unwrap_or_default()
    }

    fn of(&self, real: u32) -> OfReal {
        self.reals.get(real as usize).copied().unwrap_or_default()
    }
}

/// The vector grows to what is there; what a flow may name is bounded by the bits that it has for it.
fn entry<T: Clone + Default>(of: &mut Vec<T>, id: u32) -> &mut T {
    const MOST: usize = 1 << 24;
    let id = (id as usize).min(MOST);
    if of.len() <= id {
        of.resize(id + 1, T::default());
    }
    &mut of[id]
}

#[cfg(test)]
mod tests {
    use tidegate_ebpf::abi::{SECOND, TCP};

    use super::*;

    #[test]
    fn flows_that_live_are_counted_and_those_that_just_ended_keep_their_names() {
        let now = 1000 * SECOND;
        let flow = |real, seen: u64, end| {
            let mut flow = Flow {
                protocol: TCP,
                service: 3,
                answered: Flow::HEARD,
                seen: Flow::tick(seen),
                client_end: end,
                real_end: end,
                ..Flow::default()
            };
            flow.set_real(real, 0);
            flow
        };
        let flows = [
            Flow::default(),
            flow(1, now, 0),
            flow(1, now - 60 * SECOND, 0),
            flow(2, now, Flow::FIN),
            flow(4, now - 100 * SECOND, Flow::FIN),
        ];
        let record = Record { mark: 1, real: 5, state: Record::OPEN, age: Record::now(now) };
        let old = Record { real: 6, state: Record::CLOSING, age: Record::now(now).wrapping_sub(9), ..record };
        let ended = Record { real: 7, state: Record::CLOSING, ..record };
        let syn = Record { real: 8, state: Record::OPENING, ..record };
        let shown = Record { real: 9, state: Record::SHOWN, ..record };
        let records = [Record::default(), record, old, ended, syn, shown];
        let census = Census::take(now, flows.into_iter(), records.into_iter());
        let of = |real| (census.live(real), census.recorded(real), census.names_real(real));
        assert_eq!(
            [0, 1, 2, 4, 5, 6, 7, 8, 9].map(of),
            [
                (0, 0, false),
                (2, 0, true),
                (0, 0, true),
                (0, 0, false),
                (1, 1, true),
                (0, 0, false),
                (0, 1, true),
                (0, 1, true),
                (1, 1, true)
            ]
        );
        assert!(census.names_service(3) && !census.names_service(0));
    }
}
