//! Token ids to vectors.

mod cpu;
pub(crate) mod reference;

use burn::tensor::Tensor;

use crate::route;

/// Rows of `table` (`[V, H]`, any float) as F32 `[T, H]`. Ids below `V` are the caller's promise,
/// checked by an assertion.
pub fn embedding(table: &Tensor<2>, ids: &[u32]) -> Tensor<2> {
    let [vocab_size, _] = table.dims();
    assert!(
        ids.iter().all(|&id| (id as usize) < vocab_size),
        "token id beyond the vocabulary of {vocab_size}"
    );
    if route::takes_cpu(table) {
        cpu::embedding(table, ids)
    } else {
        reference::embedding(table, ids)
    }
}
