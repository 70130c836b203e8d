//! `/v2/apps` and everything below it but the tasks.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use http::{Method, StatusCode, header};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Answer, Call, begun, json_response, ok, set, tasks};
use crate::marathon::{
    definition::{Definition, Object, absolute, parent},
    deploy::{self, Wish},
    error::{ApiError, Detail},
    events,
    json::{self, AppView, Embed},
    world::{App, World},
};

pub(super) async fn route(call: &Call, path: &[&str]) -> Answer {
    let id = |parts: &[&str]| absolute(&parts.join("/"));
    match (call.method.as_str(), path) {
        ("GET", []) => list(call).await,
        ("POST", []) => create(call),
        ("PUT" | "PATCH", []) => update_many(call),
        (_, [app @ .., "tasks"]) if !app.is_empty() => tasks::of_app(call, &id(app)),
        ("DELETE", [app @ .., "tasks", task]) if !app.is_empty() => tasks::delete_one(call, &id(app), task),
        ("GET", [app @ .., "versions"]) if !app.is_empty() => versions(call, &id(app)),
        ("GET", [app @ .., "versions", version]) if !app.is_empty() => one_version(call, &id(app), version),
        ("POST", [app @ .., "restart"]) if !app.is_empty() => restart(call, &id(app)),
        ("GET", app) => show(call, &id(app)),
        ("PUT" | "PATCH", app) => update(call, &id(app)),
        ("DELETE", app) => delete(call, &id(app)),
        _ => Err(ApiError::UnknownUri),
    }
}

/// What to embed: `apps.x` and `app.x` are the same to Marathon.
fn embeds(call: &Call) -> Embed {
    let mut embed = Embed { counts: true, deployments: true, ..Embed::default() };
    for name in call.values("embed") {
        match name.trim_start_matches("apps.").trim_start_matches("app.") {
            "tasks" => embed.tasks = true,
            "readiness" => embed.readiness = true,
            "lastTaskFailure" => embed.last_failure = true,
            "failures" => (embed.tasks, embed.last_failure) = (true, true),
            _ => {}
        }
    }
    embed
}

