use proptest::{prelude::*, sample::Index};

use super::*;
use crate::{
    health::standing::{EJECTED, SAMPLE},
    input::{Forward, Probe, ProbeKind, Protocol},
};

const SECOND: Duration = Duration::from_secs(1);

fn frontend() -> Frontend {
    Frontend { vip: "10.77.100.1".parse().unwrap(), port: 80, protocol: Protocol::Tcp }
}

fn name(index: usize) -> Name {
    (IpAddr::from([10, 77, 1, index as u8]), 8080)
}

fn probe(rise: u8, fall: u8) -> Probe {
    Probe { kind: ProbeKind::Tcp, interval_ms: 1000, timeout_ms: 500, rise, fall }
}

fn service(states: &[RealState], probe: Option<Probe>, forward: Forward) -> Arc<Service> {
    let real = |(index, state): (usize, &RealState)| {
        let (address, port) = name(index);
        Real { address, port, weight: 1, state: *state }
    };
    let reals = states.iter().enumerate().map(real).collect();
    Arc::new(Service { reals, probe, forward, ..Service::default() })
}

fn judge(service: &Arc<Service>) -> Judge {
    let mut judge = Judge::default();
    assert!(judge.input(&OrdMap::unit(frontend(), Arc::clone(service))));
    judge
}

/// The active reals, and those that drain, as letters.
fn states(judge: &Judge) -> String {
    let letter = |real: &Real| if real.state == RealState::Active { 'a' } else { 'd' };
    judge.effective()[&frontend()].reals.iter().map(letter).collect()
}

fn why(judge: &Judge, index: usize) -> String {
    judge.healths()[&frontend()][index].why.as_deref().unwrap_or_default().to_owned()
}

fn bad(judge: &mut Judge, index: usize, times: usize) {
    for _ in 0..times {
        judge.probed(frontend(), name(index), Err("connection refused"), SECOND);
    }
}

fn good(judge: &mut Judge, index: usize, times: usize) {
    for _ in 0..times {
        judge.probed(frontend(), name(index), Ok(()), SECOND);
    }
}

/// So many seconds in which a real gets SYNs and says so much.
fn traffic(judge: &mut Judge, now: &mut Duration, seconds: usize, index: usize, passive: Passive) {
    for _ in 0..seconds {
        *now += SECOND;
        judge.passive([(frontend(), name(index), passive)], *now);
    }
}

const SILENT: Passive = Passive { opens: 21, answers: 0, resets: 0 };
const FINE: Passive = Passive { opens: 21, answers: 21, resets: 0 };

#[test]
fn a_real_that_fails_its_probes_drains_and_comes_back_with_the_reason_in_words() {
    let mut judge = judge(&service(&[RealState::Active; 3], Some(probe(2, 3)), Forward::FullNat));
    bad(&mut judge, 0, 2);
    assert_eq!(states(&judge), "aaa");
    bad(&mut judge, 0, 1);
    assert_eq!(states(&judge), "daa");
    assert_eq!(why(&judge, 0), "3 probes in a row failed: connection refused");
    good(&mut judge, 0, 1);
    assert_eq!(states(&judge), "daa");
    good(&mut judge, 0, 1);
    assert_eq!(states(&judge), "aaa");
    let said = judge.said();
    assert_eq!(
        said,
        [
            "tcp 10.77.100.1:80: 10.77.1.0:8080 is down: 3 probes in a row failed: connection refused",
            "tcp 10.77.100.1:80: 10.77.1.0:8080 is back"
        ]
    );
}

#[test]
fn when_nearly_all_look_down_all_stay_in_and_the_report_says_so() {
    let mut judge = judge(&service(&[RealState::Active; 10], Some(probe(1, 1)), Forward::FullNat));
    (0..8).for_each(|index| bad(&mut judge, index, 1));
    assert_eq!(states(&judge), "ddddddddaa");
    assert!(judge.open().is_empty());
    bad(&mut judge, 8, 1);
    assert_eq!(states(&judge), "aaaaaaaaaa");
    assert_eq!(
        &*judge.open()[&frontend()],
        "fail-open: 9 of 10 reals look down, which is more likely a fault between here and there"
    );
    good(&mut judge, 0, 1);
    assert_eq!(states(&judge), "addddddd".to_owned() + "da");
    assert!(judge.open().is_empty());
}

