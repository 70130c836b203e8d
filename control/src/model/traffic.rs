//! Which instances get traffic, and why the others do not.

use std::fmt;

use super::app::{App, Health, Instance, StopSign, TaskState};

/// What is done with an instance.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// Gets new connections and requests.
    Serve,
    /// Keeps what it has, gets nothing new.
    Drain(Reason),
    /// Gets nothing yet.
    Hold(Reason),
}

/// Why an instance gets no new traffic.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reason {
    Stopping(StopSign),
    Killing,
    Unhealthy,
    /// Its readiness check says no.
    NotReady,
    /// Its readiness check has not answered yet.
    FirstReadinessCheck,
    FirstHealthCheck,
    /// It has no health check: one TCP connect decides.
    FirstConnect,
    /// Staging or starting.
    NotRunning,
    /// Its agent is silent, and it never served.
    Unreachable,
    /// The definition of its version is not known yet.
    NoDefinition,
}

impl Reason {
    /// It was well until Marathon decided to stop it.
    pub fn still_answers(self) -> bool {
        matches!(self, Self::Killing | Self::Stopping(StopSign::GoalChanged | StopSign::Killing))
    }

    /// Only Marathon knows when this is over, and no event tells.
    pub fn is_readiness(self) -> bool {
        matches!(self, Self::NotReady | Self::FirstReadinessCheck)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stopping(StopSign::GoalChanged) => "Marathon has decided to stop it",
            Self::Stopping(StopSign::Killing) | Self::Killing => "it is being killed",
            Self::Stopping(StopSign::UnhealthyKill) => "Marathon kills it because it is unhealthy",
            Self::Unhealthy => "its health check fails",
            Self::NotReady => "its readiness check fails",
            Self::FirstReadinessCheck => "waiting for its first readiness check",
            Self::FirstHealthCheck => "waiting for its first health check",
            Self::FirstConnect => "waiting for its port to accept a connection (the app has no health check)",
            Self::NotRunning => "it does not run yet",
            Self::Unreachable => "its agent cannot be reached, and it never served",
            Self::NoDefinition => "waiting for the definition of its version",
        })
    }
}

/// The rule. Bad news always counts; missing news only keeps out who was never in.
pub fn verdict(app: &App, instance: &Instance) -> Verdict {
    if let Some(sign) = instance.stopping {
        return Verdict::Drain(Reason::Stopping(sign));
    }
    match instance.state {
        TaskState::Killing => return Verdict::Drain(Reason::Killing),
        TaskState::Staging | TaskState::Starting => return Verdict::Hold(Reason::NotRunning),
        TaskState::Unreachable if !instance.admitted => return Verdict::Hold(Reason::Unreachable),
        TaskState::Running | TaskState::Unreachable => {}
    }
    let Some(definition) = app.definition_of(instance) else {
        return Verdict::Hold(Reason::NoDefinition);
    };
    let checked = !definition.health_checks.is_empty();
    if checked && instance.health == Health::Unhealthy {
        return Verdict::Drain(Reason::Unhealthy);
    }
    match instance.ready {
        Some(false) if instance.admitted => return Verdict::Drain(Reason::NotReady),
        Some(false) => return Verdict::Hold(Reason::NotReady),
        _ if instance.admitted => return Verdict::Serve,
        // Results are only listed while the deployment runs, and only for the version that it brings.
        None if definition.readiness && !app.deployments.is_empty() && instance.version == app.version => {
            return Verdict::Hold(Reason::FirstReadinessCheck);
        }
        _ => {}
    }
    match (checked, instance.health) {
        (true, Health::Healthy) => Verdict::Serve,
        (true, _) => Verdict::Hold(Reason::FirstHealthCheck),
        // Nothing of the app can be connected to (no TCP port): RUNNING is all there is to know.
        (false, _) if !definition.ports.iter().any(|port| port.tcp) => Verdict::Serve,
        (false, _) => Verdict::Hold(Reason::FirstConnect),
    }
}