async fn list(call: &Call) -> Answer {
    let core = call.core.clone();
    let embed = embeds(call);
    let faults = core.faults();
    if faults.empty {
        return ok(&json!({"apps": []}));
    }
    // Only handles are taken under the lock: writing out 100,000 tasks must not hold up what goes on.
    let apps: Vec<(Arc<App>, Vec<String>)> = core.read(|world| {
        let wanted = world.visible().filter(|(_, app)| matches(call, app));
        let none = world.deployments.is_empty();
        wanted.map(|(id, app)| (app.clone(), if none { Vec::new() } else { world.locks([&**id]) })).collect()
    });
    let written = tokio::task::spawn_blocking(move || {
        let view = |(app, deployments): &(Arc<App>, Vec<String>)| {
            serde_json::to_vec(&AppView {
                app,
                embed,
                deployments: deployments.clone(),
                broken: faults.broken_apps.get(&app.definition.id),
            })
            .expect("text, numbers and JSON")
        };
        let mut body = b"{\"apps\":[".to_vec();
        for (n, app) in apps.iter().enumerate() {
            if n > 0 {
                body.push(b',');
            }
            body.extend(view(app));
        }
        body.extend(b"]}");
        body
    });
    let body = written.await.map_err(|e| ApiError::Unavailable(e.to_string()))?;
    Ok((StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// The filters `id`, `cmd` (parts of them, in any case) and `label` (a selector).
fn matches(call: &Call, app: &App) -> bool {
    let contains = |all: &str, part: &str| all.to_lowercase().contains(&part.to_lowercase());
    let definition = &app.definition;
    let cmd = definition.json.get("cmd").and_then(Value::as_str).unwrap_or("");
    call.value("id").is_none_or(|part| contains(&definition.id, part))
        && call.value("cmd").is_none_or(|part| contains(cmd, part))
        && call.value("label").is_none_or(|selector| selector.split(',').all(|s| selects(s.trim(), definition)))
}

/// One term: `key`, `key==value`, `key=value`, `key!=value`, `key in (a, b)` and `key notin (a, b)` (no commas here).
fn selects(term: &str, definition: &Definition) -> bool {
    let label = |key: &str| definition.labels().find(|(k, _)| *k == key.trim()).map(|(_, v)| v);
    let set =
        |text: &str| text.trim().trim_matches(['(', ')']).split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    if let Some((key, value)) = term.split_once("!=") {
        label(key).is_some_and(|v| v != value.trim())
    } else if let Some((key, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        label(key).is_some_and(|v| v == value.trim())
    } else if let Some((key, values)) = term.split_once(" notin ") {
        label(key).is_some_and(|v| !set(values).iter().any(|x| x == v))
    } else if let Some((key, values)) = term.split_once(" in ") {
        label(key).is_some_and(|v| set(values).iter().any(|x| x == v))
    } else {
        label(term).is_some()
    }
}

fn show(call: &Call, id: &str) -> Answer {
    let faults = call.core.faults();
    // A single app always comes with everything but the readiness results.
    let embed = Embed { tasks: true, last_failure: true, ..embeds(call) };
    let view = |world: &World, app: &App| {
        let view = AppView {
            app,
            embed,
            deployments: world.locks([app.definition.id.as_str()]),
            broken: faults.broken_apps.get(&app.definition.id),
        };
        serde_json::value::to_value(view).expect("text, numbers and JSON")
    };
    if id == "/*" || id.ends_with("/*") {
        let group = absolute(id.trim_end_matches('*'));
        return ok(
            &json!({"*": call.core.read(|w| w.apps_below(&group).map(|(_, a)| view(w, a)).collect::<Vec<_>>())}),
        );
    }
    let app = call.core.read(|world| Ok::<_, ApiError>(view(world, world.app(id)?)))?;
    ok(&json!({"app": app}))
}

fn create(call: &Call) -> Answer {
    let put: Object = call.json()?;
    let id = match put.get("id").and_then(Value::as_str) {
        Some(id) => absolute(id),
        None => return Err(vec![Detail { path: "/id".into(), errors: vec!["undefined".into()] }].into()),
    };
    call.core.change(|world| {
        if world.app(&id).is_ok() {
            return Err(ApiError::Conflict(format!("An app with id [{id}] already exists.")));
        }
        if world.group_exists(&id) {
            let text = format!("Groups and Applications may not have the same identifier: {id}");
            return Err(vec![Detail { path: "/id".into(), errors: vec![text] }].into());
        }
        let begun = wish_for(call, world, &id, &put)?;
        let app = world.app(&id)?;
        let embed = Embed { counts: true, deployments: true, tasks: true, ..Embed::default() };
        let view = AppView { app, embed, deployments: vec![begun.id.clone()], broken: None };
        let mut response = json_response(StatusCode::CREATED, &view);
        set(&mut response, super::DEPLOYMENT, &begun.id);
        set(&mut response, header::LOCATION, &format!("/v2/apps{id}"));
        Ok(response)
    })
}

/// Reads what was put, begins the deployment and says `api_post_event`.
fn wish_for(call: &Call, world: &mut World, id: &str, put: &Object) -> Result<deploy::Begun, ApiError> {
    let definition = Definition::parse(id, put, "", &mut || world.service_port())?;
    let wish = Wish::Be(Box::new(definition));
    let begun = deploy::begin(&call.core, world, vec![wish], call.flag("force"), parent(id))?;
    let definition = json::definition(&world.app(id)?.definition);
    call.core.bus.publish(events::api_post(&call.client(), call.uri.path(), definition));
    Ok(begun)
}

/// The whole definition that an update asks for.
fn updated(world: &World, id: &str, put: &Object, partial: bool) -> Result<Object, ApiError> {
    let Ok(app) = world.app(id) else { return Ok(put.clone()) };
    if let Some(version) = put.get("version").and_then(Value::as_str) {
        let old = app.versions.get(version);
        return old
            .map(|d| d.as_put())
            .ok_or(ApiError::NotFound(format!("App '{id}' does not exist in version {version}")));
    }
    let mut whole = if partial { app.definition.as_put() } else { Object::new() };
    // A client that asks for another network has no use for the ports of the old one.
    for (new, old) in [("ports", "portDefinitions"), ("uris", "fetch")] {
        if put.contains_key(new) && !put.contains_key(old) {
            whole.remove(old);
        }
    }
    if put.contains_key("cmd") || put.contains_key("args") {
        whole.remove("cmd");
        whole.remove("args");
    }
    whole.extend(put.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), v.clone())));
    Ok(whole)
}

fn update(call: &Call, id: &str) -> Answer {
    let put: Object = call.json()?;
    if let Some(other) = put.get("id").and_then(Value::as_str).map(absolute).filter(|other| other != id) {
        return Err(ApiError::BadRequest(format!("The id {other} in the body is not the {id} of the path")));
    }
    call.core.change(|world| {
        let exists = world.app(id).is_ok();
        if !exists && call.method == Method::PATCH {
            return Err(ApiError::NoApp(id.to_owned()));
        }
        let whole = updated(world, id, &put, call.flag_or("partialUpdate", true))?;
        let done = wish_for(call, world, id, &whole)?;
        begun(if exists { StatusCode::OK } else { StatusCode::CREATED }, &done)
    })
}

/// Many apps in one deployment; no `api_post_event` tells of it.
fn update_many(call: &Call) -> Answer {
    let puts: Vec<Object> = call.json()?;
    call.core.change(|world| {
        let mut wishes = Vec::new();
        for put in puts {
            let Some(id) = put.get("id").and_then(Value::as_str).map(absolute) else {
                return Err(ApiError::BadRequest("each app needs an id".into()));
            };
            if world.app(&id).is_err() && call.method == Method::PATCH {
                return Err(ApiError::NoApp(id));
            }
            let whole = updated(world, &id, &put, call.flag_or("partialUpdate", true))?;
            wishes.push(Wish::Be(Box::new(Definition::parse(&id, &whole, "", &mut || world.service_port())?)));
        }
        begun(StatusCode::OK, &deploy::begin(&call.core, world, wishes, call.flag("force"), "/")?)
    })
}

fn delete(call: &Call, id: &str) -> Answer {
    call.core.change(|world| {
        world.app(id)?;
        let wishes = vec![Wish::Go(id.to_owned())];
        begun(StatusCode::OK, &deploy::begin(&call.core, world, wishes, call.flag("force"), parent(id))?)
    })
}

fn restart(call: &Call, id: &str) -> Answer {
    call.core.change(|world| {
        let definition = (*world.app(id)?.definition).clone();
        let wishes = vec![Wish::Restart(Box::new(definition))];
        begun(StatusCode::OK, &deploy::begin(&call.core, world, wishes, call.flag("force"), parent(id))?)
    })
}

fn versions(call: &Call, id: &str) -> Answer {
    #[derive(Serialize)]
    struct Versions {
        versions: Vec<String>,
    }
    // The newest first.
    let versions = call.core.read(|w| Ok::<_, ApiError>(w.app(id)?.versions.keys().rev().cloned().collect()))?;
    ok(&Versions { versions })
}

fn one_version(call: &Call, id: &str, version: &str) -> Answer {
    let found = call.core.read(|w| Ok::<_, ApiError>(w.app(id)?.versions.get(version).map(|d| json::definition(d))))?;
    let missing = || ApiError::NotFound(format!("App '{id}' does not exist in version {version}"));
    let json: Response = json_response(StatusCode::OK, &found.ok_or_else(missing)?);
    Ok(json)
}
