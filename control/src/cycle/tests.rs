//! Each rule of the cycle by itself; `simulation` has them all at once.

mod simulation;
mod support;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tidegate_l4::RealState;

use self::support::{World, app, attached, elb, health, instance, snapshot, status};
use super::*;
use crate::model::app::{Health, StopSign, TaskState};

const WEB: &str = "/shop/web";

/// An ELB on an app with instances 1 and 2, healthy.
fn serving() -> World {
    let mut world = World::new();
    world.tell(Event::Desired(elb("web", "10.77.100.1", WEB)));
    world.tell(attached());
    world.tell(snapshot(vec![app(WEB, [instance(1), instance(2)])], world.now));
    assert_eq!(world.active(), [1, 2]);
    world
}

#[test]
fn nothing_is_published_before_both_sides_are_known() {
    let published = |effects: &[Effect]| effects.contains(&Effect::Publish);
    let mut world = World::new();
    assert!(!published(&world.tell(Event::Desired(elb("web", "10.77.100.1", WEB)))));
    assert!(!published(&world.tell(Event::Remembered(Vec::new()))));
    assert!(!published(&world.tell(Event::Tick)));
    assert!(published(&world.tell(snapshot(vec![app(WEB, [instance(1)])], world.now))));

    let mut world = World::new();
    assert!(!published(&world.tell(Event::Remembered(vec![app(WEB, [instance(1)])]))));
    assert!(published(&world.tell(Event::Desired(elb("web", "10.77.100.1", WEB)))), "memory is enough");
    assert_eq!(world.active(), [1]);
}

#[test]
fn generations_start_above_an_earlier_run_and_count_only_what_changed() {
    let mut world = serving();
    let before = world.state.compiled.clone();
    assert!(before.l4.generation > u64::try_from(support::start().as_millisecond()).unwrap());
    world.tell(health(WEB, 1, false));
    let after = world.state.compiled.clone();
    assert_eq!(after.l4.generation, before.l4.generation + 1);
    assert_eq!(after.dns.generation, before.dns.generation + 1);
    assert_eq!(after.l7.generation, before.l7.generation, "no layer-7 ELB uses the app");
    world.tell(health(WEB, 1, false));
    assert_eq!(world.state.compiled, after, "the same word again changes nothing");
    let generations = world.state.generations["web"];
    assert_eq!(generations.l4, after.l4.generation);
    assert!(generations.dns < after.dns.generation, "the ELB's own name did not change");
}

#[test]
fn events_act_at_once() {
    // event, active, draining
    let table: [(&str, Event, &[u32], &[u32]); 8] = [
        ("killing", status(WEB, 1, "TASK_KILLING"), &[2], &[1]),
        ("killed", status(WEB, 1, "TASK_KILLED"), &[2], &[]),
        ("failed", status(WEB, 1, "TASK_FAILED"), &[2], &[]),
        ("unhealthy", health(WEB, 1, false), &[2], &[1]),
        ("unreachable", status(WEB, 1, "TASK_UNREACHABLE"), &[1, 2], &[]),
        ("goal", support::changed(WEB, 1, "Running", support::start()), &[2], &[1]),
        ("gone", support::stream(StreamEvent::Gone { app: WEB.into(), instance: support::id(1) }), &[2], &[]),
        (
            "unhealthy kill",
            support::stream(StreamEvent::UnhealthyKill { app: WEB.into(), instance: support::id(1) }),
            &[2],
            &[1],
        ),
    ];
    for (name, event, active, draining) in table {
        let mut world = serving();
        world.pass(60);
        world.tell(event);
        assert_eq!((&world.active()[..], &world.reals(RealState::Draining)[..]), (active, draining), "{name}");
    }
}

#[test]
fn the_news_of_a_start_is_no_sign_of_stopping() {
    let mut world = serving();
    let at = world.pass(60);
    world.tell(status(WEB, 3, "TASK_RUNNING"));
    world.tell(support::changed(WEB, 3, "Running", at));
    world.tell(support::changed(WEB, 3, "Running", at));
    world.tell(health(WEB, 3, true));
    assert_eq!(world.active(), [1, 2, 3], "its own event, twice");
    world.pass(30);
    world.tell(support::changed(WEB, 3, "Running", world.now));
    assert_eq!(world.active(), [1, 2], "a second event with a later stamp is the goal");
    assert_eq!(world.instance(WEB, 3).stopping, Some(StopSign::GoalChanged));
}

