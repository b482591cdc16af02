//! Checkpoint names to fields. Names appear only here, in `names`.
//!
//! [`locate`] walks the model once, claims every tensor it needs by name and shape, and refuses what
//! is left over. It reads no weight: a [`Weight`] is a place in the memory map, or a recipe for a
//! dummy.

mod cut;
mod finder;
mod names;

use bytes::Bytes;
use half::{bf16, f16};
use kernels::{e2m1, e4m3};
use safetensors::tensor::Dtype;

pub(crate) use self::cut::{Cut, SplitBlock};
use self::finder::Finder;
pub(crate) use self::finder::short_name;
use super::config::ModelConfig;
use crate::cache::KvScales;
use crate::checkpoint::{Checkpoint, StoredTensor};
use crate::error::EngineError;

/// Every weight of the model, not yet on a device.
pub(crate) struct ModelWeights {
    pub(crate) embedding: Weight,
    pub(crate) layers: Vec<LayerWeights>,
    pub(crate) norm: Weight,
    /// `None` if the head reads the embedding table.
    pub(crate) head: Option<MatrixWeight>,
    /// `None` if the checkpoint has none, or nobody drafts.
    pub(crate) draft: Option<Box<DraftWeights>>,
}

/// The draft block: a projection, attention, experts.
pub(crate) struct DraftWeights {
    pub(crate) token_norm: Weight,
    pub(crate) hidden_norm: Weight,
    /// Columns of the embedding, then of the hidden state.
    pub(crate) projection: MatrixWeight,
    pub(crate) attention_norm: Weight,
    pub(crate) attention: AttentionWeights,
    pub(crate) experts_norm: Weight,
    pub(crate) experts: MoeWeights,
    pub(crate) norm: Weight,
}

pub(crate) struct LayerWeights {
    pub(crate) norm: Weight,
    pub(crate) mixer: MixerWeights,
}

#[allow(clippy::large_enum_variant)] // One per layer.
pub(crate) enum MixerWeights {
    Mamba(Box<MambaWeights>),
    Attention(AttentionWeights),
    Moe(Box<MoeWeights>),
    Mlp(MlpWeights),
}

#[derive(Clone)]
pub(crate) struct LinearWeights {
    pub(crate) weight: MatrixWeight,
    pub(crate) bias: Option<Weight>,
}

/// A matrix `[N, K]`, rows are outputs, in the format that its tensors say.
#[derive(Clone)]
pub(crate) enum MatrixWeight {
    /// F32, F16 or BF16 `[N, K]`.
    Plain(Weight),
    /// `e4m3(codes) * scale`.
    Fp8 {
        /// F8_E4M3 `[N, K]`.
        codes: Weight,
        /// Any plain float, `[1]`.
        scale: Weight,
    },
    /// `e2m1(codes) * e4m3(block_scales) * scale`.
    Nvfp4 {
        /// U8 `[N, K / 2]`: two codes a byte, the even column in the low half.
        codes: Weight,
        /// F8_E4M3 `[N, K / 16]`.
        block_scales: Weight,
        /// Any plain float, `[1]`.
        scale: Weight,
    },
}

pub(crate) struct MambaWeights {
    pub(crate) in_proj: LinearWeights,
    pub(crate) conv_weight: Weight,
    pub(crate) conv_bias: Option<Weight>,
    pub(crate) a_log: Weight,
    pub(crate) d: Weight,
    pub(crate) dt_bias: Weight,
    pub(crate) norm: Weight,
    pub(crate) out_proj: LinearWeights,
}

pub(crate) struct AttentionWeights {
    pub(crate) query: MatrixWeight,
    pub(crate) key: MatrixWeight,
    pub(crate) value: MatrixWeight,
    pub(crate) output: MatrixWeight,
    /// What an FP8 cache divides keys by before it rounds them, `[1]`; 1 if the checkpoint does not
    /// say.
    pub(crate) k_scale: Option<Weight>,
    /// The same for values.
    pub(crate) v_scale: Option<Weight>,
}

