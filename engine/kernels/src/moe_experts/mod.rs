//! The routed experts of a mixture.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
mod groups;
pub(crate) mod reference;

use burn::tensor::Tensor;

use crate::{Arithmetic, Matrix, Routing, Stack, route::route};

/// Expert weights as stored: never restacked on the CPU, where they stay in the memory map.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // One or two per layer.
pub enum ExpertMatrices {
    /// One plain tensor `[E, N, K]`.
    Fused(Tensor<3>),
    /// One matrix `[N, K]` per expert.
    PerExpert(Vec<Matrix>),
    /// Quantised matrices in one buffer.
    Stacked(Stack),
}

impl ExpertMatrices {
    /// Number of experts, output and input width of each.
    pub fn dims(&self) -> [usize; 3] {
        match self {
            Self::Fused(all) => all.dims(),
            Self::PerExpert(each) => {
                let [n, k] = each.first().map_or([0, 0], Matrix::dims);
                [each.len(), n, k]
            }
            Self::Stacked(stack) => stack.dims(),
        }
    }

    /// The matrix of one expert, a view where possible.
    pub(crate) fn expert(&self, id: usize) -> Matrix {
        match self {
            Self::Fused(all) => {
                let [_, n, k] = all.dims();
                Matrix::Plain(all.clone().narrow(0, id, 1).reshape([n, k]))
            }
            Self::PerExpert(each) => each[id].clone(),
            Self::Stacked(stack) => stack.matrix(id),
        }
    }
}

/// `sum_e w_e * down_e @ relu(up_e @ v)^2` over each token's experts, in ascending order of expert
/// id, in f32. Ids outside `0..E` are experts that somebody else has: they are skipped, and a token
/// with no expert here gets zeros (see [`Routing::counted_from`]).
///
/// Shapes: `v` F32 `[T, L]`, `up` `[E, I, L]`, `down` `[E, L, I]`; returns F32 `[T, L]`.
#[allow(clippy::needless_pass_by_value)] // A device kernel may write into the buffer of `v`.
pub fn moe_experts(
    v: Tensor<2>,
    up: &ExpertMatrices,
    down: &ExpertMatrices,
    routing: &Routing,
    arithmetic: Arithmetic,
) -> Tensor<2> {
    let [num_tokens, width] = v.dims();
    let [num_experts, intermediate, up_in] = up.dims();
    assert_eq!(up_in, width, "expert input width");
    assert_eq!(
        down.dims(),
        [num_experts, width, intermediate],
        "down projection of the experts"
    );
    assert_eq!(routing.ids.dims()[0], num_tokens, "routed tokens");
    route!(
        &v,
        cpu: cpu::moe_experts(&v, up, down, routing, arithmetic),
        cube: cube::moe_experts(&v, up, down, routing, arithmetic),
        reference: reference::moe_experts(&v, up, down, routing, arithmetic),
    )
}