#[test]
fn an_instance_that_starts_serves_after_its_first_healthy_check_without_a_refetch() {
    let mut world = serving();
    let effects = world.tell(status(WEB, 3, "TASK_RUNNING"));
    assert!(effects.contains(&Effect::FetchApp(WEB.into())), "the rest is asked for all the same");
    assert_eq!(world.active(), [1, 2]);
    world.tell(health(WEB, 3, true));
    assert_eq!(world.active(), [1, 2, 3]);
}

#[test]
fn without_health_checks_one_connect_admits() {
    let mut world = World::new();
    world.tell(Event::Desired(elb("web", "10.77.100.1", WEB)));
    let unchecked = |instances| support::unchecked(app(WEB, instances));
    world.tell(attached());
    world.tell(snapshot(vec![unchecked(vec![support::bare(1)])], world.now));
    assert_eq!(world.active(), [1], "what runs at the first look was serving before");
    world.pass(10);
    let effects = world.tell(snapshot(vec![unchecked(vec![support::bare(1), support::bare(2)])], world.now));
    let address = "10.1.0.2:8080".parse().unwrap();
    let probe = Effect::Probe { app: WEB.into(), instance: support::id(2), address };
    assert!(effects.contains(&probe), "{effects:?}");
    assert_eq!(world.active(), [1]);
    let probed = |open| Event::Probed { app: WEB.into(), instance: support::id(2), open };
    assert!(!world.tell(probed(false)).contains(&probe));
    world.pass(1);
    assert!(world.tell(Event::Tick).contains(&probe), "asked again");
    world.tell(probed(true));
    assert_eq!(world.active(), [1, 2]);
}

#[test]
fn an_older_answer_takes_nothing_back() {
    let mut world = serving();
    let asked = world.pass(10);
    world.pass(1);
    world.tell(status(WEB, 1, "TASK_KILLED"));
    world.tell(status(WEB, 3, "TASK_RUNNING"));
    world.tell(health(WEB, 3, true));
    world.tell(snapshot(vec![app(WEB, [instance(1), instance(2)])], asked));
    assert_eq!(world.active(), [2, 3], "1 is dead and 3 runs, whatever was true when the list was asked for");
    world.tell(status(WEB, 1, "TASK_RUNNING"));
    assert_eq!(world.active(), [2, 3], "a late event revives nobody");
    let asked = world.pass(1);
    world.tell(snapshot(vec![app(WEB, [instance(1), instance(2)])], asked));
    assert_eq!(world.active(), [1, 2], "a newer list does");
}

#[test]
fn once_healthy_stays_healthy_until_proven_otherwise() {
    let mut world = serving();
    world.pass(10);
    let unknown = |n| support::with_health(instance(n), Health::Unknown);
    world.tell(snapshot(vec![app(WEB, [unknown(1), unknown(2)])], world.now));
    assert_eq!(world.active(), [1, 2], "a new leader starts without results");
    world.pass(10);
    let sick = support::with_health(instance(1), Health::Unhealthy);
    world.tell(snapshot(vec![app(WEB, [sick, unknown(2)])], world.now));
    assert_eq!(world.active(), [2]);
}

#[test]
fn an_empty_answer_withdraws_nothing_and_raises_an_alarm() {
    let mut world = World::new();
    let many: Vec<App> = (1..=4).map(|n| app(&format!("/app-{n}"), [instance(n)])).collect();
    world.tell(Event::Desired(elb("web", "10.77.100.1", "/app-1")));
    world.tell(attached());
    world.tell(snapshot(many.clone(), world.now));
    let emptied = many.iter().map(|app| App { instances: OrdMap::new(), ..app.clone() }).collect();
    for (name, answer) in [("no app", Vec::new()), ("most gone", many[..1].to_vec()), ("no instance", emptied)] {
        let before = world.state.compiled.clone();
        let (since, doubted) = (world.pass(5), if name == "most gone" { "3 of 4" } else { "4 of 4" });
        world.tell(snapshot(answer.clone(), since));
        assert_eq!(world.state.compiled, before, "{name}");
        let alarm = world.state.alarms["empty-answer"].clone();
        assert!(alarm.text.contains(doubted), "{name}: {}", alarm.text);
        world.pass(5);
        world.tell(snapshot(many.clone(), world.now));
        assert!(world.state.alarms.is_empty(), "{name}: over when Marathon lists them again");
        assert_eq!(world.state.compiled, before, "{name}");
    }
    // The same answer for long enough is the truth.
    world.pass(5);
    world.tell(snapshot(Vec::new(), world.now));
    world.pass(100);
    world.tell(snapshot(Vec::new(), world.now));
    assert_eq!(world.active(), [1], "not yet");
    world.pass(300);
    world.tell(snapshot(Vec::new(), world.now));
    assert_eq!(world.active(), [] as [u32; 0]);
    assert!(world.state.alarms.is_empty() && world.state.observed.apps.is_empty());
}

