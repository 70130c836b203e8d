//! STAND-IN until the real one is merged.
use crate::cycle::{Event, Fetch};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MarathonConfig {
    pub urls: Vec<String>,
}
pub async fn follow(_: MarathonConfig, _: mpsc::Sender<Event>, _: mpsc::Receiver<Fetch>, stop: CancellationToken) {
    stop.cancelled().await
}
