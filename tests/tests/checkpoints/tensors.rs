//! Sound files with the wrong tensors in them.

use std::path::Path;

use nemoserve_tests::surgery::{Shard, edit_json};
use serde_json::json;

use crate::{Case, check};

#[test]
fn tensors_are_those_of_the_configuration() {
    check(CASES);
}

pub(crate) const CASES: &[Case] = &[
    case(
        "no embedding",
        |folder| remove(folder, "backbone.embeddings.weight"),
        &["tensor \"backbone.embeddings.weight\" [320, 40] is missing"],
    ),
    case(
        "no final norm",
        |folder| remove(folder, "backbone.norm_f.weight"),
        &["tensor \"backbone.norm_f.weight\" [40] is missing"],
    ),
    case(
        "no head",
        |folder| remove(folder, "lm_head.weight"),
        &["tensor \"lm_head.weight\" [320, 40] is missing"],
    ),
    case(
        "no layer norm",
        |folder| remove(folder, "backbone.layers.7.norm.weight"),
        &["tensor \"backbone.layers.7.norm.weight\" [40] is missing"],
    ),
    case(
        "no decay",
        |folder| remove(folder, "backbone.layers.4.mixer.A_log"),
        &["tensor \"backbone.layers.4.mixer.A_log\" [8] is missing"],
    ),
    case(
        "no convolution bias",
        |folder| remove(folder, "backbone.layers.4.mixer.conv1d.bias"),
        &["tensor \"backbone.layers.4.mixer.conv1d.bias\" [128] is missing"],
    ),
    case(
        "no correction bias",
        |folder| {
            remove(
                folder,
                "backbone.layers.1.mixer.gate.e_score_correction_bias",
            );
        },
        &["tensor \"backbone.layers.1.mixer.gate.e_score_correction_bias\" [14] is missing"],
    ),
    case(
        "one expert of fourteen missing",
        |folder| remove(folder, "backbone.layers.3.mixer.experts.9.down_proj.weight"),
        &["tensor \"backbone.layers.3.mixer.experts.9.down_proj.weight\" [22, 18] is missing"],
    ),
    case(
        "half a draft block",
        |folder| remove(folder, "mtp.layers.0.eh_proj.weight"),
        &["tensor \"mtp.layers.0.eh_proj.weight\" [40, 80] is missing"],
    ),
    Case {
        name: "missing under another prefix",
        fixture: "fused-experts",
        break_it: |folder| remove(folder, "model.layers.1.mixer.experts.up_proj"),
        expect: &["tensor \"model.layers.1.mixer.experts.", "is missing"],
    },
    case(
        "a tensor too many",
        |folder| {
            edit(folder, |shard| {
                shard.push(
                    "backbone.layers.0.mixer.q_norm.weight",
                    "BF16",
                    &[3],
                    &[0; 6],
                );
            });
        },
        &["tensor \"backbone.layers.0.mixer.q_norm.weight\" [3] has no place in this model"],
    ),
    case(
        "biases that the configuration denies",
        |folder| {
            edit(folder, |shard| {
                for which in ["q", "k"] {
                    let name = format!("backbone.layers.5.mixer.{which}_proj.bias");
                    shard.push(&name, "BF16", &[2], &[0; 4]);
                }
            });
        },
        &[
            "tensor \"backbone.layers.5.mixer.k_proj.bias\" [2] has no place",
            "(and 1 more)",
        ],
    ),
    case(
        "a layer too many",
        |folder| {
            edit_json(&folder.join("config.json"), |config| {
                config["hybrid_override_pattern"] = json!("MEMEM*EME*");
                config["num_hidden_layers"] = json!(10);
            });
        },
        &[
            "tensor \"backbone.layers.10.mixer.",
            "has no place in this model (and ",
        ],
    ),
    case(
        "a layer of another kind",
        |folder| {
            edit_json(&folder.join("config.json"), |config| {
                config["hybrid_override_pattern"] = json!("MEMEM*EMM*E");
            });
        },
        &["tensor \"backbone.layers.8.mixer.in_proj.weight\" [184, 40] is missing"],
    ),
    case(
        "both prefixes",
        |folder| {
            edit(folder, |shard| {
                shard.push("model.norm_f.weight", "BF16", &[40], &[0; 80]);
            });
        },
        &["\"backbone.norm_f.weight\" and \"model.norm_f.weight\" are the same weight"],
    ),
    case(
        "fused experts beside single ones",
        |folder| {
            edit(folder, |shard| {
                let bytes = vec![0; 14 * 18 * 22 * 2];
                let name = "backbone.layers.1.mixer.experts.up_proj";
                shard.push(name, "BF16", &[14, 18, 22], &bytes);
            });
        },
        &[
            "backbone.layers.1.mixer.experts.0.up_proj.weight",
            "has no place in this model",
        ],
    ),
    case(
        "a transposed matrix",
        |folder| {
            edit(folder, |shard| {
                shard.entry("backbone.layers.5.mixer.q_proj.weight")["shape"] = json!([40, 72]);
            });
        },
        &[
            "\"backbone.layers.5.mixer.q_proj.weight\" is [40, 72]",
            "makes it [72, 40]",
        ],
    ),
    case(
        "a vector instead of a matrix",
        |folder| {
            edit(folder, |shard| {
                shard.entry("backbone.layers.5.mixer.q_proj.weight")["shape"] = json!([2880]);
            });
        },
        &[
            "\"backbone.layers.5.mixer.q_proj.weight\" is [2880]",
            "makes it [72, 40]",
        ],
    ),
    case(
        "a convolution without its middle dimension",
        |folder| {
            edit(folder, |shard| {
                shard.entry("backbone.layers.0.mixer.conv1d.weight")["shape"] = json!([128, 4]);
            });
        },
        &[
            "\"backbone.layers.0.mixer.conv1d.weight\" is [128, 4]",
            "makes it [128, 1, 4]",
        ],
    ),
    case(
        "an empty tensor",
        |folder| {
            edit(folder, |shard| {
                shard.remove("backbone.norm_f.weight");
                shard.push("backbone.norm_f.weight", "BF16", &[0], &[]);
            });
        },
        &["\"backbone.norm_f.weight\" is [0]", "makes it [40]"],
    ),
    case(
        "integers for weights",
        |folder| {
            edit(folder, |shard| {
                shard.entry("backbone.layers.0.mixer.out_proj.weight")["dtype"] = json!("I16");
            });
        },
        &["\"backbone.layers.0.mixer.out_proj.weight\" is I16, expected F32, F16 or BF16"],
    ),
    case(
        "64-bit numbers for weights",
        |folder| {
            edit(folder, |shard| {
                shard.remove("backbone.norm_f.weight");
                shard.push("backbone.norm_f.weight", "F64", &[40], &[0; 320]);
            });
        },
        &["\"backbone.norm_f.weight\" is F64, expected F32, F16 or BF16"],
    ),
    case(
        "an FP8 module without its scale",
        |folder| {
            replace(folder, OUT_PROJ, "F8_E4M3", &[40, 48]);
        },
        &["tensor \"backbone.layers.0.mixer.out_proj.weight_scale\" [1] is missing"],
    ),
    case(
        "an FP8 module with a scale per row",
        |folder| {
            replace(folder, OUT_PROJ, "F8_E4M3", &[40, 48]);
            edit(folder, |shard| {
                let name = format!("{OUT_PROJ}.weight_scale");
                shard.push(&name, "F32", &[40], &[0; 160]);
            });
        },
        &[
            "\"backbone.layers.0.mixer.out_proj.weight_scale\" is [40]",
            "makes it [1]",
        ],
    ),
    case(
        "an FP8 module with blocks of scales",
        |folder| {
            replace(folder, OUT_PROJ, "F8_E4M3", &[40, 48]);
            edit(folder, |shard| {
                let name = format!("{OUT_PROJ}.weight_scale_inv");
                shard.push(&name, "F32", &[1, 1], &[0; 4]);
            });
        },
        &["tensor \"backbone.layers.0.mixer.out_proj.weight_scale\" [1] is missing"],
    ),
    case(
        "FP8 numbers of another kind",
        |folder| {
            replace(folder, OUT_PROJ, "F8_E5M2", &[40, 48]);
        },
        &["module \"backbone.layers.0.mixer.out_proj\" is quantised in an unknown way (F8_E5M2"],
    ),
    case(
        "an INT8 module",
        |folder| {
            replace(folder, OUT_PROJ, "I8", &[40, 48]);
            edit(folder, |shard| {
                let name = format!("{OUT_PROJ}.weight_scale");
                shard.push(&name, "F32", &[40], &[0; 160]);
            });
        },
        &["module \"backbone.layers.0.mixer.out_proj\" is quantised in an unknown way (I8"],
    ),
    case(
        "four bits without the scale of the whole",
        |folder| {
            replace(folder, OUT_PROJ, "U8", &[40, 24]);
            edit(folder, |shard| {
                let name = format!("{OUT_PROJ}.weight_scale");
                shard.push(&name, "F8_E4M3", &[40, 3], &[0; 120]);
            });
        },
        &[
            "module \"backbone.layers.0.mixer.out_proj\" is quantised in an unknown way (U8, without",
        ],
    ),
    case(
        "an NVFP4 module with other blocks",
        |folder| {
            replace(folder, OUT_PROJ, "U8", &[40, 24]);
            edit(folder, |shard| {
                let name = format!("{OUT_PROJ}.weight_scale");
                shard.push(&name, "F8_E4M3", &[40, 2], &[0; 80]);
                shard.push(&format!("{name}_2"), "F32", &[], &[0; 4]);
            });
        },
        &[
            "\"backbone.layers.0.mixer.out_proj.weight_scale\" is [40, 2]",
            "makes it [40, 3]",
        ],
    ),
    case(
        "an NVFP4 module whose block scales are no E4M3",
        |folder| {
            replace(folder, OUT_PROJ, "U8", &[40, 24]);
            edit(folder, |shard| {
                let name = format!("{OUT_PROJ}.weight_scale");
                shard.push(&name, "U8", &[40, 3], &[0; 120]);
                shard.push(&format!("{name}_2"), "F32", &[], &[0; 4]);
            });
        },
        &["\"backbone.layers.0.mixer.out_proj.weight_scale\" is U8, expected F8_E4M3"],
    ),
    case(
        "an NVFP4 module of broken blocks",
        |folder| {
            let name = "backbone.layers.1.mixer.experts.3.up_proj";
            replace(folder, name, "U8", &[18, 11]);
            edit(folder, |shard| {
                let name = format!("{name}.weight_scale");
                shard.push(&name, "F8_E4M3", &[18, 2], &[0; 36]);
                shard.push(&format!("{name}_2"), "F32", &[], &[0; 4]);
            });
        },
        &[
            "module \"backbone.layers.1.mixer.experts.3.up_proj\" is NVFP4",
            "blocks of 16 do not divide its 22 columns",
        ],
    ),
    case(
        "an FP8 embedding",
        |folder| {
            replace(folder, "backbone.embeddings", "F8_E4M3", &[320, 40]);
            edit(folder, |shard| {
                shard.push("backbone.embeddings.weight_scale", "F32", &[], &[0; 4]);
            });
        },
        &["\"backbone.embeddings.weight\" is F8_E4M3, expected F32, F16 or BF16"],
    ),
    case(
        "a scale beside plain weights",
        |folder| {
            edit(folder, |shard| {
                let name = format!("{OUT_PROJ}.weight_scale");
                shard.push(&name, "F32", &[], &[0; 4]);
            });
        },
        &["tensor \"backbone.layers.0.mixer.out_proj.weight_scale\" [] has no place"],
    ),
];

const OUT_PROJ: &str = "backbone.layers.0.mixer.out_proj";

/// Puts zeros of another element type (all of them a byte or less) in place of a module's weight.
fn replace(folder: &Path, module: &str, dtype: &str, shape: &[usize]) {
    edit(folder, |shard| {
        let name = format!("{module}.weight");
        shard.remove(&name);
        shard.push(&name, dtype, shape, &vec![0; shape.iter().product()]);
    });
}

const fn case(name: &'static str, break_it: fn(&Path), expect: &'static [&'static str]) -> Case {
    Case {
        name,
        fixture: "super",
        break_it,
        expect,
    }
}

fn remove(folder: &Path, name: &str) {
    edit(folder, |shard| {
        shard.remove(name);
    });
}

fn edit(folder: &Path, change: impl FnOnce(&mut Shard)) {
    let path = folder.join("model.safetensors");
    let mut shard = Shard::read(&path);
    change(&mut shard);
    shard.write(&path);
}
