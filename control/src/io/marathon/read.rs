//! What several of Marathon's answers have in common.

use std::{net::IpAddr, sync::Arc};

use serde::{Deserialize, Deserializer};

/// A field that is null is a field that is missing.
pub(super) fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Address {
    #[serde(default, deserialize_with = "nullable")]
    ip_address: String,
}

/// Those that are addresses.
pub(super) fn addresses(listed: &[Address]) -> Vec<IpAddr> {
    listed.iter().filter_map(|address| address.ip_address.parse().ok()).collect()
}

/// A task's id without its attempt: `x.instance-1._app.2` is of the instance `x.instance-1`.
pub(super) fn instance_id(task: &str) -> Arc<str> {
    let digits = task.trim_end_matches(|letter: char| letter.is_ascii_digit());
    let without_attempt = if digits.len() < task.len() { digits.strip_suffix('.').unwrap_or(task) } else { task };
    without_attempt.strip_suffix("._app").unwrap_or(task).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_and_instances_meet_by_id() {
        let table = [
            ("a_b.instance-1f._app.1", "a_b.instance-1f"),
            ("a_b.instance-1f._app.12", "a_b.instance-1f"),
            ("a_b.instance-1f._app", "a_b.instance-1f"),
            ("a_b.marathon-1f", "a_b.marathon-1f"),
            ("a_b.1f.22", "a_b.1f.22"),
            ("", ""),
            ("7", "7"),
        ];
        for (task, instance) in table {
            assert_eq!(&*instance_id(task), instance, "{task}");
        }
    }
}
