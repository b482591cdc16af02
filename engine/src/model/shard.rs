//! One rank's share of a model that several ranks run together: its weights and the configuration
//! that describes them. Nothing is read; a share is a [`ModelWeights`] like any other.
//!
//! Every layer ends in one sum over the ranks and needs no other word between them:
//!
//! | weights | rows, columns of a rank |
//! |---|---|
//! | attention: q | its query heads |
//! | attention: k, v | the key heads that those read; past their number several ranks keep the same |
//! | attention: o | columns of its query heads |
//! | Mamba: in_proj `[z x B C dt]`, convolution `[x B C]` | its heads and groups, a range of each part |
//! | Mamba: A, D, dt_bias; norm; out_proj | its heads; their channels; columns of those |
//! | MLP, shared expert: up, down | its part of the inner width, as rows and as columns |
//! | routed experts, split by experts | whole ones, a range of ids |
//! | routed experts, split by width | its part of every expert's inner width |
//! | head | its part of the vocabulary |
//! | draft block | as attention and experts; its projection all |
//! | norms, router, latent projections, embedding | all |
//!
//! What is not split, and why:
//!
//! - The norm's groups stay whole, because a group's mean square needs all of its channels.
//! - The router is small, and every rank must choose the same experts to know which are its own.
//! - The projection into the latent width would need a second exchange per layer before the experts:
//!   ten microseconds or more against the two that an H200 takes to read Super's 8 MB. The one out of
//!   it is linear, so each rank sends its own part of the experts' sum through it and the layer's one
//!   sum finishes both.
//! - The embedding is read a row per token: splitting it would trade 1 GB of memory (Super) for one
//!   more exchange per step. The head of the same size is read whole by every step, an eighth of all
//!   the bytes of Super at batch 1, so it is split, and a step ends with a gather of logits. Tied
//!   to the embedding, the head is a part of it besides.
//! - A bias that follows a sum is added by rank 0 alone.

use std::ops::Range;

use super::config::{AttentionConfig, MambaConfig, ModelConfig};
use super::weights::{
    AttentionWeights, DraftWeights, LayerWeights, LinearWeights, MambaWeights, MatrixWeight,
    MixerWeights, MlpWeights, ModelWeights, MoeWeights, SplitBlock,
};
use crate::error::EngineError;

/// How a model is split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Split {
    /// Ranks, at least one.
    pub(crate) num_ranks: usize,
    /// Whole experts per rank instead of a part of every one.
    pub(crate) experts: bool,
}

/// One rank's share.
pub(crate) struct Share {
    /// Heads, groups and widths are this rank's; hidden size, vocabulary and the number of experts
    /// the model's.
    pub(crate) config: ModelConfig,
    pub(crate) weights: ModelWeights,
    /// Which tokens' logits this rank computes.
    pub(crate) vocabulary: Range<usize>,
}

impl Split {
    /// Whether this model can be split this way.
    ///
    /// # Errors
    /// Names the first sizes that do not divide.
    pub(crate) fn check(self, config: &ModelConfig) -> Result<(), EngineError> {
        let ranks = self.num_ranks;
        let fail = |what: String| Err(EngineError::Ranks { ranks, what });
        if let Some(MambaConfig {
            num_heads,
            num_groups,
            ..
        }) = config.mamba
            && !(num_groups.is_multiple_of(ranks) && num_heads.is_multiple_of(ranks))
        {
            return fail(format!(
                "the Mamba layers' {num_groups} groups and {num_heads} heads must both be multiples \
                 of it"
            ));
        }
        if let Some(attention) = &config.attention {
            let (heads, kv_heads) = (attention.num_heads, attention.num_kv_heads);
            if !heads.is_multiple_of(ranks) {
                return fail(format!("{heads} query heads are no multiple of it"));
            }
            if (0..ranks).any(|rank| self.of(rank).kv_heads(attention).is_none()) {
                return fail(format!(
                    "{heads} query heads of {kv_heads} key heads cannot be shared out so that each \
                     key head of a rank serves as many query heads"
                ));
            }
        }
        let mut widths: Vec<(&str, usize)> = vec![("tokens of the vocabulary", config.vocab_size)];
        widths.extend(
            config
                .mlp_sizes
                .iter()
                .map(|size| ("channels of an MLP", *size)),
        );
        if let Some(moe) = &config.moe {
            widths.push(if self.experts {
                ("experts", moe.num_experts)
            } else {
                ("channels of an expert", moe.expert_size)
            });
            widths.extend(
                moe.shared_size
                    .map(|size| ("channels of a shared expert", size)),
            );
        }
        match widths.into_iter().find(|(_, width)| *width < ranks) {
            Some((what, width)) => fail(format!("{width} {what} are too few for it")),
            None => Ok(()),
        }
    }

