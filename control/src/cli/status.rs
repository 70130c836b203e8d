//! `tidegate status`.

use http::Method;

use super::{
    Remote,
    client::Client,
    table::{count, pairs, table},
};
use crate::api::StatusBody;

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
    for alarm in &status.alarms {
        text += &format!("\nALARM {} since {}: {}", alarm.key, alarm.since, alarm.text);
    }
    text.trim_end().to_owned() + "\n"
}
