//! `-`: two matrices around a squared rectifier; also the shared expert.

use burn::tensor::Tensor;

use super::linear::Linear;
use crate::model::load::Loader;
use crate::model::weights::MlpWeights;

/// `down @ relu(up @ x)^2`.
pub(crate) struct Mlp {
    up: Linear,
    down: Linear,
}

impl Mlp {
    pub(crate) fn load(weights: &MlpWeights, loader: &mut Loader) -> Self {
        Self {
            up: Linear::load(&weights.up, loader),
            down: Linear::load(&weights.down, loader),
        }
    }

    /// `[T, H]` to `[T, H]`.
    pub(crate) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        Linear::relu2_pair(&self.up, &self.down, x)
    }
}