    /// The share of a rank of a model that passes [`check`](Self::check).
    ///
    /// # Errors
    /// A packed matrix would have to be cut where its format cannot be.
    pub(crate) fn share(
        self,
        rank: usize,
        config: &ModelConfig,
        weights: &ModelWeights,
    ) -> Result<Share, EngineError> {
        let rank = self.of(rank);
        let layers = weights.layers.iter().map(|layer| {
            Ok(LayerWeights {
                norm: layer.norm.clone(),
                mixer: rank.mixer(config, &layer.mixer)?,
            })
        });
        let layers: Result<_, SplitBlock> = layers.collect();
        let vocabulary = rank.part(config.vocab_size);
        let head = match &weights.head {
            Some(head) => head.rows(&vocabulary),
            None => MatrixWeight::Plain(weights.embedding.rows(&vocabulary)),
        };
        let draft = weights.draft.as_ref();
        let draft = draft.map(|draft| rank.draft(config, draft).map(Box::new));
        let draft: Result<_, SplitBlock> = draft.transpose();
        let fail = |error: SplitBlock| EngineError::Ranks {
            ranks: self.num_ranks,
            what: error.to_string(),
        };
        Ok(Share {
            config: rank.config(config),
            weights: ModelWeights {
                embedding: weights.embedding.clone(),
                layers: layers.map_err(fail)?,
                norm: weights.norm.clone(),
                head: Some(head),
                draft: draft.map_err(fail)?,
            },
            vocabulary,
        })
    }

    fn of(self, rank: usize) -> Rank {
        assert!(rank < self.num_ranks, "rank {rank} of {}", self.num_ranks);
        Rank { rank, split: self }
    }
}

#[derive(Clone, Copy)]
struct Rank {
    rank: usize,
    split: Split,
}

impl Rank {
    /// This rank's part of a width; parts differ by one unit at most. Units are as large as leaves
    /// everybody one: rows of packed weights then begin at whole groups of scales and, for the
    /// largest, at 16 bytes.
    fn part(self, width: usize) -> Range<usize> {
        let ranks = self.split.num_ranks;
        let unit = [32, 16]
            .into_iter()
            .find(|unit| width.is_multiple_of(*unit) && width / unit >= ranks)
            .unwrap_or(1);
        self.units(width / unit, unit)
    }

    /// This rank's part of so many units, as nearly even as can be.
    fn units(self, units: usize, unit: usize) -> Range<usize> {
        let ranks = self.split.num_ranks;
        let begin = |rank: usize| units * rank / ranks * unit;
        begin(self.rank)..begin(self.rank + 1)
    }

    /// This rank's part of `total` things that divide by the number of ranks, each `size` wide.
    fn even(self, total: usize, size: usize) -> Range<usize> {
        let each = total / self.split.num_ranks * size;
        self.rank * each..(self.rank + 1) * each
    }

    /// The key heads that this rank's query heads read, if its query heads divide evenly among them.
    fn kv_heads(self, config: &AttentionConfig) -> Option<Range<usize>> {
        let queries = self.even(config.num_heads, 1);
        let queries_per_kv = config.num_heads / config.num_kv_heads;
        let kv_heads = queries.start / queries_per_kv..(queries.end - 1) / queries_per_kv + 1;
        let each = queries.len() / kv_heads.len();
        let is_even = queries
            .clone()
            .all(|query| query / queries_per_kv - kv_heads.start == (query - queries.start) / each);
        is_even.then_some(kv_heads)
    }

    fn config(self, config: &ModelConfig) -> ModelConfig {
        let ranks = self.split.num_ranks;
        let mut config = config.clone();
        if let Some(attention) = &mut config.attention {
            let kv_heads = self.kv_heads(attention).expect("checked").len();
            attention.num_heads /= ranks;
            attention.num_kv_heads = kv_heads;
        }
        if let Some(mamba) = &mut config.mamba {
            mamba.num_heads /= ranks;
            mamba.num_groups /= ranks;
        }
        if let Some(moe) = &mut config.moe {
            if !self.split.experts {
                moe.expert_size = self.part(moe.expert_size).len();
            }
            moe.shared_size = moe.shared_size.map(|size| self.part(size).len());
        }
        for size in &mut config.mlp_sizes {
            *size = self.part(*size).len();
        }
        config
    }

    fn mixer(self, config: &ModelConfig, mixer: &MixerWeights) -> Result<MixerWeights, SplitBlock> {
        Ok(match mixer {
            MixerWeights::Mamba(weights) => {
                let config = config.mamba.as_ref().expect("the stack has Mamba layers");
                MixerWeights::Mamba(Box::new(self.mamba(config, weights)?))
            }
            MixerWeights::Attention(weights) => {
                let config = config
                    .attention
                    .as_ref()
                    .expect("the stack has attention layers");
                MixerWeights::Attention(self.attention(config, weights)?)
            }
            MixerWeights::Moe(weights) => MixerWeights::Moe(Box::new(self.moe(weights)?)),
            MixerWeights::Mlp(weights) => MixerWeights::Mlp(self.mlp(weights)?),
        })
    }

