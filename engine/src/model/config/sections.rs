//! The parts of a configuration: the stack, and what each kind of layer needs.

use serde_json::Value;

use super::keys::{Keys, MAX_SIZE};
use super::{AttentionConfig, LayerKind, MambaConfig, MoeConfig, StateDtype};
use crate::error::EngineError;
use crate::model::json;

/// Layers in one stack.
const MAX_LAYERS: usize = 4096;

impl Keys<'_> {
    pub(super) fn check_family(&self) -> Result<(), EngineError> {
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

    pub(super) fn stack(&self) -> Result<Vec<LayerKind>, EngineError> {
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
    pub(super) fn mtp_stack(&self) -> Result<Option<Vec<LayerKind>>, EngineError> {
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

    pub(super) fn layer_kinds(
        &self,
        names: &[&'static str],
    ) -> Result<Option<Vec<LayerKind>>, EngineError> {
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

    pub(super) fn norm_eps(&self) -> Result<f32, EngineError> {
        let names = ["layer_norm_epsilon", "norm_eps", "rms_norm_eps"];
        let Some((key, value)) = self.get(&names) else {
            return Ok(1e-5);
        };
        json::float(value)
            .filter(|eps| *eps > 0.0 && *eps < 1.0)
            .map(|eps| eps as f32)
            .ok_or_else(|| self.bad(key, value, "a number between 0 and 1"))
    }

    pub(super) fn max_positions(&self) -> Result<usize, EngineError> {
        Ok(self
            .integer(&["max_position_embeddings"], 1..=u32::MAX as usize)?
            .unwrap_or(4096))
    }

    pub(super) fn attention(&self) -> Result<AttentionConfig, EngineError> {
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

    pub(super) fn mamba(&self) -> Result<MambaConfig, EngineError> {
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
            state_dtype: self.state_dtype()?,
        })
    }

    /// bf16 has too few bits to be rounded to, so who asks for it gets more.
    fn state_dtype(&self) -> Result<StateDtype, EngineError> {
        match self.get(&["mamba_ssm_cache_dtype"]) {
            None => Ok(StateDtype::F32),
            Some((key, value)) => match value.as_str() {
                Some("float32" | "bfloat16" | "auto") => Ok(StateDtype::F32),
                Some("float16") => Ok(StateDtype::F16),
                _ => Err(self.bad(key, value, "float32, float16, bfloat16 or auto")),
            },
        }
    }

    /// `[0, Infinity]`, in any spelling, is no limit.
    pub(super) fn time_step_limit(&self) -> Result<Option<(f32, f32)>, EngineError> {
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

    pub(super) fn moe(&self) -> Result<MoeConfig, EngineError> {
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

    pub(super) fn shared_size(&self) -> Result<Option<usize>, EngineError> {
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

    pub(super) fn scaling(&self) -> Result<f32, EngineError> {
        let Some((key, value)) = self.get(&["routed_scaling_factor"]) else {
            return Ok(1.0);
        };
        json::float(value)
            .filter(|scaling| scaling.is_finite())
            .map(|scaling| scaling as f32)
            .ok_or_else(|| self.bad(key, value, "a finite number"))
    }

    /// One width for all dense layers, or a list with one entry each.
    pub(super) fn mlp_sizes(&self, layers: &[LayerKind]) -> Result<Vec<usize>, EngineError> {
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

    pub(super) fn eos_token_ids(&self) -> Result<Vec<u32>, EngineError> {
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
}
