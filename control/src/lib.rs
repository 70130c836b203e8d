//! The one room that knows what an ELB, an app or Marathon is.
//!
//! ```text
//! Marathon ─► io/marathon ─┐                         ┌─► l4::Input
//!                          ├─ Event ─► cycle::step ──┼─► l7::Input   (compile/*)
//! operators ─► api ────────┘              │          └─► dns::Input
//!                 ▲                       ▼
//!                 └────── View ◄── Effects: publish, fetch, probe, remember, alarm
//! ```
//!
//! Pure: `model`, `compile`, `cycle`, `lately` (no clock, socket, file or dice; `now` is an argument). Everything else is I/O and
//! decides nothing. Start reading at [`cycle::step`].

pub mod api;
pub mod cli;
pub mod compile;
pub mod conduct;
pub mod config;
pub mod cycle;
pub mod io;
pub mod lately;
pub mod model;
pub mod run;
pub mod view;
pub mod writer;
