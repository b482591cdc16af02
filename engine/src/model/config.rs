//! `config.json` as the family spells it, in all its dialects, checked.
//!
//! Every number that shapes a tensor is bounded and every division is exact before anything else
//! looks at it, so that the rest of the engine may multiply sizes without fear.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::json;
use crate::error::EngineError;

/// No published width comes near, so that bytes of caches and weights fit 64 bits.
const MAX_SIZE: usize = 1 << 20;
/// Layers in one stack.
const MAX_LAYERS: usize = 4096;
/// `config.json` lists a quantised model's modules and grows to megabytes, not to this.
const MAX_CONFIG_BYTES: u64 = 256 << 20;

/// What a layer of the stack mixes with. One norm, one mixer, one residual addition each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerKind {
    /// `M`: a Mamba-2 state space.
    Mamba,
    /// `*`: grouped-query attention without positions.
    Attention,
    /// `E`: routed experts and shared ones.
    Moe,
    /// `-`: a dense two-matrix MLP.
    Mlp,
}

/// The model, as far as its shapes and its arithmetic go.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Width of the residual stream, H.
    pub hidden_size: usize,
    /// Token ids are below this, V.
    pub vocab_size: usize,
    /// The stack, bottom up.
    pub layers: Vec<LayerKind>,
    /// Added under the root of every RMS norm.
    pub norm_eps: f32,
    /// The head reads the embedding table.
    pub tie_word_embeddings: bool,
    /// What the model was made for; a serving default, no tensor depends on it.
    pub max_position_embeddings: usize,
    /// Attention layers, if the stack or the draft block has any.
    pub attention: Option<AttentionConfig>,
    /// Mamba layers, if any.
    pub mamba: Option<MambaConfig>,
    /// Mixture-of-experts layers, if any.
    pub moe: Option<MoeConfig>,
    /// Inner width of each dense MLP layer, in stack order.
    pub mlp_sizes: Vec<usize>,
    /// MLPs, shared experts and latent projections add biases.
    pub mlp_bias: bool,
    /// Sub-layers of the draft block, if the model has one.
    pub mtp_layers: Option<Vec<LayerKind>>,
    /// The quantisation method that the file announces, if any.
    pub quantization: Option<String>,
    /// Ids that end a turn: `eos_token_id`, which `generation_config.json` may say better.
    pub eos_token_ids: Vec<u32>,
}

/// Attention layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttentionConfig {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of one head; unrelated to the hidden size.
    pub head_dim: usize,
}

/// Mamba-2 layers.
#[derive(Clone, Debug, PartialEq)]
pub struct MambaConfig {
    /// State heads.
    pub num_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Groups that share B and C; divides `num_heads`.
    pub num_groups: usize,
    /// State per channel, N.
    pub state_size: usize,
    /// Taps of the convolution, K; it remembers K - 1 inputs.
    pub conv_kernel: usize,
    /// The convolution adds a bias.
    pub conv_bias: bool,
    /// The projections add biases.
    pub proj_bias: bool,
    /// Bounds of the time step after softplus. Only a finite limit in the file makes one; the family
    /// was trained without.
    pub time_step_limit: Option<(f32, f32)>,
}

impl MambaConfig {
    /// Channels of x, y and z.
    pub fn inner_size(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Channels that pass the convolution: x, B and C.
    pub fn conv_dim(&self) -> usize {
        self.inner_size() + 2 * self.num_groups * self.state_size
    }

    /// Rows of the input projection: z, xBC and dt.
    pub fn projected_size(&self) -> usize {
        self.inner_size() + self.conv_dim() + self.num_heads
    }
}

/// Mixture-of-experts layers.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeConfig {
    /// Routed experts.
    pub num_experts: usize,
    /// Of these, chosen per token.
    pub num_experts_per_token: usize,
    /// Inner width of one expert.
    pub expert_size: usize,
    /// Inner width of all shared experts together, if there are any.
    pub shared_size: Option<usize>,
    /// Width that experts read and write, if it is not the hidden size.
    pub latent_size: Option<usize>,
    /// Router groups.
    pub num_groups: usize,
    /// Groups whose experts may be chosen.
    pub num_top_groups: usize,
    /// Chosen weights are divided by their sum.
    pub norm_topk_prob: bool,
    /// Then multiplied by this.
    pub scaling: f32,
}

