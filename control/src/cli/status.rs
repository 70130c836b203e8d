//! `tidegate status`.

use std::collections::BTreeSet;

use http::Method;

use super::{
    Remote,
    client::Client,
    table::{count, pairs, table},
};
use crate::api::{Layer4Status, MovesBody, StatusBody};

/// At most so many ELBs that are fail-open are named.
const NAMED: usize = 5;

pub(super) async fn status(remote: &Remote) -> anyhow::Result<()> {
    let client = Client::new(remote)?;
    let answer = client.ask(Method::GET, "/v1/status", None).await?;
    if client.json {
        println!("{}", answer.text);
        return Ok(());
    }
    print!("{}", render(&answer.read()?));
    Ok(())
}

fn render(status: &StatusBody) -> String {
    let roles: Vec<String> = status.roles.iter().map(ToString::to_string).collect();
    let marathon = match (&status.marathon.unreachable, status.marathon.snapshot_at) {
        (Some(why), _) => format!("UNREACHABLE: {why}"),
        (None, Some(at)) => {
            format!("{}; all apps read at {at}", if status.marathon.attached { "attached" } else { "not attached" })
        }
        (None, None) => "not reached yet".to_owned(),
    };
    let mut rows = vec![
        ("tidegate", format!("{}, roles {}, since {}", status.version, roles.join(","), status.started_at)),
        ("ELBs", format!("{} at revision {}", status.elbs, status.revision)),
        ("apps", format!("{} with {}", status.apps, count(status.instances, "instance"))),
        ("Marathon", marathon),
    ];
    if let Some(node) = &status.follows {
        rows.push(("follows", node.clone()));
    }
    if let Some(layer4) = &status.layer4 {
        rows.extend(summary(layer4));
    }
    let mut text = pairs(&rows) + "\n\n";
    let planes: Vec<Vec<String>> = status
        .planes
        .iter()
        .map(|plane| {
            let state = match &plane.refused {
                Some(refused) => refused.clone(),
                None if plane.applied < plane.desired => "behind".to_owned(),
                None => "up to date".to_owned(),
            };
            vec![plane.plane.clone(), plane.desired.to_string(), plane.applied.to_string(), state]
        })
        .collect();
    if !planes.is_empty() {
        text += &table(&["PLANE", "DESIRED", "APPLIED", "STATE"], &planes);
        text += "\n";
    }
    for plane in &status.planes {
        for problem in &plane.problems {
            text += &format!("\nproblem of {}: {problem}", plane.plane);
        }
    }
    text.extend(status.layer4.iter().flat_map(drops).map(|told| format!("\n{told}")));
    for alarm in &status.alarms {
        text += &format!("\nALARM {} since {}: {}", alarm.key, alarm.since, alarm.text);
    }
    text.trim_end().to_owned() + "\n"
}

/// Layer 4 in a few lines.
fn summary(layer4: &Layer4Status) -> Vec<(&'static str, String)> {
    let Layer4Status { attached, front_ends, reals, drains, probes, .. } = layer4;
    let modes: Vec<String> = attached.iter().map(|at| format!("{} ({})", at.interface, at.mode)).collect();
    let place = if modes.is_empty() { "NOT ATTACHED".to_owned() } else { format!("at {}", modes.join(", ")) };
    let carries = format!(
        "{place}; {} with {} ({} down, {} ejected), {} known to be live{}",
        count(*front_ends, "front end"),
        count(reals.all, "real"),
        reals.down,
        reals.ejected,
        connections(reals.live),
        fail_open(layer4),
    );
    let changed = format!(
        "since the start {} ended with {} cut{}",
        count(drains.ended as usize, "drain"),
        connections(drains.cut),
        moves(&layer4.moves)
    );
    let mut rows = vec![("layer 4", carries), ("changes", changed)];
    if probes.sent + probes.unable > 0 {
        let last =
            probes.last_error.as_ref().map_or_else(String::new, |error| format!("; the last that failed: {error}"));
        let said = format!(
            "since the start {} sent, {} failed, {} could not be sent, {} late{last}",
            probes.sent, probes.failed, probes.unable, probes.late
        );
        rows.push(("probes", said));
    }
    rows
}

