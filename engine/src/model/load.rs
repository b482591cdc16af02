//! Weights from where they lie to the device.

use std::sync::Arc;

use burn::tensor::{DType, Device, Int, Tensor};
use bytes::Bytes;
use kernels::{Arithmetic, ExpertMatrices, Matrix};
use safetensors::tensor::Dtype;

use super::dummy;
use super::readahead::touch;
use super::weights::{ExpertWeights, MatrixWeight, Source, Weight};
use crate::engine_core::LoadProgress;

/// Takes weights one by one. On the CPU a stored weight stays in its memory map; its pages are
/// touched, so that "ready" means that they have been read.
pub(crate) struct Loader {
    pub(crate) device: Device,
    /// Of the products with these weights.
    pub(crate) arithmetic: Arithmetic,
    num_threads: usize,
    progress: LoadProgress,
    loaded_bytes: u64,
    total_bytes: u64,
}

impl Loader {
    pub(crate) fn new(
        device: Device,
        arithmetic: Arithmetic,
        num_threads: usize,
        progress: LoadProgress,
        total_bytes: u64,
    ) -> Self {
        progress.set(0, total_bytes);
        Self {
            device,
            arithmetic,
            num_threads,
            progress,
            loaded_bytes: 0,
            total_bytes,
        }
    }

    /// The weight in its stored format.
    pub(crate) fn tensor<const D: usize>(&mut self, weight: &Weight) -> Tensor<D> {
        let bytes = self.bytes(weight);
        let range = 0..bytes.len();
        let dtype = burn_dtype(weight.dtype());
        kernels::weight_from_shared(Arc::new(bytes), range, &weight.shape, dtype, &self.device)
    }

    /// The matrix in its stored format.
    pub(crate) fn matrix(&mut self, weight: &MatrixWeight) -> Matrix {
        match weight {
            MatrixWeight::Plain(weight) => Matrix::Plain(self.tensor(weight)),
            MatrixWeight::Fp8 { codes, scale } => Matrix::Fp8 {
                codes: self.codes(codes),
                scale: self.vector(scale, |scale| scale),
            },
            MatrixWeight::Nvfp4 {
                codes,
                block_scales,
                scale,
            } => Matrix::Nvfp4 {
                codes: self.codes(codes),
                block_scales: self.codes(block_scales),
                scale: self.vector(scale, |scale| scale),
            },
        }
    }

    /// Every expert's matrix of one kind.
    pub(crate) fn experts(&mut self, weights: &ExpertWeights) -> ExpertMatrices {
        match weights {
            ExpertWeights::Fused(weight) => ExpertMatrices::Fused(self.tensor(weight)),
            ExpertWeights::PerExpert(weights) => {
                let each = weights.iter().map(|weight| self.matrix(weight));
                ExpertMatrices::PerExpert(each.collect())
            }
        }
    }

    /// The codes of a quantised matrix.
    fn codes(&mut self, weight: &Weight) -> Tensor<2, Int> {
        let bytes = self.bytes(weight);
        let range = 0..bytes.len();
        let shape = [weight.shape[0], weight.shape[1]];
        kernels::codes_from_shared(Arc::new(bytes), range, shape, &self.device)
    }

    /// A small vector as f32, whatever it is stored as, each element through `f`.
    pub(crate) fn vector(&mut self, weight: &Weight, f: impl Fn(f32) -> f32) -> Tensor<1> {
        let stored: Tensor<1> = self.tensor(weight);
        let values: Vec<f32> = stored
            .try_to_vec_as::<f32>()
            .expect("plain floats widen to f32")
            .into_iter()
            .map(f)
            .collect();
        Tensor::from_floats(values.as_slice(), &self.device)
    }

    fn bytes(&mut self, weight: &Weight) -> Bytes {
        let bytes = self.read(weight);
        self.loaded_bytes += bytes.len() as u64;
        self.progress.set(self.loaded_bytes, self.total_bytes);
        bytes
    }

    fn read(&self, weight: &Weight) -> Bytes {
        match &weight.source {
            Source::Stored(tensor) => {
                touch(&tensor.data);
                tensor.data.clone()
            }
            Source::Dummy { init, seed } => {
                let count = weight.num_elements() as usize;
                dummy::generate(*init, *seed, count, self.num_threads)
            }
            // A rank of several makes the whole of a dummy, so that its part is the same numbers that
            // one rank alone would have.
            Source::Cut(cut) => match &cut.whole.source {
                // Read as it is copied.
                Source::Stored(tensor) => cut.apply(&tensor.data),
                _ => cut.apply(&self.read(&cut.whole)),
            },
        }
    }
}

fn burn_dtype(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        other => unreachable!("{other} was refused when the weight was located"),
    }
}
