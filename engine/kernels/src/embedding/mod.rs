//! Token ids to vectors.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub(crate) mod reference;

use burn::tensor::Tensor;

use crate::TokenIds;
use crate::route::route;

/// Rows of `table` (`[V, H]`, any float) as F32 `[T, H]`. Ids below `V` are the caller's promise,
/// checked by an assertion.
pub fn embedding(table: &Tensor<2>, ids: &TokenIds) -> Tensor<2> {
    let [vocab_size, _] = table.dims();
    assert!(
        ids.as_slice().iter().all(|&id| (id as usize) < vocab_size),
        "token id beyond the vocabulary of {vocab_size}"
    );
    route!(
        table,
        cpu: cpu::embedding(table, ids.as_slice()),
        cube: cube::embedding(table, ids),
        reference: reference::embedding(table, ids.as_slice()),
    )
}
