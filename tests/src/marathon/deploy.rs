//! Deployments: how a wish becomes tasks. [`begin`] takes the wish at once or refuses it, [`carry_out`] works on it.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use futures_util::future::join_all;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    core::Core,
    definition::Definition,
    error::ApiError,
    events, health,
    instance::{Condition, Instance},
    json, life,
    world::{App, World},
};

#[derive(Clone, Debug)]
pub(crate) struct Deployment {
    pub id: String,
    pub version: String,
    pub steps: Vec<Vec<Action>>,
    /// From 1, as the API counts.
    pub current: usize,
    pub affected: Vec<String>,
    /// What a rollback goes back to; `None`: there was no such app.
    pub original: BTreeMap<String, Option<Arc<Definition>>>,
    pub cancel: CancellationToken,
}

#[derive(Clone, Debug)]
pub(crate) struct Action {
    pub kind: ActionKind,
    pub app: String,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ActionKind {
    Start,
    Scale,
    Restart,
    Stop,
}

/// One app's part of a wish.
#[derive(Clone, Debug)]
pub(crate) enum Wish {
    /// The app shall be like this; its version is set by [`begin`].
    Be(Box<Definition>),
    /// New tasks, though nothing changes.
    Restart(Box<Definition>),
    Go(String),
    /// These instances, and the app gets smaller by as many.
    Without(String, Vec<Arc<str>>),
}

/// What the API answers to a wish that was taken.
#[derive(Clone, Debug)]
pub struct Begun {
    pub id: String,
    pub version: String,
}

impl ActionKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            ActionKind::Start => "StartApplication",
            ActionKind::Scale => "ScaleApplication",
            ActionKind::Restart => "RestartApplication",
            ActionKind::Stop => "StopApplication",
        }
    }
}

impl Wish {
    fn app(&self) -> &str {
        match self {
            Wish::Be(definition) | Wish::Restart(definition) => &definition.id,
            Wish::Go(app) | Wish::Without(app, _) => app,
        }
    }
}

/// Takes a wish: changes the definitions now and starts a deployment, or refuses all of it.
pub(crate) fn begin(
    core: &Arc<Core>,
    world: &mut World,
    wishes: Vec<Wish>,
    force: bool,
    group: &str,
) -> Result<Begun, ApiError> {
    let locks = world.locks(wishes.iter().map(Wish::app));
    if !locks.is_empty() && !force {
        return Err(ApiError::Locked(locks));
    }
    let most = core.settings.max_running_deployments;
    if world.deployments.len() >= most {
        return Err(ApiError::Forbidden(format!(
            "Max number ({most}) of running deployments is achieved. Wait for existing deployments to complete or cancel one using force=true parameter."
        )));
    }
    for id in &locks {
        cancel(core, world, id);
    }
    let version = world.new_version();
    let mut original = BTreeMap::new();
    let mut actions = Vec::new();
    for wish in wishes {
        let app = wish.app().to_owned();
        let before = world.app(&app).ok().map(|a| a.definition.clone());
        actions.extend(apply(core, world, wish, &version).into_iter().map(|kind| Action { kind, app: app.clone() }));
        original.insert(app, before);
    }
    let of = |kinds: &[ActionKind]| actions.iter().filter(|a| kinds.contains(&a.kind)).cloned().collect::<Vec<_>>();
    let steps: Vec<Vec<Action>> =
        [of(&[ActionKind::Stop]), of(&[ActionKind::Start]), of(&[ActionKind::Scale, ActionKind::Restart])]
            .into_iter()
            .filter(|step| !step.is_empty())
            .collect();
    let affected: BTreeSet<String> = actions.iter().map(|a| a.app.clone()).collect();
    let deployment = Deployment {
        id: super::instance::uuid(),
        version: version.clone(),
        steps,
        current: 1,
        affected: affected.into_iter().collect(),
        original,
        cancel: core.stop.child_token(),
    };
    core.bus.publish(events::group_change_success(group, &version));
    let begun = Begun { id: deployment.id.clone(), version };
    world.deployments.push(deployment.clone());
    core.spawn(carry_out(core.clone(), deployment));
    Ok(begun)
}

