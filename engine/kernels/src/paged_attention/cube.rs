//! Attention over the paged cache on a GPU.

use burn::tensor::Tensor;

use crate::cube::{elements, filled, side, view, words};
use crate::{Arithmetic, KvPool, Layout};

/// Attention of this step's queries over everything their rows have cached.
pub(super) fn paged_attention(
    q: &Tensor<2>,
    pool: &KvPool,
    heads: usize,
    arithmetic: Arithmetic,
    layout: &Layout,
) -> Tensor<2> {
    let [_, _, kv_heads, head_dim] = pool.keys.dims();
    let shape = q.dims();
    let (q, keys, values) = (view(q), side(&pool.keys), side(&pool.values));
    filled(&q, shape, |client, out| {
        cube_kernels::paged_attention(
            client,
            &elements(&q),
            &words(&keys),
            &words(&values),
            crate::cube::kv_format(pool),
            heads,
            kv_heads,
            head_dim,
            arithmetic.into(),
            layout.on(client),
            out,
        );
    })
}