/// The verdict and its reason in words.
pub fn explain(verdict: Verdict, instance: &Instance) -> String {
    match verdict {
        Verdict::Drain(reason) | Verdict::Hold(reason) => reason.to_string(),
        Verdict::Serve if instance.state == TaskState::Unreachable => {
            "its agent cannot be reached: it goes on serving until something shows that it is dead".to_owned()
        }
        Verdict::Serve if instance.health == Health::Healthy => "it runs and is healthy".to_owned(),
        Verdict::Serve => "it runs".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use imbl::OrdMap;

    use super::*;
    use crate::model::app::{Definition, Port};

    fn app(checks: usize, readiness: bool, deploying: bool) -> App {
        let definition = Definition {
            ports: vec![Port { tcp: true, ..Port::default() }],
            health_checks: vec![3; checks],
            readiness,
            ..Definition::default()
        };
        App {
            id: "/web".into(),
            version: "v1".into(),
            wanted: 1,
            definitions: OrdMap::unit("v1".into(), Arc::new(definition)),
            instances: OrdMap::new(),
            deployments: if deploying { vec!["d".to_owned()] } else { Vec::new() },
        }
    }

    fn instance(state: TaskState, health: Health) -> Instance {
        Instance {
            id: "web.instance-1".into(),
            task: "web.instance-1._app.1".into(),
            state,
            version: "v1".into(),
            host: "10.0.0.1".into(),
            agent: None,
            addresses: Vec::new(),
            ports: vec![31000],
            health,
            ready: None,
            started_at: None,
            stopping: None,
            admitted: false,
        }
    }

    #[test]
    fn an_instance_serves_only_when_nothing_speaks_against_it() {
        use Health::{Healthy, Unhealthy, Unknown};
        use Reason as R;
        use TaskState::{Killing, Running, Staging, Starting, Unreachable};
        use Verdict::{Drain, Hold, Serve};
        // state, health, checks, admitted, expected
        let table = [
            (Running, Healthy, 1, false, Serve),
            (Running, Unknown, 1, false, Hold(R::FirstHealthCheck)),
            (Running, Unknown, 1, true, Serve),
            (Running, Unhealthy, 1, false, Drain(R::Unhealthy)),
            (Running, Unhealthy, 1, true, Drain(R::Unhealthy)),
            (Running, Unknown, 0, false, Hold(R::FirstConnect)),
            (Running, Unknown, 0, true, Serve),
            (Staging, Unknown, 0, true, Hold(R::NotRunning)),
            (Starting, Healthy, 1, true, Hold(R::NotRunning)),
            (Killing, Healthy, 1, true, Drain(R::Killing)),
            (Unreachable, Healthy, 1, true, Serve),
            (Unreachable, Unhealthy, 1, true, Drain(R::Unhealthy)),
            (Unreachable, Healthy, 1, false, Hold(R::Unreachable)),
        ];
        for (state, health, checks, admitted, expected) in table {
            let instance = Instance { admitted, ..instance(state, health) };
            let case = format!("{state:?} {health:?} {checks} checks, admitted {admitted}");
            assert_eq!(verdict(&app(checks, false, false), &instance), expected, "{case}");
            assert!(!explain(expected, &instance).is_empty());
        }
    }

    #[test]
    fn readiness_gates_new_instances_while_their_deployment_runs() {
        // readiness checks, deploying, ready, admitted, serves
        let table = [
            (true, true, None, false, Verdict::Hold(Reason::FirstReadinessCheck)),
            (true, true, Some(false), false, Verdict::Hold(Reason::NotReady)),
            (true, true, Some(false), true, Verdict::Drain(Reason::NotReady)),
            (true, true, Some(true), false, Verdict::Serve),
            (true, true, None, true, Verdict::Serve),
            (true, false, None, false, Verdict::Serve),
            (false, true, None, false, Verdict::Serve),
        ];
        for (readiness, deploying, ready, admitted, expected) in table {
            let instance = Instance { ready, admitted, ..instance(TaskState::Running, Health::Healthy) };
            let app = app(1, readiness, deploying);
            assert_eq!(verdict(&app, &instance), expected, "{readiness} {deploying} {ready:?} {admitted}");
        }
    }

    #[test]
    fn an_old_version_is_judged_by_its_own_definition() {
        let mut app = app(1, true, true);
        let old = Definition { health_checks: Vec::new(), ..Definition::default() };
        app.definitions.insert("v0".into(), Arc::new(old));
        let instance = Instance { version: "v0".into(), ..instance(TaskState::Running, Health::Unknown) };
        assert_eq!(verdict(&app, &instance), Verdict::Serve);
        let lost = Instance { version: "v7".into(), ..instance };
        assert_eq!(verdict(&app, &lost), Verdict::Hold(Reason::NoDefinition));
    }

    #[test]
    fn any_stop_sign_drains() {
        for sign in [StopSign::GoalChanged, StopSign::Killing, StopSign::UnhealthyKill] {
            let stopping = Some(sign);
            let instance = Instance { stopping, admitted: true, ..instance(TaskState::Running, Health::Healthy) };
            assert_eq!(verdict(&app(1, false, false), &instance), Verdict::Drain(Reason::Stopping(sign)));
        }
    }
}
