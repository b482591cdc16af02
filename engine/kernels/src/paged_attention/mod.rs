//! Attention over the paged KV cache.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
mod online;
pub(crate) mod reference;
mod words;

use burn::tensor::Tensor;

use crate::{Arithmetic, KvPool, Layout, route::route};

/// Causal attention of this step's queries over everything their rows have cached, this step's
/// keys and values included (write them first).
///
/// Shapes: `q` F32 `[T, heads * head_dim]`, result the same. Query head `i` reads kv head
/// `i / (heads / kv_heads)`; scale `head_dim^-0.5`; exponentials in f32; no positions enter.
/// Nobody looks at positions before the layout's `first_position`, whose values must be numbers
/// in plain tensor operations only.
/// Without [`Arithmetic::F32`] queries and the weights of values may be rounded to bf16: on a GPU, and on
/// a CPU with dot products of bf16 where the pool holds it.
pub fn paged_attention(
    q: Tensor<2>,
    pool: &KvPool,
    heads: usize,
    arithmetic: Arithmetic,
    layout: &Layout,
) -> Tensor<2> {
    let [num_blocks, block_size, kv_heads, head_dim] = pool.keys.dims();
    let [num_tokens, width] = q.dims();
    assert_eq!(width, heads * head_dim, "query width");
    assert_eq!(heads % kv_heads, 0, "query heads per kv head");
    assert_eq!(block_size, layout.block_size, "positions per block");
    layout.check_tokens(num_tokens);
    layout.check_blocks(num_blocks);
    route!(
        &q,
        cpu: cpu::paged_attention(q, pool, heads, arithmetic, layout),
        cube: cube::paged_attention(&q, pool, heads, arithmetic, layout),
        reference: reference::paged_attention(&q, pool, heads, layout),
    )
}
