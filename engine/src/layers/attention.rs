//! `*`: grouped-query attention over the paged cache. No positional encoding of any kind.

use burn::tensor::Tensor;
use kernels::{Arithmetic, Layout};

use super::linear::Linear;
use crate::cache::DeviceCache;
use crate::model::load::Loader;
use crate::model::weights::AttentionWeights;

/// Projections around [`kernels::paged_attention`].
pub(crate) struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    num_heads: usize,
    arithmetic: Arithmetic,
    /// Which of the cache's attention layers this is.
    index: usize,
}

impl Attention {
    pub(crate) fn load(
        weights: &AttentionWeights,
        num_heads: usize,
        index: usize,
        loader: &mut Loader,
    ) -> Self {
        Self {
            query: Linear::load_matrix(&weights.query, loader),
            key: Linear::load_matrix(&weights.key, loader),
            value: Linear::load_matrix(&weights.value, loader),
            output: Linear::load_matrix(&weights.output, loader),
            num_heads,
            arithmetic: loader.arithmetic,
            index,
        }
    }

    /// `[T, H]` to `[T, H]`; writes this step's keys and values, then reads the whole context.
    pub(crate) fn forward(
        &self,
        x: Tensor<2>,
        cache: &mut DeviceCache,
        layout: &Layout,
    ) -> Tensor<2> {
        let query = self.query.forward(x.clone());
        let key = self.key.forward(x.clone());
        let value = self.value.forward(x);
        let mixed = cache.with_blocks(self.index, |pool| {
            let pool = kernels::cache_write(pool, key, value, layout);
            let mixed =
                kernels::paged_attention(query, &pool, self.num_heads, self.arithmetic, layout);
            (mixed, pool)
        });
        self.output.forward(mixed)
    }

    /// Writes keys and values of `x`, `[T, H]`, and looks from none.
    pub(crate) fn remember(&self, (x, layout): (Tensor<2>, &Layout), cache: &mut DeviceCache) {
        let key = self.key.forward(x.clone());
        let value = self.value.forward(x);
        cache.with_blocks(self.index, |pool| {
            ((), kernels::cache_write(pool, key, value, layout))
        });
    }

    /// Writes keys and values of `written`, `[T, H]`, then reads the context of `looking`, `[A, H]`:
    /// some of the same tokens under a layout of their own.
    pub(crate) fn forward_some(
        &self,
        written: (Tensor<2>, &Layout),
        (x, layout): (Tensor<2>, &Layout),
        cache: &mut DeviceCache,
    ) -> Tensor<2> {
        self.remember(written, cache);
        let query = self.query.forward(x);
        let mixed = cache.with_blocks(self.index, |pool| {
            let mixed =
                kernels::paged_attention(query, &pool, self.num_heads, self.arithmetic, layout);
            (mixed, pool)
        });
        self.output.forward(mixed)
    }
}
