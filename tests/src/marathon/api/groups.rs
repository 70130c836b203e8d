//! `/v2/groups`: apps in a tree. A group is put with all that is in it.

use std::collections::BTreeSet;

use http::StatusCode;
use serde_json::{Map, Value, json};

use super::{Answer, Call, begun, ok};
use crate::marathon::{
    definition::{Definition, Object, absolute, parent},
    deploy::{self, Wish},
    error::{ApiError, Detail},
    json::{self, AppView, Embed},
    world::{World, is_below},
};

pub(super) fn route(call: &Call, path: &[&str]) -> Answer {
    let id = |parts: &[&str]| absolute(&parts.join("/"));
    match (call.method.as_str(), path) {
        ("GET", [group @ .., "versions"]) => {
            exists(call, &id(group))?;
            ok(&[call.core.read(|w| w.version.clone())])
        }
        ("GET", [group @ .., "apps"]) => {
            let group = id(group);
            ok(&call
                .core
                .read(|w| w.apps_below(&group).map(|(_, a)| json::definition(&a.definition)).collect::<Vec<_>>()))
        }
        ("GET", group) => {
            exists(call, &id(group))?;
            let empty = call.core.faults().empty;
            let embed = Embed {
                tasks: call.values("embed").any(|e| e == "group.apps.tasks"),
                counts: call.values("embed").any(|e| e == "group.apps.counts"),
                deployments: call.values("embed").any(|e| e == "group.apps.deployments"),
                ..Embed::default()
            };
            ok(&call.core.read(|world| tree(world, &id(group), embed, empty)))
        }
        ("POST", group) => {
            let put: Object = call.json()?;
            let Some(name) = put.get("id").and_then(Value::as_str) else {
                return Err(vec![Detail { path: "/id".into(), errors: vec!["undefined".into()] }].into());
            };
            let whole = resolve(&id(group), name);
            let taken = call.core.read(|w| w.app(&whole).is_ok() || w.group_exists(&whole) && whole != "/");
            if taken {
                return Err(ApiError::Conflict(format!(
                    "Group {whole} is already created. Use PUT to change this group."
                )));
            }
            put_group(call, &whole, &put, StatusCode::CREATED)
        }
        ("PUT" | "PATCH", group) => {
            let status = match call.core.read(|w| w.group_exists(&id(group))) {
                true => StatusCode::OK,
                false => StatusCode::CREATED,
            };
            put_group(call, &id(group), &call.json()?, status)
        }
        ("DELETE", group) => {
            let group = id(group);
            exists(call, &group)?;
            call.core.change(|world| {
                let wishes = world.apps_below(&group).map(|(id, _)| Wish::Go(id.to_string())).collect();
                let done = deploy::begin(&call.core, world, wishes, call.flag("force"), parent(&group))?;
                world.groups.retain(|g| *g != group && !is_below(g, &group));
                begun(StatusCode::OK, &done)
            })
        }
        _ => Err(ApiError::UnknownUri),
    }
}

fn exists(call: &Call, id: &str) -> Result<(), ApiError> {
    match call.core.read(|w| w.group_exists(id)) {
        true => Ok(()),
        false => Err(ApiError::NotFound(format!("Group '{id}' does not exist"))),
    }
}

fn tree(world: &World, id: &str, embed: Embed, empty: bool) -> Value {
    let own = world.apps_below(id).filter(|(app, _)| parent(app) == id && !empty);
    let apps: Vec<Value> = own
        .map(|(app, state)| {
            let deployments = world.locks([&**app]);
            let view = AppView { app: state, embed, deployments, broken: None };
            serde_json::to_value(view).expect("text, numbers and JSON")
        })
        .collect();
    let groups: Vec<Value> = match empty {
        true => Vec::new(),
        false => world.groups_in(id).iter().map(|g| tree(world, g, embed, empty)).collect(),
    };
    json!({"id": id, "apps": apps, "groups": groups, "pods": [], "dependencies": [], "version": world.version})
}

/// An id in a group: absolute as it is, or relative to the group.
fn resolve(group: &str, id: &str) -> String {
    if id.starts_with('/') { absolute(id) } else { absolute(&format!("{group}/{id}")) }
}

/// The group directly in `group` that is, or holds, the group `below`.
fn child_towards<'a>(group: &str, below: &'a str) -> Option<&'a str> {
    if !is_below(below, group) {
        return None;
    }
    let start = group.trim_end_matches('/').len() + 1;
    Some(below[start..].find('/').map_or(below, |at| &below[..start + at]))
}

/// What a put group says, flattened.
#[derive(Default)]
struct Flat {
    groups: BTreeSet<String>,
    apps: Vec<(String, Map<String, Value>)>,
    /// Groups whose list of apps (or of groups) was given: what is not in it goes.
    lists_apps: BTreeSet<String>,
    lists_groups: BTreeSet<String>,
}

fn flatten(id: &str, put: &Object, flat: &mut Flat) -> Result<(), ApiError> {
    let wrong = |key: &str| -> ApiError {
        vec![Detail { path: format!("/{key}"), errors: vec!["error.expected.jsarray".into()] }].into()
    };
    flat.groups.insert(id.to_owned());
    for key in ["apps", "groups"] {
        let Some(list) = put.get(key).filter(|l| !l.is_null()) else { continue };
        let lists = if key == "apps" { &mut flat.lists_apps } else { &mut flat.lists_groups };
        lists.insert(id.to_owned());
        for (n, entry) in list.as_array().ok_or_else(|| wrong(key))?.iter().enumerate() {
            let entry = entry.as_object().ok_or_else(|| wrong(key))?;
            let Some(name) = entry.get("id").and_then(Value::as_str) else {
                return Err(vec![Detail { path: format!("/{key}({n})/id"), errors: vec!["undefined".into()] }].into());
            };
            let name = resolve(id, name);
            match key {
                "apps" => flat.apps.push((name, entry.clone())),
                _ => flatten(&name, entry, flat)?,
            }
        }
    }
    Ok(())
}

fn put_group(call: &Call, id: &str, put: &Object, status: StatusCode) -> Answer {
    call.core.change(|world| {
        let mut wishes = Vec::new();
        let mut flat = Flat::default();
        if let Some(factor) = put.get("scaleBy").and_then(Value::as_f64) {
            for (_, app) in world.apps_below(id) {
                let mut definition = (*app.definition).clone();
                definition.instances = (f64::from(definition.instances) * factor).ceil() as u32;
                wishes.push(Wish::Be(Box::new(definition)));
            }
        } else {
            flatten(id, put, &mut flat)?;
            let stays = |app: &str| flat.apps.iter().any(|(id, _)| id == app);
            let gone = |app: &str| {
                let in_list = flat.lists_apps.contains(parent(app));
                // In a group that the new list of groups leaves out.
                let left_out = |g: &String| child_towards(g, parent(app)).is_some_and(|c| !flat.groups.contains(c));
                let in_group = flat.lists_groups.iter().any(left_out);
                !stays(app) && (in_list || in_group)
            };
            wishes.extend(world.apps_below(id).filter(|(app, _)| gone(app)).map(|(app, _)| Wish::Go(app.to_string())));
            for (app, put) in &flat.apps {
                wishes.push(Wish::Be(Box::new(Definition::parse(app, put, "", &mut || world.service_port())?)));
            }
        }
        let done = deploy::begin(&call.core, world, wishes, call.flag("force"), id)?;
        world.groups.extend(flat.groups);
        begun(status, &done)
    })
}
