//! The releases' own maps at their own sizes: every tensor by name, shape and format, in files that
//! are holes but for their headers. Sizes are the published ones.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use nemoserve_tests::fixtures;
use nemoserve_tests::surgery::edit_json;
use serde_json::{Map, Value, json};

use crate::open;

/// How a matrix is stored.
#[derive(Clone, Copy, PartialEq)]
enum Format {
    Plain,
    Fp8,
    Nvfp4,
}

/// A checkpoint of holes.
#[derive(Default)]
struct Release {
    header: Map<String, Value>,
    num_bytes: usize,
    /// Modules that a mixed map lists.
    listed: Map<String, Value>,
}

impl Release {
    fn tensor(&mut self, name: &str, dtype: &str, shape: &[usize]) {
        let size = match dtype {
            "F32" => 4,
            "BF16" => 2,
            _ => 1,
        };
        let end = self.num_bytes + size * shape.iter().product::<usize>();
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [self.num_bytes, end]});
        self.header.insert(name.to_owned(), entry);
        self.num_bytes = end;
    }

    fn matrix(&mut self, module: &str, [n, k]: [usize; 2], format: Format) {
        let weight = format!("{module}.weight");
        let scale = format!("{module}.weight_scale");
        let algorithm = match format {
            Format::Plain => return self.tensor(&weight, "BF16", &[n, k]),
            Format::Fp8 => {
                self.tensor(&weight, "F8_E4M3", &[n, k]);
                self.tensor(&scale, "F32", &[]);
                json!({"quant_algo": "FP8"})
            }
            Format::Nvfp4 => {
                self.tensor(&weight, "U8", &[n, k / 2]);
                self.tensor(&scale, "F8_E4M3", &[n, k / 16]);
                self.tensor(&format!("{scale}_2"), "F32", &[]);
                json!({"quant_algo": "NVFP4", "group_size": 16})
            }
        };
        self.tensor(&format!("{module}.input_scale"), "F32", &[]);
        self.listed.insert(module.to_owned(), algorithm);
    }

    /// The header, and a hole of the right length.
    fn write(&self, folder: &Path, config: &Value) {
        let header = Value::Object(self.header.clone()).to_string();
        let mut file = File::create(folder.join("model.safetensors")).expect("our folder");
        let length = (header.len() as u64).to_le_bytes();
        file.write_all(&length).expect("it can be written to");
        file.write_all(header.as_bytes()).expect("so can this");
        let len = 8 + header.len() + self.num_bytes;
        file.set_len(len as u64).expect("a sparse file");
        // Nothing can be divided by the zeros of a hole.
        for (name, entry) in &self.header {
            if name.ends_with(".k_scale") || name.ends_with(".v_scale") {
                let begin = entry["data_offsets"][0].as_u64().expect("an offset");
                let at = 8 + header.len() as u64 + begin;
                let one = 1.0_f32.to_le_bytes();
                std::os::unix::fs::FileExt::write_all_at(&file, &one, at).expect("so can this");
            }
        }
        std::fs::write(folder.join("config.json"), config.to_string()).expect("our folder");
    }
}

/// A model's sizes.
struct Sizes {
    pattern: &'static str,
    hidden: usize,
    experts: usize,
    expert: usize,
    shared: usize,
    latent: Option<usize>,
    /// Mamba heads, 64 channels each, 8 groups of 128.
    mamba_heads: usize,
    has_draft: bool,
}

const SUPER: Sizes = Sizes {
    pattern: "MEMEMEM*EMEMEMEM*EMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEM*EMEMEMEME",
    hidden: 4096,
    experts: 512,
    expert: 2688,
    shared: 5376,
    latent: Some(1024),
    mamba_heads: 128,
    has_draft: true,
};

const NANO: Sizes = Sizes {
    pattern: "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
    hidden: 2688,
    experts: 128,
    expert: 1856,
    shared: 3712,
    latent: None,
    mamba_heads: 64,
    has_draft: false,
};

