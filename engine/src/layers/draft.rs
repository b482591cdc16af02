//! The draft block: guesses the token behind the next one, from the next token and the hidden state
//! before it.
//!
//! ```text
//! x  = eh_proj @ [rms(embedding of t_i), rms(h_{i-1})]       a residual stream of its own
//! x += attention(rms(x))                                     over the pairs of positions 1 ..= i
//! x += experts(rms(x))
//! h' = rms(x)                                                lm_head @ h': logits of t_{i+1}
//! ```
//!
//! The pair of token `t_i` with what the model made of the token before it lies at position `i` of a
//! KV pool of its own, so that a block of a prompt holds the same for everybody who shares the prompt.
//! There is no pair at position 0, and nobody looks there. A guess is paired with the block's own `h'`
//! in place of `h`.
//!
//! What it computes is a guess, whatever its last bits: its products have an arithmetic of their own.

use burn::tensor::Tensor;
use kernels::{Layout, TokenIds};

use super::attention::Attention;
use super::linear::Linear;
use super::moe::Moe;
use super::norm::Norm;
use crate::cache::DeviceCache;
use crate::model::config::ModelConfig;
use crate::model::load::Loader;
use crate::model::weights::DraftWeights;
use crate::parallel::Peers;

/// Position of the first pair.
pub(crate) const FIRST_PAIR: usize = 1;

/// One attention layer and one of experts, with embedding and head of the model.
pub(crate) struct Draft {
    token_norm: Norm,
    hidden_norm: Norm,
    /// Columns of the embedding first.
    projection: Linear,
    attention_norm: Norm,
    attention: Attention,
    experts_norm: Norm,
    experts: Moe,
    norm: Norm,
}

/// Pairs of a step.
pub(crate) struct Pairs<'a> {
    /// Embeddings, `[T, H]`.
    pub(crate) tokens: Tensor<2>,
    /// Hidden states of the tokens before them, `[T, H]`.
    pub(crate) hidden: Tensor<2>,
    /// Where they lie.
    pub(crate) layout: &'a Layout,
}

/// Which pairs guess; the others are only remembered.
pub(crate) struct Asked<'a> {
    /// Places in `T`, ascending; `None`: all of them.
    pub(crate) places: Option<&'a TokenIds>,
    /// The same as rows of their own, `[A]`.
    pub(crate) layout: &'a Layout,
}

impl Asked<'_> {
    /// Their rows of `x`.
    fn of(&self, x: &Tensor<2>) -> Tensor<2> {
        // A token's vector is a row of a table, too.
        self.places
            .map_or_else(|| x.clone(), |places| kernels::embedding(x, places))
    }
}

impl Draft {
    /// The block's pool is the cache's `index`th.
    pub(crate) fn load(
        weights: &DraftWeights,
        config: &ModelConfig,
        index: usize,
        loader: &mut Loader,
    ) -> Self {
        let eps = config.norm_eps;
        let heads = config.attention.as_ref().expect("the block has attention");
        let moe = config.moe.as_ref().expect("the block has experts");
        let of_tokens = std::mem::replace(&mut loader.arithmetic, loader.draft_arithmetic);
        let block = Self {
            token_norm: Norm::load(&weights.token_norm, eps, loader),
            hidden_norm: Norm::load(&weights.hidden_norm, eps, loader),
            projection: Linear::load_matrix(&weights.projection, loader),
            attention_norm: Norm::load(&weights.attention_norm, eps, loader),
            attention: Attention::load(&weights.attention, heads.num_heads, index, loader),
            experts_norm: Norm::load(&weights.experts_norm, eps, loader),
            experts: Moe::load(&weights.experts, moe, loader),
            norm: Norm::load(&weights.norm, eps, loader),
        };
        loader.arithmetic = of_tokens;
        block
    }

    /// Remembers all pairs; `h'` of those that are asked, `[A, H]`, or `None` if there are none. Only
    /// keys and values of the others are needed, so that a prompt costs no expert.
    pub(crate) fn forward(
        &self,
        pairs: Pairs<'_>,
        asked: &Asked<'_>,
        cache: &mut DeviceCache,
        peers: Option<&Peers>,
    ) -> Option<Tensor<2>> {
        let sum = |x: Tensor<2>| match peers {
            None => x,
            Some(peers) => peers.sum(x),
        };
        let tokens = self.token_norm.forward(pairs.tokens);
        let hidden = self.hidden_norm.forward(pairs.hidden);
        let x = self
            .projection
            .forward(Tensor::cat(vec![tokens, hidden], 1));
        let input = self.attention_norm.forward(x.clone());
        let written = (input.clone(), pairs.layout);
        if asked.layout.rows.is_empty() {
            self.attention.remember(written, cache);
            return None;
        }
        let looking = (asked.of(&input), asked.layout);
        let mixed = sum(self.attention.forward_some(written, looking, cache));
        let residual = asked.of(&x);
        let (residual, input) = self.experts_norm.add(residual, mixed);
        let mixed = sum(self.experts.forward(input));
        Some(self.norm.add(residual, mixed).1)
    }
}

#[cfg(test)]
mod tests;
