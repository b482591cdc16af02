//! The router on a GPU: choice and weights never leave it.

use burn::tensor::{DType, Tensor};
use cube_kernels::{Arithmetic, Epilogue};

use super::{RouterShape, Routing};
use crate::cube::{Kind, elements, empty, filled, plain, view};

/// Scores and choice.
pub(super) fn router_topk(
    x: &Tensor<2>,
    gate: &Tensor<2>,
    correction_bias: &Tensor<1>,
    shape: &RouterShape,
) -> Routing {
    let [num_tokens, _] = x.dims();
    let [num_experts, _] = gate.dims();
    let (x, gate, bias) = (view(x), view(gate), view(correction_bias));
    let chosen = empty(&x, &[num_tokens, shape.top_k], DType::I32);
    let weights = filled(&x, [num_tokens, shape.top_k], |client, weights| {
        let logits = cube_kernels::Buffer::empty::<f32>(client, num_tokens * num_experts);
        cube_kernels::linear(
            client,
            &elements(&x),
            num_tokens,
            &plain(&gate),
            None,
            Arithmetic::F32,
            Epilogue::None,
            &logits,
        );
        cube_kernels::router_topk(
            client,
            &logits,
            &elements(&bias),
            num_tokens,
            &cube_kernels::RouterShape {
                num_experts,
                top_k: shape.top_k,
                n_group: shape.n_group,
                topk_group: shape.topk_group,
                norm_topk_prob: shape.norm_topk_prob,
                scaling: shape.scaling,
            },
            &elements(&chosen),
            weights,
        );
    });
    Routing {
        ids: Kind::tensor(chosen),
        weights,
    }
}
