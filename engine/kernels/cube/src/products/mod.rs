//! Products with weight matrices.

mod embedding;

pub use embedding::embedding;