/// Changes the app in the world and says what is left to do.
fn apply(core: &Arc<Core>, world: &mut World, wish: Wish, version: &str) -> Vec<ActionKind> {
    match wish {
        Wish::Go(id) => {
            let Some(app) = world.app_mut(&id) else { return Vec::new() };
            app.gone = true;
            for _ in &app.definition.health {
                core.bus.publish(events::remove_health_check(&id));
            }
            vec![ActionKind::Stop]
        }
        Wish::Without(id, instances) => {
            let Some(app) = world.app_mut(&id) else { return Vec::new() };
            // Counting what still counts makes a repeated request harmless.
            let victims: Vec<Arc<Instance>> =
                instances.iter().filter_map(|i| app.instances.get(i)).filter(|i| i.counts()).cloned().collect();
            let left = app.definition.instances.saturating_sub(victims.len() as u32);
            let smaller = Definition { instances: left, version: version.to_owned(), ..(*app.definition).clone() };
            replace(app, smaller, version, false);
            for victim in victims {
                life::stop(core, world, &victim);
            }
            vec![ActionKind::Scale]
        }
        Wish::Restart(definition) => {
            let Some(app) = world.app_mut(&definition.id) else { return Vec::new() };
            replace(app, Definition { version: version.to_owned(), ..*definition }, version, true);
            vec![ActionKind::Restart]
        }
        Wish::Be(definition) => {
            let definition = Definition { version: version.to_owned(), ..*definition };
            world.keep_service_ports(&definition);
            let id: Arc<str> = definition.id.as_str().into();
            match world.apps.get_mut(&id).map(Arc::make_mut) {
                Some(app) if !app.gone => {
                    let restart = app.definition.needs_restart(&definition);
                    let scale = app.definition.instances != definition.instances;
                    if restart || scale {
                        replace(app, definition, version, restart);
                    }
                    match (restart, scale) {
                        (true, _) => {
                            world.delays.remove(&id);
                            vec![ActionKind::Restart]
                        }
                        (false, true) => vec![ActionKind::Scale],
                        (false, false) => Vec::new(),
                    }
                }
                // Also one whose deletion was overtaken by force: its old tasks are killed by the scaling below.
                _ => {
                    for check in &definition.health {
                        core.bus.publish(events::add_health_check(&definition, check));
                    }
                    let definition = Arc::new(definition);
                    let app = App {
                        versions: BTreeMap::from([(version.to_owned(), definition.clone())]),
                        definition,
                        instances: BTreeMap::new(),
                        scaled_at: version.to_owned(),
                        configured_at: version.to_owned(),
                        gone: false,
                        last_failure: None,
                        synthetic: false,
                    };
                    let old = world.apps.insert(id.clone(), Arc::new(app));
                    if let (Some(old), Some(app)) = (old, world.app_mut(&id)) {
                        app.instances = old.instances.clone();
                    }
                    vec![ActionKind::Start, ActionKind::Scale]
                }
            }
        }
    }
}

fn replace(app: &mut App, definition: Definition, version: &str, configured: bool) {
    app.scaled_at = version.to_owned();
    if configured {
        app.configured_at = version.to_owned();
    }
    app.definition = Arc::new(definition);
    app.versions.insert(version.to_owned(), app.definition.clone());
}

/// Ends a deployment where it stands. What it has done stays.
pub(crate) fn cancel(core: &Arc<Core>, world: &mut World, id: &str) -> Option<Deployment> {
    let at = world.deployments.iter().position(|d| d.id == id)?;
    let deployment = world.deployments.remove(at);
    deployment.cancel.cancel();
    core.bus.publish(events::deployment_end("deployment_failed", &deployment.id, json::plan(&deployment)));
    forget_readiness(world, &deployment);
    Some(deployment)
}

