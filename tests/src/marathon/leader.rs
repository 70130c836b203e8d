//! Who leads. All endpoints share one world, as real ones share ZooKeeper; what differs is how each answers.

use std::{sync::Arc, time::Duration};

use super::{core::Core, faults::FailOver};

/// The state of the election.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Leadership {
    /// The number of an endpoint.
    pub leader: Option<usize>,
    /// Whether it has loaded everything yet.
    pub ready: bool,
}

/// How an endpoint answers now.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Role {
    Leader,
    /// Elected, not ready.
    Warming,
    /// Sends clients of the event stream to the leader, and asks it itself for the rest.
    Standby(String),
    Nobody,
}

impl Core {
    pub(crate) fn role(&self, node: usize) -> Role {
        match *self.leadership.borrow() {
            Leadership { leader: Some(n), ready } if n == node => {
                if ready {
                    Role::Leader
                } else {
                    Role::Warming
                }
            }
            Leadership { leader: Some(n), .. } => Role::Standby(self.nodes[n].clone()),
            Leadership { leader: None, .. } => Role::Nobody,
        }
    }

    pub(crate) fn leader(&self) -> Option<String> {
        self.leadership.borrow().leader.map(|n| self.nodes[n].clone())
    }
}

/// The leader abdicates: streams are cut, and after the election the next endpoint leads (the same one if it is alone).
/// What Marathon's own health checks have found is forgotten; what Mesos has found is not.
pub(crate) async fn fail_over(core: &Arc<Core>, how: FailOver) {
    let old = core.leadership.borrow().leader.unwrap_or(0);
    core.leadership.send_replace(Leadership { leader: None, ready: false });
    core.bus.cut_all();
    tokio::time::sleep(Duration::from_millis(how.election_ms)).await;
    core.change(|world| {
        for app in world.apps.values_mut().filter(|app| app.definition.health.iter().any(|h| !h.by_mesos)) {
            for instance in Arc::make_mut(app).instances.values_mut().map(Arc::make_mut) {
                let checks = instance.definition.health.iter();
                instance
                    .health
                    .iter_mut()
                    .zip(checks)
                    .filter(|(_, c)| !c.by_mesos)
                    .for_each(|(result, _)| *result = None);
            }
        }
    });
    let leader = Some((old + 1) % core.nodes.len());
    core.leadership.send_replace(Leadership { leader, ready: how.warming_ms == 0 });
    tokio::time::sleep(Duration::from_millis(how.warming_ms)).await;
    if how.empty_ms > 0 {
        let mut faults = core.faults();
        faults.empty = true;
        core.set_faults(faults);
    }
    core.leadership.send_replace(Leadership { leader, ready: true });
    if how.empty_ms > 0 {
        tokio::time::sleep(Duration::from_millis(how.empty_ms)).await;
        let mut faults = core.faults();
        faults.empty = false;
        core.set_faults(faults);
    }
}
