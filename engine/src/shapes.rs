//! The shapes of a model, for the self-test.

use kernels::self_test::Shapes;
use kernels::{MambaShape, RouterShape};

use crate::model::ModelConfig;

/// Shapes of all operations at the model's widths. What the model does not have stays small. Experts
/// are as many as `budget` bytes hold.
pub(crate) fn of_model(model: &ModelConfig, budget: u64) -> Shapes {
    let mut shapes = Shapes {
        hidden: model.hidden_size,
        // A row each of decoding, a fresh prompt, a chunk across blocks, and less than a window: few
        // tokens, because the loops that judge are slow.
        rows: vec![(37, 1), (0, 3), (13, 5), (3, 2)],
        ..Shapes::default()
    };
    shapes.intermediate = model.mlp_sizes.first().copied().unwrap_or_else(|| {
        let moe = model.moe.as_ref();
        moe.map_or(model.hidden_size, |moe| moe.expert_size)
    });
    if let Some(attention) = &model.attention {
        shapes.heads = attention.num_heads;
        shapes.kv_heads = attention.num_kv_heads;
        shapes.head_dim = attention.head_dim;
    }
    if let Some(mamba) = &model.mamba {
        shapes.mamba = MambaShape {
            heads: mamba.num_heads,
            head_dim: mamba.head_dim,
            groups: mamba.num_groups,
            state: mamba.state_size,
            conv_kernel: mamba.conv_kernel,
        };
        shapes.time_step_limit = mamba.time_step_limit;
    }
    if let Some(moe) = &model.moe {
        shapes.expert_hidden = moe.latent_size.unwrap_or(model.hidden_size);
        shapes.expert_intermediate = moe.expert_size;
        shapes.router = RouterShape {
            top_k: moe.num_experts_per_token,
            n_group: moe.num_groups,
            topk_group: moe.num_top_groups,
            norm_topk_prob: moe.norm_topk_prob,
            scaling: moe.scaling,
        };
        // Two matrices as numbers and as stored.
        let each = 16 * (shapes.expert_hidden * shapes.expert_intermediate) as u64;
        let affordable = (budget / each.max(1)) as usize;
        let groups = moe.num_groups;
        let per_group = (affordable / groups)
            .max(moe.num_experts_per_token.div_ceil(moe.num_top_groups) + 1)
            .min(moe.num_experts / groups);
        shapes.num_experts = per_group * groups;
    }
    shapes
}

/// The model's matrices, `(name, rows, columns)`, each shape once.
pub(crate) fn matrices(model: &ModelConfig) -> Vec<(&'static str, usize, usize)> {
    let h = model.hidden_size;
    let mut all = Vec::new();
    if let Some(mamba) = &model.mamba {
        all.push(("in_proj", mamba.projected_size(), h));
        all.push(("out_proj", h, mamba.inner_size()));
    }
    if let Some(attention) = &model.attention {
        let width = attention.num_heads * attention.head_dim;
        all.push(("q_proj", width, h));
        all.push(("k_proj", attention.num_kv_heads * attention.head_dim, h));
        all.push(("o_proj", h, width));
    }
    if let Some(moe) = &model.moe {
        if let Some(latent) = moe.latent_size {
            all.push(("fc1_latent_proj", latent, h));
            all.push(("fc2_latent_proj", h, latent));
        }
        if let Some(shared) = moe.shared_size {
            all.push(("shared up_proj", shared, h));
            all.push(("shared down_proj", h, shared));
        }
    }
    all.push(("lm_head", model.vocab_size, h));
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|(_, n, k)| seen.insert((*n, *k)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::family::{NANO, SUPER};

    #[test]
    fn super_is_tested_as_it_is_but_for_its_experts() {
        let model = ModelConfig::parse(SUPER, "config.json".as_ref()).expect("it is good");
        let shapes = of_model(&model, 6 << 30);
        assert_eq!((shapes.hidden, shapes.mamba.projected()), (4096, 18_560));
        assert_eq!(
            (shapes.expert_hidden, shapes.expert_intermediate),
            (1024, 2688)
        );
        assert!(
            (23..512).contains(&shapes.num_experts),
            "{}",
            shapes.num_experts
        );
        assert_eq!(
            of_model(&model, 0).num_experts,
            23,
            "never too few to choose from"
        );
        assert_eq!(of_model(&model, u64::MAX).num_experts, 512);
        assert!(matrices(&model).contains(&("in_proj", 18_560, 4096)));
    }

    #[test]
    fn nano_has_no_latent_width() {
        let model = ModelConfig::parse(NANO, "config.json".as_ref()).expect("it is good");
        let shapes = of_model(&model, u64::MAX);
        assert_eq!((shapes.expert_hidden, shapes.num_experts), (2688, 128));
    }
}
