//! Cache writes in plain tensor operations.

use burn::tensor::kind::Numeric;
use burn::tensor::{DType, FloatDType, Int, IntDType, Tensor, TensorData, s};

use crate::{KvTensor, Layout, e4m3};

/// Writes `[T, kv_heads * head_dim]` into `[num_blocks, block_size, kv_heads, head_dim]`.
pub(crate) fn write(pool: KvTensor, new: Tensor<2>, layout: &Layout) -> KvTensor {
    match pool {
        KvTensor::Float(pool) => {
            let new = new.cast(FloatDType::from(pool.dtype()));
            KvTensor::Float(write_rows(pool, &new, layout))
        }
        KvTensor::Fp8 { codes, scale } => {
            let new = encode(new.div_scalar(scale));
            let codes = write_rows(codes, &new, layout);
            KvTensor::Fp8 { codes, scale }
        }
    }
}

/// One run of positions inside a block at a time.
fn write_rows<K: Numeric>(
    mut pool: Tensor<4, K>,
    new: &Tensor<2, K>,
    layout: &Layout,
) -> Tensor<4, K> {
    let [_, block_size, kv_heads, head_dim] = pool.dims();
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

/// The nearest E4M3 codes, U8: a code is the number of middles between neighbours that a number
/// passes. The sign of zero is lost.
fn encode(x: Tensor<2>) -> Tensor<2, Int> {
    let device = x.device();
    let size = x.clone().abs();
    // A number on the middle goes to the even neighbour, which is above it behind an odd code.
    let passed = |parity: usize| {
        let middles: Vec<f32> = (0..0x7e)
            .skip(parity)
            .step_by(2)
            .map(|code| f32::midpoint(e4m3::decode(code), e4m3::decode(code + 1)))
            .collect();
        let len = middles.len();
        let middles = Tensor::<1>::from_data(TensorData::new(middles, [len]), &device);
        let [rows, columns] = size.dims();
        let size = size
            .clone()
            .reshape([rows * columns, 1])
            .expand([rows * columns, len]);
        let middles = middles.reshape([1, len]).expand([rows * columns, len]);
        let passed = if parity == 0 {
            size.greater(middles)
        } else {
            size.greater_equal(middles)
        };
        passed.int().sum_dim(1).reshape([rows, columns])
    };
    let codes = (passed(0) + passed(1)).mask_fill(x.clone().is_nan(), 0x7f);
    let sign = x.lower_elem(0.0).int().mul_scalar(0x80);
    (codes + sign).cast(IntDType::from(DType::U8))
}

/// Zeroes one entry of the first dimension.
pub(crate) fn zero_row<const D: usize>(pool: Tensor<D>, row: usize) -> Tensor<D> {
    let zeros = pool.clone().narrow(0, row, 1).zeros_like();
    assign_row(pool, row, zeros)
}

/// Copies one entry of the first dimension over another.
pub(crate) fn copy_row<const D: usize, K: Numeric>(
    pool: Tensor<D, K>,
    from: usize,
    to: usize,
) -> Tensor<D, K> {
    let values = pool.clone().narrow(0, from, 1).mul_scalar(1);
    assign_row(pool, to, values)
}

/// Writes rows of `values` over rows of the pool.
pub(crate) fn write_rows_of(
    pool: Tensor<2>,
    values: &Tensor<2>,
    moves: &[(usize, usize)],
) -> Tensor<2> {
    moves.iter().fold(pool, |pool, &(from, to)| {
        assign_row(pool, to, values.clone().narrow(0, from, 1))
    })
}

fn assign_row<const D: usize, K: Numeric>(
    pool: Tensor<D, K>,
    row: usize,
    values: Tensor<D, K>,
) -> Tensor<D, K> {
    pool.slice_assign(s![row..=row], values)
}
