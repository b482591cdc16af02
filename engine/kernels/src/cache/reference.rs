//! Cache writes in plain tensor operations.

use burn::tensor::{FloatDType, Tensor, s};

use crate::Layout;

/// Writes `[T, kv_heads * head_dim]` into `[num_blocks, block_size, kv_heads, head_dim]`, one run
/// of positions inside a block at a time.
pub(crate) fn write(mut pool: Tensor<4>, new: Tensor<2>, layout: &Layout) -> Tensor<4> {
    let [_, block_size, kv_heads, head_dim] = pool.dims();
    let dtype = pool.dtype();
    let new = new.cast(FloatDType::from(dtype));
    for row in &layout.rows {
        let mut position = row.start;
        while position < row.context_len() {
            let (block, offset) = (
                row.blocks[position / block_size] as usize,
                position % block_size,
            );
            let len = (block_size - offset).min(row.context_len() - position);
            let token = row.tokens.start + position - row.start;
            let values = new
                .clone()
                .narrow(0, token, len)
                .reshape([1, len, kv_heads, head_dim]);
            pool = pool.slice_assign(s![block..=block, offset..offset + len, .., ..], values);
            position += len;
        }
    }
    pool
}

/// Zeroes one entry of the first dimension.
pub(crate) fn zero_row<const D: usize>(pool: Tensor<D>, row: usize) -> Tensor<D> {
    let zeros = pool.clone().narrow(0, row, 1).zeros_like();
    assign_row(pool, row, zeros)
}

/// Copies one entry of the first dimension over another.
pub(crate) fn copy_row<const D: usize>(pool: Tensor<D>, from: usize, to: usize) -> Tensor<D> {
    let values = pool.clone().narrow(0, from, 1).mul_scalar(1.0);
    assign_row(pool, to, values)
}

fn assign_row<const D: usize>(pool: Tensor<D>, row: usize, values: Tensor<D>) -> Tensor<D> {
    pool.slice_assign(s![row..=row], values)
}
