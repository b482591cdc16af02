//! How results are compared.

use burn::tensor::{DType, Device, Tensor};

use super::inputs::upload;
use super::{Outcome, Shapes, kv};
use crate::{KvTensor, with_f32};

/// f32 sums of some thousand terms stay within this.
pub(super) const TOLERANCE: f64 = 1e-4;

/// Of every norm.
pub(super) const EPS: f32 = 1e-5;

impl Shapes {
    /// Small weights, as loaded: in their stored format on the CPU, as F32 on a GPU.
    pub(super) fn vector<const D: usize>(
        &self,
        values: &[f32],
        shape: [usize; D],
        device: &Device,
    ) -> Tensor<D> {
        let dtype = if crate::is_gpu(device) {
            DType::F32
        } else {
            self.weights
        };
        upload(values, shape, dtype, device)
    }

    /// A rounding of an inner activation may fall the other way than in f64, and then differs by a
    /// 256th.
    pub(super) fn inner_tolerance(&self) -> f64 {
        if self.arithmetic.is_rounded() {
            2e-2
        } else {
            TOLERANCE
        }
    }
}

/// Largest error, infinite where a NaN appears.
pub(super) fn worst(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len(), "shape of a result");
    got.iter()
        .zip(want)
        .map(|(&got, &want)| {
            let error = (f64::from(got) - want).abs() / (1.0 + want.abs());
            if error.is_nan() { f64::INFINITY } else { error }
        })
        .fold(0.0, f64::max)
}

pub(super) fn outcome<const D: usize>(
    operation: &'static str,
    got: &Tensor<D>,
    want: &[f64],
    tolerance: f64,
) -> Outcome {
    Outcome {
        operation,
        max_error: with_f32(got, |got| worst(got, want)),
        tolerance,
    }
}

/// The same numbers, NaN for NaN: for what must be copied or left alone.
pub(super) fn untouched<const D: usize>(
    operation: &'static str,
    got: &Tensor<D>,
    want: &[f32],
) -> Outcome {
    with_f32(got, |got| exact(operation, got, want))
}

/// The same for a side of a KV pool.
pub(super) fn kept_alone(operation: &'static str, got: &KvTensor, want: &[f32]) -> Outcome {
    exact(operation, &kv::numbers(got), want)
}

fn exact(operation: &'static str, got: &[f32], want: &[f32]) -> Outcome {
    let same = got.len() == want.len()
        && got
            .iter()
            .zip(want)
            .all(|(got, want)| got == want || (got.is_nan() && want.is_nan()));
    Outcome {
        operation,
        max_error: if same { 0.0 } else { f64::INFINITY },
        tolerance: 0.0,
    }
}
