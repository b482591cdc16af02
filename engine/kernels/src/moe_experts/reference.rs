//! The experts in plain tensor operations, one expert at a time.

use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};

use super::{ExpertMatrices, groups::group_by_expert};
use crate::{Arithmetic, Routing, linear};

/// Expert by expert, ascending: gather its tokens, run it, add its share.
pub(crate) fn moe_experts(
    v: &Tensor<2>,
    up: &ExpertMatrices,
    down: &ExpertMatrices,
    routing: &Routing,
    arithmetic: Arithmetic,
) -> Tensor<2> {
    let device = v.device();
    let [num_experts, _, _] = up.dims();
    let mut sum = v.zeros_like();
    for group in group_by_expert(routing, num_experts) {
        let len = group.members.len();
        let tokens: Vec<i32> = group
            .members
            .iter()
            .map(|&(token, _)| token as i32)
            .collect();
        let weights: Vec<f32> = group.members.iter().map(|&(_, weight)| weight).collect();
        let tokens = Tensor::<1, Int>::from_data(TensorData::new(tokens, [len]), &device);
        let weights = Tensor::<2>::from_data(TensorData::new(weights, [len, 1]), &device);
        let output = linear::reference::mlp_relu2(
            v.clone().select(0, tokens.clone()),
            &up.expert(group.expert),
            None,
            &down.expert(group.expert),
            None,
            arithmetic,
        );
        sum = sum.select_assign(0, tokens, output * weights, IndexingUpdateOp::Add);
    }
    sum
}
