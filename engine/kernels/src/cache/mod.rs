//! Writes to the caches: keys and values of a step, and the slot and block moves of a plan.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub(crate) mod reference;

use burn::tensor::kind::Numeric;
use burn::tensor::{Bytes, DType, Device, Tensor, TensorData};

use crate::flex::OnFlex;
use crate::route::OnGpu;
use crate::{KvPool, KvTensor, Layout, StatePool, route::route};

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
    route!(
        &k,
        cpu: KvPool {
            keys: cpu::write(pool.keys, k, layout),
            values: cpu::write(pool.values, v, layout),
        },
        cube: cube::write(pool, &k, &v, layout),
        reference: KvPool {
            keys: reference::write(pool.keys, k, layout),
            values: reference::write(pool.values, v, layout),
        },
    )
}

/// A zeroed pool. On the CPU its pages are the system's zero pages until somebody writes to them: a
/// cache takes the memory that is used, not the memory that was granted.
pub fn zeros<const D: usize, K: PoolKind>(
    shape: [usize; D],
    dtype: DType,
    device: &Device,
) -> Tensor<D, K> {
    #[cfg(feature = "cube")]
    if let Some(tensor) = cube::zeros(shape, dtype, device) {
        return tensor;
    }
    let count: usize = shape.iter().product();
    // An allocation that fails ends the process without a word, so it is asked for on trial first.
    let mut trial: Vec<u8> = Vec::new();
    let num_bytes = count * dtype.size();
    let granted = trial.try_reserve_exact(num_bytes);
    assert!(
        granted.is_ok(),
        "Cannot allocate memory: {num_bytes} bytes for one layer's cache"
    );
    drop(trial);
    let bytes = match dtype {
        DType::U8 => Bytes::from_elems(vec![0_u8; count]),
        DType::BF16 | DType::F16 => Bytes::from_elems(vec![0_u16; count]),
        _ => Bytes::from_elems(vec![0_f32; count]),
    };
    Tensor::from_data(TensorData::from_bytes(bytes, shape, dtype), (device, dtype))
}

/// The kinds of tensors that pools are.
#[allow(private_bounds)] // Closed: floats and integers.
pub trait PoolKind: Numeric + OnFlex + OnGpu {}

impl<K: Numeric + OnFlex + OnGpu> PoolKind for K {}

/// Makes a state slot as it was before any token.
pub fn zero_slot(pool: StatePool, slot: usize) -> StatePool {
    StatePool {
        conv: zero_row(pool.conv, slot),
        ssm: zero_row(pool.ssm, slot),
        // Nothing of it is read before it is written.
        ring: pool.ring,
    }
}

/// Copies a state slot over another.
pub fn copy_slot(pool: StatePool, from: usize, to: usize) -> StatePool {
    StatePool {
        conv: copy_row(pool.conv, from, to),
        ssm: copy_row(pool.ssm, from, to),
        ring: pool.ring.map(|ring| copy_row(ring, from, to)),
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

/// Zeroes one entry of the first dimension.
pub fn zero_row<const D: usize>(pool: Tensor<D>, row: usize) -> Tensor<D> {
    route!(
        &pool,
        cpu: cpu::zero_row(pool, row),
        cube: cube::zero_row(pool, row),
        reference: reference::zero_row(pool, row),
    )
}

/// Copies one entry of the first dimension over another.
pub fn copy_row<const D: usize, K: PoolKind>(
    pool: Tensor<D, K>,
    from: usize,
    to: usize,
) -> Tensor<D, K> {
    route!(
        &pool,
        cpu: cpu::copy_row(pool, from, to),
        cube: cube::copy_row(pool, from, to),
        reference: reference::copy_row(pool, from, to),
    )
}

/// Writes rows of `values` over rows of the pool, as `(from, to)`: F32 `[T, H]` to F32 `[n, H]`. Every
/// `to` is another.
pub fn write_rows(pool: Tensor<2>, values: &Tensor<2>, moves: &[(usize, usize)]) -> Tensor<2> {
    let ([num_rows, width], [num_values, len]) = (pool.dims(), values.dims());
    assert_eq!(width, len, "width of rows");
    for (from, to) in moves {
        assert!(
            *from < num_values && *to < num_rows,
            "row {from} of {num_values} to row {to} of {num_rows}"
        );
    }
    route!(
        values,
        cpu: cpu::write_rows_of(pool, values, moves),
        cube: cube::write_rows_of(pool, values, moves),
        reference: reference::write_rows_of(pool, values, moves),
    )
}
