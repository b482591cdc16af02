//! Cases of the KV cache.

use burn::tensor::{DType, Device};

use super::compare::{kept_alone, outcome};
use super::inputs::{Numbers, scatter, upload, wide};
use super::{Outcome, Shapes, kv, oracle};
use crate::KvPool;

/// The write of keys and values, and attention over them.
pub fn attention(device: &Device, shapes: &Shapes) -> Vec<Outcome> {
    let numbers = &mut Numbers::new(shapes.seed);
    let (heads, kv_heads, head_dim) = (shapes.heads, shapes.kv_heads, shapes.head_dim);
    let (m, width) = (shapes.num_tokens(), kv_heads * head_dim);
    let (layout, num_blocks, _) = scatter(&shapes.rows, shapes.block_size, numbers);
    let q = numbers.vector(m * heads * head_dim, 3.0, DType::F32);
    let pool_shape = [num_blocks, shapes.block_size, kv_heads, head_dim];

    // What is cached before, what this step brings, and what must be cached after it.
    let side = |numbers: &mut Numbers, scale| {
        let mut before = vec![f32::NAN; pool_shape.iter().product()];
        let mut after = before.clone();
        let mut new = Vec::with_capacity(m * width);
        let mut rows = Vec::new();
        for row in &layout.rows {
            let mut positions = Vec::new();
            for position in 0..row.context_len() {
                let vector = numbers.vector(width, 1.0, DType::F32);
                let stored: Vec<f32> = vector
                    .iter()
                    .map(|&x| kv::kept(x, shapes.kv, scale))
                    .collect();
                let at = (row.blocks[position / shapes.block_size] as usize * shapes.block_size
                    + position % shapes.block_size)
                    * width;
                after[at..at + width].copy_from_slice(&stored);
                if position < row.start {
                    before[at..at + width].copy_from_slice(&stored);
                } else {
                    new.extend(vector);
                }
                positions.push(wide(&stored));
            }
            rows.push(positions);
        }
        (before, after, new, rows)
    };
    let (keys_before, keys_after, k, keys) = side(numbers, kv::KEY_SCALE);
    let (values_before, values_after, v, values) = side(numbers, kv::VALUE_SCALE);

    let pool = KvPool {
        keys: kv::pool(&keys_before, pool_shape, shapes.kv, kv::KEY_SCALE, device),
        values: kv::pool(
            &values_before,
            pool_shape,
            shapes.kv,
            kv::VALUE_SCALE,
            device,
        ),
    };
    let pool = crate::cache_write(
        pool,
        upload(&k, [m, width], DType::F32, device),
        upload(&v, [m, width], DType::F32, device),
        &layout,
    );
    let q_tensor = upload(&q, [m, heads * head_dim], DType::F32, device);
    let got = crate::paged_attention(q_tensor, &pool, heads, shapes.arithmetic, &layout);

    let mut want = Vec::new();
    for (row, (keys, values)) in layout.rows.iter().zip(keys.iter().zip(&values)) {
        for (position, token) in (row.start..).zip(row.tokens.clone()) {
            for head in 0..heads {
                let kv_head = head / (heads / kv_heads);
                let cut = |vectors: &[Vec<f64>]| -> Vec<Vec<f64>> {
                    vectors[..=position]
                        .iter()
                        .map(|vector| vector[kv_head * head_dim..][..head_dim].to_vec())
                        .collect()
                };
                let query = &q[(token * heads + head) * head_dim..][..head_dim];
                want.extend(oracle::attend(&wide(query), &cut(keys), &cut(values)));
            }
        }
    }
    vec![
        kept_alone("cache_write: keys", &pool.keys, &keys_after),
        kept_alone("cache_write: values", &pool.values, &values_after),
        outcome("paged_attention", &got, &want, shapes.inner_tolerance()),
    ]
}
