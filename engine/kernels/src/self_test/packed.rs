//! Random weight matrices in every format: their numbers, and the same on a device.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::Shapes;
use super::inputs::{Numbers, upload};
use crate::{ExpertMatrices, Format, Matrix, NVFP4_BLOCK, Stack, e2m1, e4m3};

/// A `[n, k]` matrix on the host.
pub(super) struct Packed {
    n: usize,
    k: usize,
    /// Numbers of a plain matrix.
    values: Vec<f32>,
    codes: Vec<u8>,
    block_scales: Vec<u8>,
    scale: f32,
}

impl Shapes {
    /// A matrix that keeps a sum of `k` products near one. Codes are drawn rather than rounded to,
    /// so that all of them occur.
    pub(super) fn matrix(&self, numbers: &mut Numbers, n: usize, k: usize) -> Packed {
        let largest = 2.0 / (k as f32).sqrt();
        let mut packed = Packed {
            n,
            k,
            values: Vec::new(),
            codes: Vec::new(),
            block_scales: Vec::new(),
            scale: 1.0,
        };
        // One of the two signs' 127 numbers, NaN left out.
        let mut magnitudes = |count: usize, signs: usize| -> Vec<u8> {
            (0..count)
                .map(|_| (numbers.below(127) + 128 * numbers.below(signs)) as u8)
                .collect()
        };
        match self.format {
            Format::Plain => packed.values = numbers.vector(n * k, largest, self.weights),
            Format::Fp8 => {
                packed.codes = magnitudes(n * k, 2);
                packed.scale = largest / e4m3::MAX;
            }
            Format::Nvfp4 => {
                packed.block_scales = magnitudes(n * k / NVFP4_BLOCK, 1);
                packed.codes = (0..n * k / 2).map(|_| numbers.below(256) as u8).collect();
                packed.scale = largest / (e2m1::MAX * e4m3::MAX);
            }
        }
        packed
    }
}

impl Packed {
    fn format(&self) -> Format {
        match (self.codes.is_empty(), self.block_scales.is_empty()) {
            (true, _) => Format::Plain,
            (false, true) => Format::Fp8,
            (false, false) => Format::Nvfp4,
        }
    }

    /// Its numbers.
    pub(super) fn wide(&self) -> Vec<f64> {
        let scale = f64::from(self.scale);
        match self.format() {
            Format::Plain => self.values.iter().map(|&x| f64::from(x)).collect(),
            Format::Fp8 => {
                let value = |&code| f64::from(e4m3::decode(code)) * scale;
                self.codes.iter().map(value).collect()
            }
            Format::Nvfp4 => (0..self.n * self.k)
                .map(|at| {
                    let code = self.codes[at / 2] >> (4 * (at % 2)) & 15;
                    f64::from(e2m1::VALUES[usize::from(code)])
                        * f64::from(e4m3::decode(self.block_scales[at / NVFP4_BLOCK]))
                        * scale
                })
                .collect(),
        }
    }

    /// On a device; plain numbers as `dtype`.
    pub(super) fn upload(&self, dtype: DType, device: &Device) -> Matrix {
        let Self { n, k, .. } = *self;
        let scale = || upload(&[self.scale], [1], DType::F32, device);
        match self.format() {
            Format::Plain => Matrix::Plain(upload(&self.values, [n, k], dtype, device)),
            Format::Fp8 => Matrix::Fp8 {
                codes: upload_codes(self.codes.clone(), [n, k], device),
                scale: scale(),
            },
            Format::Nvfp4 => Matrix::Nvfp4 {
                codes: upload_codes(self.codes.clone(), [n, k / 2], device),
                block_scales: upload_codes(self.block_scales.clone(), [n, k / NVFP4_BLOCK], device),
                scale: scale(),
            },
        }
    }

    /// Several of one shape and format in one buffer.
    pub(super) fn upload_all(each: &[Self], dtype: DType, device: &Device) -> ExpertMatrices {
        let Self { n, k, .. } = each[0];
        let experts = each.len();
        let gather = |part: fn(&Self) -> &[u8], width| {
            let all: Vec<u8> = each.iter().flat_map(part).copied().collect();
            upload_codes(all, [experts, n, width], device)
        };
        let scales: Vec<f32> = each.iter().map(|one| one.scale).collect();
        let scales = upload(&scales, [experts], DType::F32, device);
        match each[0].format() {
            Format::Plain => {
                let all: Vec<f32> = each.iter().flat_map(|one| &one.values).copied().collect();
                ExpertMatrices::Fused(upload(&all, [experts, n, k], dtype, device))
            }
            Format::Fp8 => ExpertMatrices::Stacked(Stack {
                codes: gather(|one| &one.codes, k),
                block_scales: None,
                scales,
            }),
            Format::Nvfp4 => ExpertMatrices::Stacked(Stack {
                codes: gather(|one| &one.codes, k / 2),
                block_scales: Some(gather(|one| &one.block_scales, k / NVFP4_BLOCK)),
                scales,
            }),
        }
    }
}

fn upload_codes<const D: usize>(
    codes: Vec<u8>,
    shape: [usize; D],
    device: &Device,
) -> Tensor<D, Int> {
    Tensor::from_data(TensorData::new(codes, shape), (device, DType::U8))
}
