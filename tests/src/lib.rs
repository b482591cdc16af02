//! Shared helpers of the cross-crate tests.
//!
//! - [`fixtures`]: the tiny checkpoints under `fixtures/` and what they must answer.
//! - [`surgery`]: breaking a copy of one on purpose.

pub mod fixtures;
pub mod surgery;
