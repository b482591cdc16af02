//! The router on the CPU.

use burn::tensor::Tensor;

use super::{RouterShape, Routing, select::select};
use crate::linear::{cpu::product, product::Epilogue};
use crate::profile::{self, Work};
use crate::{Arithmetic, flex};

/// Scores by the weight product in f32, then the choice.
pub(super) fn router_topk(
    x: &Tensor<2>,
    gate: &Tensor<2>,
    correction_bias: &Tensor<1>,
    shape: &RouterShape,
) -> Routing {
    let [num_tokens, _] = x.dims();
    let x = flex::view(x);
    let mut scores = product(
        flex::f32s(&x),
        num_tokens,
        &gate.clone().into(),
        None,
        Arithmetic::F32,
        Epilogue::Bias,
    );
    let [num_experts, _] = gate.dims();
    let _scope = profile::scope(
        "choice of experts",
        [num_experts, shape.top_k],
        Work::default,
    );
    for score in &mut scores {
        *score = 1.0 / (1.0 + (-*score).exp());
    }
    let bias = flex::view(correction_bias);
    let (ids, weights) = select(&scores, &flex::widened(&bias), shape);
    Routing {
        ids: flex::from_ids(ids, [num_tokens, shape.top_k]),
        weights: flex::from_vec(weights, [num_tokens, shape.top_k]),
    }
}
