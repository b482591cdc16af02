//! The family: how to compute.

pub mod config;
mod json;
pub(crate) mod weights;

pub use config::{LayerKind, ModelConfig};
