//! `tidegate run`: the only place of control that spawns.
//!
//! Order matters twice. At start the store is read and compiled before a plane runs, so that no plane is ever given an
//! empty Input in place of the one that it still serves. At the end the planes stop before the store is closed.

use std::{collections::BTreeSet, future::Future, path::PathBuf, pin::Pin, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{self, Access, Api},
    conduct::{self, Conductor, Outputs},
    config::{Config, Role},
    cycle::{Event, Policy, State},
    io::{
        self, marathon,
        store::{Memory, Store},
    },
    model::desired::Desired,
    view::{self, View},
    writer::Clerk,
};

/// Events on their way to the loop. Marathon's task waits when it is full, and reads its socket meanwhile.
const EVENTS: usize = 1024;
const FETCHES: usize = 1024;
/// On top of layer 7's grace: how long a stop may take.
const STOP: Duration = Duration::from_secs(5);

/// Something that ends by itself only when it fails.
type Work = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// Runs until SIGTERM, SIGINT or the failure of a part.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let signals = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
            _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
        }
        signals.cancel();
    });
    run_until(config, stop).await
}

/// Runs until `stop` or the failure of a part.
pub async fn run_until(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let started = io::now();
    raise_open_files();
    let store = open(&config.store.path).await?;
    let kept = { store.clone() }.load()?;
    kept.problems.iter().for_each(|problem| tracing::error!("{problem}"));
    tracing::info!(
        elbs = kept.desired.elbs.len(),
        revision = kept.desired.revision,
        apps = kept.apps.len(),
        store = %store.path().display(),
        "read the store"
    );

    let mut listeners = Vec::new();
    for address in &config.api.listen {
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!("opening the API at {address}: is another tidegate running? Choose another address by `listen` under [api]")
        })?;
        listeners.push(listener);
    }

    // The loop, and what it knew before.
    let policy = Policy {
        domain: config.domain.as_str().into(),
        ttl: config.ttl_s,
        distrust: Duration::from_secs(config.distrust_s),
        resync: Duration::from_secs(config.marathon.resync_s),
    };
    let state = State::new(policy, started);
    let (reporters, reports) = view::reports();
    let roles: Vec<Role> = config.roles.iter().copied().collect();
    let view = Arc::new(View::new(state.clone(), reports, roles, started));
    let memory = Arc::new(Memory::default());
    let (event_in, events) = mpsc::channel(EVENTS);
    let (fetch_in, fetches) = mpsc::channel(FETCHES);
    let (decree_in, decrees) = mpsc::channel(1);
    let (errand_in, errands) = mpsc::unbounded_channel();
    let (l4_in, l4) = watch::channel(Arc::default());
    let (l7_in, l7) = watch::channel(Arc::default());
    let (dns_in, dns) = watch::channel(Arc::default());
    let outputs = Outputs { l4: l4_in, l7: l7_in, dns: dns_in };
    let mut conductor = Conductor::new(state, view.clone(), outputs, memory.clone(), fetch_in, errand_in);
    conductor.event(Event::Desired(kept.desired.clone()));
    conductor.event(Event::Remembered(kept.apps));
    conductor.show();

    // What ends only by failing.
    let mut parts: JoinSet<anyhow::Result<()>> = JoinSet::new();
    let planes_stop = stop.child_token();
    for (role, plane) in planes(&config, l4, l7, dns, reporters, &planes_stop) {
        parts.spawn(async move { part(role, plane.await) });
    }
    let (access, source) = source(&config, kept.desired, &store, &view, decree_in, &stop);
    if let Some(source) = source {
        parts.spawn(source);
    }
    let api = Api { view: view.clone(), access, stop: stop.clone() };
    for listener in listeners {
        tracing::info!("the API is at http://{}", listener.local_addr().context("asking for the API's own address")?);
        let (router, stop) = (api::router(api.clone()), stop.clone());
        parts.spawn(async move {
            axum::serve(listener, router)
                .with_graceful_shutdown(stop.cancelled_owned())
                .await
                .context("serving the API")
        });
    }
    drop(api);

    // What is told to stop, last first.
    let mut helpers = JoinSet::new();
    helpers.spawn(conductor.run(events, decrees, stop.clone()));
    helpers.spawn(marathon::follow(config.marathon.clone(), event_in.clone(), fetches, stop.clone()));
    helpers.spawn(conduct::errands(errands, event_in));
    helpers.spawn({
        let (view, stop) = (view.clone(), stop.clone());
        async move { view.heed_layer4(stop).await }
    });
    let memory_stop = CancellationToken::new();
    let keeper = {
        let (view, stop) = (view.clone(), memory_stop.clone());
        tokio::spawn(async move {
            memory.keep(&store, stop, |text| view.trouble("store-failing", text, io::now())).await;
        })
    };

    let failure = watch_over(&mut parts, &stop).await;
    stop.cancel();
    let longest = STOP + Duration::from_millis(config.l7.grace_ms);
    let wound_down = async {
        while parts.join_next().await.is_some() {}
        while helpers.join_next().await.is_some() {}
    };
    if tokio::time::timeout(longest, wound_down).await.is_err() {
        tracing::warn!("something has not stopped within {longest:?} and is left behind");
    }
    memory_stop.cancel();
    keeper.await.context("writing the last of what Marathon said")?;
    match failure {
        Some(error) => Err(error),
        None => {
            tracing::info!("stopped");
            Ok(())
        }
    }
}

