//! The family: how to compute.

pub mod config;
mod dummy;
pub mod family;
pub(crate) mod json;
pub(crate) mod load;
pub(crate) mod nemotron_h;
pub(crate) mod readahead;
pub(crate) mod shard;
pub(crate) mod weights;

pub use config::{LayerKind, ModelConfig};
