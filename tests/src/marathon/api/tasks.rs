//! Tasks: listed, and killed with and without making the app smaller.

use std::{collections::BTreeMap, fmt::Write, sync::Arc};

use axum::response::IntoResponse;
use http::{StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, Call, begun, ok};
use crate::marathon::{
    definition::parent,
    deploy::{self, Wish},
    error::ApiError,
    instance::{Condition, Instance},
    json::TaskView,
    life,
    world::World,
};

pub(super) fn route(call: &Call, path: &[&str]) -> Answer {
    match (call.method.as_str(), path) {
        ("GET", []) => list(call),
        ("POST", ["delete"]) => delete_many(call),
        _ => Err(ApiError::UnknownUri),
    }
}

fn placed(world: &World) -> Vec<Arc<Instance>> {
    let instances = world.visible().flat_map(|(_, app)| app.instances.values());
    instances.filter(|i| i.condition != Condition::Scheduled).cloned().collect()
}

fn list(call: &Call) -> Answer {
    let mut tasks = if call.core.faults().empty { Vec::new() } else { call.core.read(placed) };
    let states: Vec<&str> = call.values("status").chain(call.values("status[]")).collect();
    if !states.is_empty() {
        tasks.retain(|t| {
            let state = if t.condition == Condition::Running { "running" } else { "staging" };
            states.contains(&state)
        });
    }
    let accept = call.headers.get(header::ACCEPT).and_then(|a| a.to_str().ok()).unwrap_or("");
    if accept.contains("text/plain") {
        return Ok(([(header::CONTENT_TYPE, "text/plain")], as_text(call, &tasks)).into_response());
    }
    let views: Vec<TaskView> = tasks.iter().map(|instance| TaskView { instance, service_ports: true }).collect();
    ok(&BTreeMap::from([("tasks", views)]))
}

/// One line per app and service port: `app_id`, the port, each task's `host:port`, tab after each.
fn as_text(call: &Call, tasks: &[Arc<Instance>]) -> String {
    let mut text = String::new();
    call.core.read(|world| {
        for (id, app) in world.visible() {
            let name = id.trim_start_matches('/').replace('/', "_");
            let own = || tasks.iter().filter(|t| *t.definition.id == **id);
            if app.definition.ports.is_empty() {
                let hosts: String = own().map(|t| format!("{}\t", t.host())).collect();
                let _ = writeln!(text, "{name}\t \t{hosts}");
            }
            for (n, port) in app.definition.ports.iter().enumerate() {
                let choice = crate::marathon::definition::PortChoice::Index(n);
                let ends = own().filter_map(|t| t.endpoint(&choice));
                let ends: String = ends.map(|(host, port)| format!("{host}:{port}\t")).collect();
                let _ = writeln!(text, "{name}\t{}\t{ends}", port.service);
            }
        }
    });
    text
}

pub(super) fn of_app(call: &Call, app: &str) -> Answer {
    let tasks: Vec<Arc<Instance>> = call.core.read(|world| {
        world.app(app)?;
        Ok::<_, ApiError>(placed(world).into_iter().filter(|t| t.definition.id == app).collect())
    })?;
    match call.method.as_str() {
        "GET" => {
            let views: Vec<TaskView> =
                tasks.iter().map(|instance| TaskView { instance, service_ports: true }).collect();
            ok(&BTreeMap::from([("tasks", views)]))
        }
        "DELETE" => {
            let host = call.value("host");
            let victims = tasks.into_iter().filter(|t| host.is_none_or(|h| h == "*" || h == t.host())).collect();
            kill(call, victims, "tasks")
        }
        _ => Err(ApiError::UnknownUri),
    }
}

pub(super) fn delete_one(call: &Call, app: &str, task: &str) -> Answer {
    let instance = call.core.read(|world| {
        world.app(app)?;
        let found = world.find(task).filter(|i| i.definition.id == app).cloned();
        found.ok_or(ApiError::NotFound(format!("Task '{task}' does not exist")))
    })?;
    kill(call, vec![instance], "task")
}

#[derive(Deserialize)]
struct Ids {
    ids: Vec<String>,
}

fn delete_many(call: &Call) -> Answer {
    let Ids { ids } = call.json()?;
    let victims = call.core.read(|world| {
        let known = |id: &String| {
            world.find(id).cloned().ok_or_else(|| ApiError::BadRequest(format!("Invalid task id '{id}'.")))
        };
        ids.iter().map(known).collect::<Result<Vec<_>, _>>()
    })?;
    kill(call, victims, "tasks")
}

/// With `scale` each app gets smaller by its victims; without, replacements follow.
fn kill(call: &Call, victims: Vec<Arc<Instance>>, name: &str) -> Answer {
    let (scale, wipe) = (call.flag("scale"), call.flag("wipe"));
    if scale && wipe {
        return Err(ApiError::BadRequest("You cannot use scale and wipe at the same time.".into()));
    }
    if scale {
        let mut by_app: BTreeMap<String, Vec<Arc<str>>> = BTreeMap::new();
        for victim in &victims {
            by_app.entry(victim.definition.id.clone()).or_default().push(victim.id.clone());
        }
        let group = by_app.keys().next().map_or("/", |app| parent(app)).to_owned();
        let wishes = by_app.into_iter().map(|(app, instances)| Wish::Without(app, instances)).collect();
        let done = call.core.change(|world| deploy::begin(&call.core, world, wishes, call.flag("force"), &group))?;
        return begun(StatusCode::OK, &done);
    }
    call.core.change(|world| victims.iter().for_each(|victim| life::stop(&call.core, world, victim)));
    let views: Vec<Value> = victims
        .iter()
        .map(|instance| serde_json::to_value(TaskView { instance, service_ports: false }).expect("text and numbers"))
        .collect();
    match (name, views.first()) {
        ("task", Some(only)) => ok(&json!({"task": only})),
        _ => ok(&json!({"tasks": views})),
    }
}
