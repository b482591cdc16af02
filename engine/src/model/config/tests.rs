use kernels::Format;
use serde_json::{Map, json};

use super::*;

/// A configuration with every kind of layer; null removes a key.
fn with(changes: &Value) -> String {
    let mut config = json!({
        "model_type": "nemotron_h",
        "architectures": ["NemotronHForCausalLM"],
        "hybrid_override_pattern": "ME*-",
        "num_hidden_layers": 4,
        "hidden_size": 64, "vocab_size": 128, "max_position_embeddings": 1024,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24,
        "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 32,
        "conv_kernel": 4, "expand": 2,
        "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
        "moe_shared_expert_intermediate_size": 96, "n_shared_experts": 1,
        "intermediate_size": 80,
    });
    let map = config.as_object_mut().expect("an object");
    for (key, value) in changes.as_object().expect("an object") {
        map.insert(key.clone(), value.clone());
    }
    config.to_string()
}

fn parse(text: &str) -> Result<ModelConfig, String> {
    ModelConfig::parse(text, Path::new("config.json")).map_err(|error| error.to_string())
}

#[track_caller]
fn good(changes: &Value) -> ModelConfig {
    parse(&with(changes)).unwrap_or_else(|error| panic!("{changes}: {error}"))
}

/// The error names the file and says all of `expect`.
#[track_caller]
fn refused(changes: &Value, expect: &[&str]) {
    let error = parse(&with(changes)).expect_err("it is refused");
    assert!(error.starts_with("config.json: "), "{error}");
    for part in expect {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
}

#[test]
fn every_spelling_of_the_stack_is_one() {
    use LayerKind::{Attention, Mamba, Mlp, Moe};
    let stack = vec![Mamba, Moe, Attention, Mlp];
    for changes in [
        json!({}),
        json!({"num_hidden_layers": null}),
        json!({"hybrid_override_pattern": null,
               "layers_block_type": ["mamba", "moe", "attention", "mlp"]}),
        json!({"hybrid_override_pattern": null,
               "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"]}),
        json!({"hybrid_override_pattern": null, "num_hidden_layers": null,
               "layer_types": ["linear_attention", "moe", "full_attention", "mlp"]}),
    ] {
        assert_eq!(good(&changes).layers, stack);
    }
    refused(
        &json!({"num_hidden_layers": 5}),
        &["num_hidden_layers", "5", "4 layers"],
    );
    refused(
        &json!({"hybrid_override_pattern": "ME*X"}),
        &["hybrid_override_pattern", "'X'", "layer 3"],
    );
    refused(&json!({"hybrid_override_pattern": ""}), &["0 layers"]);
    refused(&json!({"hybrid_override_pattern": null}), &["neither"]);
    refused(
        &json!({"hybrid_override_pattern": 4}),
        &["hybrid_override_pattern", "4"],
    );
    refused(
        &json!({"layers_block_type": ["mamba", "rwkv"]}),
        &["layers_block_type", "rwkv", "layer 1"],
    );
}

#[test]
fn published_shapes_follow() {
    let config = good(&json!({}));
    let mamba = config.mamba.expect("it has Mamba layers");
    assert_eq!(mamba.inner_size(), 128, "heads times width, not `expand`");
    assert_eq!(mamba.conv_dim(), 128 + 2 * 2 * 32);
    assert_eq!(mamba.projected_size(), 128 + 256 + 8);
    assert_eq!(mamba.time_step_limit, None);
    assert_eq!(config.attention.expect("it has attention").head_dim, 24);
    assert_eq!(config.norm_eps, 1e-5);
    assert!(!config.tie_word_embeddings);
    assert_eq!(config.mtp_layers, None);
    let moe = config.moe.expect("it has experts");
    assert_eq!((moe.shared_size, moe.latent_size), (Some(96), None));
    assert_eq!((moe.scaling, moe.norm_topk_prob), (1.0, true));
}

