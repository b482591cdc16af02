//! `config.json`: missing, unreadable, or asking for what nobody trained.

use std::fs;
use std::path::Path;

use nemoserve_tests::surgery::edit_json;
use serde_json::{Value, json};

use crate::{Case, check};

#[test]
fn a_configuration_is_refused_by_key() {
    check(CASES);
}

pub(crate) const CASES: &[Case] = &[
    case(
        "no file",
        |folder| fs::remove_file(path(folder)).expect("it is there"),
        &["config.json: No such file"],
    ),
    case(
        "an empty file",
        |folder| write(folder, ""),
        &["config.json: not JSON: EOF"],
    ),
    case(
        "not JSON",
        |folder| write(folder, "model: nemotron"),
        &["config.json: not JSON:"],
    ),
    case(
        "not UTF-8",
        |folder| fs::write(path(folder), b"{\"a\": \"\xff\"}").expect("ours"),
        &["config.json:", "UTF-8"],
    ),
    case(
        "cut short",
        |folder| {
            let text = fs::read_to_string(path(folder)).expect("it is there");
            write(folder, &text[..text.len() / 2]);
        },
        &["config.json: not JSON: EOF"],
    ),
    case(
        "a list",
        |folder| write(folder, "[]"),
        &["config.json: the top level is not an object"],
    ),
    case(
        "nested beyond reason",
        |folder| write(folder, &"[".repeat(100_000)),
        &["config.json: not JSON: recursion limit"],
    ),
    case(
        "a folder",
        |folder| {
            fs::remove_file(path(folder)).expect("it is there");
            fs::create_dir(path(folder)).expect("a folder");
        },
        &["config.json: "],
    ),
    case(
        "another family",
        |f| set(f, "model_type", json!("llama")),
        &["`model_type` is \"llama\""],
    ),
    case(
        "no family",
        |folder| {
            remove(folder, "model_type");
            remove(folder, "architectures");
        },
        &["config.json: `model_type` is missing"],
    ),
    case(
        "a wrapper of several models",
        |f| set(f, "text_config", json!({"hidden_size": 40})),
        &["config.json: `text_config`"],
    ),
    case(
        "a layer that is no kind",
        |f| set(f, "hybrid_override_pattern", json!("MEMEM*EMX*E")),
        &["`hybrid_override_pattern` has 'X' for layer 8"],
    ),
    case(
        "an empty pattern",
        |f| set(f, "hybrid_override_pattern", json!("")),
        &["`hybrid_override_pattern` has 0 layers"],
    ),
    case(
        "a pattern that is a number",
        |f| set(f, "hybrid_override_pattern", json!(11)),
        &["`hybrid_override_pattern` is 11"],
    ),
    case(
        "no pattern",
        |f| remove(f, "hybrid_override_pattern"),
        &["neither `hybrid_override_pattern` nor `layers_block_type` is present"],
    ),
    case(
        "a listed layer that is no kind",
        |f| set(f, "layers_block_type", json!(["mamba", "rnn"])),
        &["`layers_block_type` has \"rnn\" for layer 1"],
    ),
    case(
        "another number of layers",
        |f| set(f, "num_hidden_layers", json!(12)),
        &["`num_hidden_layers` is 12, but the stack has 11 layers"],
    ),
    case(
        "another activation",
        |f| set(f, "mlp_hidden_act", json!("silu")),
        &["`mlp_hidden_act` is \"silu\", expected \"relu2\""],
    ),
    case(
        "another activation in the state space",
        |f| set(f, "mamba_hidden_act", json!("gelu")),
        &["`mamba_hidden_act` is \"gelu\", expected \"silu\""],
    ),
    case(
        "heads that do not share evenly",
        |f| set(f, "num_key_value_heads", json!(4)),
        &["`num_key_value_heads` (4) does not divide `num_attention_heads` (6)"],
    ),
    case(
        "groups that do not share evenly",
        |f| set(f, "n_groups", json!(3)),
        &["`n_groups` (3) does not divide `mamba_num_heads` (8)"],
    ),
    case(
        "router groups that do not share evenly",
        |f| set(f, "n_group", json!(4)),
        &["`n_group` (4) does not divide `n_routed_experts` (14)"],
    ),
    case(
        "more groups chosen than there are",
        |f| set(f, "topk_group", json!(2)),
        &["`topk_group` is 2, more than `n_group` (1)"],
    ),
    case(
        "more experts chosen than there are",
        |f| set(f, "num_experts_per_tok", json!(15)),
        &["`num_experts_per_tok` is 15, but only 14 experts can be chosen"],
    ),
    case(
        "no hidden size",
        |f| remove(f, "hidden_size"),
        &["`hidden_size` is missing"],
    ),
    case(
        "no vocabulary",
        |f| remove(f, "vocab_size"),
        &["`vocab_size` is missing"],
    ),
    case(
        "no heads",
        |f| remove(f, "num_attention_heads"),
        &["`num_attention_heads` is missing"],
    ),
    case(
        "no state",
        |f| remove(f, "ssm_state_size"),
        &["`ssm_state_size` is missing"],
    ),
    case(
        "no experts",
        |f| remove(f, "n_routed_experts"),
        &["`n_routed_experts` is missing"],
    ),
    case(
        "a null size",
        |f| set(f, "hidden_size", Value::Null),
        &["`hidden_size` is missing"],
    ),
    case(
        "a size of zero",
        |f| set(f, "hidden_size", json!(0)),
        &["`hidden_size` is 0"],
    ),
    case(
        "a negative size",
        |f| set(f, "head_dim", json!(-12)),
        &["`head_dim` is -12"],
    ),
    case(
        "a huge size",
        |f| set(f, "mamba_num_heads", json!(u64::MAX)),
        &["`mamba_num_heads` is 18446744073709551615"],
    ),
    case(
        "a broken size",
        |f| set(f, "mamba_head_dim", json!(6.5)),
        &["`mamba_head_dim` is 6.5"],
    ),
    case(
        "a size in words",
        |f| set(f, "vocab_size", json!("320")),
        &["`vocab_size` is \"320\""],
    ),
    case(
        "an infinite size",
        infinite_size,
        &["`hidden_size` is {\"__float__\":\"Infinity\"}"],
    ),
    case(
        "a flag that is a number",
        |f| set(f, "use_bias", json!(1)),
        &["`use_bias` is 1"],
    ),
    case(
        "an epsilon of zero",
        |f| set(f, "layer_norm_epsilon", json!(0.0)),
        &["`layer_norm_epsilon` is 0.0"],
    ),
    case(
        "a scale that is no number",
        |f| set(f, "routed_scaling_factor", json!("5")),
        &["`routed_scaling_factor` is \"5\""],
    ),
    case(
        "limits the wrong way round",
        |f| set(f, "time_step_limit", json!([0.1, 0.01])),
        &["`time_step_limit` is [0.1,0.01]"],
    ),
    case(
        "one limit",
        |f| set(f, "time_step_limit", json!([0.1])),
        &["`time_step_limit` is [0.1]"],
    ),
    case(
        "a sliding window",
        |f| set(f, "sliding_window", json!(4096)),
        &["`sliding_window` is 4096"],
    ),
    case(
        "two draft blocks",
        |f| set(f, "num_nextn_predict_layers", json!(2)),
        &["`num_nextn_predict_layers` is 2"],
    ),
    case(
        "a draft block of another shape",
        |f| set(f, "mtp_hybrid_override_pattern", json!("M*")),
        &["the draft block is [Mamba, Attention]"],
    ),
    case(
        "another vocabulary than the tensors'",
        |f| set(f, "vocab_size", json!(321)),
        &[
            "model.safetensors: tensor \"backbone.embeddings.weight\" is [320, 40]",
            "[321, 40]",
        ],
    ),
    case(
        "a latent width that nothing has",
        |f| set(f, "moe_latent_size", json!(21)),
        &[
            "model.safetensors: tensor \"backbone.layers.1.mixer.fc1_latent_proj.weight\" is [22, 40]",
        ],
    ),
    case(
        "a quantisation that no tensor has",
        |f| {
            set(
                f,
                "quantization_config",
                json!({"quant_method": "modelopt", "quant_algo": "FP8"}),
            );
        },
        &[
            "module \"backbone.layers.0.mixer.in_proj\" is FP8, `quantization_config` says, \
           but its tensors are not quantised",
        ],
    ),
    case(
        "a quantisation that no tensor has, beside the configuration",
        |f| {
            let quantization = json!({"quantized_layers": {
                "backbone.layers.3.mixer.experts.9.down_proj":
                    {"quant_algo": "NVFP4", "group_size": 16}}});
            beside(f, &json!({"quantization": quantization}));
        },
        &[
            "module \"backbone.layers.3.mixer.experts.9.down_proj\" is NVFP4, \
           `hf_quant_config.json` says, but its tensors are not quantised",
        ],
    ),
    case(
        "an algorithm that cannot be served",
        |f| beside(f, &json!({"quantization": {"quant_algo": "W4A8_AWQ"}})),
        &[
            "module \"backbone.layers.0.mixer.in_proj\" is quantised with W4A8_AWQ, \
           `hf_quant_config.json` says; F32, F16, BF16, FP8",
        ],
    ),
    case(
        "an algorithm of one module that cannot be served",
        |f| {
            set(
                f,
                "quantization_config",
                json!({"quant_algo": "MIXED_PRECISION", "quantized_layers": {
                    "backbone.layers.1.mixer.experts.3.up_proj": {"quant_algo": "INT8_SQ"}}}),
            );
        },
        &[
            "module \"backbone.layers.1.mixer.experts.3.up_proj\" is quantised with INT8_SQ, \
           `quantization_config` says",
        ],
    ),
    case(
        "another writer's quantisation",
        |f| {
            set(
                f,
                "quantization_config",
                json!({"quant_method": "gptq", "bits": 4}),
            );
        },
        &["`quantization_config`: `quant_method` is \"gptq\", expected \"modelopt\""],
    ),
    case(
        "a list of names that is a name",
        |f| {
            beside(
                f,
                &json!({"quantization": {"quant_algo": "FP8", "exclude_modules": "lm_head"}}),
            );
        },
        &[
            "hf_quant_config.json",
            "`exclude_modules` is not a list of names",
        ],
    ),
    case(
        "no JSON beside the configuration",
        |f| fs::write(f.join("hf_quant_config.json"), "{").expect("the copy is ours"),
        &["hf_quant_config.json", "not JSON"],
    ),
    Case {
        name: "widths for other layers",
        fixture: "mlp-widths",
        break_it: |f| set(f, "intermediate_size", json!([40, 23])),
        expect: &["`intermediate_size` has 2 entries for 3 dense layers"],
    },
    Case {
        name: "widths that are no integers",
        fixture: "mlp-widths",
        break_it: |f| set(f, "intermediate_size", json!([40, -23, 58])),
        expect: &["`intermediate_size` is -23"],
    },
];

const fn case(name: &'static str, break_it: fn(&Path), expect: &'static [&'static str]) -> Case {
    Case {
        name,
        fixture: "super",
        break_it,
        expect,
    }
}

fn infinite_size(folder: &Path) {
    let text = fs::read_to_string(path(folder)).expect("it is there");
    write(
        folder,
        &text.replace("\"hidden_size\": 40", "\"hidden_size\": Infinity"),
    );
}

/// Writes the file beside the configuration.
fn beside(folder: &Path, document: &Value) {
    fs::write(folder.join("hf_quant_config.json"), document.to_string()).expect("the copy is ours");
}

fn path(folder: &Path) -> std::path::PathBuf {
    folder.join("config.json")
}

fn write(folder: &Path, text: &str) {
    fs::write(path(folder), text).expect("the copy is ours");
}

fn set(folder: &Path, key: &str, value: Value) {
    edit_json(&path(folder), |config| config[key] = value);
}

fn remove(folder: &Path, key: &str) {
    edit_json(&path(folder), |config| {
        let map = config.as_object_mut().expect("an object");
        map.remove(key).expect("the fixture has it");
    });
}
