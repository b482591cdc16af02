//! Products with weight matrices: the skinny matrix products that a step consists of.

mod blocks;
pub(crate) mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub(crate) mod product;
pub(crate) mod reference;
pub(crate) mod tile;
pub(crate) mod weights;

use burn::tensor::{Device, Tensor};

use crate::{Arithmetic, Isa, Matrix, is_cpu, isa, route::route};

/// The arithmetic in which products are fastest, where their last bits are nobody's business: bf16 on a
/// processor with dot products of it, which takes a third of the instructions; else `usual`.
pub fn fast_arithmetic(device: &Device, usual: Arithmetic) -> Arithmetic {
    if is_cpu(device) && isa() == Isa::Avx512Bf16 {
        Arithmetic::Bf16
    } else {
        usual
    }
}

/// `x @ w^T + bias`.
///
/// Shapes: `x` F32 `[T, K]`, `w` `[N, K]`, `bias` any float `[N]`; returns F32 `[T, N]`. A row of the result depends on its row of `x` alone, bit for bit.
pub fn linear(
    x: Tensor<2>,
    w: &Matrix,
    bias: Option<&Tensor<1>>,
    arithmetic: Arithmetic,
) -> Tensor<2> {
    route!(
        &x,
        cpu: cpu::linear(x, w, bias, arithmetic),
        cube: cube::linear(&x, w, bias, arithmetic),
        reference: reference::linear(x, w, bias, arithmetic),
    )
}

/// `down @ relu(up @ x)^2`: the dense MLP and the shared expert.
///
/// Shapes: `x` `[T, H]`, `up` `[I, H]`, `down` `[H, I]`; returns `[T, H]`.
pub fn mlp_relu2(
    x: Tensor<2>,
    up: &Matrix,
    up_bias: Option<&Tensor<1>>,
    down: &Matrix,
    down_bias: Option<&Tensor<1>>,
    arithmetic: Arithmetic,
) -> Tensor<2> {
    route!(
        &x,
        cpu: cpu::mlp_relu2(x, up, up_bias, down, down_bias, arithmetic),
        cube: cube::mlp_relu2(&x, up, up_bias, down, down_bias, arithmetic),
        reference: reference::mlp_relu2(x, up, up_bias, down, down_bias, arithmetic),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::with_isa;

    #[test]
    fn bf16_is_fast_where_it_is_an_instruction() {
        for isa in Isa::available() {
            let want = match isa {
                Isa::Avx512Bf16 => Arithmetic::Bf16,
                _ => Arithmetic::F32,
            };
            let got = with_isa(isa, || fast_arithmetic(&Device::flex(), Arithmetic::F32));
            assert_eq!(got, want, "{isa:?}");
        }
    }
}
