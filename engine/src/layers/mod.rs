//! One file per kind of layer. Layers call kernels and never ask where they run.

pub(crate) mod attention;
pub(crate) mod draft;
pub(crate) mod embedding;
pub(crate) mod linear;
pub(crate) mod mamba2;
pub(crate) mod mlp;
pub(crate) mod moe;
pub(crate) mod norm;
