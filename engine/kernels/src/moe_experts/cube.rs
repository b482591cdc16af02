//! The experts on a GPU, looked up where they are needed.

use burn::tensor::Tensor;

use super::ExpertMatrices;
use crate::cube::{elements, filled, plain, stack, view};
use crate::{Arithmetic, Routing};

/// The weighted sum of each token's experts.
pub(super) fn moe_experts(
    v: &Tensor<2>,
    up: &ExpertMatrices,
    down: &ExpertMatrices,
    routing: &Routing,
    arithmetic: Arithmetic,
) -> Tensor<2> {
    let shape @ [num_tokens, _] = v.dims();
    let [_, top_k] = routing.ids.dims();
    let (v, ids, weights) = (view(v), view(&routing.ids), view(&routing.weights));
    filled(&v, shape, |client, out| {
        cube_kernels::experts(
            client,
            &elements(&v),
            num_tokens,
            &matrices(up),
            &matrices(down),
            &elements(&ids),
            &elements(&weights),
            top_k,
            arithmetic.into(),
            out,
        );
    })
}

fn matrices(experts: &ExpertMatrices) -> cube_kernels::Matrix {
    match experts {
        ExpertMatrices::Fused(all) => plain(&view(all)),
        ExpertMatrices::Stacked(all) => stack(all),
        ExpertMatrices::PerExpert(_) => panic!("a GPU's experts lie in one buffer per layer"),
    }
}
