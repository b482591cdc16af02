//! Published configurations of the family, as far as they shape tensors: for arithmetic about models
//! whose files are not at hand.

/// Nemotron 3 Super 120B-A12B.
pub const SUPER: &str = r#"{
    "model_type": "nemotron_h",
    "hybrid_override_pattern": "MEMEMEM*EMEMEMEM*EMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEM*EMEMEMEME",
    "hidden_size": 4096, "vocab_size": 131072, "max_position_embeddings": 262144,
    "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128,
    "mamba_num_heads": 128, "mamba_head_dim": 64, "n_groups": 8, "ssm_state_size": 128, "conv_kernel": 4,
    "n_routed_experts": 512, "num_experts_per_tok": 22, "moe_intermediate_size": 2688,
    "moe_shared_expert_intermediate_size": 5376, "n_shared_experts": 1, "moe_latent_size": 1024,
    "n_group": 1, "topk_group": 1, "norm_topk_prob": true, "routed_scaling_factor": 5.0,
    "intermediate_size": 2688, "layer_norm_epsilon": 1e-5
}"#;

/// Nemotron 3 Nano 30B-A3B.
pub const NANO: &str = r#"{
    "model_type": "nemotron_h",
    "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
    "hidden_size": 2688, "vocab_size": 131072, "max_position_embeddings": 262144,
    "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128,
    "mamba_num_heads": 64, "mamba_head_dim": 64, "n_groups": 8, "ssm_state_size": 128, "conv_kernel": 4,
    "n_routed_experts": 128, "num_experts_per_tok": 6, "moe_intermediate_size": 1856,
    "moe_shared_expert_intermediate_size": 3712, "n_shared_experts": 1,
    "n_group": 1, "topk_group": 1, "norm_topk_prob": true, "routed_scaling_factor": 2.5,
    "intermediate_size": 1856, "layer_norm_epsilon": 1e-5
}"#;
