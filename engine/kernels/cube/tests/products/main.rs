//! Products with weight matrices against f64 loops over the same codes.

#[path = "../common/mod.rs"]
mod common;
mod embedding;
mod experts;
mod linear;
mod weights;
