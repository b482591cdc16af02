//! Configurations of models so small that their weights are invented when a test starts.

use tempfile::TempDir;

/// Every kind of layer, and a draft block if it is asked for.
pub const EVERY_LAYER: &str = r#"{
    "model_type": "nemotron_h",
    "hybrid_override_pattern": "ME*-MEM*E",
    "hidden_size": 48, "vocab_size": 300, "max_position_embeddings": 4096,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "mamba_num_heads": 6, "mamba_head_dim": 12, "n_groups": 2, "ssm_state_size": 16, "conv_kernel": 4,
    "n_routed_experts": 12, "num_experts_per_tok": 3, "n_group": 3, "topk_group": 2,
    "moe_intermediate_size": 20, "moe_latent_size": 24, "routed_scaling_factor": 2.5,
    "moe_shared_expert_intermediate_size": 40, "n_shared_experts": 1,
    "intermediate_size": 64, "time_step_limit": [0.0, Infinity], "num_nextn_predict_layers": 1
}"#;

/// The same in fewer layers, for tests that draw tens of thousands of tokens.
pub const FEW_LAYERS: &str = r#"{
    "model_type": "nemotron_h",
    "hybrid_override_pattern": "M*-ME",
    "hidden_size": 48, "vocab_size": 300, "max_position_embeddings": 4096,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "mamba_num_heads": 6, "mamba_head_dim": 12, "n_groups": 2, "ssm_state_size": 16, "conv_kernel": 4,
    "n_routed_experts": 12, "num_experts_per_tok": 3, "n_group": 3, "topk_group": 2,
    "moe_intermediate_size": 20, "moe_latent_size": 24, "routed_scaling_factor": 2.5,
    "moe_shared_expert_intermediate_size": 40, "n_shared_experts": 1,
    "intermediate_size": 64, "time_step_limit": [0.0, Infinity]
}"#;

/// Every kind of layer, a window of a million, and one head of attention, whose work grows with the
/// square of the prompt.
pub const LONG_CONTEXT: &str = r#"{
    "model_type": "nemotron_h",
    "hybrid_override_pattern": "ME*-M",
    "hidden_size": 32, "vocab_size": 97, "max_position_embeddings": 1048576,
    "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16,
    "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 16, "conv_kernel": 4,
    "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "moe_intermediate_size": 16, "moe_latent_size": 16, "routed_scaling_factor": 2.5,
    "moe_shared_expert_intermediate_size": 32, "n_shared_experts": 1,
    "intermediate_size": 32, "time_step_limit": [0.0, Infinity]
}"#;

/// A vocabulary of two chunks of a GPU's selection, the second not full.
pub const WIDE_HEAD: &str = r#"{
    "model_type": "nemotron_h", "hybrid_override_pattern": "M*-",
    "hidden_size": 64, "vocab_size": 2600, "max_position_embeddings": 4096,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 16,
    "conv_kernel": 4, "intermediate_size": 64
}"#;

/// Every kind of layer; heads and groups divide by 8, widths by nothing in particular. `KV` and
/// `EXTRA` are to be filled in.
pub const FOR_RANKS: &str = r#"{
    "model_type": "nemotron_h",
    "hybrid_override_pattern": "ME*-MEM*E",
    "hidden_size": 64, "vocab_size": 301, "max_position_embeddings": 4096,
    "num_attention_heads": 16, "num_key_value_heads": KV, "head_dim": 8,
    "mamba_num_heads": 16, "mamba_head_dim": 8, "n_groups": 8, "ssm_state_size": 16, "conv_kernel": 4,
    "n_routed_experts": 21, "num_experts_per_tok": 4, "n_group": 3, "topk_group": 2,
    "moe_intermediate_size": 42, "routed_scaling_factor": 2.5,
    "moe_shared_expert_intermediate_size": 76, "n_shared_experts": 1,
    "intermediate_size": 96, "time_step_limit": [0.0, Infinity] EXTRA
}"#;

/// A model folder with nothing but this configuration.
pub fn folder(config: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("config.json"), config).expect("it can be written to");
    folder
}
