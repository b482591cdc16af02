//! Cache writes on the CPU, in place.

use burn::tensor::{DType, Element, Tensor};
use bytemuck::Pod;
use half::{bf16, f16};

use crate::flex::{self, OnFlex};
use crate::profile::{self, Work};
use crate::{KvTensor, Layout, e4m3};

/// Writes `[T, kv_heads * head_dim]` into `[num_blocks, block_size, kv_heads, head_dim]`.
pub(super) fn write(pool: KvTensor, new: Tensor<2>, layout: &Layout) -> KvTensor {
    let [num_tokens, width] = new.dims();
    let _scope = profile::scope("cache write", [width, 1], || Work {
        bytes: 2 * size_of::<f32>() * num_tokens * width,
        operations: 0,
    });
    let new = flex::owned(new);
    let new = flex::f32s(&new);
    match pool {
        KvTensor::Float(pool) => {
            let mut pool = flex::pool(pool);
            match pool.dtype() {
                DType::F32 => write_rows(pool.storage_mut::<f32>(), new, width, layout, |x| x),
                DType::BF16 => write_rows(
                    pool.storage_mut::<bf16>(),
                    new,
                    width,
                    layout,
                    bf16::from_f32,
                ),
                other => panic!("KV pools of floats are F32 or BF16, not {other:?}"),
            }
            KvTensor::Float(flex::tensor(pool))
        }
        KvTensor::Fp8 { codes, scale } => {
            let mut codes = flex::pool(codes);
            write_rows(codes.storage_mut::<u8>(), new, width, layout, |x| {
                e4m3::encode(x / scale)
            });
            let codes = flex::tensor(codes);
            KvTensor::Fp8 { codes, scale }
        }
    }
}

/// A position's vectors are adjacent in the pool, so each is one run.
fn write_rows<E: Element>(
    pool: &mut [E],
    new: &[f32],
    width: usize,
    layout: &Layout,
    round: impl Fn(f32) -> E,
) {
    let block_size = layout.block_size;
    for row in &layout.rows {
        for (position, token) in (row.start..).zip(row.tokens.clone()) {
            let block = row.blocks[position / block_size] as usize;
            let to = &mut pool[(block * block_size + position % block_size) * width..][..width];
            for (to, &from) in to.iter_mut().zip(&new[token * width..][..width]) {
                *to = round(from);
            }
        }
    }
}

/// Zeroes one entry of the first dimension.
pub(super) fn zero_row<const D: usize>(pool: Tensor<D>, row: usize) -> Tensor<D> {
    let len = row_len(&pool);
    let mut pool = flex::pool(pool);
    match pool.dtype() {
        DType::F32 => pool.storage_mut::<f32>()[row * len..][..len].fill(0.0),
        DType::BF16 => pool.storage_mut::<bf16>()[row * len..][..len].fill(bf16::ZERO),
        DType::F16 => pool.storage_mut::<f16>()[row * len..][..len].fill(f16::ZERO),
        other => panic!("caches are F32, BF16 or F16, not {other:?}"),
    }
    flex::tensor(pool)
}

/// Copies one entry of the first dimension over another.
pub(super) fn copy_row<const D: usize, K: OnFlex>(
    pool: Tensor<D, K>,
    from: usize,
    to: usize,
) -> Tensor<D, K> {
    fn copy<E: Element + Pod>(pool: &mut [E], from: usize, to: usize, len: usize) {
        pool.copy_within(from * len..(from + 1) * len, to * len);
    }
    let len = row_len(&pool);
    let mut pool = flex::pool(pool);
    match pool.dtype() {
        DType::F32 => copy(pool.storage_mut::<f32>(), from, to, len),
        DType::BF16 => copy(pool.storage_mut::<bf16>(), from, to, len),
        DType::F16 => copy(pool.storage_mut::<f16>(), from, to, len),
        DType::U8 => copy(pool.storage_mut::<u8>(), from, to, len),
        other => panic!("caches are F32, BF16, F16 or U8, not {other:?}"),
    }
    flex::tensor(pool)
}

/// Writes rows of `values` over rows of the pool.
pub(super) fn write_rows_of(
    pool: Tensor<2>,
    values: &Tensor<2>,
    moves: &[(usize, usize)],
) -> Tensor<2> {
    let len = row_len(&pool);
    let mut pool = flex::pool(pool);
    let values = flex::view(values);
    let (to, from) = (pool.storage_mut::<f32>(), flex::f32s(&values));
    for (row, place) in moves {
        to[place * len..][..len].copy_from_slice(&from[row * len..][..len]);
    }
    flex::tensor(pool)
}

fn row_len<const D: usize, K: OnFlex>(pool: &Tensor<D, K>) -> usize {
    pool.dims()[1..].iter().product()
}
