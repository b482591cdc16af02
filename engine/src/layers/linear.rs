//! Products with stored matrices, which stay in their format: [`Loader`] brings them as they are,
//! kernels decode them in registers.

use burn::tensor::Tensor;
use kernels::{Arithmetic, ExpertMatrices, Matrix, Routing};

use crate::model::load::Loader;
use crate::model::weights::{ExpertWeights, LinearWeights, MatrixWeight};

/// `x @ w^T + bias`.
pub(crate) struct Linear {
    weight: Matrix,
    bias: Option<Tensor<1>>,
    arithmetic: Arithmetic,
}

impl Linear {
    pub(crate) fn load(weights: &LinearWeights, loader: &mut Loader) -> Self {
        Self {
            weight: loader.matrix(&weights.weight),
            bias: weights.bias.as_ref().map(|bias| loader.small(bias)),
            arithmetic: loader.arithmetic,
        }
    }

    /// A matrix that never has a bias.
    pub(crate) fn load_matrix(weight: &MatrixWeight, loader: &mut Loader) -> Self {
        Self {
            weight: loader.matrix(weight),
            bias: None,
            arithmetic: loader.arithmetic,
        }
    }

    /// `[T, K]` to `[T, N]`.
    pub(crate) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.forward_in(self.arithmetic, x)
    }

    /// The same in another arithmetic.
    pub(crate) fn forward_in(&self, arithmetic: Arithmetic, x: Tensor<2>) -> Tensor<2> {
        kernels::linear(x, &self.weight, self.bias.as_ref(), arithmetic)
    }

    /// `down @ relu(up @ x)^2` as one operation.
    pub(crate) fn relu2_pair(up: &Self, down: &Self, x: Tensor<2>) -> Tensor<2> {
        kernels::mlp_relu2(
            x,
            &up.weight,
            up.bias.as_ref(),
            &down.weight,
            down.bias.as_ref(),
            up.arithmetic,
        )
    }
}

/// Both matrices of every expert of a layer.
pub(crate) struct Experts {
    up: ExpertMatrices,
    down: ExpertMatrices,
    arithmetic: Arithmetic,
}

impl Experts {
    pub(crate) fn load(up: &ExpertWeights, down: &ExpertWeights, loader: &mut Loader) -> Self {
        Self {
            up: loader.experts(up),
            down: loader.experts(down),
            arithmetic: loader.arithmetic,
        }
    }

    /// The weighted sum of each token's experts, `[T, L]` to `[T, L]`.
    pub(crate) fn forward(&self, v: Tensor<2>, routing: &Routing) -> Tensor<2> {
        kernels::moe_experts(v, &self.up, &self.down, routing, self.arithmetic)
    }
}
