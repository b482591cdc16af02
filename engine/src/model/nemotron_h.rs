//! The forward pass: embedding, a stack of one norm, one mixer and one addition each, final norm,
//! head.

use burn::tensor::Tensor;
use kernels::{Arithmetic, Layout, TokenIds};

use super::config::{LayerKind, ModelConfig};
use super::load::Loader;
use super::weights::{LayerWeights, MixerWeights, ModelWeights};
use crate::cache::DeviceCache;
use crate::heart::Heart;
use crate::layers::attention::Attention;
use crate::layers::draft::{Asked, Draft, Pairs};
use crate::layers::embedding::Embedding;
use crate::layers::linear::Linear;
use crate::layers::mamba2::Mamba2;
use crate::layers::mlp::Mlp;
use crate::layers::moe::Moe;
use crate::layers::norm::Norm;
use crate::parallel::Peers;

/// A loaded model, or one rank's share of it. Holds no sequence: all state is in the [`DeviceCache`].
pub(crate) struct NemotronH {
    embedding: Embedding,
    layers: Vec<Layer>,
    norm: Norm,
    /// `None` if the embedding table is the head.
    head: Option<Linear>,
    /// `None`: nobody drafts.
    draft: Option<Draft>,
    vocab_size: usize,
    /// Of the head, for tokens and for guesses at them.
    arithmetic: Arithmetic,
    draft_arithmetic: Arithmetic,
    /// The other ranks, if this is a share.
    peers: Option<Peers>,
    /// Beaten by every layer.
    heart: Heart,
}

struct Layer {
    norm: Norm,
    mixer: Mixer,
}

enum Mixer {
    Mamba(Box<Mamba2>),
    Attention(Box<Attention>),
    Moe(Box<Moe>),
    Mlp(Box<Mlp>),
}

impl NemotronH {
    pub(crate) fn load(
        weights: &ModelWeights,
        config: &ModelConfig,
        peers: Option<Peers>,
        loader: &mut Loader,
    ) -> Self {
        let embedding = Embedding::load(&weights.embedding, loader);
        let layers = weights
            .layers
            .iter()
            .enumerate()
            .map(|(at, layer)| {
                // Layers of a kind number their pools in stack order.
                let kind = config.layers[at];
                let below = config.layers[..at].iter();
                let index = below.filter(|other| **other == kind).count();
                Layer::load(layer, config, index, loader)
            })
            .collect();
        Self {
            embedding,
            layers,
            norm: Norm::load(&weights.norm, config.norm_eps, loader),
            head: weights
                .head
                .as_ref()
                .map(|head| Linear::load_matrix(head, loader)),
            draft: weights.draft.as_ref().map(|draft| {
                // Its pool is behind those of the stack.
                Draft::load(
                    draft,
                    config,
                    config.num_layers(LayerKind::Attention),
                    loader,
                )
            }),
            vocab_size: config.vocab_size,
            arithmetic: loader.arithmetic,
            draft_arithmetic: loader.draft_arithmetic,
            peers,
            heart: loader.heart(),
        }
    }

    /// Hidden states after the final norm, `[T, H]`.
    pub(crate) fn forward(
        &self,
        ids: &TokenIds,
        layout: &Layout,
        cache: &mut DeviceCache,
    ) -> Tensor<2> {
        let mut residual = self.embedding.forward(ids);
        let mut normed = None;
        for (at, layer) in self.layers.iter().enumerate() {
            self.heart.beat();
            let input = normed
                .take()
                .unwrap_or_else(|| layer.norm.forward(residual.clone()));
            let mixed = match &layer.mixer {
                Mixer::Mamba(mixer) => mixer.forward(input, cache, layout),
                Mixer::Attention(mixer) => mixer.forward(input, cache, layout),
                Mixer::Moe(mixer) => mixer.forward(input),
                Mixer::Mlp(mixer) => mixer.forward(input),
            };
            // Each rank has a part of the mixer and so a part of the sum.
            let mixed = match &self.peers {
                None => mixed,
                Some(peers) => peers.sum(mixed),
            };
            // The addition is fused with the norm of whoever reads the sum next.
            let next = self
                .layers
                .get(at + 1)
                .map_or(&self.norm, |next| &next.norm);
            let (sum, next_input) = next.add(residual, mixed);
            residual = sum;
            normed = Some(next_input);
        }
        normed.expect("a stack has at least one layer")
    }

