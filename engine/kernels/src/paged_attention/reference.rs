//! Attention in plain tensor operations: gathers each row's blocks, then masks.

use burn::tensor::{
    Bool, DType, Device, FloatDType, Int, IntDType, Tensor, TensorData, activation::softmax,
};

use crate::{KvPool, KvTensor, Layout, RowLayout, e4m3};

/// Row by row, every head at once.
pub(crate) fn paged_attention(
    q: &Tensor<2>,
    pool: &KvPool,
    heads: usize,
    layout: &Layout,
) -> Tensor<2> {
    let rows = layout
        .rows
        .iter()
        .map(|row| {
            let q = q.clone().narrow(0, row.tokens.start, row.num_tokens());
            attend(q, pool, heads, row, layout)
        })
        .collect();
    Tensor::cat(rows, 0)
}

fn attend(
    q: Tensor<2>,
    pool: &KvPool,
    heads: usize,
    row: &RowLayout,
    layout: &Layout,
) -> Tensor<2> {
    let block_size = layout.block_size;
    let [_, _, kv_heads, head_dim] = pool.keys.dims();
    let (len, context, group) = (row.num_tokens(), row.context_len(), heads / kv_heads);
    let keys = gather(&pool.keys, row, block_size);
    let values = gather(&pool.values, row, block_size);

    // [kv_heads, group * len, head_dim] against [kv_heads, context, head_dim].
    let q = q
        .reshape([len, kv_heads, group, head_dim])
        .permute([1, 2, 0, 3])
        .reshape([kv_heads, group * len, head_dim]);
    let scores = q
        .mul_scalar((head_dim as f32).powf(-0.5))
        .matmul(keys.swap_dims(1, 2))
        .reshape([heads, len, context]);
    let scores = scores.mask_fill(unseen(row, layout, &pool.keys.device()), f32::NEG_INFINITY);
    softmax(scores, 2)
        .reshape([kv_heads, group * len, context])
        .matmul(values)
        .reshape([heads, len, head_dim])
        .swap_dims(0, 1)
        .reshape([len, heads * head_dim])
}

/// A row's positions out of the pool, `[kv_heads, context, head_dim]` in F32.
fn gather(pool: &KvTensor, row: &RowLayout, block_size: usize) -> Tensor<3> {
    let [_, _, kv_heads, head_dim] = pool.dims();
    let context = row.context_len();
    let num_blocks = context.div_ceil(block_size);
    let blocks: Vec<i32> = row.blocks[..num_blocks].iter().map(|&b| b as i32).collect();
    let blocks = Tensor::<1, Int>::from_data(TensorData::new(blocks, [num_blocks]), &pool.device());
    let stored = match pool {
        KvTensor::Float(pool) => pool.clone().select(0, blocks).cast(FloatDType::F32),
        KvTensor::Fp8 { codes, scale } => {
            decode(codes.clone().select(0, blocks)).mul_scalar(*scale)
        }
    };
    stored
        .reshape([num_blocks * block_size, kv_heads, head_dim])
        .narrow(0, 0, context)
        .swap_dims(0, 1)
}

/// The numbers of E4M3 codes, looked up in a table.
fn decode(codes: Tensor<4, Int>) -> Tensor<4> {
    let shape = codes.dims();
    let table = TensorData::new(e4m3::VALUES.to_vec(), [e4m3::VALUES.len()]);
    let table = Tensor::<1>::from_data(table, (&codes.device(), DType::F32));
    let codes = codes
        .cast(IntDType::I32)
        .reshape([shape.iter().product::<usize>()]);
    table.select(0, codes).reshape(shape)
}

/// True where a query may not look, `[1, len, context]`.
fn unseen(row: &RowLayout, layout: &Layout, device: &Device) -> Tensor<3, Bool> {
    let context = row.context_len();
    let mask: Vec<bool> = (row.start..context)
        .flat_map(|query| (0..context).map(move |key| key > query || key < layout.first_position))
        .collect();
    Tensor::from_data(
        TensorData::new(mask, [1, row.num_tokens(), context]),
        device,
    )
}
