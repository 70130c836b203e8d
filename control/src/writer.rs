//! The one writer of what is desired: check, store, loop, in this order and one change at a time.

use std::{sync::Arc, time::Duration};

use tokio::sync::{mpsc, oneshot};

use crate::{
    io::store::{Store, StoreError},
    model::desired::{Change, Desired, Outcome, Pools, Refused},
    view::View,
};

/// How long a delete waits for the planes to have withdrawn the addresses before they may be given to the next ELB.
const WITHDRAW: Duration = Duration::from_secs(2);

/// A new state of the ELBs on its way to the loop, which tells when it is published.
#[derive(Debug)]
pub struct Decree {
    pub desired: Desired,
    pub done: oneshot::Sender<()>,
}

/// Where changes are handed in. Cloning is free.
#[derive(Clone, Debug)]
pub struct Writer(mpsc::Sender<Request>);

#[derive(Debug)]
struct Request {
    change: Change,
    precondition: Precondition,
    allow_missing: bool,
    answer: oneshot::Sender<Result<Written, WriteError>>,
}

/// Takes the changes, one after the other.
#[derive(Debug)]
pub struct Clerk {
    pub current: Desired,
    pub store: Store,
    pub pools: Pools,
    pub view: Arc<View>,
    pub decrees: mpsc::Sender<Decree>,
}

/// What the writer of a change knew of the ELB (If-Match, If-None-Match).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Precondition {
    /// The ELB must be at one of these revisions.
    pub revisions: Option<Vec<u64>>,
    /// The ELB must exist.
    pub exists: bool,
    /// The ELB must not exist.
    pub absent: bool,
}

/// What a change has done.
#[derive(Debug)]
pub struct Written {
    pub outcome: Outcome,
    pub warnings: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("{0}")]
    Precondition(String),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("tidegate is stopping; a change that was stored holds after the next start")]
    Stopping,
}

impl Clerk {
    /// A writer, and the work behind it, which ends when every writer is dropped. A change that has begun is finished
    /// even if whoever asked goes away: the store and the loop must agree.
    pub fn open(mut self) -> (Writer, impl Future<Output = ()> + Send) {
        let (requests, mut inbox) = mpsc::channel::<Request>(64);
        let work = async move {
            while let Some(Request { change, precondition, allow_missing, answer }) = inbox.recv().await {
                // Nobody may be there any more to hear it.
                let _ = answer.send(self.write(change, &precondition, allow_missing).await);
            }
        };
        (Writer(requests), work)
    }

    async fn write(
        &mut self,
        change: Change,
        precondition: &Precondition,
        allow_missing: bool,
    ) -> Result<Written, WriteError> {
        let name = match &change {
            Change::Put { name, .. } | Change::Delete { name } => name,
        };
        precondition.hold(&self.current, name)?;
        let snapshot = self.view.now();
        let mut warnings = Vec::new();
        let observed = snapshot.marathon.snapshot_at.map(|_| &snapshot.state.observed);
        if observed.is_none() && matches!(change, Change::Put { .. }) {
            warnings.push(
                "Marathon has not been reached yet, so nobody knows whether the jobs exist; the ELB is taken as it is"
                    .to_owned(),
            );
        }
        let (next, outcome) = self.current.apply(change, &self.pools, observed, allow_missing)?;
        if outcome == Outcome::Unchanged {
            return Ok(Written { outcome, warnings });
        }
        self.store.commit(self.current.clone(), next.clone()).await?;
        self.current = next.clone();
        let (done, published) = oneshot::channel();
        let decree = Decree { desired: next, done };
        if self.decrees.send(decree).await.is_err() || published.await.is_err() {
            return Err(WriteError::Stopping);
        }
        // The next writer may be given the addresses: they are withdrawn first.
        if outcome == Outcome::Deleted && tokio::time::timeout(WITHDRAW, self.view.applied()).await.is_err() {
            warnings.push("a plane has not applied the change yet: see the status".to_owned());
            tracing::warn!("an ELB is deleted, but a plane has not withdrawn it within {WITHDRAW:?}");
        }
        Ok(Written { outcome, warnings })
    }
}

impl Writer {
    /// Makes a change real, or says why not.
    pub async fn write(
        &self,
        change: Change,
        precondition: Precondition,
        allow_missing: bool,
    ) -> Result<Written, WriteError> {
        let (answer, answered) = oneshot::channel();
        let request = Request { change, precondition, allow_missing, answer };
        self.0.send(request).await.map_err(|_| WriteError::Stopping)?;
        answered.await.map_err(|_| WriteError::Stopping)?
    }
}

impl Precondition {
    fn hold(&self, desired: &Desired, name: &str) -> Result<(), WriteError> {
        let there = desired.elbs.get(name).map(|elb| elb.revision);
        let broken = |text: String| Err(WriteError::Precondition(text));
        match (there, &self.revisions) {
            (Some(now), _) if self.absent => broken(format!("the ELB {name} exists already, at revision {now}")),
            (None, _) if self.exists => broken(format!("there is no ELB {name} any more")),
            (None, Some(_)) => broken(format!("there is no ELB {name} any more")),
            (Some(now), Some(wanted)) if !wanted.contains(&now) => {
                broken(format!("the ELB {name} is at revision {now} now: somebody else has changed it"))
            }
            _ => Ok(()),
        }
    }
}
