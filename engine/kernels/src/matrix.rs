//! Weight matrices in whatever format the checkpoint has them.

use std::fmt;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::{e2m1, e4m3};

/// Columns that share a block scale in NVFP4.
pub const NVFP4_BLOCK: usize = 16;

/// How a weight matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// F32, F16 or BF16 numbers.
    Plain,
    /// E4M3 codes times one scale.
    Fp8,
    /// E2M1 codes times an E4M3 scale per sixteen columns times one scale.
    Nvfp4,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "not quantised",
            Self::Fp8 => "FP8",
            Self::Nvfp4 => "NVFP4",
        })
    }
}

/// One `[N, K]` matrix: rows are outputs. Products read it packed.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // A model of gigabytes has some thousands.
pub enum Matrix {
    /// F32, F16 or BF16 `[N, K]`.
    Plain(Tensor<2>),
    /// `e4m3(codes) * scale`.
    Fp8 {
        /// U8 `[N, K]`.
        codes: Tensor<2, Int>,
        /// F32 `[1]`.
        scale: Tensor<1>,
    },
    /// `e2m1(codes) * e4m3(block_scales) * scale`.
    Nvfp4 {
        /// U8 `[N, K / 2]`: two codes a byte, the even column in the low half.
        codes: Tensor<2, Int>,
        /// U8 `[N, K / 16]`.
        block_scales: Tensor<2, Int>,
        /// F32 `[1]`.
        scale: Tensor<1>,
    },
}

impl Matrix {
    /// Output and input width.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Plain(weight) => weight.dims(),
            Self::Fp8 { codes, .. } => codes.dims(),
            Self::Nvfp4 { codes, .. } => {
                let [n, bytes] = codes.dims();
                [n, 2 * bytes]
            }
        }
    }

    /// How it is stored.
    pub fn format(&self) -> Format {
        match self {
            Self::Plain(_) => Format::Plain,
            Self::Fp8 { .. } => Format::Fp8,
            Self::Nvfp4 { .. } => Format::Nvfp4,
        }
    }

    /// # Panics
    /// If the scales do not belong to such codes.
    pub fn check(&self) {
        match self {
            Self::Plain(_) => {}
            Self::Fp8 { scale, .. } => assert_eq!(scale.dims(), [1], "scales of an FP8 matrix"),
            Self::Nvfp4 {
                block_scales,
                scale,
                ..
            } => {
                let [n, k] = self.dims();
                assert_eq!(k % NVFP4_BLOCK, 0, "columns of an NVFP4 matrix");
                assert_eq!(
                    block_scales.dims(),
                    [n, k / NVFP4_BLOCK],
                    "block scales of an NVFP4 matrix"
                );
                assert_eq!(scale.dims(), [1], "scales of an NVFP4 matrix");
            }
        }
    }

    /// The numbers without the scale of the whole matrix, which is applied to sums. They are exact
    /// in BF16, so a product of them with a BF16 input is exact in F32.
    pub(crate) fn unscaled(&self) -> Tensor<2> {
        let (values, device) = match self {
            Self::Plain(weight) => return weight.clone(),
            Self::Fp8 { codes, .. } => {
                let codes = read_codes(codes);
                let values: Vec<f32> = codes.iter().map(|&code| e4m3::decode(code)).collect();
                (values, self.device())
            }
            Self::Nvfp4 {
                codes,
                block_scales,
                ..
            } => {
                let scales = read_codes(block_scales);
                let codes = read_codes(codes);
                let columns = codes.iter().flat_map(|byte| [byte & 15, byte >> 4]);
                let values = columns.enumerate().map(|(at, code)| {
                    e2m1::VALUES[usize::from(code)] * e4m3::decode(scales[at / NVFP4_BLOCK])
                });
                (values.collect(), self.device())
            }
        };
        Tensor::from_data(TensorData::new(values, self.dims()), (&device, DType::F32))
    }

    /// What sums of products with [`unscaled`](Self::unscaled) are multiplied by.
    pub(crate) fn scale(&self) -> Option<&Tensor<1>> {
        match self {
            Self::Plain(_) => None,
            Self::Fp8 { scale, .. } | Self::Nvfp4 { scale, .. } => Some(scale),
        }
    }

    fn device(&self) -> Device {
        match self {
            Self::Plain(weight) => weight.device(),
            Self::Fp8 { codes, .. } | Self::Nvfp4 { codes, .. } => codes.device(),
        }
    }
}

impl From<Tensor<2>> for Matrix {
    fn from(weight: Tensor<2>) -> Self {
        Self::Plain(weight)
    }
}

/// Quantised `[N, K]` matrices of one shape in one buffer: how devices other than the CPU have a
/// layer's experts.
#[derive(Clone, Debug)]
pub struct Stack {
    /// U8 `[E, N, K]` of E4M3 (FP8), or `[E, N, K / 2]` of two E2M1 each (NVFP4).
    pub codes: Tensor<3, Int>,
    /// NVFP4: U8 `[E, N, K / 16]` of E4M3.
    pub block_scales: Option<Tensor<3, Int>>,
    /// F32 `[E]`.
    pub scales: Tensor<1>,
}

impl Stack {
    /// Number of matrices, output and input width of each.
    pub fn dims(&self) -> [usize; 3] {
        let [experts, n, bytes] = self.codes.dims();
        match self.format() {
            Format::Nvfp4 => [experts, n, 2 * bytes],
            _ => [experts, n, bytes],
        }
    }

    /// How they are stored: [`Format::Fp8`] or [`Format::Nvfp4`].
    pub fn format(&self) -> Format {
        if self.block_scales.is_some() {
            Format::Nvfp4
        } else {
            Format::Fp8
        }
    }

    /// One of them, a view where possible.
    pub(crate) fn matrix(&self, id: usize) -> Matrix {
        let part = |codes: &Tensor<3, Int>| {
            let [_, n, bytes] = codes.dims();
            codes.clone().narrow(0, id, 1).reshape([n, bytes])
        };
        let codes = part(&self.codes);
        let scale = self.scales.clone().narrow(0, id, 1);
        match &self.block_scales {
            None => Matrix::Fp8 { codes, scale },
            Some(block_scales) => Matrix::Nvfp4 {
                codes,
                block_scales: part(block_scales),
                scale,
            },
        }
    }
}

/// Codes on the host.
fn read_codes<const D: usize>(codes: &Tensor<D, Int>) -> Vec<u8> {
    let data = codes.clone().into_data();
    assert_eq!(data.dtype(), DType::U8, "codes");
    data.as_bytes().to_vec()
}
