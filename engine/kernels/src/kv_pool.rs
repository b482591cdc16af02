//! The paged KV cache of an attention layer, in one of three formats.

use burn::tensor::{Device, Int, Tensor};

/// How cached keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvFormat {
    /// As they were computed.
    #[default]
    F32,
    /// Rounded to 8 bits of significand.
    Bf16,
    /// E4M3 codes under one scale per layer and side.
    Fp8,
}

impl KvFormat {
    /// For people and flags: `f32`, `bf16`, `fp8`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
        }
    }

    /// Bytes of one stored number.
    pub fn num_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
            Self::Fp8 => 1,
        }
    }
}

/// Paged KV pools of one attention layer; both sides have one format. An operation that writes takes
/// the pool and gives it back, so that the write is in place.
#[derive(Clone, Debug)]
pub struct KvPool {
    /// Keys.
    pub keys: KvTensor,
    /// Values.
    pub values: KvTensor,
}

/// Keys or values by place, `[num_blocks, block_size, kv_heads, head_dim]`.
#[derive(Clone, Debug)]
pub enum KvTensor {
    /// F32 or BF16.
    Float(Tensor<4>),
    /// What is stored is the nearest E4M3 code of a number over the scale; what is read is the
    /// code's number times the scale.
    Fp8 {
        /// U8.
        codes: Tensor<4, Int>,
        /// Finite and positive.
        scale: f32,
    },
}

impl KvTensor {
    /// `[num_blocks, block_size, kv_heads, head_dim]`.
    pub fn dims(&self) -> [usize; 4] {
        match self {
            Self::Float(tensor) => tensor.dims(),
            Self::Fp8 { codes, .. } => codes.dims(),
        }
    }

    /// Where it lies.
    pub fn device(&self) -> Device {
        match self {
            Self::Float(tensor) => tensor.device(),
            Self::Fp8 { codes, .. } => codes.device(),
        }
    }

    /// What a stored number is multiplied with.
    pub(crate) fn scale(&self) -> f32 {
        match self {
            Self::Float(_) => 1.0,
            Self::Fp8 { scale, .. } => *scale,
        }
    }
}

impl From<Tensor<4>> for KvTensor {
    fn from(tensor: Tensor<4>) -> Self {
        Self::Float(tensor)
    }
}
