//! The ELBs of a machine without the role control: pulled from the one that has it, kept for a restart without it.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;

use super::store::Store;
use crate::{
    model::{
        desired::Desired,
        elb::{ElbName, Elbs},
    },
    view::View,
    writer::Decree,
};

/// The control node answers after this long even if nothing has changed.
pub const LONG_POLL: Duration = Duration::from_secs(25);
/// Pauses after a failure: from the first to the second, doubling.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
const UNREACHABLE: &str = "control-unreachable";

/// The body of `GET /v1/desired`.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub struct DesiredBody {
    /// The revision of the newest change.
    pub revision: u64,
    /// Every ELB by name.
    pub elbs: Elbs,
}

impl From<&Desired> for DesiredBody {
    fn from(desired: &Desired) -> Self {
        let elbs = desired.elbs.iter().map(|(name, elb)| (name.clone(), (**elb).clone())).collect();
        Self { revision: desired.revision, elbs }
    }
}

impl From<DesiredBody> for Desired {
    fn from(body: DesiredBody) -> Self {
        let elbs = body.elbs.into_iter().map(|(name, elb): (ElbName, _)| (name, Arc::new(elb))).collect();
        Self { elbs, revision: body.revision }
    }
}

/// Pulls until `stop`. `current` is what the store held.
pub async fn follow(
    url: String,
    mut current: Desired,
    store: Store,
    view: Arc<View>,
    decrees: mpsc::Sender<Decree>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let client = super::http_client(&url)
        .timeout(LONG_POLL + Duration::from_secs(10))
        .build()
        .context("making an HTTP client")?;
    let mut pause = BACKOFF.0;
    // The first question is answered at once, so that a reachable control node is known to be one.
    let mut asked = None;
    loop {
        let pulled = tokio::select! {
            pulled = pull(&client, &url, asked) => pulled,
            () = stop.cancelled() => return Ok(()),
        };
        let taken = match pulled {
            Ok(next) => take(&mut current, next, &store, &decrees).await,
            Err(error) => Err(error),
        };
        match taken {
            Ok(()) => {
                view.trouble(UNREACHABLE, None, super::now());
                asked = Some(current.revision);
                pause = BACKOFF.0;
            }
            Err(error) => {
                let text = format!(
                    "following {url}: {error:#}; the ELBs stay as they were at revision {} (asked again every few \
                     seconds); see that the machine there runs tidegate with the role control",
                    current.revision
                );
                view.trouble(UNREACHABLE, Some(text), super::now());
                asked = None;
                let _ = tokio::time::timeout(pause, stop.cancelled()).await;
                pause = (pause * 2).min(BACKOFF.1);
            }
        }
    }
}

async fn pull(client: &reqwest::Client, url: &str, since: Option<u64>) -> anyhow::Result<Desired> {
    let since = since.map_or(String::new(), |since| format!("?since={since}"));
    let answer = client.get(format!("{}/v1/desired{since}", url.trim_end_matches('/'))).send().await;
    let answer = answer.map_err(reqwest::Error::without_url)?;
    if !answer.status().is_success() {
        bail!("it answered {}", answer.status());
    }
    let body: DesiredBody = answer.json().await.context("reading its answer")?;
    Ok(body.into())
}

/// A revision never goes back: a control node that has lost its store must not take every ELB away.
async fn take(
    current: &mut Desired,
    next: Desired,
    store: &Store,
    decrees: &mpsc::Sender<Decree>,
) -> anyhow::Result<()> {
    if next.revision < current.revision {
        bail!(
            "it is at revision {}, behind the {} that was taken from it before, so it has lost changes and is not \
             believed; if that is meant, stop this tidegate and remove its store {}",
            next.revision,
            current.revision,
            store.path().display()
        );
    }
    if next == *current {
        return Ok(());
    }
    store.commit(current.clone(), next.clone()).await?;
    tracing::info!(revision = next.revision, elbs = next.elbs.len(), "took the ELBs of the control node");
    *current = next.clone();
    let (done, published) = oneshot::channel();
    if decrees.send(Decree { desired: next, done }).await.is_ok() {
        // An error means that the loop has stopped, which ends this task as well.
        let _ = published.await;
    }
    Ok(())
}