/// The planes' problems say why.
fn fail_open(layer4: &Layer4Status) -> String {
    let elbs: BTreeSet<&str> = layer4.fail_open.iter().map(|open| open.elb.as_str()).collect();
    let named: Vec<&str> = elbs.iter().copied().take(NAMED).collect();
    match elbs.len() {
        0 => String::new(),
        all if all > NAMED => format!("; FAIL-OPEN: {} and {} more", named.join(", "), all - NAMED),
        _ => format!("; FAIL-OPEN: {}", named.join(", ")),
    }
}

/// Only the modes without translation have moves, and most of them cost nothing.
fn moves(moves: &MovesBody) -> String {
    let told = [
        (moves.now, format!("{} under way", count(moves.now as usize, "move"))),
        (moves.forced, format!("{} ended by force with {} lost", moves.forced, connections(moves.lost))),
        (moves.at_once, format!("{} changed hands without a move", count(moves.at_once as usize, "ring slot"))),
    ];
    told.into_iter().filter(|(number, _)| *number > 0).map(|(_, said)| format!("; {said}")).collect()
}

fn connections(number: u64) -> String {
    count(number as usize, "connection")
}

/// What is dropped now.
fn drops(layer4: &Layer4Status) -> Vec<String> {
    let growing = layer4.drops.iter().filter(|drops| drops.last_minute > 0);
    let told = growing.map(|drops| {
        let packets = count(drops.last_minute as usize, "packet");
        format!("dropped in the last minute: {packets} ({}): {}", drops.reason, drops.advice)
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::FailOpenBody;

    #[test]
    fn layer_4_is_summed_up_and_what_needs_a_look_is_named() {
        let mut layer4: Layer4Status = serde_json::from_str(
            r#"{"attached":[{"interface":"eth0","mode":"native"}],"front_ends":2,
                "reals":{"all":3,"down":1,"ejected":0,"live":41},
                "fail_open":[{"elb":"web","listen":"tcp 10.77.100.1:80"}],
                "drops":[{"reason":"denied","total":9,"last_minute":2,"advice":"see --deny"},
                         {"reason":"ttl","total":1,"last_minute":0,"advice":"a loop"}],
                "moves":{"now":5,"settled":70,"forced":1,"lost":2,"at_once":0},
                "drains":{"ended":1,"cut":0},
                "probes":{"sent":10,"failed":2,"unable":0,"late":0,"last_error":"refused"}}"#,
        )
        .unwrap();
        let rows = summary(&layer4);
        let said = |name| rows.iter().find(|(known, _)| *known == name).unwrap().1.as_str();
        assert_eq!(
            said("layer 4"),
            "at eth0 (native); 2 front ends with 3 reals (1 down, 0 ejected), 41 connections known to be live; FAIL-OPEN: web"
        );
        assert_eq!(
            said("changes"),
            "since the start 1 drain ended with 0 connections cut; 5 moves under way; 1 ended by force with 2 connections lost"
        );
        assert_eq!(
            said("probes"),
            "since the start 10 sent, 2 failed, 0 could not be sent, 0 late; the last that failed: refused"
        );
        assert_eq!(drops(&layer4), ["dropped in the last minute: 2 packets (denied): see --deny"]);

        layer4.attached.clear();
        let open = |elb: usize| FailOpenBody { elb: format!("web-{elb}"), ..layer4.fail_open[0].clone() };
        layer4.fail_open = (0..7).flat_map(|elb| [open(elb), open(elb)]).collect();
        let said = summary(&layer4)[0].1.clone();
        assert!(said.starts_with("NOT ATTACHED"), "{said}");
        assert!(said.ends_with("FAIL-OPEN: web-0, web-1, web-2, web-3, web-4 and 2 more"), "{said}");
    }
}