/// The wishes that undo a deployment.
pub(crate) fn rollback(deployment: &Deployment) -> Vec<Wish> {
    let undo = |(app, before): (&String, &Option<Arc<Definition>>)| match before {
        Some(definition) => Wish::Be(Box::new((**definition).clone())),
        None => Wish::Go(app.clone()),
    };
    deployment.original.iter().map(undo).collect()
}

async fn carry_out(core: Arc<Core>, deployment: Deployment) {
    let work = async {
        for (n, step) in deployment.steps.iter().enumerate() {
            core.change(|world| {
                if let Some(d) = world.deployments.iter_mut().find(|d| d.id == deployment.id) {
                    d.current = n + 1;
                }
            });
            let say = |kind: &str| events::deployment(kind, json::plan(&deployment), json::step(&deployment, n));
            core.bus.publish(say("deployment_info"));
            join_all(step.iter().map(|action| act(&core, action))).await;
            core.bus.publish(say("deployment_step_success"));
        }
    };
    tokio::select! {
        () = deployment.cancel.cancelled() => return,
        () = work => {}
    }
    core.change(|world| {
        // A cancellation may have come between the work's end and now.
        let before = world.deployments.len();
        world.deployments.retain(|d| d.id != deployment.id);
        if world.deployments.len() == before {
            return;
        }
        forget_readiness(world, &deployment);
        core.bus.publish(events::deployment_end("deployment_success", &deployment.id, json::plan(&deployment)));
        for app in &deployment.affected {
            life::settle(&core, world, app);
        }
    });
}

/// Readiness results are seen only while a deployment runs.
fn forget_readiness(world: &mut World, deployment: &Deployment) {
    for app in &deployment.affected {
        for instance in world.app_mut(app).into_iter().flat_map(|a| a.instances.values_mut()) {
            if !instance.readiness.is_empty() {
                Arc::make_mut(instance).readiness.clear();
            }
        }
    }
}

async fn act(core: &Arc<Core>, action: &Action) {
    match action.kind {
        ActionKind::Start => {}
        ActionKind::Stop => stop_app(core, &action.app).await,
        ActionKind::Scale => scale(core, &action.app).await,
        ActionKind::Restart => restart(core, &action.app).await,
    }
}

async fn stop_app(core: &Arc<Core>, id: &str) {
    until(core, |world| {
        let Some(app) = world.apps.get(id).cloned() else { return true };
        for instance in app.instances.values() {
            life::stop(core, world, instance);
        }
        let empty = world.apps.get(id).is_none_or(|app| app.instances.is_empty());
        if empty {
            world.apps.remove(id);
            world.delays.remove(id);
            world.free_service_ports(&app.definition);
            core.bus.publish(events::app_terminated(id));
        }
        empty
    })
    .await;
}

async fn scale(core: &Arc<Core>, id: &str) {
    let old: HashSet<Arc<str>> =
        core.read(|w| w.apps.get(id).map(|a| a.instances.keys().cloned().collect()).unwrap_or_default());
    let mut readiness = Readiness::default();
    until(core, |world| {
        let Some(app) = world.apps.get(id).filter(|a| !a.synthetic).cloned() else { return true };
        let want = app.definition.instances as usize;
        let have = app.counting().count();
        for victim in app.victims(have.saturating_sub(want)) {
            life::stop(core, world, &victim);
        }
        life::launch(core, world, &app.definition, want.saturating_sub(have));
        let Some(app) = world.apps.get(id) else { return true };
        let new: Vec<&Arc<Instance>> = app.counting().filter(|i| !old.contains(&i.id)).collect();
        new.iter().for_each(|i| readiness.watch(core, i));
        let leaving = app.instances.values().any(|i| i.doomed);
        app.counting().count() == want && !leaving && new.iter().all(|i| i.serves() && i.is_ready())
    })
    .await;
}

