//! `config.json` as the family spells it, in all its dialects, checked.
//!
//! Every number that shapes a tensor is bounded and every division is exact before anything else
//! looks at it, so that the rest of the engine may multiply sizes without fear.

mod keys;
mod quantization;
mod sections;

use std::path::Path;

use serde_json::Value;

use self::keys::Keys;
pub use self::quantization::Quantization;
pub(crate) use self::quantization::fits;
use super::json;
use crate::error::EngineError;

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
    /// Sub-layers of the draft block, if the model has one; an engine that does not draft forgets them.
    pub mtp_layers: Option<Vec<LayerKind>>,
    /// What is said about the formats of matrices.
    pub quantization: Quantization,
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
    /// What its states are kept in.
    pub state_dtype: StateDtype,
}

/// What recurrent states are kept in between two tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StateDtype {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits, rounded up or down at random.
    F16,
}

impl StateDtype {
    /// Bytes of a number.
    pub fn num_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }

    /// As flags spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
        }
    }
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
    pub fn read_text(path: &Path) -> Result<String, EngineError> {
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
        let Value::Object(map) = &document else {
            return Err(fail("the top level is not an object".into()));
        };
        let keys = Keys {
            map,
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
            quantization: Quantization::in_config(&document, path)?,
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

#[cfg(test)]
mod tests;