/// Every connection of layer 7 is two open files, and the usual soft limit is 1024.
fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    match raised {
        Ok(files) => tracing::debug!(files, "open files are limited by the hard limit alone"),
        Err(error) => tracing::warn!("the limit of open files stays as it is: {error}"),
    }
}

async fn open(path: &std::path::Path) -> anyhow::Result<Store> {
    let path: PathBuf = path.to_owned();
    Ok(tokio::task::spawn_blocking(move || Store::open(&path)).await.context("opening the store")??)
}

/// Until `stop`, or the first part that ends before.
async fn watch_over(parts: &mut JoinSet<anyhow::Result<()>>, stop: &CancellationToken) -> Option<anyhow::Error> {
    loop {
        tokio::select! {
            () = stop.cancelled() => return None,
            ended = parts.join_next() => match ended {
                Some(Ok(Ok(()))) if stop.is_cancelled() => return None,
                Some(Ok(Ok(()))) => return Some(anyhow::anyhow!("a part of tidegate has ended by itself")),
                Some(Ok(Err(error))) => return Some(error),
                Some(Err(panic)) => return Some(anyhow::anyhow!("a part of tidegate has panicked: {panic}")),
                None => stop.cancelled().await,
            },
        }
    }
}

/// The planes of the roles, not yet running.
fn planes(
    config: &Config,
    l4: watch::Receiver<Arc<tidegate_l4::Input>>,
    l7: watch::Receiver<Arc<tidegate_l7::Input>>,
    dns: watch::Receiver<Arc<tidegate_dns::Input>>,
    reporters: view::Reporters,
    stop: &CancellationToken,
) -> Vec<(Role, Work)> {
    let mut planes: Vec<(Role, Work)> = Vec::new();
    let has = |role: Role| config.roles.contains(&role);
    if has(Role::L4) {
        planes.push((Role::L4, Box::pin(tidegate_l4::run(config.l4.clone(), l4, reporters.l4, stop.clone()))));
    }
    if has(Role::L7) {
        planes.push((Role::L7, Box::pin(tidegate_l7::run(config.l7.clone(), l7, reporters.l7, stop.clone()))));
    }
    if has(Role::Dns) {
        planes.push((Role::Dns, Box::pin(tidegate_dns::run(config.dns.clone(), dns, reporters.dns, stop.clone()))));
    }
    planes
}

/// A plane's end in words that say what to do.
fn part(role: Role, ended: anyhow::Result<()>) -> anyhow::Result<()> {
    let advice = match role {
        Role::L4 => "it needs root and a kernel with BPF; to run without layer 4: --roles l7,dns,control",
        Role::L7 => "to run without layer 7: --roles l4,dns,control",
        Role::Dns => "`listen` under [dns] chooses another port; to run without it: --roles l4,l7,control",
        Role::Control => "",
    };
    ended.with_context(|| format!("the plane {role} cannot run ({advice})"))
}

/// Where the ELBs come from: the operators by the writer, or another node.
fn source(
    config: &Config,
    desired: Desired,
    store: &Store,
    view: &Arc<View>,
    decrees: mpsc::Sender<crate::writer::Decree>,
    stop: &CancellationToken,
) -> (Access, Option<Work>) {
    match &config.api.follow {
        Some(node) => {
            let (node, store, view, stop) = (node.clone(), store.clone(), view.clone(), stop.clone());
            let pull = io::follow::follow(node.clone(), desired, store, view, decrees, stop);
            (Access::Follows(node), Some(Box::pin(pull)))
        }
        None => {
            let pools = config.vips.clone();
            let clerk = Clerk { current: desired, store: store.clone(), pools, view: view.clone(), decrees };
            let (writer, work) = clerk.open();
            let work = async move {
                work.await;
                Ok(())
            };
            (Access::Write(writer), Some(Box::pin(work)))
        }
    }
}

/// The configuration with the roles of the command line, if it can run; what is odd goes to the log.
pub fn ready(loaded: crate::config::Loaded, roles: Option<BTreeSet<Role>>) -> anyhow::Result<Config> {
    let mut loaded = loaded;
    if let Some(roles) = roles {
        loaded.config.roles = roles;
    }
    let findings = crate::config::check(&loaded.config, &crate::config::Machine::here());
    let (fatal, odd): (Vec<_>, Vec<_>) = findings.into_iter().partition(|finding| finding.fatal);
    for finding in odd {
        tracing::warn!("{} ({}): {}", finding.key, loaded.place_of(finding.key), finding.text);
    }
    if !fatal.is_empty() {
        let lines: Vec<String> =
            fatal.iter().map(|f| format!("{}: {}: {}", loaded.place_of(f.key), f.key, f.text)).collect();
        bail!("the configuration cannot run:\n  {}", lines.join("\n  "));
    }
    Ok(loaded.config)
}