#[test]
fn old_names_and_saved_nulls_are_understood() {
    let old = good(&json!({
        "n_groups": null, "mamba_n_groups": 4, "conv_kernel": null, "mamba_d_conv": 3,
        "mamba_conv_bias": false, "mamba_dt_limit": [0.5, 2.0], "moe_latent_size": null,
        "num_nextn_predict_layers": 0, "mtp_layers_block_type": ["full_attention", "moe"],
        "sliding_window": null,
    }));
    let mamba = old.mamba.expect("it has Mamba layers");
    assert_eq!((mamba.num_groups, mamba.conv_kernel), (4, 3));
    assert!(!mamba.conv_bias);
    assert_eq!(mamba.time_step_limit, Some((0.5, 2.0)));
    assert_eq!(old.mtp_layers, None);
}

#[test]
fn no_limit_is_no_limit_however_it_is_written() {
    let written = with(&json!({"time_step_limit": [0.0, 17.5]}));
    for limit in [
        "[0.0, Infinity]",
        "[0.0,{\"__float__\":\"Infinity\"}]",
        "[-Infinity,Infinity]",
    ] {
        let text = written.replace("[0.0,17.5]", limit);
        let config = parse(&text).unwrap_or_else(|error| panic!("{limit}: {error}"));
        assert_eq!(
            config.mamba.expect("it has Mamba layers").time_step_limit,
            None
        );
    }
    for limit in ["[NaN, 1.0]", "[2.0, 1.0]", "[1.0]", "\"no\""] {
        let error = parse(&written.replace("[0.0,17.5]", limit)).expect_err("it is refused");
        assert!(error.contains("time_step_limit"), "{error}");
    }
}

#[test]
fn dense_widths_come_one_by_one() {
    let three = |sizes| json!({"hybrid_override_pattern": "-M--", "intermediate_size": sizes});
    assert_eq!(good(&three(json!(80))).mlp_sizes, [80, 80, 80]);
    assert_eq!(good(&three(json!([80]))).mlp_sizes, [80, 80, 80]);
    assert_eq!(good(&three(json!([80, 90, 70]))).mlp_sizes, [80, 90, 70]);
    refused(
        &three(json!([80, 90])),
        &["intermediate_size", "2 entries", "3 dense"],
    );
    refused(&three(json!([80, 0, 70])), &["intermediate_size", "is 0"]);
    refused(&three(json!(null)), &["`intermediate_size` is missing"]);
}

#[test]
fn the_draft_block_has_one_shape() {
    let with_mtp =
        |stack| json!({"num_nextn_predict_layers": 1, "mtp_hybrid_override_pattern": stack});
    let expect = Some(vec![LayerKind::Attention, LayerKind::Moe]);
    assert_eq!(good(&with_mtp(json!("*E"))).mtp_layers, expect);
    assert_eq!(good(&with_mtp(json!(null))).mtp_layers, expect);
    refused(&with_mtp(json!("E*")), &["draft block"]);
    refused(
        &json!({"num_nextn_predict_layers": 2}),
        &["num_nextn_predict_layers", "2"],
    );
    // A draft block brings attention and experts into a model that has none.
    refused(
        &json!({"hybrid_override_pattern": "MM-M", "num_nextn_predict_layers": 1,
               "n_routed_experts": null}),
        &["`n_routed_experts` is missing"],
    );
}

