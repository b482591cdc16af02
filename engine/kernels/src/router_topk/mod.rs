//! Which experts a token goes to, and with what weight. Fp32 end to end.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub(crate) mod reference;
mod select;

use burn::tensor::{Int, Tensor};

use crate::route::route;

/// The rules of a router.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouterShape {
    /// Experts per token.
    pub top_k: usize,
    /// Groups the experts are split into; 1 for none.
    pub n_group: usize,
    /// Groups a token may choose from.
    pub topk_group: usize,
    /// Whether the weights of a token are normalised to sum to one.
    pub norm_topk_prob: bool,
    /// Factor on the weights.
    pub scaling: f32,
}

/// Expert choices of a step, token-major `[T, top_k]`, each token's in order of choice.
#[derive(Clone, Debug)]
pub struct Routing {
    /// Expert ids, I32 on the CPU.
    pub ids: Tensor<2, Int>,
    /// Their weights, F32.
    pub weights: Tensor<2>,
}

impl Routing {
    /// The same choices with experts counted from `first`: what a rank that holds some of the experts
    /// gives to [`moe_experts`](crate::moe_experts()). Ids below `first` become negative.
    #[must_use]
    pub fn counted_from(self, first: usize) -> Self {
        if first == 0 {
            return self;
        }
        Self {
            ids: self.ids.sub_scalar(first as i32),
            weights: self.weights,
        }
    }
}

/// Scores are `sigmoid(gate @ x)`; score plus correction bias chooses, the score alone weighs.
///
/// Shapes: `x` F32 `[T, H]`, `gate` any float `[E, H]`, `correction_bias` any float `[E]`. Ties go
/// to the lowest expert id. A row of NaN chooses some experts and gets NaN weights: it spoils its
/// own token and no other.
pub fn router_topk(
    x: &Tensor<2>,
    gate: &Tensor<2>,
    correction_bias: &Tensor<1>,
    shape: &RouterShape,
) -> Routing {
    let [num_experts, _] = gate.dims();
    assert!(
        shape.top_k <= num_experts,
        "top {} of {num_experts} experts",
        shape.top_k
    );
    assert_eq!(num_experts % shape.n_group.max(1), 0, "experts per group");
    route!(
        x,
        cpu: cpu::router_topk(x, gate, correction_bias, shape),
        cube: cube::router_topk(x, gate, correction_bias, shape),
        reference: reference::router_topk(x, gate, correction_bias, shape),
    )
}
