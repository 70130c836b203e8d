//! STAND-IN until the real one is merged.
use crate::cycle::Event;
use crate::model::app::*;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MarathonConfig {
    pub urls: Vec<String>,
}
#[derive(Clone, Debug)]
pub enum Fetch {
    All,
    App(AppId),
    Definition { app: AppId, version: Version },
}
pub async fn follow(_: MarathonConfig, _: mpsc::Sender<Event>, _: mpsc::Receiver<Fetch>, stop: CancellationToken) {
    stop.cancelled().await
}