#[test]
fn sizes_are_bounded_and_divide() {
    for key in [
        "hidden_size",
        "vocab_size",
        "num_attention_heads",
        "mamba_num_heads",
        "mamba_head_dim",
        "n_groups",
        "ssm_state_size",
        "n_routed_experts",
        "num_experts_per_tok",
        "moe_intermediate_size",
        "moe_shared_expert_intermediate_size",
        "intermediate_size",
    ] {
        refused(&json!({key: null}), &[key, "missing"]);
        for value in [
            json!(0),
            json!(-1),
            json!(1_u64 << 40),
            json!(2.5),
            json!("12"),
            json!([]),
        ] {
            refused(&json!({key: value}), &[key]);
        }
    }
    for (a, b) in [
        ("num_attention_heads", "head_dim"),
        ("mamba_num_heads", "mamba_head_dim"),
        ("n_groups", "ssm_state_size"),
        ("n_shared_experts", "moe_shared_expert_intermediate_size"),
    ] {
        let mut large = json!({"num_key_value_heads": 1, "mamba_num_heads": 1024});
        large[a] = json!(1024);
        large[b] = json!(1 << 20);
        refused(&large, &[&format!("`{a}` (1024) times `{b}` (1048576)")]);
    }
    refused(
        &json!({"num_key_value_heads": 3}),
        &["num_key_value_heads", "3", "4"],
    );
    refused(
        &json!({"n_groups": 3}),
        &["n_groups", "3", "mamba_num_heads", "8"],
    );
    refused(&json!({"conv_kernel": 1}), &["conv_kernel", "1"]);
    refused(
        &json!({"n_group": 3}),
        &["n_group", "3", "n_routed_experts"],
    );
    refused(
        &json!({"n_group": 2, "topk_group": 3}),
        &["topk_group", "3"],
    );
    refused(&json!({"n_group": 8}), &["n_group", "two best"]);
    refused(
        &json!({"num_experts_per_tok": 9}),
        &["num_experts_per_tok", "9"],
    );
    refused(
        &json!({"n_group": 4, "topk_group": 1, "num_experts_per_tok": 3}),
        &["num_experts_per_tok", "only 2"],
    );
    refused(&json!({"layer_norm_epsilon": 0}), &["layer_norm_epsilon"]);
    refused(
        &json!({"routed_scaling_factor": "big"}),
        &["routed_scaling_factor"],
    );
}

#[test]
fn other_models_are_refused_by_name() {
    refused(
        &json!({"model_type": "llama"}),
        &["model_type", "llama", "nemotron_h"],
    );
    refused(
        &json!({"model_type": "nemotron_h_puzzle"}),
        &["nemotron_h_puzzle"],
    );
    refused(
        &json!({"model_type": null, "architectures": ["Other"]}),
        &["architectures", "Other"],
    );
    refused(
        &json!({"model_type": null, "architectures": null}),
        &["model_type"],
    );
    good(&json!({"model_type": null}));
    refused(&json!({"text_config": {}}), &["text_config"]);
    refused(
        &json!({"mlp_hidden_act": "silu"}),
        &["mlp_hidden_act", "silu", "relu2"],
    );
    refused(
        &json!({"mamba_hidden_act": "gelu"}),
        &["mamba_hidden_act", "gelu"],
    );
    refused(
        &json!({"sliding_window": 4096}),
        &["sliding_window", "4096"],
    );
    refused(
        &json!({"tie_word_embeddings": "yes"}),
        &["tie_word_embeddings"],
    );
}

#[test]
fn only_what_the_stack_has_is_asked_for() {
    let dense = good(
        &json!({"hybrid_override_pattern": "-*--", "mamba_num_heads": null,
        "n_routed_experts": null, "mamba_hidden_act": "gelu"}),
    );
    assert_eq!((dense.mamba, dense.moe), (None, None));
    let no_shared = good(&json!({"n_shared_experts": 0,
        "moe_shared_expert_intermediate_size": null}));
    assert_eq!(no_shared.moe.expect("it has experts").shared_size, None);
    let two = good(&json!({"n_shared_experts": 2}));
    assert_eq!(two.moe.expect("it has experts").shared_size, Some(192));
}

#[test]
fn broken_files_are_refused() {
    for text in ["", "{", "[]", "null", "{\"a\": Infinit}"] {
        assert!(parse(text).is_err(), "{text:?}");
    }
    // A long value is shown cut, on a character's edge.
    refused(
        &json!({"hidden_size": "ü".repeat(200)}),
        &["hidden_size", "..."],
    );
}

#[test]
fn megabytes_of_quantised_modules_are_read() {
    let layers: Map<String, Value> = (0..41_100)
        .map(|at| {
            let name = format!("backbone.layers.{}.mixer.experts.{at}.up_proj", at % 88);
            (name, json!({"quant_algo": "NVFP4", "group_size": 16}))
        })
        .collect();
    let config = good(&json!({"quantization_config":
        {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": layers}}));
    let said = config.quantization.of("layers.87.mixer.experts.87.up_proj");
    let (source, format) = said.last().expect("it is named");
    assert_eq!(
        (source, format),
        ("quantization_config", &Ok(Format::Nvfp4))
    );
}
