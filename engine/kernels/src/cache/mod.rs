//! Writes to the caches: keys and values of a step, and the slot and block moves of a plan.

mod cpu;
pub(crate) mod reference;

use burn::tensor::Tensor;
use burn::tensor::kind::Numeric;

use crate::flex::OnFlex;
use crate::{KvPool, KvTensor, Layout, StatePool, route};

/// Writes this step's keys and values at their rows' positions.
///
/// Shapes: `k`, `v` F32 `[T, kv_heads * head_dim]`, rounded to the pool's format.
pub fn cache_write(pool: KvPool, k: Tensor<2>, v: Tensor<2>, layout: &Layout) -> KvPool {
    let [num_blocks, block_size, kv_heads, head_dim] = pool.keys.dims();
    let [num_tokens, width] = k.dims();
    assert_eq!(width, kv_heads * head_dim, "key width");
    assert_eq!(v.dims(), [num_tokens, width], "value shape");
    assert_eq!(block_size, layout.block_size, "positions per block");
    layout.check_tokens(num_tokens);
    layout.check_blocks(num_blocks);
    if route::takes_cpu(&k) {
        KvPool {
            keys: cpu::write(pool.keys, k, layout),
            values: cpu::write(pool.values, v, layout),
        }
    } else {
        KvPool {
            keys: reference::write(pool.keys, k, layout),
            values: reference::write(pool.values, v, layout),
        }
    }
}

/// Makes a state slot as it was before any token.
pub fn zero_slot(pool: StatePool, slot: usize) -> StatePool {
    StatePool {
        conv: zero_row(pool.conv, slot),
        ssm: zero_row(pool.ssm, slot),
    }
}

/// Copies a state slot over another.
pub fn copy_slot(pool: StatePool, from: usize, to: usize) -> StatePool {
    StatePool {
        conv: copy_row(pool.conv, from, to),
        ssm: copy_row(pool.ssm, from, to),
    }
}

/// Copies a KV block over another.
pub fn copy_block(pool: KvPool, from: usize, to: usize) -> KvPool {
    let copy = |side| match side {
        KvTensor::Float(tensor) => KvTensor::Float(copy_row(tensor, from, to)),
        KvTensor::Fp8 { codes, scale } => KvTensor::Fp8 {
            codes: copy_row(codes, from, to),
            scale,
        },
    };
    KvPool {
        keys: copy(pool.keys),
        values: copy(pool.values),
    }
}

fn zero_row<const D: usize>(pool: Tensor<D>, row: usize) -> Tensor<D> {
    if route::takes_cpu(&pool) {
        cpu::zero_row(pool, row)
    } else {
        reference::zero_row(pool, row)
    }
}

fn copy_row<const D: usize, K: Numeric + OnFlex>(
    pool: Tensor<D, K>,
    from: usize,
    to: usize,
) -> Tensor<D, K> {
    if route::takes_cpu(&pool) {
        cpu::copy_row(pool, from, to)
    } else {
        reference::copy_row(pool, from, to)
    }
}
