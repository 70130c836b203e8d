//! A control node in this process: loop, writer, store and API, with no planes and no Marathon.

use std::{path::Path, sync::Arc, time::Duration};

use reqwest::{Method, StatusCode};
use serde_json::Value;
use tempfile::TempDir;
use tidegate_control::{
    api::{self, Access, Api},
    conduct::{Conductor, Outputs},
    config::Role,
    cycle::{Event, Fetch, Marathon, Policy, State},
    io::{
        follow,
        store::{Memory, Store},
    },
    model::{app::App, desired::Pools},
    view::{self, Reporters, View},
    writer::Clerk,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

pub(crate) struct Node {
    pub(crate) url: String,
    pub(crate) view: Arc<View>,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) reporters: Reporters,
    pub(crate) store: Store,
    pub(crate) inputs: watch::Receiver<Arc<tidegate_dns::Input>>,
    client: reqwest::Client,
    _fetches: mpsc::Receiver<Fetch>,
    _directory: Option<TempDir>,
    _stop: DropGuard,
}

impl Node {
    pub(crate) async fn control() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.redb");
        Self::start(&path, Some(directory), None, vec![Role::Control]).await
    }

    pub(crate) async fn with_planes() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.redb");
        Self::start(&path, Some(directory), None, vec![Role::L4, Role::L7, Role::Dns, Role::Control]).await
    }

    pub(crate) async fn follower(of: &str, store: &Path) -> Self {
        Self::start(store, None, Some(of.to_owned()), vec![Role::Dns]).await
    }

    async fn start(path: &Path, directory: Option<TempDir>, follows: Option<String>, roles: Vec<Role>) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let stop = CancellationToken::new();
        let store = Store::open(path).unwrap();
        let kept = store.load().unwrap();
        let (reporters, reports) = view::reports();
        let started = jiff::Timestamp::now();
        let state = State::new(Policy::default(), started);
        let view = Arc::new(View::new(state.clone(), reports, roles, started));
        let (l4, _) = watch::channel(Arc::default());
        let (l7, _) = watch::channel(Arc::default());
        let (dns, inputs) = watch::channel(Arc::default());
        let (fetch_in, fetches) = mpsc::channel(64);
        let (errand_in, _) = mpsc::unbounded_channel();
        let (events, event_out) = mpsc::channel(64);
        let (decree_in, decrees) = mpsc::channel(1);
        let outputs = Outputs { l4, l7, dns };
        let mut conductor =
            Conductor::new(state, view.clone(), outputs, Arc::new(Memory::default()), fetch_in, errand_in);
        conductor.event(Event::Desired(kept.desired.clone()));
        conductor.event(Event::Remembered(kept.apps));
        conductor.show();
        tokio::spawn(conductor.run(event_out, decrees, stop.clone()));
        let access = match follows {
            Some(node) => {
                let pull =
                    follow::follow(node.clone(), kept.desired, store.clone(), view.clone(), decree_in, stop.clone());
                tokio::spawn(pull);
                Access::Follows(node)
            }
            None => {
                let pools = Pools {
                    internal: vec!["10.77.100.0/24".parse().unwrap(), "fd77:0:100::/64".parse().unwrap()],
                    external: vec![],
                };
                let clerk = Clerk {
                    current: kept.desired,
                    store: store.clone(),
                    pools,
                    view: view.clone(),
                    decrees: decree_in,
                };
                let (writer, work) = clerk.open();
                tokio::spawn(work);
                Access::Write(writer)
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = api::router(Api { view: view.clone(), access, stop: stop.clone() });
        let serving = stop.clone();
        tokio::spawn(async move {
            axum::serve(listener, router).with_graceful_shutdown(serving.cancelled_owned()).await.unwrap();
        });
        Self {
            url,
            view,
            events,
            reporters,
            store,
            inputs,
            client: reqwest::Client::new(),
            _fetches: fetches,
            _directory: directory,
            _stop: stop.drop_guard(),
        }
    }

    /// Marathon runs these apps, without instances.
    pub(crate) async fn marathon_runs(&self, ids: &[&str]) {
        let apps = ids.iter().map(|id| app(id)).collect();
        let asked_at = jiff::Timestamp::now();
        self.events.send(Event::Marathon(Marathon::Attached)).await.unwrap();
        self.events.send(Event::Marathon(Marathon::Snapshot { apps, broken: vec![], asked_at })).await.unwrap();
        until("the apps are known", || self.view.now().marathon.snapshot_at.is_some()).await;
    }

    pub(crate) async fn ask(&self, method: &str, path: &str, body: &str) -> (StatusCode, Value) {
        self.ask_with(method, path, body, &[]).await
    }

    /// Every answer of the API but the pages is JSON or text; text is given back as a JSON string.
    pub(crate) async fn ask_with(
        &self,
        method: &str,
        path: &str,
        body: &str,
        headers: &[(&str, &str)],
    ) -> (StatusCode, Value) {
        let method: Method = method.parse().unwrap();
        let mut request = self.client.request(method, format!("{}{path}", self.url)).body(body.to_owned());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.unwrap();
        let status = response.status();
        let text = response.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }
}

pub(crate) fn app(id: &str) -> App {
    App {
        id: id.into(),
        version: "2026-01-01T00:00:00.000Z".into(),
        wanted: 0,
        definitions: Default::default(),
        instances: Default::default(),
        deployments: vec![],
    }
}

/// Polls until the condition holds; panics after ten seconds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("waited in vain until {what}");
}
