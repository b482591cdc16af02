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
//!
//! # How good are the tests?
//!
//! `cargo mutants` (27.1.0) changes kvcache and scheduler one expression at a time. Their own tests,
//! optimisation off because building takes longer than running:
//!
//! ```text
//! cargo mutants --package kvcache --package scheduler --timeout 120 \
//!     --cargo-arg=--config=profile.dev.opt-level=0 \
//!     --cargo-arg=--config=profile.dev.package.kvcache.opt-level=0 \
//!     --cargo-arg=--config=profile.dev.package.scheduler.opt-level=0 -- --lib --tests
//! ```
//!
//! 502 mutants, of which 457 compile: 431 caught, 4 never end, 22 missed (95.2 % killed). Two of the
//! 22 could not be told from the original and their conditions are gone. The functions of all 22 were
//! run again after tests were added, most of them with traces and 300 seeds as well
//! (`NEMOSERVE_SIM_SEEDS=300`, `--test-package kvcache,scheduler,simulation`, `--re FUNCTION`): 66
//! mutants, 62 compile, none missed.

mod checkers;
mod reference;
mod rng;
mod toy_model;
mod trace;
mod workload;
mod world;

pub use reference::{Expected, Poison, expect};
pub use rng::Rng;
pub use toy_model::{Guessing, ToyModel};
pub use trace::play;
pub use workload::{Event, Scenario};
pub use world::{Report, run, run_prepared};
