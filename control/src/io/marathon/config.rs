//! How Marathon is reached.

use std::{fmt, path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use reqwest::Url;
use serde::{Deserialize, Serialize};

/// The `[marathon]` table of the configuration file.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct MarathonConfig {
    /// Every Marathon of the cluster; they are tried in turn, and a standby's redirect to the leader is followed.
    pub urls: Vec<String>,
    /// HTTP basic authentication. Sent to these urls and to the leader that they name, to nobody else.
    pub user: Option<String>,
    #[serde(skip_serializing)]
    pub password: Option<Secret>,
    /// Certificates (PEM) to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// How often the full list is read although no event asks for it.
    pub resync_s: u64,
    /// How long one request may take.
    pub timeout_s: u64,
    /// How long the event stream may be silent before it is taken for dead (Marathon sends a blank line every 10 s).
    pub silence_s: u64,
}

/// A word that no log and no dump shows.
#[derive(Clone, Deserialize, Eq, PartialEq)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl Default for MarathonConfig {
    fn default() -> Self {
        Self {
            urls: vec!["http://127.0.0.1:8080".to_owned()],
            user: None,
            password: None,
            ca_file: None,
            resync_s: 30,
            timeout_s: 30,
            silence_s: 25,
        }
    }
}

impl MarathonConfig {
    /// Says what is wrong with it, if something is.
    pub fn check(&self) -> anyhow::Result<()> {
        self.bases()?;
        super::Client::new(self).map(|_| ())
    }

    pub(super) fn bases(&self) -> anyhow::Result<Vec<Url>> {
        if self.urls.is_empty() {
            bail!("urls under [marathon] is empty: list at least one, such as \"http://10.0.0.2:8080\"");
        }
        for (name, value) in [("resync_s", self.resync_s), ("timeout_s", self.timeout_s), ("silence_s", self.silence_s)]
        {
            if value == 0 {
                bail!("{name} under [marathon] is 0: use at least 1");
            }
        }
        self.urls.iter().map(|url| base(url)).collect()
    }

    pub(super) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_s)
    }

    pub(super) fn silence(&self) -> Duration {
        Duration::from_secs(self.silence_s)
    }
}

fn base(url: &str) -> anyhow::Result<Url> {
    let parsed = Url::parse(url)
        .with_context(|| format!("{url:?} in urls under [marathon] is not a URL: write http://host:8080"))?;
    if !matches!(parsed.scheme(), "http" | "https") || parsed.host_str().is_none() {
        bail!("{url:?} in urls under [marathon] is not an HTTP URL: write http://host:8080");
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        bail!("urls under [marathon] holds a password: use the keys user and password, which no log shows");
    }
    Ok(parsed)
}
