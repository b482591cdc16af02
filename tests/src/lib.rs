//! Shared helpers of the cross-crate tests.
//!
//! - [`answers`]: requests to a running engine, and what it answers, to the bit.
//! - [`driver`]: plans by hand, for a runner without a scheduler.
//! - [`fixtures`]: the tiny checkpoints under `fixtures/` and what they must answer.
//! - [`front_end`]: the real front end over one of the pretend models.
//! - [`memory`]: the least that an engine takes.
//! - [`prompted`]: a pretend model whose answer depends on the prompt (`bin/scripted_server`).
//! - [`scripted`]: a pretend model that says what a test tells it to.
//! - [`surgery`]: breaking a copy of one on purpose.
//! - [`tiny`]: configurations of models whose weights are invented.

pub mod answers;
pub mod driver;
pub mod fixtures;
pub mod front_end;
pub mod memory;
pub mod prompted;
pub mod scripted;
pub mod surgery;
pub mod tiny;