    /// Beaten by every layer.
    #[cfg(test)]
    pub(crate) fn heart(&self) -> &Heart {
        &self.heart
    }

    /// Whether there is a draft block.
    pub(crate) fn drafts(&self) -> bool {
        self.draft.is_some()
    }

    /// Ids are below it.
    pub(crate) fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// What the model begins with, `[T, H]`.
    pub(crate) fn embed(&self, ids: &TokenIds) -> Tensor<2> {
        self.embedding.forward(ids)
    }

    /// Lets the draft block remember pairs of a token and the hidden state before it; its own hidden
    /// states of those asked, `[A, H]`, which [`draft_logits`](Self::draft_logits) reads, or `None` if none
    /// are.
    pub(crate) fn draft(
        &self,
        pairs: Pairs<'_>,
        asked: &Asked<'_>,
        cache: &mut DeviceCache,
    ) -> Option<Tensor<2>> {
        self.heart.beat();
        let draft = self.draft.as_ref().expect("whoever drafts has a block");
        draft.forward(pairs, asked, cache, self.peers.as_ref())
    }

    /// Logits `[positions, V]` at some positions of `hidden`, `[T, H]`.
    pub(crate) fn logits(&self, hidden: &Tensor<2>, positions: &[usize]) -> Tensor<2> {
        self.logits_in(self.arithmetic, select(hidden, positions))
    }

    /// The same of the draft block's hidden states, by which nothing but a guess is drawn.
    pub(crate) fn draft_logits(&self, hidden: &Tensor<2>, positions: &[usize]) -> Tensor<2> {
        self.logits_in(self.draft_arithmetic, select(hidden, positions))
    }

    fn logits_in(&self, arithmetic: Arithmetic, hidden: Tensor<2>) -> Tensor<2> {
        self.heart.beat();
        let logits = match &self.head {
            Some(head) => head.forward_in(arithmetic, hidden),
            None => self.embedding.logits(arithmetic, hidden),
        };
        match &self.peers {
            None => logits,
            Some(peers) => peers.gather_vocabulary(logits, self.vocab_size),
        }
    }
}

/// Some rows of a matrix, ascending.
pub(crate) fn select(rows: &Tensor<2>, positions: &[usize]) -> Tensor<2> {
    let [num_rows, _] = rows.dims();
    if positions.len() == num_rows {
        return rows.clone();
    }
    gather(rows, positions)
}

/// Rows of a matrix in any order.
pub(crate) fn gather(rows: &Tensor<2>, positions: &[usize]) -> Tensor<2> {
    // A row of a matrix is looked up like a token's vector.
    let positions: Vec<u32> = positions.iter().map(|at| *at as u32).collect();
    kernels::embedding(rows, &positions.into())
}

impl Layer {
    fn load(
        weights: &LayerWeights,
        config: &ModelConfig,
        index: usize,
        loader: &mut Loader,
    ) -> Self {
        let eps = config.norm_eps;
        let norm = Norm::load(&weights.norm, eps, loader);
        let mixer = match &weights.mixer {
            MixerWeights::Mamba(weights) => {
                let config = config.mamba.as_ref().expect("the stack has Mamba layers");
                Mixer::Mamba(Box::new(Mamba2::load(weights, config, eps, index, loader)))
            }
            MixerWeights::Attention(weights) => {
                let config = config
                    .attention
                    .as_ref()
                    .expect("the stack has attention layers");
                let mixer = Attention::load(weights, config.num_heads, index, loader);
                Mixer::Attention(Box::new(mixer))
            }
            MixerWeights::Moe(weights) => {
                let config = config.moe.as_ref().expect("the stack has expert layers");
                Mixer::Moe(Box::new(Moe::load(weights, config, loader)))
            }
            MixerWeights::Mlp(weights) => Mixer::Mlp(Box::new(Mlp::load(weights, loader))),
        };
        Self { norm, mixer }
    }
}