#[test]
fn single_removals_and_announced_ends_are_believed() {
    let mut world = serving();
    world.pass(10);
    world.tell(snapshot(vec![app(WEB, [instance(1)])], world.now));
    assert_eq!(world.active(), [1], "one of two");
    world.tell(status(WEB, 1, "TASK_KILLED"));
    world.pass(10);
    world.tell(snapshot(vec![app(WEB, [])], world.now));
    assert_eq!(world.active(), [] as [u32; 0], "the last one, announced");
    assert!(world.state.alarms.is_empty());

    let mut world = serving();
    world.pass(10);
    let scaled_to_0 = App { wanted: 0, ..app(WEB, []) };
    world.tell(snapshot(vec![scaled_to_0], world.now));
    assert_eq!(world.active(), [] as [u32; 0], "nobody wants an instance");
    world.tell(support::stream(StreamEvent::AppTerminated { app: WEB.into() }));
    assert!(world.state.observed.apps.is_empty());
}

#[test]
fn one_404_of_an_app_that_lives_is_checked_by_the_full_list() {
    let mut world = serving();
    let asked_at = world.pass(10);
    let effects = world.tell(Event::Marathon(Marathon::App { id: WEB.into(), app: None, asked_at }));
    assert!(effects.contains(&Effect::FetchAll));
    assert_eq!(world.active(), [1, 2]);
}

#[test]
fn an_unreachable_marathon_takes_nothing_away_and_is_asked_again() {
    let mut world = serving();
    let before = world.state.compiled.clone();
    world.tell(Event::Marathon(Marathon::Unreachable("connecting to 10.77.0.2: refused".to_owned())));
    assert_eq!(world.state.compiled, before);
    assert!(world.state.alarms["marathon-unreachable"].text.contains("10.77.0.2: refused"));
    world.pass(5);
    assert!(world.tell(Event::Tick).contains(&Effect::FetchAll), "lists are read meanwhile, more often");
    world.tell(attached());
    world.tell(snapshot(vec![app(WEB, [instance(1), instance(2)])], world.now));
    assert!(world.state.alarms.is_empty());
}

#[test]
fn a_failed_request_is_sent_again() {
    let mut world = serving();
    world.pass(30);
    assert!(world.tell(Event::Tick).contains(&Effect::FetchAll), "the resync of every 30 s");
    let failed = Marathon::FetchFailed { fetch: Fetch::All, why: "timeout".to_owned() };
    world.tell(Event::Marathon(failed));
    world.pass(1);
    assert!(world.tell(Event::Tick).contains(&Effect::FetchAll));
    world.pass(60);
    assert!(world.tell(Event::Tick).contains(&Effect::FetchAll), "one that is never answered as well");
}

#[test]
fn without_a_mesos_master_lists_remove_nothing() {
    let mut world = serving();
    world.tell(support::stream(StreamEvent::SchedulerDisconnected(true)));
    world.pass(10);
    world.tell(snapshot(vec![app(WEB, [instance(1)])], world.now));
    assert_eq!(world.active(), [1, 2]);
    world.pass(10);
    world.tell(snapshot(Vec::new(), world.now));
    assert_eq!(world.active(), [1, 2]);
    assert!(world.state.alarms.contains_key("scheduler-disconnected"));
    let effects = world.tell(support::stream(StreamEvent::SchedulerDisconnected(false)));
    assert!(effects.contains(&Effect::FetchAll) && world.state.alarms.is_empty());
    world.pass(1);
    world.tell(snapshot(vec![app(WEB, [instance(1)])], world.now));
    assert_eq!(world.active(), [1]);
}

#[test]
fn a_broken_app_keeps_its_last_good_state_and_harms_no_other() {
    let mut world = serving();
    world.pass(10);
    let broken = vec![(WEB.into(), "labels: expected a string".to_owned())];
    let apps = vec![app("/other", [instance(9)])];
    let asked_at = world.now;
    world.tell(Event::Marathon(Marathon::Snapshot { apps, broken, asked_at }));
    assert_eq!(world.active(), [1, 2]);
    assert!(world.state.observed.apps.contains_key("/other"));
    assert!(world.state.alarms["app-/shop/web"].text.contains("expected a string"));
    world.pass(10);
    world.tell(snapshot(vec![app(WEB, [instance(1)]), app("/other", [instance(9)])], world.now));
    assert!(world.state.alarms.is_empty());
    assert_eq!(world.active(), [1]);
}