impl ModelConfig {
    /// The text of a `config.json`, if it is small enough to be one.
    pub(crate) fn read_text(path: &Path) -> Result<String, EngineError> {
        let io = |source| EngineError::Io {
            path: path.to_owned(),
            source,
        };
        let len = std::fs::metadata(path).map_err(io)?.len();
        if len > MAX_CONFIG_BYTES {
            return Err(EngineError::Config {
                path: path.to_owned(),
                what: format!("{len} bytes is no configuration"),
            });
        }
        std::fs::read_to_string(path).map_err(io)
    }

    /// Reads and checks the text of a `config.json`; `path` is what errors name.
    pub fn parse(text: &str, path: &Path) -> Result<Self, EngineError> {
        let fail = |what: String| EngineError::Config {
            path: path.to_owned(),
            what,
        };
        let document = json::parse(text).map_err(|error| fail(format!("not JSON: {error}")))?;
        let Value::Object(map) = document else {
            return Err(fail("the top level is not an object".into()));
        };
        let keys = Keys {
            map: &map,
            path: path.to_owned(),
        };
        keys.check_family()?;
        let layers = keys.stack()?;
        let mtp_layers = keys.mtp_stack()?;
        let has = |kind| {
            layers
                .iter()
                .chain(mtp_layers.iter().flatten())
                .any(|layer| *layer == kind)
        };
        if has(LayerKind::Mlp) || has(LayerKind::Moe) {
            keys.activation("mlp_hidden_act", "relu2")?;
        }
        if has(LayerKind::Mamba) {
            keys.activation("mamba_hidden_act", "silu")?;
        }
        Ok(Self {
            hidden_size: keys.size("hidden_size")?,
            vocab_size: keys.size("vocab_size")?,
            norm_eps: keys.norm_eps()?,
            tie_word_embeddings: keys.flag("tie_word_embeddings", false)?,
            max_position_embeddings: keys.max_positions()?,
            attention: has(LayerKind::Attention)
                .then(|| keys.attention())
                .transpose()?,
            mamba: has(LayerKind::Mamba).then(|| keys.mamba()).transpose()?,
            moe: has(LayerKind::Moe).then(|| keys.moe()).transpose()?,
            mlp_sizes: keys.mlp_sizes(&layers)?,
            mlp_bias: keys.flag("mlp_bias", false)?,
            quantization: keys.quantization(),
            eos_token_ids: keys.eos_token_ids()?,
            layers,
            mtp_layers,
        })
    }

    /// Layers of one kind in the stack; the draft block does not count.
    pub fn num_layers(&self, kind: LayerKind) -> usize {
        self.layers.iter().filter(|layer| **layer == kind).count()
    }
}

/// The file's keys, with errors that name key and value.
struct Keys<'a> {
    map: &'a Map<String, Value>,
    path: PathBuf,
}

impl<'a> Keys<'a> {
    fn fail(&self, what: impl Into<String>) -> EngineError {
        EngineError::Config {
            path: self.path.clone(),
            what: what.into(),
        }
    }

    fn bad(&self, key: &str, value: &Value, expect: &str) -> EngineError {
        let mut shown = value.to_string();
        if shown.len() > 80 {
            let cut = shown.floor_char_boundary(77);
            shown.truncate(cut);
            shown.push_str("...");
        }
        self.fail(format!("`{key}` is {shown}, expected {expect}"))
    }

