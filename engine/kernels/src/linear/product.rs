//! `[M, K] x [N, K]^T` with weights in their stored format.
//!
//! Every output is one sum of sixteen lanes, in steps along K from the first element to the last,
//! folded in a fixed order: the same whichever tile, block or thread computes it, so a row's result
//! does not depend on the other rows.
//!
//! `blocks.rs` has the loops. Widening the weights ahead of a GEMM was tried and lost for M up to
//! 64: it doubles the memory traffic.
//!
//! Quantised weights become f32 lanes in registers, block scales included, which is exact; the scale
//! of the whole matrix is applied to sums.
#![allow(unsafe_code)]

use std::ops::Range;

use half::bf16;

use super::blocks::Columns;
use super::weights::Weights;
use crate::Isa;
use crate::simd;
use crate::team::{self, SharedMut};

/// What happens to a sum before it is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Epilogue {
    /// The bias is added, if there is one.
    Bias,
    /// Then `relu(x)^2`.
    BiasRelu2,
}

/// The rows of the input.
#[derive(Clone, Copy)]
pub(crate) enum Input<'a> {
    /// `[M, K]`.
    F32(&'a [f32]),
    /// `[M, stride]`, zero beyond K; stride is a multiple of 32.
    Bf16 { values: &'a [bf16], stride: usize },
}

/// One product.
#[derive(Clone, Copy)]
pub(crate) struct Product<'a> {
    pub(crate) input: Input<'a>,
    pub(crate) m: usize,
    /// `[N, K]`.
    pub(crate) weights: Weights<'a>,
    /// What sums are multiplied by: 1, or the scale of a quantised matrix.
    pub(crate) scale: f32,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) epilogue: Epilogue,
}

/// Input rows of a piece at most: those of a long prompt are read from the second-level cache by all of
/// a piece's weight rows.
const BAND_ROWS: usize = 512;

/// Rows of weights handed over at least: a whole group.
pub(crate) const PIECE_ROWS: usize = super::blocks::GROUP;

impl Product<'_> {
    /// Computes all of it on the team, into `out` (`[M, N]`).
    pub(crate) fn share(&self, isa: Isa, out: &mut [f32]) {
        assert_eq!(out.len(), self.m * self.n, "output of a product");
        let cost = self.m * self.n * self.k;
        let bands = self.m.div_ceil(BAND_ROWS).max(1);
        let piece = team::piece_len(self.n, PIECE_ROWS, cost / bands);
        let pieces = self.n.div_ceil(piece);
        let out = SharedMut::new(out);
        team::share(bands * pieces, cost, |index| {
            let (band, start) = (index / pieces * BAND_ROWS, index % pieces * piece);
            let rows = band..(band + BAND_ROWS).min(self.m);
            let columns = start..(start + piece).min(self.n);
            // SAFETY: `out` is `[m, n]` by the assertion above, and pieces do not overlap.
            unsafe { self.compute(isa, rows, columns, out) };
        });
    }

    /// Computes the outputs of some weight rows for some input rows.
    ///
    /// # Safety
    /// `out` is `[m, n]`, and nobody else touches these rows of its `columns`, which lie below `m` and
    /// `n`.
    pub(crate) unsafe fn compute(
        &self,
        isa: Isa,
        rows: Range<usize>,
        columns: Range<usize>,
        out: SharedMut<f32>,
    ) {
        self.check();
        simd::run(
            isa,
            Columns {
                product: *self,
                rows,
                range: columns,
                out,
            },
        );
    }

    /// The lengths that the pointers below rely on.
    fn check(&self) {
        self.weights.check(self.n, self.k);
        match self.input {
            Input::F32(x) => assert_eq!(x.len(), self.m * self.k, "input of a product"),
            Input::Bf16 { values, stride } => {
                assert!(
                    values.len() == self.m * stride && stride == self.k.next_multiple_of(32),
                    "input of a bf16 product"
                );
            }
        }
        assert!(
            self.bias.is_none_or(|bias| bias.len() == self.n),
            "bias of a product"
        );
    }
}
