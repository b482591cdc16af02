//! The Mamba-2 mixer's kernels against f64 loops.

mod conv;
mod scan;
mod states;

#[path = "../common/mod.rs"]
mod common;
