//! Products with weight matrices.

mod embedding;
mod experts;
mod group;
mod linear;
mod skinny;

pub use embedding::embedding;
pub use experts::{MAX_EXPERT_TOKENS, experts};
pub use linear::linear;
