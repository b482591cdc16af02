//! `[M, K] x [N, K]^T` with weights in their stored format.
//!
//! Every output is one sum of sixteen lanes, in steps along K from the first element to the last,
//! folded in a fixed order: the same whichever tile, block or thread computes it, so a row's result
//! does not depend on the other rows. For that the usual block loop over K is left out; the rows
//! of a block of M stay in the second-level cache instead, and each weight is read once per block.
//!
//! Tiles of four rows by four weight rows use sixteen accumulators, which an AVX-512 core keeps in
//! registers with room for the operands; AVX2 takes two by two (four by one was no faster: it reads
//! the inputs from the second-level cache twice as often). Widening the weights ahead of a
//! GEMM was tried and lost for M up to 64: it doubles the memory traffic.
#![allow(unsafe_code)]

use std::ops::Range;

use half::bf16;

use super::tile::{Dot, F32Dot, PairsDot, tile};
use crate::Isa;
use crate::flex::Elements;
use crate::simd::{self, Kernel, Simd};
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
    pub(crate) weights: Elements<'a>,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) epilogue: Epilogue,
}

/// Bytes of input rows that a block of M may take, to stay in the second-level cache.
const BLOCK_BYTES: usize = 256 * 1024;

/// Rows of weights handed over at least: whole tiles.
pub(crate) const PIECE_ROWS: usize = 8;

impl Product<'_> {
    /// Computes all of it on the team, into `out` (`[M, N]`).
    pub(crate) fn share(&self, isa: Isa, out: &mut [f32]) {
        assert_eq!(out.len(), self.m * self.n, "output of a product");
        let cost = self.m * self.n * self.k;
        let piece = team::piece_len(self.n, PIECE_ROWS, cost);
        let out = SharedMut::new(out);
        team::share(self.n.div_ceil(piece), cost, |index| {
            let columns = index * piece..(index * piece + piece).min(self.n);
            // SAFETY: `out` is `[m, n]` by the assertion above, and pieces do not overlap.
            unsafe { self.compute(isa, columns, out) };
        });
    }

    /// Computes the outputs of some weight rows.
    ///
    /// # Safety
    /// `out` is `[m, n]`, and nobody else touches its `columns`, which lie below `n`.
    pub(crate) unsafe fn compute(&self, isa: Isa, columns: Range<usize>, out: SharedMut<f32>) {
        self.check();
        simd::run(
            isa,
            Columns {
                product: *self,
                range: columns,
                out,
            },
        );
    }

    /// The lengths that the pointers below rely on.
    fn check(&self) {
        assert_eq!(self.weights.len(), self.n * self.k, "weights of a product");
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

struct Columns<'a> {
    product: Product<'a>,
    range: Range<usize>,
    out: SharedMut<f32>,
}

impl Kernel for Columns<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let k = self.product.k;
        match (self.product.input, self.product.weights) {
            (Input::F32(x), Elements::F32(w)) => self.blocks::<S, F32Dot<f32>>(s, x, k, w),
            (Input::F32(x), Elements::F16(w)) => self.blocks::<S, F32Dot<_>>(s, x, k, w),
            (Input::F32(x), Elements::Bf16(w)) => self.blocks::<S, F32Dot<_>>(s, x, k, w),
            (Input::Bf16 { values, stride }, Elements::Bf16(w)) if S::BF16_DOT => {
                self.blocks::<S, PairsDot>(s, values, stride, w);
            }
            (Input::Bf16 { .. }, _) => {
                unreachable!("bf16 inputs are made for bf16 weights and dot products only")
            }
        }
    }
}

impl Columns<'_> {
    /// Blocks of M outside, weight rows inside: a block's inputs stay cached.
    #[inline(always)]
    fn blocks<S: Simd, D: Dot>(&self, s: S, x: &[D::X], stride: usize, w: &[D::W]) {
        let row_bytes = (stride * size_of::<D::X>()).max(1);
        let block = (BLOCK_BYTES / row_bytes).next_multiple_of(4);
        let mut start = 0;
        while start < self.product.m {
            let end = (start + block).min(self.product.m);
            let mut column = self.range.start;
            while column < self.range.end {
                let left = self.range.end - column;
                if S::WIDE && left >= 4 {
                    self.rows::<S, D, 4>(s, x, stride, w, start..end, column);
                    column += 4;
                } else if left >= 2 {
                    self.rows::<S, D, 2>(s, x, stride, w, start..end, column);
                    column += 2;
                } else {
                    self.rows::<S, D, 1>(s, x, stride, w, start..end, column);
                    column += 1;
                }
            }
            start = end;
        }
    }

    /// `NR` weight rows against all rows of a block.
    #[inline(always)]
    fn rows<S: Simd, D: Dot, const NR: usize>(
        &self,
        s: S,
        x: &[D::X],
        stride: usize,
        w: &[D::W],
        rows: Range<usize>,
        column: usize,
    ) {
        let mut row = rows.start;
        while row < rows.end {
            let left = rows.end - row;
            if S::WIDE && left >= 4 {
                self.one::<S, D, 4, NR>(s, x, stride, w, row, column);
                row += 4;
            } else if left >= 2 {
                self.one::<S, D, 2, NR>(s, x, stride, w, row, column);
                row += 2;
            } else {
                self.one::<S, D, 1, NR>(s, x, stride, w, row, column);
                row += 1;
            }
        }
    }

    /// One tile, finished and written.
    #[inline(always)]
    fn one<S: Simd, D: Dot, const MR: usize, const NR: usize>(
        &self,
        s: S,
        x: &[D::X],
        stride: usize,
        w: &[D::W],
        row: usize,
        column: usize,
    ) {
        let Product {
            n,
            k,
            bias,
            epilogue,
            ..
        } = self.product;
        // SAFETY: rows `row..row + MR` of x and `column..column + NR` of w exist: the loops above
        // stay below m and n, and `Product::check` compared the lengths.
        let sums = unsafe {
            tile::<S, D, MR, NR>(
                s,
                x.as_ptr().add(row * stride),
                stride,
                w.as_ptr().add(column * k),
                k,
                k,
            )
        };
        for (i, sums) in sums.into_iter().enumerate() {
            for (j, sum) in sums.into_iter().enumerate() {
                let mut value = sum + bias.map_or(0.0, |bias| bias[column + j]);
                if epilogue == Epilogue::BiasRelu2 {
                    // Not `f32::max`, which would hide a NaN.
                    value = if value < 0.0 { 0.0 } else { value * value };
                }
                // SAFETY: inside `[m, n]`, and this piece's own column.
                unsafe { self.out.at((row + i) * n + column + j).write(value) };
            }
        }
    }
}
