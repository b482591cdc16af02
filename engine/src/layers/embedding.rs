//! Token ids to vectors, and with tied weights back.

use burn::tensor::Tensor;
use kernels::{Arithmetic, TokenIds};

use crate::model::load::Loader;
use crate::model::weights::Weight;

/// The table, `[V, H]`, as stored.
pub(crate) struct Embedding {
    table: Tensor<2>,
}

impl Embedding {
    pub(crate) fn load(table: &Weight, loader: &mut Loader) -> Self {
        Self {
            table: loader.tensor(table),
        }
    }

    /// Rows of the table as f32, `[T, H]`; not scaled.
    pub(crate) fn forward(&self, ids: &TokenIds) -> Tensor<2> {
        kernels::embedding(&self.table, ids)
    }

    /// Logits `[T, V]` of a model whose head is this table.
    pub(crate) fn logits(&self, arithmetic: Arithmetic, hidden: Tensor<2>) -> Tensor<2> {
        kernels::linear(hidden, &self.table.clone().into(), None, arithmetic)
    }
}
