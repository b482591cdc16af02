//! The caches on a GPU, written in place.

use burn::tensor::{DType, Device, Tensor};
use burn_cubecl::tensor::CubeTensor;
use burn_dispatch::DispatchDevice;
use cube_kernels::{Columns, RowMoves, cache_write, copy_rows, copy_words, zero_words};

use crate::cube::{Kind, elements, side, view, words};
use crate::{KvPool, Layout};

/// Writes this step's keys and values at their rows' positions.
pub(super) fn write(pool: KvPool, k: &Tensor<2>, v: &Tensor<2>, layout: &Layout) -> KvPool {
    let [_, _, kv_heads, head_dim] = pool.keys.dims();
    let (keys, values, k, v) = (side(&pool.keys), side(&pool.values), view(k), view(v));
    cache_write(
        &keys.client,
        &elements(&k),
        &elements(&v),
        &words(&keys),
        &words(&values),
        crate::cube::kv_format(&pool),
        kv_heads,
        head_dim,
        layout.on(&keys.client),
    );
    pool
}

/// A zeroed pool, by our own kernel: Burn's needs arithmetic on the element type. `None` if the
/// device is no GPU.
pub(super) fn zeros<const D: usize, K: Kind>(
    shape: [usize; D],
    dtype: DType,
    device: &Device,
) -> Option<Tensor<D, K>> {
    let DispatchDevice::Cube(device) = device.as_dispatch() else {
        return None;
    };
    let client = device.client();
    let num_bytes = shape.iter().product::<usize>() * dtype.size();
    let handle = client.empty(num_bytes.max(4));
    let primitive =
        CubeTensor::new_contiguous(client.clone(), device.clone(), shape.into(), handle, dtype);
    let words = words(&primitive);
    zero_words(&client, &words, 0, words.len());
    Some(K::tensor(primitive))
}

/// Zeroes one entry of the first dimension.
pub(super) fn zero_row<const D: usize>(pool: Tensor<D>, row: usize) -> Tensor<D> {
    let buffer = view(&pool);
    let len = row_words(&buffer);
    zero_words(&buffer.client, &words(&buffer), row * len, len);
    pool
}

/// Copies one entry of the first dimension over another.
pub(super) fn copy_row<const D: usize, K: Kind>(
    pool: Tensor<D, K>,
    from: usize,
    to: usize,
) -> Tensor<D, K> {
    let buffer = view(&pool);
    let len = row_words(&buffer);
    copy_words(&buffer.client, &words(&buffer), from * len, to * len, len);
    pool
}

/// Writes rows of `values` over rows of the pool.
pub(super) fn write_rows_of(
    pool: Tensor<2>,
    values: &Tensor<2>,
    moves: &[(usize, usize)],
) -> Tensor<2> {
    let [_, stride] = pool.dims();
    let (to, from) = (view(&pool), view(values));
    let columns = |buffer| Columns {
        buffer,
        stride,
        first: 0,
    };
    let moves = RowMoves::upload(&to.client, moves);
    copy_rows(
        &to.client,
        columns(&elements(&from)),
        columns(&elements(&to)),
        stride,
        &moves,
    );
    pool
}

/// Words of an entry of the first dimension.
fn row_words(pool: &CubeTensor) -> usize {
    let rows = pool.meta.shape()[0];
    let words = words(pool).len();
    assert_eq!(words % rows, 0, "an entry of a pool is whole words");
    words / rows
}