#[test]
fn silence_ejects_within_two_seconds_and_for_longer_each_time() {
    let mut judge = judge(&service(&[RealState::Active; 3], None, Forward::FullNat));
    let mut now = Duration::ZERO;
    traffic(&mut judge, &mut now, 1, 1, SILENT);
    // The newest SYNs may yet be answered.
    assert_eq!(states(&judge), "aaa");
    traffic(&mut judge, &mut now, 1, 1, Passive { answers: 1, ..SILENT });
    assert_eq!(states(&judge), "ada");
    assert_eq!(why(&judge, 1), "20 of 21 SYNs got no answer in 2 s; out for 5 s");
    now += EJECTED - Duration::from_millis(1);
    judge.tick(now);
    assert_eq!(states(&judge), "ada");
    now += Duration::from_millis(1);
    judge.passive([], now);
    assert_eq!(states(&judge), "aaa");
    traffic(&mut judge, &mut now, 2, 1, SILENT);
    assert_eq!(why(&judge, 1), "21 of 21 SYNs got no answer in 2 s; out for 10 s");
    // After a long time in which it was fine, all is forgiven.
    now += 2 * EJECTED;
    judge.tick(now);
    traffic(&mut judge, &mut now, 301, 1, FINE);
    traffic(&mut judge, &mut now, 3, 1, SILENT);
    assert!(why(&judge, 1).ends_with("out for 5 s"), "{}", why(&judge, 1));
}

#[test]
fn a_good_probe_ends_the_first_ejection_and_not_the_one_soon_after() {
    let mut judge = judge(&service(&[RealState::Active; 3], Some(probe(2, 3)), Forward::FullNat));
    let mut now = Duration::ZERO;
    good(&mut judge, 1, 5);
    traffic(&mut judge, &mut now, 2, 1, SILENT);
    assert_eq!(states(&judge), "ada");
    good(&mut judge, 1, 1);
    assert_eq!(states(&judge), "ada");
    good(&mut judge, 1, 1);
    assert_eq!(states(&judge), "aaa");
    traffic(&mut judge, &mut now, 2, 1, SILENT);
    good(&mut judge, 1, 5);
    assert_eq!(states(&judge), "ada");
}

#[test]
fn traffic_is_judged_by_what_can_be_seen_of_it() {
    let (nat, direct) = (Forward::FullNat, Forward::Direct);
    let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
    let passive = |opens, answers, resets| Passive { opens, answers, resets };
    let cases = [
        (nat, tcp, passive(21, 21, 0), ""),
        (nat, tcp, passive(21, 0, 0), "21 of 21 SYNs got no answer in 2 s"),
        (nat, tcp, passive(21, 5, 0), ""),
        // Closing with a RST is some servers' manner; refusing is another thing.
        (nat, tcp, passive(21, 21, 15), ""),
        (nat, tcp, passive(21, 21, 21), "42 of 42 connections were refused in 2 s"),
        (nat, tcp, passive(SAMPLE / 4, 0, 0), ""),
        // A log collector never answers.
        (nat, udp, passive(21, 0, 0), ""),
        (direct, tcp, passive(21, 60, 0), ""),
        (direct, tcp, passive(21, 12, 0), ""),
        (direct, tcp, passive(21, 4, 0), "after 21 SYNs only 8 other packets came in 2 s"),
        (direct, udp, passive(21, 0, 0), ""),
    ];
    for (forward, protocol, passive, expected) in cases {
        let frontend = Frontend { protocol, ..frontend() };
        let mut judge = Judge::default();
        judge.input(&OrdMap::unit(frontend, service(&[RealState::Active; 3], None, forward)));
        for second in 1..3 {
            judge.passive([(frontend, name(0), passive)], second * SECOND);
        }
        let why = judge.healths().get(&frontend).and_then(|healths| healths[0].why.as_deref()).unwrap_or_default();
        assert_eq!(why.is_empty(), expected.is_empty(), "{forward:?} {protocol:?} {passive:?}: {why}");
        assert!(why.starts_with(expected), "{why}");
    }
}

