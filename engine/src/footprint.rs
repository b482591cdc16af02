//! What a step reads, writes and computes: from the weights as they are stored and the model's
//! shapes. The yardstick of benches.

use crate::model::weights::{ExpertWeights, MixerWeights, ModelWeights};
use crate::model::{LayerKind, ModelConfig};

/// Bytes and operations of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Weights that every step reads once, whatever its rows.
    pub dense_bytes: u64,
    /// One row of the embedding table.
    pub embedding_row_bytes: u64,
    /// All routed experts.
    pub routed_bytes: u64,
    /// How many those are, over all layers.
    pub num_experts: u64,
    /// Layers that have them.
    pub num_moe_layers: u64,
    /// State of one sequence.
    pub slot_bytes: u64,
    /// Keys and values of one token.
    pub kv_bytes_per_token: u64,
    /// Operations of one token below the head, without attention's scores.
    pub flops_per_token: u64,
    /// Operations of the head for one position.
    pub head_flops: u64,
    /// Operations of attention for one token and one position that it looks at.
    pub attention_flops: u64,
}

impl Footprint {
    pub(crate) fn new(
        model: &ModelConfig,
        weights: &ModelWeights,
        weight_bytes: u64,
        slot_bytes: u64,
        kv_bytes_per_token: u64,
    ) -> Self {
        let moe = weights
            .layers
            .iter()
            .filter_map(|layer| match &layer.mixer {
                MixerWeights::Moe(moe) => Some(moe),
                _ => None,
            });
        let (mut routed_bytes, mut num_experts, mut num_moe_layers) = (0, 0, 0);
        for moe in moe {
            routed_bytes += moe.up.num_bytes() + moe.down.num_bytes();
            num_moe_layers += 1;
            num_experts += match &moe.up {
                ExpertWeights::Fused(weight) => weight.shape[0] as u64,
                ExpertWeights::PerExpert(experts) => experts.len() as u64,
            };
        }
        let embedding_bytes = weights.embedding.num_bytes();
        // A table that is the head as well is read as a whole.
        let unread = weights.head.as_ref().map_or(0, |_| embedding_bytes);
        let attention_heads = model
            .attention
            .as_ref()
            .map_or(0, |attention| attention.num_heads * attention.head_dim);
        Self {
            dense_bytes: weight_bytes - routed_bytes - unread,
            embedding_row_bytes: embedding_bytes / model.vocab_size as u64,
            routed_bytes,
            num_experts,
            num_moe_layers,
            slot_bytes,
            kv_bytes_per_token,
            flops_per_token: flops_per_token(model),
            head_flops: 2 * (model.hidden_size * model.vocab_size) as u64,
            attention_flops: 4
                * attention_heads as u64
                * model.num_layers(LayerKind::Attention) as u64,
        }
    }

    /// Bytes that a step moves at least: weights once, of the experts those that somebody chose
    /// (counted over all layers); state read and written; keys and values of all positions read, of
    /// the new tokens written.
    pub fn step_bytes(&self, rows: StepSize, num_chosen_experts: f64) -> f64 {
        let each = self.routed_bytes as f64 / self.num_experts.max(1) as f64;
        self.dense_bytes as f64
            + num_chosen_experts * each
            + (rows.num_tokens * self.embedding_row_bytes) as f64
            + (2 * rows.num_rows * self.slot_bytes) as f64
            + ((rows.num_positions + rows.num_tokens) * self.kv_bytes_per_token) as f64
    }

    /// Operations for the tokens `start..end` of one sequence, and the head for `num_logits`.
    pub fn flops(&self, start: u64, end: u64, num_logits: u64) -> u64 {
        // Token t looks at t + 1 positions.
        let positions = (end * (end + 1) - start * (start + 1)) / 2;
        (end - start) * self.flops_per_token
            + positions * self.attention_flops
            + num_logits * self.head_flops
    }
}

/// How large a step was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepSize {
    /// Sequences in it.
    pub num_rows: u64,
    /// Tokens in it.
    pub num_tokens: u64,
    /// Positions that its rows had before it, in sum.
    pub num_positions: u64,
}

/// Two per parameter that a token uses, the convolution's and the recurrence's: decay, input and
/// output of every state element take six.
fn flops_per_token(model: &ModelConfig) -> u64 {
    let h = model.hidden_size;
    let mut mlp_sizes = model.mlp_sizes.iter();
    let of_layer = |kind: &LayerKind| match kind {
        LayerKind::Mamba => {
            let mamba = model.mamba.as_ref().expect("the stack has Mamba layers");
            let projections = h * (mamba.projected_size() + mamba.inner_size());
            2 * (projections + mamba.conv_dim() * mamba.conv_kernel)
                + 6 * mamba.inner_size() * mamba.state_size
        }
        LayerKind::Attention => {
            let attention = model.attention.as_ref().expect("the stack has attention");
            let heads = 2 * attention.num_heads + 2 * attention.num_kv_heads;
            2 * h * heads * attention.head_dim
        }
        LayerKind::Moe => {
            let moe = model.moe.as_ref().expect("the stack has expert layers");
            let width = moe.latent_size.unwrap_or(h);
            let experts = 2 * moe.num_experts_per_token * moe.expert_size * width;
            let latent = moe.latent_size.map_or(0, |latent| 2 * h * latent);
            let shared = 2 * h * moe.shared_size.unwrap_or(0);
            2 * (h * moe.num_experts + experts + latent + shared)
        }
        LayerKind::Mlp => {
            let size = mlp_sizes.next().expect("every MLP has a width");
            2 * 2 * h * size
        }
    };
    model.layers.iter().map(of_layer).sum::<usize>() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::family::SUPER;
    use crate::model::weights;

    #[test]
    fn a_token_of_super_costs_what_was_published() {
        let model = ModelConfig::parse(SUPER, "config.json".as_ref()).expect("it is good");
        let (weights, inventory) = weights::invent(&model, 0).expect("it is plain");
        let footprint = Footprint::new(&model, &weights, inventory.num_bytes, 0, 0);
        // 24.8 GFLOP: 2 x 12.23 B active parameters without the embedding, and the scan.
        let flops = footprint.flops_per_token + footprint.head_flops;
        assert!((24.6e9..24.9e9).contains(&(flops as f64)), "{flops}");
        // bf16, one token: 24.8 GB with states and cache, which are 0.35 of them.
        let chosen = (22 * footprint.num_moe_layers) as f64;
        let size = StepSize {
            num_rows: 1,
            num_tokens: 1,
            num_positions: 1024,
        };
        let bytes = footprint.step_bytes(size, chosen);
        assert!((24.3e9..24.6e9).contains(&bytes), "{bytes}");
        assert_eq!(footprint.num_experts, 40 * 512);
    }

    #[test]
    fn chunks_cost_what_the_whole_costs() {
        let model = ModelConfig::parse(SUPER, "config.json".as_ref()).expect("it is good");
        let (weights, inventory) = weights::invent(&model, 0).expect("it is plain");
        let footprint = Footprint::new(&model, &weights, inventory.num_bytes, 0, 0);
        let whole = footprint.flops(0, 1000, 1);
        assert_eq!(
            footprint.flops(0, 300, 0) + footprint.flops(300, 1000, 1),
            whole
        );
    }
}
