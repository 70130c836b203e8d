//! Marathon, followed: its event stream as it comes, its lists when they are asked for.
//!
//! ```text
//! /v2/events ─► reader (own task) ─► sse ─► event ─► queue ─► Event     never waits for anything but the socket
//! Fetch ─► client (every address in turn) ─► apps ─► Event              a few at a time
//! ```

mod apps;
mod client;
mod config;
mod event;
mod read;
mod sse;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time,
};
use tokio_util::sync::CancellationToken;

use self::{client::Client, event::Told};
pub use self::{
    config::{MarathonConfig, Secret},
    event::DecodeError,
};
pub use crate::cycle::Fetch;
use crate::{
    cycle::{Event, Marathon},
    model::app::AppId,
};

/// Requests at one time.
const AT_ONCE: usize = 8;
/// A consumer that is this far behind has lost the thread: a fresh start and a full list are quicker.
const BACKLOG: usize = 65_536;
/// How long Marathon's own word that the stream is attached may take; some versions never say it.
const ATTACH: Duration = Duration::from_secs(5);
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Follows Marathon until `stop`. What fails is told as an event and tried again.
pub async fn follow(
    config: MarathonConfig,
    events: mpsc::Sender<Event>,
    requests: mpsc::Receiver<Fetch>,
    stop: CancellationToken,
) {
    let client = match Client::new(&config) {
        Ok(client) => Arc::new(client),
        Err(error) => {
            let _ = events.send(Event::Marathon(Marathon::Unreachable(format!("{error:#}")))).await;
            return stop.cancelled().await;
        }
    };
    let (queue, queued) = mpsc::channel(BACKLOG);
    let mut tasks = JoinSet::new();
    tasks.spawn(read_for_ever(client.clone(), config.silence(), queue));
    tasks.spawn(hand_on(queued, events.clone()));
    tasks.spawn(answer(client, requests, events));
    stop.cancelled().await;
    tasks.shutdown().await;
}

/// The queue between the socket and whoever steps: the reader never waits for the cycle.
async fn hand_on(mut queued: mpsc::Receiver<Marathon>, events: mpsc::Sender<Event>) {
    while let Some(told) = queued.recv().await {
        if events.send(Event::Marathon(told)).await.is_err() {
            return;
        }
    }
}

async fn read_for_ever(client: Arc<Client>, silence: Duration, queue: mpsc::Sender<Marathon>) {
    let mut pause = BACKOFF.0;
    loop {
        let attached = time::Instant::now();
        let error = match read_stream(&client, silence, &queue).await {
            Ok(()) => return, // nobody listens any more
            Err(error) => error,
        };
        tracing::debug!("{error:#}");
        client.give_up();
        if queue.send(Marathon::Unreachable(format!("{error:#}"))).await.is_err() {
            return;
        }
        // A leader that is not ready accepts the stream and closes it at once: only one that lived starts afresh.
        if attached.elapsed() > BACKOFF.1 {
            pause = BACKOFF.0;
        }
        time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
        pause = (pause * 2).min(BACKOFF.1);
    }
}

async fn read_stream(client: &Client, silence: Duration, queue: &mpsc::Sender<Marathon>) -> anyhow::Result<()> {
    let mut response = client.open_stream(&event::stream_path()).await?;
    let from = response.url().clone();
    let mut messages = sse::Messages::default();
    let opened = time::Instant::now();
    let mut attached = false;
    loop {
        let patience = if attached { silence } else { ATTACH };
        let chunk = match time::timeout(patience, response.chunk()).await {
            Ok(chunk) => chunk.with_context(|| format!("reading the event stream of {from}"))?,
            Err(_) if !attached => None,
            Err(_) => anyhow::bail!("the event stream of {from} was silent for {} s", silence.as_secs()),
        };
        let Some(chunk) = chunk else {
            if !attached && opened.elapsed() >= ATTACH {
                attached = true;
                if queue.send(Marathon::Attached).await.is_err() {
                    return Ok(());
                }
                continue;
            }
            anyhow::bail!("{from} closed the event stream");
        };
        for message in messages.push(&chunk).with_context(|| format!("reading the event stream of {from}"))? {
            let told = match event::decode(&message.event, &message.data) {
                Ok(Some(Told::Attached)) if attached => continue, // somebody else's
                Ok(Some(Told::Attached)) => {
                    attached = true;
                    Marathon::Attached
                }
                Ok(Some(Told::Stream(event))) => Marathon::Stream(event),
                Ok(None) => continue,
                Err(error) => {
                    // One message that cannot be read may be the one that counts: the full list tells.
                    tracing::warn!("{error}");
                    Marathon::Stream(crate::cycle::StreamEvent::GroupChanged { group: "/".to_owned() })
                }
            };
            match queue.try_send(told) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Closed(_)) => return Ok(()),
                Err(mpsc::error::TrySendError::Full(_)) => anyhow::bail!("{BACKLOG} events wait: starting afresh"),
            }
        }
    }
}

/// Carries out requests, a few at a time.
async fn answer(client: Arc<Client>, mut requests: mpsc::Receiver<Fetch>, events: mpsc::Sender<Event>) {
    let gate = Arc::new(Semaphore::new(AT_ONCE));
    let mut running = JoinSet::new();
    while let Some(fetch) = requests.recv().await {
        while running.try_join_next().is_some() {}
        let Ok(permit) = gate.clone().acquire_owned().await else { return };
        let (client, events) = (client.clone(), events.clone());
        running.spawn(async move {
            let told = match fetch_one(&client, &fetch).await {
                Ok(told) => told,
                Err(error) => Marathon::FetchFailed { fetch, why: format!("{error:#}") },
            };
            drop(permit);
            // Nobody listens only while stopping.
            let _ = events.send(Event::Marathon(told)).await;
        });
    }
}

async fn fetch_one(client: &Client, fetch: &Fetch) -> anyhow::Result<Marathon> {
    let asked_at = super::now();
    match fetch {
        Fetch::All => {
            let body = client
                .get("/v2/apps?embed=apps.tasks&embed=apps.deployments&embed=apps.readiness")
                .await?
                .context("Marathon has no /v2/apps: is [marathon] urls really Marathon's API?")?;
            // A table of 10,000 apps is 18 MB of JSON: not on the runtime's threads.
            let list = tokio::task::spawn_blocking(move || apps::decode_list(&body)).await??;
            Ok(Marathon::Snapshot { apps: list.apps, broken: list.broken, asked_at })
        }
        Fetch::App(id) => {
            let path = format!("/v2/apps{}?embed=app.tasks&embed=app.deployments&embed=app.readiness", encoded(id));
            let id = id.clone();
            Ok(match client.get(&path).await? {
                None => Marathon::App { id, app: None, asked_at },
                Some(body) => match apps::decode_one(&body) {
                    Ok(app) => Marathon::App { id, app: Some(app), asked_at },
                    Err(why) => Marathon::Broken { id, why: why.to_string() },
                },
            })
        }
        Fetch::Definition { app, version } => {
            let path = format!("/v2/apps{}/versions/{version}", encoded(app));
            let body =
                client.get(&path).await?.with_context(|| format!("Marathon has no version {version} of {app}"))?;
            let definition = apps::decode_definition(&body)?;
            Ok(Marathon::Definition { app: app.clone(), version: version.clone(), definition })
        }
    }
}

/// An id as a path: Marathon's ids are path letters already; whatever else came in stays one.
fn encoded(id: &AppId) -> String {
    let mut path = String::with_capacity(id.len());
    for byte in id.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'/' => path.push(char::from(byte)),
            other => path.push_str(&format!("%{other:02X}")),
        }
    }
    path
}
