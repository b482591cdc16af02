//! Scheduler and caches against a model of pretend memory, seed by seed.
//!
//! | File | Holds |
//! |---|---|
//! | `rng` | the only source of chance |
//! | `toy_model` | [`ToyModel`]: a runner whose memory remembers what was written to it |
//! | `reference` | what a choice must say, computed alone and in endless memory |
//! | `workload` | what a seed draws: limits, scarcity, requests, endings |
//! | `world` | [`run`]: turns the crank, plays the clients |
//! | `checkers` | what must hold of every plan and of all news |
//! | `trace` | script in, schedule out, for `traces/*.txt` |
//!
//! The toy model reads context only through the plan. It asserts that the blocks of a row and the
//! state in its slot tell the same story, and derives the next token from that story: an early free,
//! a wrong table, a missed restore change a token or fail at once, without GPU, model or tokio.

mod checkers;
mod reference;
mod rng;
mod toy_model;
mod trace;
mod workload;
mod world;

pub use reference::{Expected, Poison, expect};
pub use rng::Rng;
pub use toy_model::ToyModel;
pub use trace::play;
pub use workload::{Event, Scenario};
pub use world::{Report, run};
