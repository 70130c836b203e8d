//! The configuration file: TOML over the embedded `default.toml`, key by key.

mod check;
mod place;

use std::{
    collections::BTreeSet,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub(crate) use check::base_url;
pub use check::{Finding, Machine, check};
pub use place::Misfit;

use crate::{io::marathon::MarathonConfig, model::desired::Pools};

/// The documentation of every key, and its default.
pub const DEFAULT: &str = include_str!("default.toml");

/// Everything that is read once, at start.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub roles: BTreeSet<Role>,
    /// The zone of every name, without a trailing dot.
    pub domain: String,
    pub ttl_s: u32,
    pub distrust_s: u64,
    pub marathon: MarathonConfig,
    pub api: Api,
    pub store: Store,
    pub vips: Pools,
    pub l4: tidegate_l4::Config,
    pub l7: tidegate_l7::Config,
    pub dns: tidegate_dns::Config,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Api {
    pub listen: Vec<SocketAddr>,
    /// The API of the machine that has the role control; the ELBs are pulled from it.
    pub follow: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    pub path: PathBuf,
}

/// What a machine does.
#[derive(
    Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize, clap::ValueEnum, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    L4,
    L7,
    Dns,
    Control,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::L4 => "l4",
            Self::L7 => "l7",
            Self::Dns => "dns",
            Self::Control => "control",
        })
    }
}

/// A configuration and the file that it came from, so that what is wrong can be pointed at.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    file: Option<File>,
}

#[derive(Clone, Debug)]
struct File {
    path: PathBuf,
    text: String,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("reading the configuration file {}: {source}; name the right one with --config FILE, or leave it out to run on the defaults", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{0}")]
    Misfit(#[from] Misfit),
}

impl Loaded {
    /// The file over the defaults; the defaults alone without one.
    pub fn read(path: Option<&Path>) -> Result<Self, ConfigError> {
        let Some(path) = path else { return Ok(Self { config: merge(toml::Table::new()), file: None }) };
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        Ok(Self::parse(path, text)?)
    }

    /// The text of a file over the defaults. The path is for messages.
    pub fn parse(path: &Path, text: String) -> Result<Self, Misfit> {
        // The first reading judges the file alone, so that errors carry its lines; the second takes the defaults in.
        toml::from_str::<Config>(&text).map_err(|error| Misfit::new(path, &text, &error))?;
        // A table holds no number above i64::MAX, which the first reading takes.
        let table = text.parse().map_err(|error| Misfit::new(path, &text, &error))?;
        Ok(Self { config: merge(table), file: Some(File { path: path.to_owned(), text }) })
    }

    /// Where a key such as `vips.internal` was set: `tidegate.toml:12`, or the default.
    pub fn place_of(&self, key: &str) -> String {
        match &self.file {
            None => "the embedded defaults".to_owned(),
            Some(file) => match place::line_of(&file.text, key) {
                Some(line) => format!("{}:{line}", file.path.display()),
                None => format!("{}, which leaves it at its default", file.path.display()),
            },
        }
    }

    pub fn path(&self) -> Option<&Path> {
        self.file.as_ref().map(|file| file.path.as_path())
    }
}

fn merge(file: toml::Table) -> Config {
    let mut whole: toml::Table = DEFAULT.parse().expect("default.toml is read by a test");
    overlay(&mut whole, file);
    whole
        .try_into()
        .expect("the defaults and the file were each read alone, and a key is in one of them as it was there")
}

fn overlay(below: &mut toml::Table, above: toml::Table) {
    for (key, value) in above {
        match (below.get_mut(&key), value) {
            (Some(toml::Value::Table(below)), toml::Value::Table(above)) => overlay(below, above),
            (_, value) => {
                below.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_defaults_are_a_configuration_without_faults() {
        let loaded = Loaded::read(None).unwrap();
        assert_eq!(loaded.config.roles.len(), 4);
        assert_eq!(loaded.config.api.listen, ["127.0.0.1:7070".parse().unwrap()]);
        let faults: Vec<Finding> =
            check(&loaded.config, &Machine::default()).into_iter().filter(|finding| finding.fatal).collect();
        assert!(faults.is_empty(), "{faults:?}");
    }

    #[test]
    fn a_number_beyond_all_sense_is_refused_with_its_line() {
        let text = "[l7]\ntries = 18446744073709551615\n".to_owned();
        let misfit = Loaded::parse(Path::new("tidegate.toml"), text).unwrap_err();
        assert_eq!(misfit.line, 2, "{misfit}");
    }

    #[test]
    fn the_embedded_defaults_say_every_key_of_the_planes() {
        // A plane that gets a new key with another default than its own documentation would be found here.
        let config = Loaded::read(None).unwrap().config;
        assert_eq!(config.l7, tidegate_l7::Config::default());
        assert_eq!(config.marathon, MarathonConfig::default());
        assert_eq!(config.dns, tidegate_dns::Config::default());
        let l4 = tidegate_l4::Config { local_addresses: config.l4.local_addresses.clone(), ..Default::default() };
        assert_eq!(config.l4, l4);
    }

    #[test]
    fn a_file_replaces_only_the_keys_that_it_names() {
        let text = "ttl_s = 9\n[vips]\nexternal = ['192.0.2.0/24']\n[store]\npath = 'x'\n";
        let config = Loaded::parse(Path::new("a.toml"), text.to_owned()).unwrap().config;
        assert_eq!(config.ttl_s, 9);
        assert_eq!(config.domain, "mesos");
        assert_eq!(config.vips.internal.len(), 2);
        assert_eq!(config.vips.external.len(), 1);
        assert_eq!(config.store.path, Path::new("x"));
    }

    #[test]
    fn each_fault_names_the_file_the_line_the_key_and_the_way_out() {
        let table: &[(&str, &[&str])] = &[
            ("[api]\nlisen = ['127.0.0.1:1']\n", &["a.toml:2", "api.lisen", "did you mean `listen`"]),
            ("[mararthon]\nurls = []\n", &["a.toml:1", "mararthon", "did you mean `marathon`"]),
            ("\nzzzzzz = 1\n", &["a.toml:2", "zzzzzz", "known here:", "domain"]),
            ("ttl_s = 'many'\n", &["a.toml:1", "ttl_s", "expected u32"]),
            ("[l4]\nmode = 'fast'\n", &["a.toml:2", "l4.mode", "fast", "native"]),
            ("[vips]\ninternal = ['10.0.0.0/33']\n", &["a.toml:2", "vips.internal"]),
            ("[dns]\nlisten = ['0.0.0.0']\n", &["a.toml:2", "dns.listen", "socket address"]),
            ("roles = ['l5']\n", &["a.toml:1", "roles", "l5", "did you mean `l4`"]),
            ("ttl_s = \n", &["a.toml:1"]),
            ("ttl_s = 1\nttl_s = 2\n", &["a.toml:2", "ttl_s", "duplicate"]),
            ("[store\n", &["a.toml:1"]),
        ];
        for (text, wants) in table {
            let error = Loaded::parse(Path::new("a.toml"), (*text).to_owned()).unwrap_err().to_string();
            for want in *wants {
                assert!(error.contains(want), "{text:?} gave {error:?}, which does not say {want:?}");
            }
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = Loaded::read(Some(Path::new("/nonexistent/t.toml"))).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/t.toml") && error.contains("--config"), "{error}");
    }
}