pub(crate) struct MlpWeights {
    pub(crate) up: LinearWeights,
    pub(crate) down: LinearWeights,
}

pub(crate) struct MoeWeights {
    pub(crate) gate: Weight,
    pub(crate) correction_bias: Weight,
    /// Id of the first expert in `up` and `down`; not 0 where ranks share out the experts.
    pub(crate) first_expert: usize,
    /// Into and out of the latent width.
    pub(crate) latent: Option<(LinearWeights, LinearWeights)>,
    pub(crate) up: ExpertWeights,
    pub(crate) down: ExpertWeights,
    pub(crate) shared: Option<MlpWeights>,
}

pub(crate) enum ExpertWeights {
    /// `[E, N, K]` in one tensor.
    Fused(Weight),
    /// One `[N, K]` each.
    PerExpert(Vec<MatrixWeight>),
}

impl MatrixWeight {
    /// Numbers or codes.
    pub(crate) fn codes(&self) -> &Weight {
        match self {
            Self::Plain(codes) | Self::Fp8 { codes, .. } | Self::Nvfp4 { codes, .. } => codes,
        }
    }

    /// Scales per block of columns.
    pub(crate) fn block_scales(&self) -> Option<&Weight> {
        match self {
            Self::Nvfp4 { block_scales, .. } => Some(block_scales),
            _ => None,
        }
    }

    /// The scale of the whole.
    pub(crate) fn scale(&self) -> Option<&Weight> {
        match self {
            Self::Plain(_) => None,
            Self::Fp8 { scale, .. } | Self::Nvfp4 { scale, .. } => Some(scale),
        }
    }
}

/// One tensor: where it is, or how to make it.
#[derive(Clone)]
pub(crate) struct Weight {
    pub(crate) shape: Vec<usize>,
    pub(crate) source: Source,
}

#[derive(Clone)]
pub(crate) enum Source {
    /// In a shard.
    Stored(StoredTensor),
    /// Made at load, from a seed of its own.
    Dummy { init: Init, seed: u64 },
    /// Parts of another, brought together at load.
    Cut(Box<Cut>),
}

/// What random weights look like. Scales keep a residual stream of unit variance finite through
/// any depth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Init {
    /// Every element the same.
    Constant(f32),
    /// Uniform with this standard deviation.
    Random { std: f32 },
    /// Logarithms of decay rates 1 to 16.
    DecayRate,
    /// Inverse softplus of time steps between 0.001 and 0.1.
    TimeStep,
    /// Any E4M3 codes but NaN.
    Fp8Codes,
    /// Any pairs of E2M1 codes.
    Nvfp4Codes,
    /// E4M3 codes of numbers from 1 to under 2.
    BlockScales,
    /// What codes are multiplied with.
    Scale(f32),
}

impl ModelWeights {
    /// What an FP8 cache divides by, per attention layer in stack order, the draft block's last.
    ///
    /// # Errors
    /// A scale that nothing can be divided by.
    pub(crate) fn kv_scales(&self) -> Result<Vec<KvScales>, EngineError> {
        let scale = |weight: &Option<Weight>| weight.as_ref().map_or(Ok(1.0), Weight::scale);
        self.layers
            .iter()
            .filter_map(|layer| match &layer.mixer {
                MixerWeights::Attention(attention) => Some(attention),
                _ => None,
            })
            .chain(self.draft.iter().map(|draft| &draft.attention))
            .map(|attention| {
                Ok(KvScales {
                    key: scale(&attention.k_scale)?,
                    value: scale(&attention.v_scale)?,
                })
            })
            .collect()
    }
}

