//! The embedding in plain tensor operations.

use burn::tensor::{FloatDType, Int, Tensor, TensorData};

/// Selects the rows, then widens them.
pub(crate) fn embedding(table: &Tensor<2>, ids: &[u32]) -> Tensor<2> {
    let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    let len = ids.len();
    let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [len]), &table.device());
    table.clone().select(0, ids).cast(FloatDType::F32)
}
