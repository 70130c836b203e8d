//! `tidegate l4 ...`.

use std::path::PathBuf;

use anyhow::Context;
use clap::Subcommand;

use crate::{
    config::Loaded,
    io::store::{Store, StoreError},
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Takes away the program, its maps (and with them every connection) and the VIPs that layer 4 left on this machine.
    #[command(after_help = "Example, to leave nothing behind:
  systemctl stop tidegate && tidegate l4 remove --config /etc/tidegate.toml")]
    Remove {
        /// The configuration that layer 4 ran with; without it the embedded defaults.
        #[arg(long, short, value_name = "FILE", env = "TIDEGATE_CONFIG")]
        config: Option<PathBuf>,
    },
}

pub(super) async fn main(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Remove { config } => remove(config).await,
    }
}

async fn remove(config: Option<PathBuf>) -> anyhow::Result<()> {
    let config = Loaded::read(config.as_deref())?.config;
    // Whoever runs would put everything back at once. Its store is locked as long as it lives.
    if config.store.path.exists()
        && let Err(error @ StoreError::InUse(_)) = Store::open(&config.store.path)
    {
        return Err(anyhow::Error::from(error).context("layer 4 is not removed while it runs"));
    }
    tidegate_l4::remove(&config.l4).await.context("removing what layer 4 left (it needs root)")?;
    println!("layer 4 has left nothing on this machine");
    Ok(())
}
