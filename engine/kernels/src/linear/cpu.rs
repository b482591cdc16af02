//! The weight products on the CPU.
#![allow(unsafe_code)]

use std::ops::Range;

use burn::tensor::Tensor;
use half::bf16;

use super::product::{Epilogue, Input, Product};
use super::weights::{Viewed, Weights};
use crate::profile::{self, Work};
use crate::simd::{self, Kernel, LANES, Simd};
use crate::team::{self, SharedMut};
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
    let _scope = profile::scope("product", [n, k], || Work {
        bytes: w.weights().num_bytes() + size_of::<f32>() * num_tokens * (n + k),
        operations: 2 * num_tokens * n * k,
    });
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
        input: rounded.rows(x, 0..num_tokens, k),
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
                let stride = k.next_multiple_of(2 * LANES);
                let values = round(isa, x, m, k, stride);
                Self::Bf16 { values, stride }
            }
            (_, _) => {
                let rounded = round(isa, x, m, k, k);
                Self::Widened(rounded.into_iter().map(bf16::to_f32).collect())
            }
        }
    }

    /// Some rows of `k` numbers; `x` is what this was made of.
    pub(crate) fn rows<'a>(&'a self, x: &'a [f32], rows: Range<usize>, k: usize) -> Input<'a> {
        match self {
            Self::AsIs => Input::F32(&x[rows.start * k..rows.end * k]),
            Self::Widened(x) => Input::F32(&x[rows.start * k..rows.end * k]),
            Self::Bf16 { values, stride } => Input::Bf16 {
                values: &values[rows.start * stride..rows.end * stride],
                stride: *stride,
            },
        }
    }
}

/// Rows of `k` numbers, `stride` apart with zeros between.
fn round(isa: Isa, x: &[f32], m: usize, k: usize, stride: usize) -> Vec<bf16> {
    assert!(x.len() == m * k && k <= stride, "rows to round");
    let mut values = vec![bf16::ZERO; m * stride];
    let shared = SharedMut::new(&mut values);
    let piece = team::piece_len(m, 1, 2 * x.len());
    team::share(m.div_ceil(piece), 2 * x.len(), |index| {
        for row in index * piece..(index * piece + piece).min(m) {
            // SAFETY: rows of `values`, one after the other; pieces do not overlap.
            let to = unsafe { shared.slice(row * stride, k) };
            let from = &x[row * k..][..k];
            simd::run(isa, RoundRow { from, to });
        }
    });
    values
}

/// One row; both are of one length.
struct RoundRow<'a> {
    from: &'a [f32],
    to: &'a mut [bf16],
}

impl Kernel for RoundRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { from, to } = self;
        assert_eq!(from.len(), to.len(), "lengths of a row");
        let mut at = 0;
        while at + LANES <= from.len() {
            // SAFETY: `at + LANES` elements are in both.
            unsafe { s.store_bf16(s.load(from.as_ptr().add(at)), to.as_mut_ptr().add(at)) };
            at += LANES;
        }
        for (to, from) in to[at..].iter_mut().zip(&from[at..]) {
            *to = bf16::from_f32(*from);
        }
    }
}
