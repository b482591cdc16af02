//! The Mamba-2 mixer's kernels against f64 loops.

mod chunks;
mod conv;
mod decode;
mod halves;
mod scan;
mod states;

#[path = "../common/mod.rs"]
mod common;

#[path = "../emulated/mod.rs"]
mod emulated;
