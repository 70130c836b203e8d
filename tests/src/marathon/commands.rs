//! Carries out what is told to happen once.

use std::sync::Arc;

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use super::{
    core::Core,
    faults::Command,
    instance::{Instance, Order},
    leader,
};

/// `Err`: what was named is not there.
pub(crate) async fn run(core: &Arc<Core>, command: Command) -> Result<(), String> {
    match command {
        Command::FailOver(how) => leader::fail_over(core, how).await,
        Command::CutStreams => core.bus.cut_all(),
        Command::SignalTask { id, signal } => order(core, &id, Order::Signal(signal))?,
        Command::LoseTask { id } => order(core, &id, Order::Lose)?,
        Command::VanishTask { id } => order(core, &id, Order::Vanish)?,
        Command::ReturnTask { id } => return_task(core, &id)?,
        Command::FreezeAgent { host, frozen } => freeze(core, &host, frozen)?,
        Command::Node { index, up } => {
            let nodes = core.endpoints.get().map(Vec::as_slice).unwrap_or_default();
            let node = nodes.get(index).ok_or_else(|| format!("there is no endpoint {index}"))?;
            if up { node.up(&core.stop) } else { node.down() }
        }
    }
    Ok(())
}

fn order(core: &Core, id: &str, order: Order) -> Result<(), String> {
    let instance = core.read(|world| world.find(id).cloned()).ok_or_else(|| format!("there is no task {id}"))?;
    if matches!(order, Order::Lose) {
        // Kept beyond its expunging, so that it can return.
        core.lost.lock().expect("nobody panics with it").insert(instance.id.clone(), instance.clone());
    }
    send(&instance, order)
}

fn send(instance: &Instance, order: Order) -> Result<(), String> {
    let sent = instance.orders.as_ref().is_some_and(|orders| orders.send(order).is_ok());
    if sent { Ok(()) } else { Err(format!("{} is no process (any more)", instance.id)) }
}

fn return_task(core: &Core, id: &str) -> Result<(), String> {
    let id = id.split("._app").next().unwrap_or(id);
    let lost = core.lost.lock().expect("nobody panics with it").remove(id);
    send(&*lost.ok_or_else(|| format!("{id} is not lost"))?, Order::Return)
}

/// All tasks of an agent stop where they are; Mesos would take more than a minute to notice.
fn freeze(core: &Core, host: &str, frozen: bool) -> Result<(), String> {
    if !core.agents.iter().any(|agent| *agent.host == *host) {
        return Err(format!("there is no agent {host}"));
    }
    let signal = if frozen { Signal::SIGSTOP } else { Signal::SIGCONT };
    core.read(|world| {
        let tasks = world.apps.values().flat_map(|app| app.instances.values()).filter(|i| i.host() == host);
        for pid in tasks.filter_map(|i| i.pid) {
            // One that has just ended is no error.
            let _ = killpg(Pid::from_raw(pid), signal);
        }
    });
    Ok(())
}