impl Weight {
    /// The one positive number that a stored scale is.
    fn scale(&self) -> Result<f32, EngineError> {
        let Source::Stored(tensor) = &self.source else {
            unreachable!("dummies have no scales of their own");
        };
        let value = match (tensor.dtype, &tensor.data[..]) {
            (Dtype::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            (Dtype::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
            (Dtype::BF16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
            _ => unreachable!("a scale is one plain float, checked when it was located"),
        };
        if value.is_finite() && value > 0.0 {
            return Ok(value);
        }
        Err(EngineError::Checkpoint {
            path: tensor.path.to_path_buf(),
            what: format!("a scale of the FP8 cache is {value}, expected a positive number"),
        })
    }

    /// Bytes as stored.
    pub(crate) fn num_bytes(&self) -> u64 {
        match &self.source {
            Source::Stored(tensor) => tensor.data.len() as u64,
            Source::Dummy { .. } | Source::Cut(_) => {
                self.num_elements() * self.dtype().bitsize() as u64 / 8
            }
        }
    }

    pub(crate) fn num_elements(&self) -> u64 {
        self.shape.iter().map(|size| *size as u64).product()
    }

    pub(crate) fn dtype(&self) -> Dtype {
        match &self.source {
            Source::Stored(tensor) => tensor.dtype,
            Source::Dummy { init, .. } => init.dtype(),
            Source::Cut(cut) => cut.whole.dtype(),
        }
    }
}

impl Init {
    /// As releases store them: matrices in bf16, the recurrence's scalars in f32.
    fn dtype(self) -> Dtype {
        match self {
            Self::Constant(_) | Self::Random { .. } => Dtype::BF16,
            Self::DecayRate | Self::TimeStep | Self::Scale(_) => Dtype::F32,
            Self::Fp8Codes | Self::BlockScales => Dtype::F8_E4M3,
            Self::Nvfp4Codes => Dtype::U8,
        }
    }

    /// Under which random E4M3 codes are as large as these numbers would be.
    fn fp8_scale(self) -> Self {
        Self::Scale(self.spread() / root_mean_square(e4m3::VALUES.into_iter()))
    }

    /// The same for random E2M1 codes under random block scales.
    fn nvfp4_scale(self) -> Self {
        let codes = root_mean_square(e2m1::VALUES.into_iter());
        let scales = root_mean_square(BLOCK_SCALES.map(e4m3::decode));
        Self::Scale(self.spread() / (codes * scales))
    }

    fn spread(self) -> f32 {
        match self {
            Self::Random { std } => std,
            other => unreachable!("matrices are random, not {other:?}"),
        }
    }
}

/// The codes of [`Init::BlockScales`].
pub(crate) const BLOCK_SCALES: std::ops::Range<u8> = 0x38..0x40;

/// Of those that are numbers.
fn root_mean_square(values: impl Iterator<Item = f32>) -> f32 {
    let (mut sum, mut count) = (0.0, 0.0);
    for value in values.filter(|value| !value.is_nan()) {
        sum += value * value;
        count += 1.0;
    }
    (sum / count).sqrt()
}

impl ModelWeights {
    /// Bytes of all weights as they are loaded.
    pub(crate) fn num_bytes(&self) -> u64 {
        self.embedding.num_bytes()
            + self.norm.num_bytes()
            + self.head.as_ref().map_or(0, MatrixWeight::num_bytes)
            + self.layers.iter().map(LayerWeights::num_bytes).sum::<u64>()
            + self.draft.as_ref().map_or(0, |draft| draft.num_bytes())
    }
}

impl DraftWeights {
    pub(crate) fn num_bytes(&self) -> u64 {
        let norms = [
            &self.token_norm,
            &self.hidden_norm,
            &self.attention_norm,
            &self.experts_norm,
            &self.norm,
        ];
        self.projection.num_bytes()
            + self.attention.num_bytes()
            + self.experts.num_bytes()
            + norms.into_iter().map(Weight::num_bytes).sum::<u64>()
    }
}

impl LayerWeights {
    fn num_bytes(&self) -> u64 {
        let mixer = match &self.mixer {
            MixerWeights::Mamba(mamba) => mamba.num_bytes(),
            MixerWeights::Attention(attention) => attention.num_bytes(),
            MixerWeights::Moe(moe) => moe.num_bytes(),
            MixerWeights::Mlp(mlp) => mlp.num_bytes(),
        };
        self.norm.num_bytes() + mixer
    }
}

impl MatrixWeight {
    pub(crate) fn num_bytes(&self) -> u64 {
        match self {
            Self::Plain(weight) => weight.num_bytes(),
            Self::Fp8 { codes, scale } => codes.num_bytes() + scale.num_bytes(),
            Self::Nvfp4 {
                codes,
                block_scales,
                scale,
            } => codes.num_bytes() + block_scales.num_bytes() + scale.num_bytes(),
        }
    }
}

impl LinearWeights {
    fn num_bytes(&self) -> u64 {
        self.weight.num_bytes() + self.bias.as_ref().map_or(0, Weight::num_bytes)
    }
}

impl MambaWeights {
    fn num_bytes(&self) -> u64 {
        let rest = [
            &self.conv_weight,
            &self.a_log,
            &self.d,
            &self.dt_bias,
            &self.norm,
        ];
        let rest = rest.into_iter().chain(&self.conv_bias);
        self.in_proj.num_bytes()
            + self.out_proj.num_bytes()
            + rest.map(Weight::num_bytes).sum::<u64>()
    }
}

impl AttentionWeights {
    fn num_bytes(&self) -> u64 {
        let all = [&self.query, &self.key, &self.value, &self.output];
        let scales = self.k_scale.iter().chain(&self.v_scale);
        all.into_iter().map(MatrixWeight::num_bytes).sum::<u64>()
            + scales.map(Weight::num_bytes).sum::<u64>()
    }
}

impl MlpWeights {
    fn num_bytes(&self) -> u64 {
        self.up.num_bytes() + self.down.num_bytes()
    }
}

impl MoeWeights {
    fn num_bytes(&self) -> u64 {
        let latent = self.latent.iter().flat_map(|(into, out)| [into, out]);
        self.gate.num_bytes()
            + self.correction_bias.num_bytes()
            + latent.map(LinearWeights::num_bytes).sum::<u64>()
            + self.up.num_bytes()
            + self.down.num_bytes()
            + self.shared.as_ref().map_or(0, MlpWeights::num_bytes)
    }
}

impl ExpertWeights {
    /// Bytes of all of them as stored.
    pub(crate) fn num_bytes(&self) -> u64 {
        match self {
            Self::Fused(all) => all.num_bytes(),
            Self::PerExpert(each) => each.iter().map(MatrixWeight::num_bytes).sum(),
        }
    }
}

/// What was located, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Inventory {
    /// Elements of all weights, the draft block's included.
    pub(crate) num_parameters: u64,
    /// Bytes as stored of the weights but the draft block's.
    pub(crate) num_bytes: u64,
    /// Those of them that are bf16.
    pub(crate) num_bf16_bytes: u64,
    /// Where those lie that are in files.
    pub(crate) stored: Vec<Bytes>,
    /// One line per tensor: name, element type, shape, a sample of its bytes. For the fingerprint.
    pub(crate) listing: String,
}

/// Finds every weight in a checkpoint.
pub(crate) fn locate(
    config: &ModelConfig,
    checkpoint: Checkpoint,
) -> Result<(ModelWeights, Inventory), EngineError> {
    let mut finder = Finder::over(checkpoint, &config.quantization)?;
    let weights = finder.model(config)?;
    finder.refuse_leftovers(config)?;
    Ok((weights, finder.inventory))
}

/// Invents every weight from a seed, in the right shapes: matrices in the formats that the
/// configuration says.
///
/// # Errors
/// A matrix cannot be in the format that it should have.
pub(crate) fn invent(
    config: &ModelConfig,
    seed: u64,
) -> Result<(ModelWeights, Inventory), EngineError> {
    let mut finder = Finder::inventing(seed, &config.quantization);
    let weights = finder.model(config)?;
    Ok((weights, finder.inventory))
}

/// FNV-1a over `bytes`, continuing from `hash`.
pub(crate) fn fnv1a(hash: u64, bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(hash ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        })
}