    /// The value under the first of `names` that is present; null counts as absent.
    fn get(&self, names: &[&'static str]) -> Option<(&'static str, &'a Value)> {
        names.iter().find_map(|name| {
            let value = self.map.get(*name)?;
            (!value.is_null()).then_some((*name, value))
        })
    }

    fn integer(
        &self,
        names: &[&'static str],
        range: std::ops::RangeInclusive<usize>,
    ) -> Result<Option<usize>, EngineError> {
        let Some((key, value)) = self.get(names) else {
            return Ok(None);
        };
        value
            .as_u64()
            .and_then(|number| usize::try_from(number).ok())
            .filter(|number| range.contains(number))
            .map(Some)
            .ok_or_else(|| {
                let expect = format!("an integer in {}..={}", range.start(), range.end());
                self.bad(key, value, &expect)
            })
    }

    fn size(&self, name: &'static str) -> Result<usize, EngineError> {
        self.size_of(&[name])
    }

    /// A dimension that the stack needs.
    fn size_of(&self, names: &[&'static str]) -> Result<usize, EngineError> {
        self.integer(names, 1..=MAX_SIZE)?
            .ok_or_else(|| self.fail(format!("`{}` is missing", names[0])))
    }

    fn size_or(&self, names: &[&'static str], default: usize) -> Result<usize, EngineError> {
        Ok(self.integer(names, 1..=MAX_SIZE)?.unwrap_or(default))
    }

    fn flag(&self, name: &'static str, default: bool) -> Result<bool, EngineError> {
        self.flag_of(&[name], default)
    }

    fn flag_of(&self, names: &[&'static str], default: bool) -> Result<bool, EngineError> {
        match self.get(names) {
            None => Ok(default),
            Some((key, value)) => value
                .as_bool()
                .ok_or_else(|| self.bad(key, value, "true or false")),
        }
    }

    fn check_family(&self) -> Result<(), EngineError> {
        for wrapper in ["text_config", "llm_config"] {
            if self.map.contains_key(wrapper) {
                return Err(self.fail(format!(
                    "`{wrapper}`: a multimodal wrapper; only the text model itself can be served"
                )));
            }
        }
        let family = "\"nemotron_h\"";
        if let Some((key, value)) = self.get(&["model_type"]) {
            return match value.as_str() {
                Some("nemotron_h") => Ok(()),
                _ => Err(self.bad(key, value, family)),
            };
        }
        match self.get(&["architectures"]) {
            Some((_, Value::Array(names))) if names.iter().any(|n| n == "NemotronHForCausalLM") => {
                Ok(())
            }
            Some((key, value)) => Err(self.bad(key, value, "[\"NemotronHForCausalLM\"]")),
            None => Err(self.fail(format!("`model_type` is missing, expected {family}"))),
        }
    }

    fn stack(&self) -> Result<Vec<LayerKind>, EngineError> {
        let layers = self
            .layer_kinds(&[
                "layers_block_type",
                "layer_types",
                "hybrid_override_pattern",
            ])?
            .ok_or_else(|| {
                self.fail("neither `hybrid_override_pattern` nor `layers_block_type` is present")
            })?;
        let count = self.integer(&["num_hidden_layers"], 1..=MAX_LAYERS)?;
        match count {
            Some(count) if count != layers.len() => Err(self.fail(format!(
                "`num_hidden_layers` is {count}, but the stack has {} layers",
                layers.len()
            ))),
            _ => Ok(layers),
        }
    }

    /// The draft block's sub-layers; writers leave the list behind when they drop the block.
    fn mtp_stack(&self) -> Result<Option<Vec<LayerKind>>, EngineError> {
        match self.integer(&["num_nextn_predict_layers"], 0..=MAX_LAYERS)? {
            None | Some(0) => return Ok(None),
            Some(1) => {}
            Some(depth) => {
                return Err(self.fail(format!(
                    "`num_nextn_predict_layers` is {depth}, expected 0 or 1: one draft block, \
                     applied repeatedly"
                )));
            }
        }
        let layers = self
            .layer_kinds(&["mtp_layers_block_type", "mtp_hybrid_override_pattern"])?
            .unwrap_or_else(|| vec![LayerKind::Attention, LayerKind::Moe]);
        if layers != [LayerKind::Attention, LayerKind::Moe] {
            return Err(self.fail(format!(
                "the draft block is {layers:?}, expected [Attention, Moe]"
            )));
        }
        Ok(Some(layers))
    }

    fn layer_kinds(&self, names: &[&'static str]) -> Result<Option<Vec<LayerKind>>, EngineError> {
        let Some((key, value)) = self.get(names) else {
            return Ok(None);
        };
        let layers: Vec<LayerKind> = match value {
            Value::String(pattern) => pattern
                .chars()
                .enumerate()
                .map(|(at, letter)| match letter {
                    'M' => Ok(LayerKind::Mamba),
                    '*' => Ok(LayerKind::Attention),
                    'E' => Ok(LayerKind::Moe),
                    '-' => Ok(LayerKind::Mlp),
                    _ => Err(self.fail(format!(
                        "`{key}` has {letter:?} for layer {at}, expected one of M * E -"
                    ))),
                })
                .collect::<Result<_, _>>()?,
            Value::Array(names) => names
                .iter()
                .enumerate()
                .map(|(at, name)| match name.as_str() {
                    Some("mamba" | "linear_attention") => Ok(LayerKind::Mamba),
                    Some("attention" | "full_attention") => Ok(LayerKind::Attention),
                    Some("moe") => Ok(LayerKind::Moe),
                    Some("mlp") => Ok(LayerKind::Mlp),
                    _ => Err(self.fail(format!(
                        "`{key}` has {name} for layer {at}, expected one of mamba, \
                         linear_attention, attention, full_attention, moe, mlp"
                    ))),
                })
                .collect::<Result<_, _>>()?,
            _ => return Err(self.bad(key, value, "a pattern or a list of layer kinds")),
        };
        if layers.is_empty() || layers.len() > MAX_LAYERS {
            return Err(self.fail(format!(
                "`{key}` has {} layers, expected 1 to {MAX_LAYERS}",
                layers.len()
            )));
        }
        Ok(Some(layers))
    }

    fn norm_eps(&self) -> Result<f32, EngineError> {
        let names = ["layer_norm_epsilon", "norm_eps", "rms_norm_eps"];
        let Some((key, value)) = self.get(&names) else {
            return Ok(1e-5);
        };
        json::float(value)
            .filter(|eps| *eps > 0.0 && *eps < 1.0)
            .map(|eps| eps as f32)
            .ok_or_else(|| self.bad(key, value, "a number between 0 and 1"))
    }

    fn max_positions(&self) -> Result<usize, EngineError> {
        Ok(self
            .integer(&["max_position_embeddings"], 1..=u32::MAX as usize)?
            .unwrap_or(4096))
    }

    fn activation(&self, name: &'static str, only: &str) -> Result<(), EngineError> {
        match self.get(&[name]) {
            Some((key, value)) if value != only => {
                Err(self.bad(key, value, &format!("{only:?}, the only one implemented")))
            }
            _ => Ok(()),
        }
    }

    /// The product of two sizes is a width of its own.
    fn product(&self, a: (&str, usize), b: (&str, usize)) -> Result<(), EngineError> {
        let width = a.1 * b.1;
        if width <= MAX_SIZE {
            return Ok(());
        }
        Err(self.fail(format!(
            "`{}` ({}) times `{}` ({}) is {width}, expected at most {MAX_SIZE}",
            a.0, a.1, b.0, b.1
        )))
    }

    /// `whole` must be a multiple of `part`.
    fn divides(&self, part: (&str, usize), whole: (&str, usize)) -> Result<(), EngineError> {
        if whole.1.is_multiple_of(part.1) {
            return Ok(());
        }
        Err(self.fail(format!(
            "`{}` ({}) does not divide `{}` ({})",
            part.0, part.1, whole.0, whole.1
        )))
    }

    fn attention(&self) -> Result<AttentionConfig, EngineError> {
        if let Some((key, value)) = self.get(&["sliding_window"]) {
            return Err(self.bad(key, value, "null: the family attends to everything"));
        }
        let num_heads = self.size("num_attention_heads")?;
        let num_kv_heads = self.size_or(&["num_key_value_heads"], num_heads)?;
        self.divides(
            ("num_key_value_heads", num_kv_heads),
            ("num_attention_heads", num_heads),
        )?;
        let head_dim = self.size_or(&["head_dim", "attention_head_dim"], 128)?;
        self.product(("num_attention_heads", num_heads), ("head_dim", head_dim))?;
        Ok(AttentionConfig {
            num_heads,
            num_kv_heads,
            head_dim,
        })
    }

    fn mamba(&self) -> Result<MambaConfig, EngineError> {
        let num_heads = self.size("mamba_num_heads")?;
        let num_groups = self.size_of(&["n_groups", "mamba_n_groups"])?;
        self.divides(("n_groups", num_groups), ("mamba_num_heads", num_heads))?;
        let head_dim = self.size("mamba_head_dim")?;
        let state_size = self.size_of(&["ssm_state_size", "mamba_d_state"])?;
        self.product(("mamba_num_heads", num_heads), ("mamba_head_dim", head_dim))?;
        self.product(("n_groups", num_groups), ("ssm_state_size", state_size))?;
        let conv_kernel = self
            .integer(&["conv_kernel", "mamba_d_conv"], 2..=64)?
            .unwrap_or(4);
        Ok(MambaConfig {
            num_heads,
            head_dim,
            num_groups,
            state_size,
            conv_kernel,
            conv_bias: self.flag_of(&["use_conv_bias", "mamba_conv_bias"], true)?,
            proj_bias: self.flag("use_bias", false)?,
            time_step_limit: self.time_step_limit()?,
        })
    }

    /// `[0, Infinity]`, in any spelling, is no limit.
    fn time_step_limit(&self) -> Result<Option<(f32, f32)>, EngineError> {
        let Some((key, value)) = self.get(&["time_step_limit", "mamba_dt_limit"]) else {
            return Ok(None);
        };
        let pair: Option<Vec<f64>> = value
            .as_array()
            .and_then(|items| items.iter().map(json::float).collect());
        match pair.as_deref() {
            Some([min, max]) if *min <= 0.0 && *max == f64::INFINITY => Ok(None),
            Some([min, max]) if min <= max && *max > 0.0 => Ok(Some((*min as f32, *max as f32))),
            _ => Err(self.bad(key, value, "[min, max] with min <= max")),
        }
    }

    fn moe(&self) -> Result<MoeConfig, EngineError> {
        let num_experts = self.size_of(&["n_routed_experts", "num_local_experts"])?;
        let num_experts_per_token = self.size("num_experts_per_tok")?;
        let num_groups = self.size_or(&["n_group"], 1)?;
        let num_top_groups = self.size_or(&["topk_group"], 1)?;
        self.divides(("n_group", num_groups), ("n_routed_experts", num_experts))?;
        if num_top_groups > num_groups {
            return Err(self.fail(format!(
                "`topk_group` is {num_top_groups}, more than `n_group` ({num_groups})"
            )));
        }
        if num_groups > 1 && num_experts / num_groups < 2 {
            return Err(self.fail(format!(
                "`n_group` is {num_groups}, but a group's score is the sum of its two best of \
                 {num_experts} experts"
            )));
        }
        let num_choosable = num_experts / num_groups * num_top_groups;
        if num_experts_per_token > num_choosable {
            return Err(self.fail(format!(
                "`num_experts_per_tok` is {num_experts_per_token}, but only {num_choosable} experts \
                 can be chosen"
            )));
        }
        Ok(MoeConfig {
            num_experts,
            num_experts_per_token,
            expert_size: self.size("moe_intermediate_size")?,
            shared_size: self.shared_size()?,
            latent_size: self.integer(&["moe_latent_size"], 1..=MAX_SIZE)?,
            num_groups,
            num_top_groups,
            norm_topk_prob: self.flag("norm_topk_prob", true)?,
            scaling: self.scaling()?,
        })
    }

    fn shared_size(&self) -> Result<Option<usize>, EngineError> {
        let num_shared = self.integer(&["n_shared_experts"], 0..=1024)?.unwrap_or(1);
        if num_shared == 0 {
            return Ok(None);
        }
        let size = self.size("moe_shared_expert_intermediate_size")?;
        self.product(
            ("n_shared_experts", num_shared),
            ("moe_shared_expert_intermediate_size", size),
        )?;
        Ok(Some(num_shared * size))
    }

    fn scaling(&self) -> Result<f32, EngineError> {
        let Some((key, value)) = self.get(&["routed_scaling_factor"]) else {
            return Ok(1.0);
        };
        json::float(value)
            .filter(|scaling| scaling.is_finite())
            .map(|scaling| scaling as f32)
            .ok_or_else(|| self.bad(key, value, "a finite number"))
    }

    /// One width for all dense layers, or a list with one entry each.
    fn mlp_sizes(&self, layers: &[LayerKind]) -> Result<Vec<usize>, EngineError> {
        let num_mlp = layers.iter().filter(|l| **l == LayerKind::Mlp).count();
        if num_mlp == 0 {
            return Ok(Vec::new());
        }
        let Some((key, Value::Array(sizes))) = self.get(&["intermediate_size"]) else {
            return Ok(vec![self.size("intermediate_size")?; num_mlp]);
        };
        let sizes: Vec<usize> = sizes
            .iter()
            .map(|size| {
                size.as_u64()
                    .map(|size| size as usize)
                    .filter(|size| (1..=MAX_SIZE).contains(size))
                    .ok_or_else(|| self.bad(key, size, &format!("integers in 1..={MAX_SIZE}")))
            })
            .collect::<Result<_, _>>()?;
        match sizes.len() {
            1 => Ok(vec![sizes[0]; num_mlp]),
            len if len == num_mlp => Ok(sizes),
            len => Err(self.fail(format!(
                "`intermediate_size` has {len} entries for {num_mlp} dense layers"
            ))),
        }
    }

    fn eos_token_ids(&self) -> Result<Vec<u32>, EngineError> {
        let key = "eos_token_id";
        let Some((_, value)) = self.get(&[key]) else {
            return Ok(Vec::new());
        };
        let listed = std::slice::from_ref(value);
        let values = value.as_array().map_or(listed, Vec::as_slice);
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        values
            .iter()
            .map(id)
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| self.bad(key, value, "a token id or a list of them"))
    }

    fn quantization(&self) -> Option<String> {
        let (_, value) = self.get(&["quantization_config"])?;
        let say = |key: &str| value.get(key).and_then(Value::as_str);
        Some(
            say("quant_algo")
                .or_else(|| say("quant_method"))
                .unwrap_or("an unnamed method")
                .to_owned(),
        )
    }
}

#[cfg(test)]
mod tests;