    fn draft(
        self,
        config: &ModelConfig,
        weights: &DraftWeights,
    ) -> Result<DraftWeights, SplitBlock> {
        let attention = config.attention.as_ref().expect("the block has attention");
        Ok(DraftWeights {
            token_norm: weights.token_norm.clone(),
            hidden_norm: weights.hidden_norm.clone(),
            projection: weights.projection.clone(),
            attention_norm: weights.attention_norm.clone(),
            attention: self.attention(attention, &weights.attention)?,
            experts_norm: weights.experts_norm.clone(),
            experts: self.moe(&weights.experts)?,
            norm: weights.norm.clone(),
        })
    }

    fn attention(
        self,
        config: &AttentionConfig,
        weights: &AttentionWeights,
    ) -> Result<AttentionWeights, SplitBlock> {
        let dim = config.head_dim;
        let queries = self.even(config.num_heads, dim);
        let kv_heads = self.kv_heads(config).expect("checked");
        let keys = kv_heads.start * dim..kv_heads.end * dim;
        Ok(AttentionWeights {
            query: weights.query.rows(&queries),
            key: weights.key.rows(&keys),
            value: weights.value.rows(&keys),
            output: weights.output.columns(&queries)?,
            k_scale: weights.k_scale.clone(),
            v_scale: weights.v_scale.clone(),
        })
    }

    fn mamba(
        self,
        config: &MambaConfig,
        weights: &MambaWeights,
    ) -> Result<MambaWeights, SplitBlock> {
        let heads = self.even(config.num_heads, 1);
        let channels = self.even(config.num_heads, config.head_dim);
        let columns = self.even(config.num_groups, config.state_size);
        let (inner, states) = (config.inner_size(), config.num_groups * config.state_size);
        // |-- z --|-- x --|-- B --|-- C --|-- dt --|
        //         |------ convolved ------|
        let x = channels.clone();
        let b = moved(&columns, inner);
        let c = moved(&columns, inner + states);
        let dt = moved(&heads, inner + 2 * states);
        let convolved = [x, b, c];
        let mut projected = vec![channels.clone()];
        projected.extend(convolved.iter().map(|part| moved(part, inner)));
        projected.push(moved(&dt, inner));
        Ok(MambaWeights {
            in_proj: weights.in_proj.parts(&projected),
            conv_weight: weights.conv_weight.parts(&convolved),
            conv_bias: weights
                .conv_bias
                .as_ref()
                .map(|bias| bias.parts(&convolved)),
            a_log: weights.a_log.rows(&heads),
            d: weights.d.rows(&heads),
            dt_bias: weights.dt_bias.rows(&heads),
            norm: weights.norm.rows(&channels),
            out_proj: self.summed(&weights.out_proj, &channels)?,
        })
    }

    fn mlp(self, weights: &MlpWeights) -> Result<MlpWeights, SplitBlock> {
        let inner = self.part(weights.up.weight.dims()[0]);
        Ok(MlpWeights {
            up: weights.up.rows(&inner),
            down: self.summed(&weights.down, &inner)?,
        })
    }

    fn moe(self, weights: &MoeWeights) -> Result<MoeWeights, SplitBlock> {
        let latent = weights.latent.as_ref().map(|(into, out)| {
            let all = 0..out.weight.dims()[1];
            Ok((into.clone(), self.summed(out, &all)?))
        });
        let (first_expert, up, down) = if self.split.experts {
            let experts = self.units(weights.up.num_experts(), 1);
            (
                experts.start,
                weights.up.experts(&experts),
                weights.down.experts(&experts),
            )
        } else {
            let inner = self.part(weights.up.num_rows());
            (0, weights.up.rows(&inner), weights.down.columns(&inner)?)
        };
        let shared = weights.shared.as_ref().map(|shared| self.mlp(shared));
        Ok(MoeWeights {
            gate: weights.gate.clone(),
            correction_bias: weights.correction_bias.clone(),
            first_expert,
            latent: latent.transpose()?,
            up,
            down,
            shared: shared.transpose()?,
        })
    }

    /// Columns of a matrix whose products the ranks sum.
    fn summed(
        self,
        linear: &LinearWeights,
        columns: &Range<usize>,
    ) -> Result<LinearWeights, SplitBlock> {
        Ok(LinearWeights {
            weight: linear.weight.columns(columns)?,
            bias: linear.bias.clone().filter(|_| self.rank == 0),
        })
    }
}

fn moved(range: &Range<usize>, by: usize) -> Range<usize> {
    range.start + by..range.end + by
}

#[cfg(test)]
mod tests;
