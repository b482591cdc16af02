//! The router with its scores in plain tensor operations; the choice is made on the host.

use burn::tensor::{FloatDType, Int, Tensor, TensorData, activation::sigmoid};

use super::{RouterShape, Routing, select::select};
use crate::{Arithmetic, linear, with_f32};

/// Scores on the device, choice on the host, back to the device.
pub(crate) fn router_topk(
    x: &Tensor<2>,
    gate: &Tensor<2>,
    correction_bias: &Tensor<1>,
    shape: &RouterShape,
) -> Routing {
    let [num_tokens, _] = x.dims();
    let device = x.device();
    let logits = linear::reference::linear(x.clone(), &gate.clone().into(), None, Arithmetic::F32);
    let bias = correction_bias.clone().cast(FloatDType::F32);
    let (ids, weights) = with_f32(&sigmoid(logits), |scores| {
        with_f32(&bias, |bias| select(scores, bias, shape))
    });
    Routing {
        ids: Tensor::<2, Int>::from_data(TensorData::new(ids, [num_tokens, shape.top_k]), &device),
        weights: Tensor::from_data(TensorData::new(weights, [num_tokens, shape.top_k]), &device),
    }
}