/// A rolling upgrade: never fewer than the strategy's minimum serve, never more than its maximum run.
async fn restart(core: &Arc<Core>, id: &str) {
    let Some(app) = core.read(|world| world.apps.get(id).filter(|a| !a.synthetic).cloned()) else { return };
    let target = app.definition.clone();
    let mut queue: Vec<Arc<Instance>> =
        app.counting().filter(|i| i.definition.version != target.version).cloned().collect();
    queue.sort_by_key(|i| std::cmp::Reverse(i.staged_at));
    let (kill_now, most) = strategy(&target, app.counting().count());
    let old: HashSet<Arc<str>> = queue.iter().map(|i| i.id.clone()).collect();
    let mut succeeded: HashSet<Arc<str>> = HashSet::new();
    let mut readiness = Readiness::default();
    let mut due = kill_now;
    until(core, |world| {
        let Some(app) = world.apps.get(id).cloned() else { return true };
        let new: Vec<Arc<Instance>> =
            app.counting().filter(|i| i.definition.version == target.version).cloned().collect();
        for instance in &new {
            readiness.watch(core, instance);
            // Each new one that serves lets one old one go.
            if instance.serves() && instance.is_ready() && succeeded.insert(instance.id.clone()) {
                due += 1;
            }
        }
        while due > 0
            && let Some(victim) = queue.pop()
        {
            due -= 1;
            life::stop(core, world, &victim);
        }
        let old_left = world.apps.get(id).map_or(0, |a| a.instances.keys().filter(|i| old.contains(*i)).count());
        let room = most.saturating_sub(old_left + new.len());
        let missing = (target.instances as usize).saturating_sub(new.len());
        life::launch(core, world, &target, missing.min(room));
        missing == 0 && old_left == 0 && new.iter().all(|i| i.serves() && i.is_ready())
    })
    .await;
}

/// How many old instances go at once, and how many of both kinds may run together.
fn strategy(target: &Definition, running: usize) -> (usize, usize) {
    let wanted = f64::from(target.instances);
    let least = (wanted * target.minimum_health).ceil() as usize;
    let most = (wanted * (1.0 + target.maximum_over)).floor() as usize;
    // Nothing could ever move: one more is allowed for a while.
    let most = if least == most && most <= running { most + 1 } else { most };
    (running.saturating_sub(least), most)
}

/// Runs the readiness checks of new instances, each once.
#[derive(Default)]
struct Readiness {
    watched: HashSet<Arc<str>>,
    checks: JoinSet<()>,
}

impl Readiness {
    fn watch(&mut self, core: &Arc<Core>, instance: &Arc<Instance>) {
        if instance.condition == Condition::Running && self.watched.insert(instance.id.clone()) {
            health::await_readiness(core, instance, &mut self.checks);
        }
    }
}

/// Tries a step again after every change of the world until it says that nothing is left to do.
async fn until(core: &Arc<Core>, mut done: impl FnMut(&mut World) -> bool) {
    let mut changes = core.changes();
    // Quietly: two deployments must not wake each other for ever; the lives that a step starts or ends make themselves
    // heard.
    while !core.quietly(&mut done) {
        if changes.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn strategy_keeps_the_minimum_and_can_always_move() {
        for (instances, least, over, running, expect) in [
            (4, 1.0, 1.0, 4, (0, 8)),
            (4, 1.0, 0.0, 4, (0, 5)),
            (4, 0.5, 0.0, 4, (2, 4)),
            (4, 0.5, 0.5, 4, (2, 6)),
            (3, 0.5, 0.0, 3, (1, 3)),
            (2, 1.0, 1.0, 5, (3, 4)),
            (1, 0.0, 0.0, 1, (1, 1)),
        ] {
            let put = json!({"cmd": "x", "instances": instances,
                "upgradeStrategy": {"minimumHealthCapacity": least, "maximumOverCapacity": over}});
            let definition = Definition::parse("/a", put.as_object().unwrap(), "v", &mut || 10_000).unwrap();
            assert_eq!(strategy(&definition, running), expect, "{instances} {least} {over} {running}");
        }
    }
}
