//! What is done to a request, one file per step, in the order of its life.

pub(crate) mod route;

pub(crate) mod choose;

pub(crate) mod forward;

pub(crate) mod answer;

use std::{net::SocketAddr, sync::Arc};

pub(crate) use answer::Answer;

use crate::{
    listen::Site,
    traffic::{PoolVisit, UpstreamVisit},
};

/// What is known of a request so far.
#[derive(Debug, Default)]
pub(crate) struct Life {
    /// The listener that it came in by.
    pub(crate) site: Option<Arc<Site>>,
    /// The upstream that has it now. Before the pool, so that it is given back first: a pool without requests has no busy upstream.
    pub(crate) upstream: Option<UpstreamVisit>,
    /// The pool that its route leads to.
    pub(crate) pool: Option<PoolVisit>,
    /// Who did not take the connection.
    pub(crate) tried: Vec<SocketAddr>,
    /// How the last of them failed, in words.
    pub(crate) last_failure: Option<String>,
    /// The request was begun this many times.
    pub(crate) attempts: usize,
    /// What to tell the client when no upstream will answer.
    pub(crate) answer: Option<Answer>,
}