impl Sizes {
    /// Every tensor of the model, matrices in the formats of `format(module)`.
    fn release(&self, format: impl Fn(&str) -> Format) -> Release {
        let mut out = Release::default();
        let hidden = self.hidden;
        let matrix = |out: &mut Release, module: String, shape| {
            let format = format(&module);
            out.matrix(&module, shape, format);
        };
        out.tensor("backbone.embeddings.weight", "BF16", &[131_072, hidden]);
        for (at, kind) in self.pattern.chars().enumerate() {
            self.layer(&mut out, &format!("backbone.layers.{at}"), kind, &matrix);
        }
        out.tensor("backbone.norm_f.weight", "BF16", &[hidden]);
        matrix(&mut out, "lm_head".into(), [131_072, hidden]);
        if self.has_draft {
            for name in ["0.enorm", "0.hnorm", "1.final_layernorm"] {
                out.tensor(&format!("mtp.layers.{name}.weight"), "BF16", &[hidden]);
            }
            let name = "mtp.layers.0.eh_proj.weight";
            out.tensor(name, "BF16", &[hidden, 2 * hidden]);
            self.layer(&mut out, "mtp.layers.0", '*', &matrix);
            self.layer(&mut out, "mtp.layers.1", 'E', &matrix);
        }
        out
    }

    fn layer(
        &self,
        out: &mut Release,
        layer: &str,
        kind: char,
        matrix: &impl Fn(&mut Release, String, [usize; 2]),
    ) {
        let Self { hidden, .. } = *self;
        out.tensor(&format!("{layer}.norm.weight"), "BF16", &[hidden]);
        let mixer = format!("{layer}.mixer");
        match kind {
            'M' => {
                let (heads, inner) = (self.mamba_heads, 64 * self.mamba_heads);
                let conv = inner + 2 * 8 * 128;
                matrix(
                    out,
                    format!("{mixer}.in_proj"),
                    [inner + conv + heads, hidden],
                );
                out.tensor(&format!("{mixer}.conv1d.weight"), "BF16", &[conv, 1, 4]);
                out.tensor(&format!("{mixer}.conv1d.bias"), "BF16", &[conv]);
                for name in ["A_log", "D", "dt_bias"] {
                    out.tensor(&format!("{mixer}.{name}"), "F32", &[heads]);
                }
                out.tensor(&format!("{mixer}.norm.weight"), "BF16", &[inner]);
                matrix(out, format!("{mixer}.out_proj"), [hidden, inner]);
            }
            '*' => {
                for (name, shape) in [
                    ("q", [4096, hidden]),
                    ("k", [256, hidden]),
                    ("v", [256, hidden]),
                    ("o", [hidden, 4096]),
                ] {
                    matrix(out, format!("{mixer}.{name}_proj"), shape);
                }
                if !layer.starts_with("mtp") {
                    out.tensor(&format!("{mixer}.k_proj.k_scale"), "F32", &[]);
                    out.tensor(&format!("{mixer}.v_proj.v_scale"), "F32", &[]);
                }
            }
            _ => {
                let bias = format!("{mixer}.gate.e_score_correction_bias");
                out.tensor(
                    &format!("{mixer}.gate.weight"),
                    "BF16",
                    &[self.experts, hidden],
                );
                out.tensor(&bias, "F32", &[self.experts]);
                let width = self.latent.unwrap_or(hidden);
                if let Some(latent) = self.latent {
                    matrix(out, format!("{mixer}.fc1_latent_proj"), [latent, hidden]);
                    matrix(out, format!("{mixer}.fc2_latent_proj"), [hidden, latent]);
                }
                for expert in 0..self.experts {
                    let expert = format!("{mixer}.experts.{expert}");
                    matrix(out, format!("{expert}.up_proj"), [self.expert, width]);
                    matrix(out, format!("{expert}.down_proj"), [width, self.expert]);
                }
                let shared = format!("{mixer}.shared_experts");
                matrix(out, format!("{shared}.up_proj"), [self.shared, hidden]);
                matrix(out, format!("{shared}.down_proj"), [hidden, self.shared]);
            }
        }
    }

    fn config(&self) -> Value {
        json!({
            "model_type": "nemotron_h", "hybrid_override_pattern": self.pattern,
            "hidden_size": self.hidden, "vocab_size": 131_072, "max_position_embeddings": 262_144,
            "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128,
            "mamba_num_heads": self.mamba_heads, "mamba_head_dim": 64, "n_groups": 8,
            "ssm_state_size": 128, "n_routed_experts": self.experts, "num_experts_per_tok": 6,
            "moe_intermediate_size": self.expert,
            "moe_shared_expert_intermediate_size": self.shared,
            "moe_latent_size": self.latent,
            "num_nextn_predict_layers": u32::from(self.has_draft),
        })
    }
}

/// The number of a module's layer.
fn layer(module: &str) -> usize {
    let number = module.split('.').nth(2).expect("backbone.layers.N");
    number.parse().expect("a number")
}

