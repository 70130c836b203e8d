//! Misbehaviour on command. What is set here stays until it is set otherwise; things that happen once (a task that is
//! lost, a new leader) are [`Command`]s. Both come by library calls or by `POST /stand-in/faults`.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::definition::Object;

/// What is wrong now.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    pub events: EventFaults,
    /// Lists of apps, tasks and groups are empty, though everything runs.
    pub empty: bool,
    /// Requests whose path starts with one of these never get an answer (`/` for all).
    pub hang: Vec<String>,
    /// Requests whose path starts with one of these get a status instead of an answer.
    pub fail: BTreeMap<String, u16>,
    /// By app id: keys of its JSON that are written over (with values of the wrong type, mostly).
    pub broken_apps: BTreeMap<String, Object>,
    /// Answers to `/v2/apps` and `/v2/tasks` come this late.
    pub slow_ms: u64,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventFaults {
    /// Event types that are never sent; `*` for all. The stream's own attached event always is.
    pub lose: Vec<String>,
    /// The share of the others that are lost, 0 to 1.
    pub lose_share: f64,
    /// Each event comes this many times more.
    pub repeat: u32,
    /// Each event comes this late.
    pub delay_ms: u64,
    /// Each event comes up to this late, by chance, so that later ones overtake it.
    pub reorder_ms: u64,
}

/// What happens once.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// The leader abdicates to the next endpoint.
    FailOver(FailOver),
    /// All event streams are cut.
    CutStreams,
    /// A signal to the task's processes, as if from somebody on the agent (9: it dies without a word).
    SignalTask { id: String, signal: i32 },
    /// The agent of the task is silent: TASK_UNREACHABLE; it serves on.
    LoseTask { id: String },
    /// An unreachable task is heard of again.
    ReturnTask { id: String },
    /// TASK_LOST, and its process is gone.
    VanishTask { id: String },
    /// All tasks of an agent (by host) stop, and nobody says so; thawed, they go on.
    FreezeAgent { host: String, frozen: bool },
    /// An endpoint refuses connections, or accepts them again.
    Node { index: usize, up: bool },
}

/// How a leader hands over.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct FailOver {
    /// For this long there is no leader.
    pub election_ms: u64,
    /// For this long the new leader accepts event streams only to close them, and answers 503.
    pub warming_ms: u64,
    /// For this long after that it answers with no apps at all (as some versions did).
    pub empty_ms: u64,
}

impl Default for FailOver {
    fn default() -> Self {
        FailOver { election_ms: 300, warming_ms: 500, empty_ms: 0 }
    }
}

/// What `POST /stand-in/faults` takes: settings to change (whole top-level keys), and commands.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Request {
    #[serde(default, rename = "do")]
    pub commands: Vec<Command>,
    #[serde(flatten)]
    pub settings: Object,
}

impl EventFaults {
    pub(crate) fn loses(&self, kind: &str) -> bool {
        self.lose.iter().any(|k| k == "*" || k == kind) || (self.lose_share > 0.0 && fastrand::f64() < self.lose_share)
    }
}

impl Faults {
    /// These, with some top-level keys set anew; `null` sets a key back to "no fault".
    pub(crate) fn with(&self, settings: Object) -> Result<Faults, serde_json::Error> {
        let mut json = serde_json::to_value(self)?;
        if let Value::Object(map) = &mut json {
            map.extend(settings);
            map.retain(|_, value| !value.is_null());
        }
        serde_json::from_value(json)
    }

    pub(crate) fn hangs(&self, path: &str) -> bool {
        self.hang.iter().any(|prefix| path.starts_with(prefix.as_str()))
    }

    pub(crate) fn status_for(&self, path: &str) -> Option<u16> {
        self.fail.iter().find(|(prefix, _)| path.starts_with(prefix.as_str())).map(|(_, status)| *status)
    }

    pub(crate) fn lateness(&self, path: &str) -> Duration {
        let slow = path.starts_with("/v2/apps") || path.starts_with("/v2/tasks");
        Duration::from_millis(if slow { self.slow_ms } else { 0 })
    }
}
