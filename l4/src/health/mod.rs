//! Health.
pub mod judge;
mod standing;
pub use standing::Passive;