/// Opens it and holds its sizes against the published ones.
#[track_caller]
fn check(name: &str, release: &Release, config: &Value, gib: f64, billions: f64) {
    let size = release.num_bytes as f64 / f64::from(1 << 30);
    assert!((size - gib).abs() < 0.06, "{name}: {size:.2} GiB");
    let folder = tempfile::tempdir().expect("a temporary folder");
    release.write(folder.path(), config);
    let start = Instant::now();
    let opened = open_large(folder.path());
    eprintln!(
        "{name}: {} tensors, opened in {:.2} s",
        release.header.len(),
        start.elapsed().as_secs_f64()
    );
    let parameters = opened.expect(name) / 1e9;
    assert!(
        (parameters - billions).abs() < 0.01,
        "{name}: {parameters:.3} B"
    );
}

fn open_large(folder: &Path) -> Result<f64, String> {
    crate::open_with(folder, 4 << 30).map(|opened| opened.info().num_parameters as f64)
}

#[test]
fn super_in_fp8() {
    let release = SUPER.release(|module| {
        let packed = [".in_proj", ".out_proj", ".experts.", ".shared_experts."];
        if !module.starts_with("mtp.") && packed.iter().any(|name| module.contains(name)) {
            Format::Fp8
        } else {
            Format::Plain
        }
    });
    let mut config = SUPER.config();
    config["quantization_config"] = json!({"quant_method": "modelopt", "quant_algo": "FP8",
        "ignore": ["lm_head", "mtp*", "*latent_proj", "*.q_proj", "*.k_proj", "*.v_proj", "*.o_proj"],
        "kv_cache_scheme": {"dynamic": false, "num_bits": 8, "type": "float"}});
    check("Super FP8", &release, &config, 119.5, 123.611);
}

#[test]
fn super_in_nvfp4_and_fp8() {
    let release = SUPER.release(|module| {
        if module.starts_with("mtp.") || module == "lm_head" {
            return Format::Plain;
        }
        let at = layer(module);
        let is = |name: &str| module.ends_with(name);
        // Numbers per kind are the release's; which layers, where it is not known, is not.
        let fp8 = (is(".in_proj") && at < 63 && at != 0)
            || (is(".out_proj") && at < 63)
            || (is("shared_experts.up_proj") && at != 87)
            || (is("shared_experts.down_proj") && at > 1 && at < 84)
            || (is("fc1_latent_proj") && at <= 5)
            || (is("fc2_latent_proj") && at == 3)
            || (is("o_proj") && (at == 69 || at == 78));
        if module.contains(".experts.") || (is("shared_experts.down_proj") && at == 1) {
            Format::Nvfp4
        } else if fp8 {
            Format::Fp8
        } else {
            Format::Plain
        }
    });
    assert_eq!(release.listed.len(), 41_100, "modules of the map");
    let mut config = SUPER.config();
    config["quantization_config"] = json!({"quant_method": "modelopt",
        "quant_algo": "MIXED_PRECISION", "quantized_layers": release.listed});
    check("Super NVFP4", &release, &config, 74.8, 123.611);
}

#[test]
fn nano_in_nvfp4() {
    let attention = [5, 12, 19, 26, 33, 42];
    let release = NANO.release(|module| {
        let is_kept = |at| attention.contains(&at) || attention.contains(&(at + 1));
        if module == "lm_head" || is_kept(layer(module)) {
            Format::Plain
        } else {
            Format::Nvfp4
        }
    });
    let mut ignored = vec!["lm_head".to_owned(), "*.conv1d".to_owned()];
    for at in attention {
        ignored.push(format!("backbone.layers.{at}.*"));
        ignored.push(format!("backbone.layers.{}.mixer", at - 1));
    }
    let mut config = NANO.config();
    config["quantization_config"] = json!({"quant_method": "modelopt", "quant_algo": "NVFP4",
        "group_size": 16, "ignore": ignored});
    check("Nano 3 NVFP4", &release, &config, 18.0, 31.58);
}

#[test]
fn nobody_need_say_how_matrices_are_stored() {
    let folder = fixtures::copy("nano3-nvfp4");
    let beside = folder.path().join("hf_quant_config.json");
    std::fs::remove_file(beside).expect("it says so twice");
    open(folder.path()).expect("once is enough");
    let folder = fixtures::copy("super-fp8");
    let beside = folder.path().join("hf_quant_config.json");
    std::fs::remove_file(beside).expect("only here");
    open(folder.path()).expect("the tensors tell");
    let folder = fixtures::copy("super-nvfp4");
    edit_json(&folder.path().join("config.json"), |config| {
        let map = config.as_object_mut().expect("an object");
        map.remove("quantization_config").expect("only here");
    });
    open(folder.path()).expect("the tensors tell");
}
