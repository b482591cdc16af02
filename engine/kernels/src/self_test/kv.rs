//! Numbers as a KV cache keeps them.

use burn::tensor::{DType, Device, Int, IntDType, Tensor, TensorData};

use super::inputs::{round, upload};
use crate::{KvFormat, KvTensor, e4m3};

/// Scale of the keys: numbers in `-1..1` all fit. Powers of two, so that no device's division
/// rounds and every code is certain.
pub(super) const KEY_SCALE: f32 = 1.0 / 64.0;

/// Scale of the values: the largest seventh of the numbers in `-1..1` does not fit.
pub(super) const VALUE_SCALE: f32 = 1.0 / 512.0;

/// What comes back of a number.
pub(super) fn kept(x: f32, format: KvFormat, scale: f32) -> f32 {
    match format {
        KvFormat::F32 => x,
        KvFormat::Bf16 => round(x, DType::BF16),
        KvFormat::Fp8 => e4m3::decode(e4m3::encode(x / scale)) * scale,
    }
}

/// One side of a pool that keeps these numbers.
pub(super) fn pool(
    values: &[f32],
    shape: [usize; 4],
    format: KvFormat,
    scale: f32,
    device: &Device,
) -> KvTensor {
    match format {
        KvFormat::F32 => KvTensor::Float(upload(values, shape, DType::F32, device)),
        KvFormat::Bf16 => KvTensor::Float(upload(values, shape, DType::BF16, device)),
        KvFormat::Fp8 => {
            let codes: Vec<u8> = values.iter().map(|x| e4m3::encode(x / scale)).collect();
            let data = TensorData::new(codes, shape);
            KvTensor::Fp8 {
                codes: Tensor::<4, Int>::from_data(data, (device, DType::U8)),
                scale,
            }
        }
    }
}

/// The numbers that a side keeps.
pub(super) fn numbers(side: &KvTensor) -> Vec<f32> {
    match side {
        KvTensor::Float(tensor) => crate::with_f32(tensor, <[f32]>::to_vec),
        KvTensor::Fp8 { codes, scale } => codes
            .clone()
            .cast(IntDType::I32)
            .try_to_vec_as::<i32>()
            .expect("codes are integers")
            .into_iter()
            .map(|code| e4m3::decode(code as u8) * scale)
            .collect(),
    }
}