#[test]
fn refetches_of_one_app_are_not_sent_twice_and_none_is_lost() {
    let mut world = serving();
    let changed = || support::stream(StreamEvent::AppsChanged { apps: vec![WEB.into()] });
    let fetch = Effect::FetchApp(WEB.into());
    assert!(world.tell(changed()).contains(&fetch));
    assert!(!world.tell(changed()).contains(&fetch), "one is on its way");
    let answer =
        |asked_at| Event::Marathon(Marathon::App { id: WEB.into(), app: Some(app(WEB, [instance(1)])), asked_at });
    world.pass(1);
    assert!(world.tell(answer(world.now)).contains(&fetch), "it was asked for before the second change");
    assert!(!world.tell(answer(world.now)).contains(&fetch));
    assert_eq!(world.active(), [1]);
    let many = (0..50).map(|n| format!("/app-{n}").as_str().into()).collect();
    let effects = world.tell(support::stream(StreamEvent::AppsChanged { apps: many }));
    assert!(effects.contains(&Effect::FetchAll), "many at once are one list");
}

#[test]
fn missed_events_are_counted_and_late_ones_are_not() {
    let mut world = serving();
    world.pass(10);
    world.tell(snapshot(vec![app(WEB, [instance(1), instance(2), instance(3), instance(4)])], world.now));
    world.tell(status(WEB, 4, "TASK_RUNNING"));
    world.pass(6);
    world.tell(Event::Tick);
    assert_eq!(world.state.missed_events, 1, "of 3 no event told");
}

#[test]
fn an_old_version_waits_for_its_own_definition() {
    let mut world = serving();
    world.pass(10);
    let old = support::of_version(instance(3), "v0");
    let effects = world.tell(snapshot(vec![app(WEB, [instance(1), old])], world.now));
    let fetch = Effect::FetchDefinition { app: WEB.into(), version: "v0".into() };
    assert!(effects.contains(&fetch), "{effects:?}");
    assert_eq!(world.active(), [1]);
    let mut definition = (**app(WEB, []).newest().unwrap()).clone();
    definition.ports[0].container = 9090;
    let told = Marathon::Definition { app: WEB.into(), version: "v0".into(), definition };
    world.tell(Event::Marathon(told));
    assert_eq!(world.active(), [1, 3], "no mapping of the old version names 8080: it is the container's own port");
    assert_eq!(world.state.observed.apps[WEB].definitions.len(), 2);
    world.pass(10);
    world.tell(snapshot(vec![app(WEB, [instance(1)])], world.now));
    assert_eq!(world.state.observed.apps[WEB].definitions.len(), 1, "nobody runs it any more");
}

#[test]
fn named_agents_are_looked_up_once_and_again_when_old() {
    let mut world = World::new();
    world.tell(Event::Desired(elb("web", "10.77.100.1", WEB)));
    world.tell(attached());
    let apps = || vec![support::on_host_ports(app(WEB, [support::on(instance(1), "agent-a")]))];
    let effects = world.tell(snapshot(apps(), world.now));
    let resolve = Effect::Resolve { host: "agent-a".into() };
    assert!(effects.contains(&resolve));
    assert!(!effects.contains(&Effect::Publish), "the first Inputs wait for the name");
    let resolved = |addresses: &[&str]| Event::Resolved {
        host: "agent-a".into(),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
    };
    assert!(world.tell(resolved(&["10.1.0.1"])).contains(&Effect::Publish));
    assert_eq!(world.active(), [1]);
    world.tell(resolved(&[]));
    assert_eq!(world.active(), [1], "the last answer stays");
    world.pass(60);
    assert!(world.tell(Event::Tick).contains(&resolve), "every minute");
    world.tell(resolved(&["10.1.0.7"]));
    assert_eq!(world.active(), [7]);
}

#[test]
fn every_change_of_an_app_is_remembered() {
    let mut world = serving();
    let effects = world.tell(status(WEB, 1, "TASK_KILLED"));
    let remembered = effects.iter().find_map(|effect| match effect {
        Effect::Remember { id, app } => Some((id.clone(), app.clone())),
        _ => None,
    });
    assert_eq!(remembered, Some((WEB.into(), world.state.observed.apps.get(WEB).cloned())));
    let effects = world.tell(support::stream(StreamEvent::AppTerminated { app: WEB.into() }));
    assert!(effects.contains(&Effect::Remember { id: WEB.into(), app: None }));
}

