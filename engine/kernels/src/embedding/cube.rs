//! The lookup on a GPU.

use burn::tensor::Tensor;
use cube_kernels::Buffer;

use crate::TokenIds;
use crate::cube::{filled, plain, view};

/// Rows of the table, widened.
pub(super) fn embedding(table: &Tensor<2>, ids: &TokenIds) -> Tensor<2> {
    let [_, width] = table.dims();
    let table = view(table);
    filled(&table, [ids.as_slice().len(), width], |client, out| {
        let ids = ids
            .device
            .get_or_init(|| Buffer::upload(client, ids.as_slice()));
        cube_kernels::embedding(client, &plain(&table), ids, ids.len(), out);
    })
}
