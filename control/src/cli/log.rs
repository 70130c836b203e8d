//! Where the log goes: readable on a terminal, JSON where a machine reads it.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// Pingora logs each client that breaks off, and hickory each query; our own lines say what matters of it.
const SAID: &str = "info,pingora_core=off,pingora_proxy=off,hickory_server=warn";

/// `TIDEGATE_LOG` chooses what is said, as `RUST_LOG` does elsewhere (`debug`, `warn,tidegate_l4=debug`).
pub(super) fn start(json: bool) {
    let filter = EnvFilter::try_from_env("TIDEGATE_LOG").unwrap_or_else(|_| EnvFilter::new(SAID));
    let registry = tracing_subscriber::registry().with(filter);
    let log = fmt::layer().with_writer(std::io::stderr);
    // A second start in one process (tests) keeps the first.
    let _ = if json {
        registry.with(log.json().flatten_event(true)).try_init()
    } else {
        registry.with(log.with_ansi(std::io::stderr().is_terminal()).with_target(false)).try_init()
    };
}