#[test]
fn removing_an_elb_leaves_no_trace() {
    let mut world = serving();
    let two = support::both("web", "10.77.100.1", "site", "10.77.100.2", WEB);
    world.tell(Event::Desired(two));
    assert_eq!(world.state.compiled.l7.pools.len(), 1);
    world.tell(Event::Desired(Desired::default()));
    let compiled = &world.state.compiled;
    assert!(compiled.l4.services.is_empty() && compiled.l4.announce.is_empty());
    assert!(compiled.l7.listeners.is_empty() && compiled.l7.pools.is_empty());
    assert!(!compiled.dns.names.keys().any(|name| name.contains(".elb.")));
    assert!(world.state.generations.is_empty());
}

#[test]
fn the_status_says_of_each_instance_what_is_done_and_why() {
    let mut world = serving();
    world.tell(status(WEB, 1, "TASK_KILLING"));
    world.tell(status(WEB, 3, "TASK_RUNNING"));
    let status = explain(&world.state, "web").unwrap();
    assert_eq!(status.dns_name, "web.elb.mesos");
    assert!(status.published);
    let port = &status.ports[0];
    assert_eq!((port.listen.as_str(), port.target.as_str()), ("tcp 80", "8080"));
    assert_eq!((port.serving, port.draining, port.held, &port.problem), (1, 1, 1, &None));
    let said: Vec<_> =
        port.instances.iter().map(|i| (i.verdict.as_str(), i.reason.as_str(), i.addresses.len())).collect();
    let expected = [
        ("drain", "it is being killed", 1),
        ("serve", "it runs and is healthy", 1),
        ("hold", "waiting for its first health check", 1),
    ];
    assert_eq!(said, expected);
    assert!(explain(&world.state, "nope").is_none());

    world.tell(Event::Desired(elb("web", "10.77.100.1", "/gone")));
    let problem = explain(&world.state, "web").unwrap().ports[0].problem.clone().unwrap();
    assert!(problem.contains("Marathon has no app /gone"), "{problem}");
}

#[test]
fn an_instance_at_another_port_is_held_where_ports_are_not_translated_and_is_told_why() {
    let mut world = World::new();
    world.tell(attached());
    world.tell(snapshot(vec![app(WEB, [instance(1)])], world.now));
    // forward, target, verdict, a part of the reason
    let table = [
        ("fullnat", "http", "serve", "healthy"),
        (
            "direct",
            "http",
            "hold",
            "it serves port 8080, and forward direct does not translate 80 to it: use forward fullnat",
        ),
        ("ipip", "http", "hold", "make the job serve port 80 itself"),
        ("gue", "80", "serve", "healthy"),
    ];
    for (forward, target, verdict, reason) in table {
        world.tell(Event::Desired(support::forwarded("web", "10.77.100.1", WEB, forward, target)));
        let port = explain(&world.state, "web").unwrap().ports[0].clone();
        let said = &port.instances[0];
        assert_eq!(said.verdict, verdict, "{forward}: {}", said.reason);
        assert!(said.reason.contains(reason), "{forward}: {}", said.reason);
        let served = usize::from(verdict == "serve");
        assert_eq!((port.serving, world.active().len()), (served, served), "{forward}: what is said is what is done");
        assert_eq!(port.problem.is_none(), served == 1, "{forward}: {:?}", port.problem);
    }
}

#[test]
fn over_a_tunnel_an_instance_of_the_other_family_serves_and_its_address_is_told() {
    let mut world = World::new();
    world.tell(attached());
    world.tell(snapshot(vec![app(WEB, [instance(1)])], world.now));
    for (forward, verdict, addresses) in [("fullnat", "hold", ""), ("ipip", "serve", "10.1.0.1:80")] {
        world.tell(Event::Desired(support::forwarded("web", "fd77:0:100::1", WEB, forward, "80")));
        let said = explain(&world.state, "web").unwrap().ports[0].instances[0].clone();
        let told: Vec<String> = said.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(
            (said.verdict.as_str(), told.join(" ").as_str()),
            (verdict, addresses),
            "{forward}: {}",
            said.reason
        );
        assert_eq!(world.active().len(), usize::from(verdict == "serve"), "{forward}");
    }
}

#[test]
fn the_policy_has_sane_defaults() {
    let policy = Policy::default();
    assert_eq!((policy.resync, &*policy.domain), (Duration::from_secs(30), "mesos"));
    let later: Timestamp = support::start() + SignedDuration::from_secs(1);
    assert!(State::new(policy, later).compiled.l4.generation > 0);
    assert_eq!(TaskState::Running, instance(1).state);
}
