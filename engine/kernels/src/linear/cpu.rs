//! The weight products on the CPU.
#![allow(unsafe_code)]

use burn::tensor::Tensor;
use half::bf16;

use super::product::{Epilogue, Input, Product};
use super::weights::{Viewed, Weights};
use crate::{Arithmetic, Isa, Matrix, flex, isa};

/// `x @ w^T + bias`.
pub(super) fn linear(
    x: Tensor<2>,
    w: &Matrix,
    bias: Option<&Tensor<1>>,
    arithmetic: Arithmetic,
) -> Tensor<2> {
    let [num_tokens, _] = x.dims();
    let [width, _] = w.dims();
    let x = flex::owned(x);
    let out = product(
        flex::f32s(&x),
        num_tokens,
        w,
        bias,
        arithmetic,
        Epilogue::Bias,
    );
    flex::from_vec(out, [num_tokens, width])
}

/// `down @ relu(up @ x)^2`.
pub(super) fn mlp_relu2(
    x: Tensor<2>,
    up: &Matrix,
    up_bias: Option<&Tensor<1>>,
    down: &Matrix,
    down_bias: Option<&Tensor<1>>,
    arithmetic: Arithmetic,
) -> Tensor<2> {
    let [num_tokens, _] = x.dims();
    let [width, _] = down.dims();
    let x = flex::owned(x);
    let hidden = product(
        flex::f32s(&x),
        num_tokens,
        up,
        up_bias,
        arithmetic,
        Epilogue::BiasRelu2,
    );
    let out = product(
        &hidden,
        num_tokens,
        down,
        down_bias,
        arithmetic,
        Epilogue::Bias,
    );
    flex::from_vec(out, [num_tokens, width])
}

/// One product over all rows of `x`, shared by the team.
pub(crate) fn product(
    x: &[f32],
    num_tokens: usize,
    w: &Matrix,
    bias: Option<&Tensor<1>>,
    arithmetic: Arithmetic,
    epilogue: Epilogue,
) -> Vec<f32> {
    let [n, k] = w.dims();
    assert_eq!(x.len(), num_tokens * k, "input of a [{n}, {k}] product");
    let w = Viewed::new(w);
    let bias = bias.map(flex::view);
    let bias = bias.as_ref().map(flex::widened);
    if let Some(bias) = &bias {
        assert_eq!(bias.len(), n, "bias of a [{n}, {k}] product");
    }
    let mut out = vec![0.0; num_tokens * n];
    let weights = w.weights();
    let isa = isa();
    let rounded = RoundedInput::new(x, num_tokens, k, weights, arithmetic, isa);
    Product {
        input: rounded.as_input(x),
        m: num_tokens,
        weights,
        scale: w.scale(),
        n,
        k,
        bias: bias.as_deref(),
        epilogue,
    }
    .share(isa, &mut out);
    out
}

/// The input as the arithmetic wants it, made once per product.
pub(crate) enum RoundedInput {
    /// As given.
    AsIs,
    /// Rounded to bf16 and widened again, for machines or weights without bf16 dot products.
    Widened(Vec<f32>),
    /// Rounded to bf16, rows padded with zeros to whole registers.
    Bf16 { values: Vec<bf16>, stride: usize },
}

impl RoundedInput {
    pub(crate) fn new(
        x: &[f32],
        m: usize,
        k: usize,
        weights: Weights<'_>,
        arithmetic: Arithmetic,
        isa: Isa,
    ) -> Self {
        match (arithmetic, weights) {
            (Arithmetic::F32, _) => Self::AsIs,
            (_, Weights::Bf16(_)) if isa == Isa::Avx512Bf16 => {
                let stride = k.next_multiple_of(32);
                let mut values = vec![bf16::ZERO; m * stride];
                for row in 0..m {
                    let (from, to) = (&x[row * k..][..k], &mut values[row * stride..][..k]);
                    for (to, &from) in to.iter_mut().zip(from) {
                        *to = bf16::from_f32(from);
                    }
                }
                Self::Bf16 { values, stride }
            }
            (_, _) => Self::Widened(x.iter().map(|&x| bf16::from_f32(x).to_f32()).collect()),
        }
    }

    pub(crate) fn as_input<'a>(&'a self, x: &'a [f32]) -> Input<'a> {
        match self {
            Self::AsIs => Input::F32(x),
            Self::Widened(x) => Input::F32(x),
            Self::Bf16 { values, stride } => Input::Bf16 {
                values,
                stride: *stride,
            },
        }
    }
}