#[test]
fn udp_that_answered_and_stopped_is_ejected() {
    let frontend = Frontend { protocol: Protocol::Udp, ..frontend() };
    let mut judge = Judge::default();
    judge.input(&OrdMap::unit(frontend, service(&[RealState::Active; 2], None, Forward::FullNat)));
    for (second, passive) in [FINE, SILENT, SILENT, SILENT].into_iter().enumerate() {
        judge.passive([(frontend, name(0), passive)], second as u32 * SECOND);
    }
    assert_eq!(judge.healths()[&frontend][0].verdict, Verdict::Ejected);
}

#[test]
fn traffic_alone_takes_at_most_half_of_the_reals_and_never_the_only_one() {
    for (reals, silent, expected) in [(1, 1, "a"), (2, 1, "da"), (2, 2, "aa"), (5, 2, "ddaaa"), (5, 3, "aaaaa")] {
        let mut judge = judge(&service(&vec![RealState::Active; reals], None, Forward::FullNat));
        for second in 1..3 {
            judge.passive((0..silent).map(|index| (frontend(), name(index), SILENT)), second * SECOND);
        }
        assert_eq!(states(&judge), expected);
        assert_eq!(judge.open().is_empty(), expected.contains('d'));
    }
}

#[test]
fn what_is_known_of_a_real_stays_with_it_when_the_input_changes() {
    use RealState::{Active, Draining};
    let mut judge = judge(&service(&[Active; 4], Some(probe(1, 1)), Forward::FullNat));
    bad(&mut judge, 2, 1);
    assert_eq!(states(&judge), "aada");
    // 1 goes, and 3 drains.
    let mut next = Service::clone(&service(&[Active, Active, Active, Draining], Some(probe(1, 1)), Forward::FullNat));
    next.reals.remove(1);
    judge.input(&OrdMap::unit(frontend(), Arc::new(next)));
    assert_eq!(states(&judge), "add");
    assert_eq!(judge.healths()[&frontend()][1].verdict, Verdict::Down);
    // Without a probe nobody says that it is down.
    judge.input(&OrdMap::unit(frontend(), service(&[Active; 4], None, Forward::FullNat)));
    assert_eq!(states(&judge), "aaaa");
    assert!(judge.input(&OrdMap::new()));
    assert!(judge.effective().is_empty() && judge.healths().is_empty());
    // A probe that comes late is of no one.
    assert!(!judge.probed(frontend(), name(0), Err("late"), SECOND));
}

#[test]
fn a_service_without_a_probe_and_bad_signs_is_shared_with_the_input() {
    let asked = service(&[RealState::Active; 3], None, Forward::FullNat);
    let mut judge = judge(&asked);
    let mut now = Duration::ZERO;
    traffic(&mut judge, &mut now, 20, 1, FINE);
    assert!(!judge.probed(frontend(), name(1), Err("nobody asked"), now));
    assert!(Arc::ptr_eq(&judge.effective()[&frontend()], &asked));
    // And what was spoken against is shared again once nothing is.
    traffic(&mut judge, &mut now, 2, 1, SILENT);
    assert!(!Arc::ptr_eq(&judge.effective()[&frontend()], &asked));
    assert!(judge.tick(now + EJECTED));
    assert!(Arc::ptr_eq(&judge.effective()[&frontend()], &asked));
}

#[test]
fn a_restart_brings_no_dead_real_back_before_its_probes_are_good() {
    use RealState::{Active, Draining};
    let applied = OrdMap::unit(frontend(), service(&[Draining, Active, Active, Draining], None, Forward::FullNat));
    for (kind, expected) in [(Some(probe(2, 3)), "daad"), (None, "aaad")] {
        let mut judge = Judge::default();
        judge.adopt(&applied);
        judge.input(&OrdMap::unit(frontend(), service(&[Active, Active, Active, Draining], kind, Forward::FullNat)));
        assert_eq!(states(&judge), expected);
    }
    let mut judge = Judge::default();
    judge.adopt(&applied);
    let active = OrdMap::unit(frontend(), service(&[Active; 4], Some(probe(2, 3)), Forward::FullNat));
    judge.input(&active);
    assert_eq!(states(&judge), "daad");
    good(&mut judge, 0, 2);
    bad(&mut judge, 3, 3);
    assert_eq!(states(&judge), "aaad");
    assert_eq!(why(&judge, 3), "3 probes in a row failed: connection refused");
    // Only the first Input is compared with what was.
    judge.input(&OrdMap::new());
    judge.input(&active);
    assert_eq!(states(&judge), "aaaa");
}

