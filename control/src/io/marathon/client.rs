//! HTTP towards a cluster of Marathons of which one leads: which address is asked, and who is given the password.
//!
//! One address is current for the stream and for all requests. A cluster where the events come from one and the lists
//! are asked of another that is dead looks healthy and is stale.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, bail};
use bytes::Bytes;
use reqwest::{Certificate, Response, StatusCode, Url, header, redirect};
use tokio::time;

use super::config::MarathonConfig;

/// How long the first byte of the event stream's answer may take.
const OPEN: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(3);
/// Standby to leader, and once more if the leader has just changed.
const REDIRECTS: usize = 3;

#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    bases: Vec<Url>,
    login: Option<(String, String)>,
    timeout: Duration,
    current: Mutex<Current>,
}

#[derive(Clone, Debug, Default)]
struct Current {
    base: usize,
    /// Whoever a base redirected to.
    leader: Option<Url>,
}

impl Client {
    pub(super) fn new(config: &MarathonConfig) -> anyhow::Result<Self> {
        let bases = config.bases()?;
        // Somebody else in the process may have chosen already: that is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT);
        if let Some(path) = &config.ca_file {
            let doing = || format!("reading ca_file under [marathon], {}", path.display());
            let pem = std::fs::read(path).with_context(doing)?;
            http = http.tls_certs_only(Certificate::from_pem_bundle(&pem).with_context(doing)?);
        } else if bases.iter().all(|base| base.scheme() == "http") {
            // Without TLS the system's certificates are not needed, and a bare container has none.
            http = http.tls_certs_only([]);
        }
        let http = http.build().context("making the HTTP client for Marathon")?;
        let login = config.user.clone().map(|user| {
            let password = config.password.as_ref().map(|secret| secret.0.clone()).unwrap_or_default();
            (user, password)
        });
        Ok(Self { http, bases, login, timeout: config.timeout(), current: Mutex::default() })
    }

    /// Opens the event stream at the current address.
    pub(super) async fn open_stream(&self, path: &str) -> anyhow::Result<Response> {
        let asked = self.address();
        let opening = self.ask(&asked, path, Some("text/event-stream"), None);
        let response = time::timeout(OPEN, opening).await.with_context(|| format!("{asked} does not answer"))??;
        check(&response, &asked)?;
        let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !kind.starts_with("text/event-stream") {
            bail!("{asked} answered /v2/events with {kind:?}, not an event stream: is it Marathon's API?");
        }
        Ok(response)
    }

    /// Gets a path, from every address in turn. `None`: Marathon says that it does not exist.
    pub(super) async fn get(&self, path: &str) -> anyhow::Result<Option<Bytes>> {
        let mut last = None;
        for _ in 0..=self.bases.len() {
            let asked = self.address();
            match self.get_from(&asked, path).await {
                Ok(found) => return Ok(found),
                Err(error) => {
                    self.give_up_on(&asked);
                    last = Some(error);
                }
            }
        }
        Err(last.expect("the loop runs at least once"))
    }

    async fn get_from(&self, asked: &Url, path: &str) -> anyhow::Result<Option<Bytes>> {
        let response = self.ask(asked, path, None, Some(self.timeout)).await?;
        let missing = response.status() == StatusCode::NOT_FOUND;
        if !missing {
            check(&response, asked)?;
        }
        let body = response.bytes().await.with_context(|| format!("reading {path} from {asked}"))?;
        // A 404 of Marathon's own says so in JSON; one of something in between says nothing about apps.
        if missing && !body.windows(14).any(|window| window == b"does not exist") {
            bail!("{asked} answered 404 to {path}, and not in Marathon's words: is it Marathon's API?");
        }
        Ok((!missing).then_some(body))
    }

    /// One request, with redirects followed by hand: the login goes to whom we know, and to whom they name.
    async fn ask(
        &self,
        asked: &Url,
        path: &str,
        accept: Option<&str>,
        timeout: Option<Duration>,
    ) -> anyhow::Result<Response> {
        let prefix = asked.path().trim_end_matches('/');
        let mut url = asked.join(&format!("{prefix}{path}")).with_context(|| format!("asking {asked} for {path}"))?;
        for _ in 0..REDIRECTS {
            let mut request = self.http.get(url.clone()).header(header::ACCEPT, accept.unwrap_or("application/json"));
            if let Some(timeout) = timeout {
                request = request.timeout(timeout);
            }
            // Never in clear to a leader when the cluster is reached by TLS.
            let in_clear = asked.scheme() == "https" && url.scheme() != "https";
            if let Some((user, password)) = self.login.as_ref().filter(|_| !in_clear) {
                request = request.basic_auth(user, Some(password));
            }
            let response =
                request.send().await.map_err(reqwest::Error::without_url).with_context(|| format!("asking {url}"))?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let location = response.headers().get(header::LOCATION).and_then(|location| location.to_str().ok());
            let location = location.with_context(|| format!("{url} redirects to nowhere"))?;
            url = url.join(location).with_context(|| format!("{url} redirects to {location:?}"))?;
            let mut leader = url.clone();
            leader.set_path(asked.path());
            leader.set_query(None);
            leader.set_fragment(None);
            self.current().leader = Some(leader);
        }
        bail!("{asked} redirects more than {REDIRECTS} times: do the Marathons agree who leads?")
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        // Nothing that holds it can panic half way.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn address(&self) -> Url {
        let current = self.current();
        current.leader.clone().unwrap_or_else(|| self.bases[current.base].clone())
    }

    /// The current address does not serve: whoever asks next tries another.
    pub(super) fn give_up(&self) {
        self.give_up_on(&self.address());
    }

    /// The same, unless somebody else has already moved on.
    fn give_up_on(&self, asked: &Url) {
        let mut current = self.current();
        if let Some(leader) = &current.leader {
            // The asked one may be the base that named a leader which then failed.
            if leader == asked || self.bases[current.base] == *asked {
                current.leader = None;
                current.base = (current.base + 1) % self.bases.len();
            }
        } else if self.bases[current.base] == *asked {
            current.base = (current.base + 1) % self.bases.len();
        }
    }
}

fn check(response: &Response, asked: &Url) -> anyhow::Result<()> {
    match response.status() {
        status if status.is_success() => Ok(()),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            bail!("{asked} refuses the login ({}): set user and password under [marathon]", response.status())
        }
        status => bail!("{asked} answered {status}"),
    }
}
