//! A matrix's buffers on the CPU, as its kernels read them.

use burn_flex::FlexTensor;
use bytemuck::TransparentWrapper;
use half::{bf16, f16};

use crate::Matrix;
use crate::e4m3::E4m3;
use crate::flex::{self, Elements};
use crate::matrix::NVFP4_BLOCK;

/// A matrix whose buffers are held while they are read.
pub(crate) struct Viewed {
    /// Numbers or codes.
    codes: FlexTensor,
    block_scales: Option<FlexTensor>,
    scale: Option<f32>,
}

/// The numbers of a matrix in their stored format, the scale of the whole left out.
#[derive(Clone, Copy)]
pub(crate) enum Weights<'a> {
    /// `[N, K]`.
    F32(&'a [f32]),
    /// `[N, K]`.
    F16(&'a [f16]),
    /// `[N, K]`.
    Bf16(&'a [bf16]),
    /// `[N, K]`.
    Fp8 { codes: &'a [E4m3] },
    /// `[N, K / 2]` and `[N, K / 16]`.
    Nvfp4 {
        codes: &'a [u8],
        block_scales: &'a [u8],
    },
}

impl Viewed {
    pub(crate) fn new(matrix: &Matrix) -> Self {
        matrix.check();
        let scale = |scale| {
            let scale = flex::view(scale);
            flex::f32s(&scale)[0]
        };
        match matrix {
            Matrix::Plain(weight) => Self {
                codes: flex::view(weight),
                block_scales: None,
                scale: None,
            },
            Matrix::Fp8 { codes, scale: all } => Self {
                codes: flex::view_codes(codes),
                block_scales: None,
                scale: Some(scale(all)),
            },
            Matrix::Nvfp4 {
                codes,
                block_scales,
                scale: all,
            } => Self {
                codes: flex::view_codes(codes),
                block_scales: Some(flex::view_codes(block_scales)),
                scale: Some(scale(all)),
            },
        }
    }

    pub(crate) fn weights(&self) -> Weights<'_> {
        match (&self.scale, &self.block_scales) {
            (None, _) => match flex::elements(&self.codes) {
                Elements::F32(values) => Weights::F32(values),
                Elements::F16(values) => Weights::F16(values),
                Elements::Bf16(values) => Weights::Bf16(values),
            },
            (Some(_), None) => Weights::Fp8 {
                codes: E4m3::wrap_slice(flex::codes(&self.codes)),
            },
            (Some(_), Some(block_scales)) => Weights::Nvfp4 {
                codes: flex::codes(&self.codes),
                block_scales: flex::codes(block_scales),
            },
        }
    }

    /// What sums are multiplied by.
    pub(crate) fn scale(&self) -> f32 {
        self.scale.unwrap_or(1.0)
    }
}

impl Weights<'_> {
    /// As stored.
    pub(crate) fn num_bytes(self) -> usize {
        match self {
            Self::F32(values) => size_of_val(values),
            Self::F16(values) => size_of_val(values),
            Self::Bf16(values) => size_of_val(values),
            Self::Fp8 { codes } => codes.len(),
            Self::Nvfp4 {
                codes,
                block_scales,
            } => codes.len() + block_scales.len(),
        }
    }

    /// The lengths that the pointers of a product rely on.
    pub(super) fn check(self, n: usize, k: usize) {
        let len = match self {
            Self::F32(values) => values.len(),
            Self::F16(values) => values.len(),
            Self::Bf16(values) => values.len(),
            Self::Fp8 { codes } => codes.len(),
            Self::Nvfp4 {
                codes,
                block_scales,
            } => {
                assert_eq!(k % NVFP4_BLOCK, 0, "columns of an NVFP4 product");
                let blocks = n * (k / NVFP4_BLOCK);
                assert_eq!(block_scales.len(), blocks, "block scales of a product");
                2 * codes.len()
            }
        };
        assert_eq!(len, n * k, "weights of a product");
    }
}