#[derive(Clone, Debug)]
enum Event {
    Probe(bool),
    Traffic(Passive),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        any::<bool>().prop_map(Event::Probe),
        (0..40_u64, 0..40_u64, 0..40_u64).prop_map(|(opens, answers, resets)| Event::Traffic(Passive {
            opens,
            answers,
            resets
        })),
        Just(Event::Traffic(SILENT)),
    ]
}

fn state() -> impl Strategy<Value = RealState> {
    prop_oneof![4 => Just(RealState::Active), 1 => Just(RealState::Draining)]
}

fn forward() -> impl Strategy<Value = Forward> {
    prop_oneof![Just(Forward::FullNat), Just(Forward::Direct)]
}

fn happen(judge: &mut Judge, index: usize, event: &Event, now: Duration) -> bool {
    match event {
        Event::Probe(true) => judge.probed(frontend(), name(index), Ok(()), now),
        Event::Probe(false) => judge.probed(frontend(), name(index), Err("no answer"), now),
        Event::Traffic(passive) => judge.passive([(frontend(), name(index), *passive)], now),
    }
}

proptest! {
    #[test]
    fn a_verdict_turns_only_after_so_many_alike_in_a_row(
        results in prop::collection::vec(any::<bool>(), 1..60), rise in 1..5_u8, fall in 1..5_u8,
    ) {
        let mut judge = judge(&service(&[RealState::Active; 5], Some(probe(rise, fall)), Forward::FullNat));
        let mut down = false;
        for (i, good) in results.iter().enumerate() {
            happen(&mut judge, 0, &Event::Probe(*good), SECOND);
            let last = |n: u8, what: bool| {
                i + 1 >= usize::from(n) && results[i + 1 - usize::from(n)..=i].iter().all(|good| *good == what)
            };
            down = if down { !last(rise, true) } else { last(fall, false) };
            prop_assert_eq!(states(&judge), if down { "daaaa" } else { "aaaaa" });
        }
    }

    #[test]
    fn no_service_is_emptied_and_nobody_who_drains_is_promoted(
        reals in prop::collection::vec(state(), 0..12),
        events in prop::collection::vec((any::<Index>(), event(), 0..3_u32), 0..80),
        forward in forward(),
    ) {
        let asked = service(&reals, Some(probe(1, 2)), forward);
        let mut judge = judge(&asked);
        let mut now = SECOND;
        for (index, event, wait) in events {
            now += wait * SECOND;
            if !reals.is_empty() {
                let before = Arc::clone(&judge.effective()[&frontend()]);
                let changed = happen(&mut judge, index.index(reals.len()), &event, now);
                prop_assert_eq!(changed, before != judge.effective()[&frontend()]);
            }
            let effective = &judge.effective()[&frontend()];
            let active = |service: &Service| service.reals.iter().filter(|real| real.state == RealState::Active).count();
            let (asked_active, left) = (active(&asked), active(effective));
            prop_assert!(left * LEFT_ONE_IN * EJECTED_ONE_IN > asked_active || asked_active == 0);
            for (asked, effective) in asked.reals.iter().zip(&effective.reals) {
                prop_assert!(asked.state == RealState::Active || effective.state == RealState::Draining);
                prop_assert_eq!(Real { state: asked.state, ..*effective }, *asked);
            }
        }
    }

    #[test]
    fn whose_news_come_first_makes_no_difference(
        (news, shuffled) in prop::collection::vec(event(), 1..10).prop_flat_map(|events| {
            let news: Vec<_> = events.into_iter().enumerate().collect();
            (Just(news.clone()), Just(news).prop_shuffle())
        }),
        rounds in 1..4_u32,
    ) {
        let asked = service(&vec![RealState::Active; news.len()], Some(probe(1, 1)), Forward::FullNat);
        let [one, other] = [news, shuffled].map(|news| {
            let mut judge = judge(&asked);
            for round in 1..=rounds {
                for (index, event) in &news {
                    happen(&mut judge, *index, event, round * SECOND);
                }
            }
            judge
        });
        prop_assert_eq!(one.effective(), other.effective());
        prop_assert_eq!(one.open(), other.open());
    }
}
