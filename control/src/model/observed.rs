//! What Marathon says, held so that a lie or a silence of the source takes nothing away.

use std::sync::Arc;

use imbl::OrdMap;

use super::app::{App, AppId};

/// The apps as last believed. Cloning is free.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Observed {
    pub apps: OrdMap<AppId, Arc<App>>,
}
