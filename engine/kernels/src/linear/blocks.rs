//! The loops of a product: blocks that fit the caches, tiles that fit the registers.
//!
//! For each block of input rows, and each group of weight rows, walk K in parts; in each part, tiles
//! of input rows outside, tiles of the group inside, so that a tile of inputs and the group's part
//! of the weights stay in the first-level cache. Between parts a tile's lanes are parked in memory
//! and taken up again: a sum keeps its one order, as if it had been walked in one go. With few rows
//! the whole of K is one part, weights stream past, and nothing is parked.
//!
//! The first tile of input rows that meets a group's weights asks for the next group's: else memory
//! would rest while the other tiles multiply.
//!
//! Four by four lanes are what AVX-512 keeps in registers with room for the operands; AVX2 takes two
//! by two (four by one was no faster).
#![allow(unsafe_code)]

use std::ops::Range;

use super::product::{Epilogue, Input, Product};
use super::tile::{Dot, F32Dot, Nvfp4Dot, Nvfp4Rows, PairsDot, fold, tile_lanes};
use super::weights::Weights;
use crate::simd::{Kernel, LANES, Simd};
use crate::team::SharedMut;

/// Weight rows whose part of K stays in the first-level cache.
pub(super) const GROUP: usize = 8;

/// Weight rows that stream past together when all of K is one part.
const STREAM: usize = 4;

/// Elements along K of a part, a multiple of every step. Half of it parks twice as often, and was
/// a fifth slower.
const PART: usize = 1024;

/// Input rows from which parts and groups pay: with fewer, memory prefers to be read in long runs.
const MIN_PARTED_ROWS: usize = 24;

/// Bytes of input rows that a block should take, to stay in the second-level cache.
const BLOCK_BYTES: usize = 512 * 1024;

/// Input rows of a block at least and at most: weights are read from memory once per block, and
/// its lanes are parked.
const BLOCK_ROWS: Range<usize> = 32..128;

/// The outputs of some weight rows for some input rows.
pub(super) struct Columns<'a> {
    pub(super) product: Product<'a>,
    /// Input rows.
    pub(super) rows: Range<usize>,
    /// Weight rows.
    pub(super) range: Range<usize>,
    pub(super) out: SharedMut<f32>,
}

impl Kernel for Columns<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let k = self.product.k;
        match (self.product.input, self.product.weights) {
            (Input::F32(x), Weights::F32(w)) => self.blocks::<S, F32Dot<_>>(s, x, k, w.as_ptr()),
            (Input::F32(x), Weights::F16(w)) => self.blocks::<S, F32Dot<_>>(s, x, k, w.as_ptr()),
            (Input::F32(x), Weights::Bf16(w)) => self.blocks::<S, F32Dot<_>>(s, x, k, w.as_ptr()),
            (Input::F32(x), Weights::Fp8 { codes, .. }) => {
                self.blocks::<S, F32Dot<_>>(s, x, k, codes.as_ptr());
            }
            (
                Input::F32(x),
                Weights::Nvfp4 {
                    codes,
                    block_scales,
                    ..
                },
            ) => {
                let rows = Nvfp4Rows {
                    codes: codes.as_ptr(),
                    block_scales: block_scales.as_ptr(),
                };
                self.blocks::<S, Nvfp4Dot>(s, x, k, rows);
            }
            (Input::Bf16 { values, stride }, Weights::Bf16(w)) if S::BF16_DOT => {
                self.blocks::<S, PairsDot>(s, values, stride, w.as_ptr());
            }
            (Input::Bf16 { .. }, _) => {
                unreachable!("bf16 inputs are made for bf16 weights and dot products only")
            }
        }
    }
}

/// Where the loops stand.
struct Place<'a, X, W> {
    x: &'a [X],
    stride: usize,
    w: W,
    /// Input rows of the block.
    rows: Range<usize>,
    /// Weight rows of the group.
    columns: Range<usize>,
    /// Part of K.
    part: Range<usize>,
    /// How many elements further on in the weights those lie that come next.
    ahead: usize,
    /// `[rows, GROUP, LANES]`, empty when nothing is parked.
    lanes: SharedMut<f32>,
}

impl Columns<'_> {
    #[inline(always)]
    fn blocks<S: Simd, D: Dot>(&self, s: S, x: &[D::X], stride: usize, w: D::W) {
        let Product { k, .. } = self.product;
        let m = self.rows.len();
        let row_bytes = (stride * size_of::<D::X>()).max(1);
        let block = (BLOCK_BYTES / row_bytes)
            .clamp(BLOCK_ROWS.start, BLOCK_ROWS.end)
            .next_multiple_of(4);
        let (part, group) = if m < MIN_PARTED_ROWS {
            (k, STREAM)
        } else {
            (PART, GROUP)
        };
        let mut lanes = vec![
            0.0;
            if part < k {
                block.min(m) * GROUP * LANES
            } else {
                0
            }
        ];
        let lanes = SharedMut::new(&mut lanes);
        let mut row = self.rows.start;
        while row < self.rows.end {
            let rows = row..(row + block).min(self.rows.end);
            let mut column = self.range.start;
            while column < self.range.end {
                let columns = column..(column + group).min(self.range.end);
                let mut at = 0;
                while at < k {
                    let (start, end) = (at, (at + part).min(k));
                    at = end;
                    let place = Place {
                        x,
                        stride,
                        w,
                        rows: rows.clone(),
                        columns: columns.clone(),
                        ahead: if end < k { end } else { group * k } - start,
                        part: start..end,
                        lanes,
                    };
                    self.row_tiles::<S, D>(s, &place);
                }
                column = columns.end;
            }
            row = rows.end;
        }
    }

    #[inline(always)]
    fn row_tiles<S: Simd, D: Dot>(&self, s: S, place: &Place<'_, D::X, D::W>) {
        let mut row = place.rows.start;
        while row < place.rows.end {
            let left = place.rows.end - row;
            if S::WIDE && left >= 4 {
                self.column_tiles::<S, D, 4>(s, place, row);
                row += 4;
            } else if S::WIDE && left == 3 {
                self.column_tiles::<S, D, 3>(s, place, row);
                row += 3;
            } else if left >= 2 {
                self.column_tiles::<S, D, 2>(s, place, row);
                row += 2;
            } else {
                self.column_tiles::<S, D, 1>(s, place, row);
                row += 1;
            }
        }
    }

    #[inline(always)]
    fn column_tiles<S: Simd, D: Dot, const MR: usize>(
        &self,
        s: S,
        place: &Place<'_, D::X, D::W>,
        row: usize,
    ) {
        let mut column = place.columns.start;
        while column < place.columns.end {
            let left = place.columns.end - column;
            if (S::WIDE || MR == 1) && left >= 4 {
                self.tile::<S, D, MR, 4>(s, place, row, column);
                column += 4;
            } else if left >= 2 {
                self.tile::<S, D, MR, 2>(s, place, row, column);
                column += 2;
            } else {
                self.tile::<S, D, MR, 1>(s, place, row, column);
                column += 1;
            }
        }
    }

    /// One tile's part of K: taken up, walked, parked or finished.
    #[inline(always)]
    fn tile<S: Simd, D: Dot, const MR: usize, const NR: usize>(
        &self,
        s: S,
        place: &Place<'_, D::X, D::W>,
        row: usize,
        column: usize,
    ) {
        let k = self.product.k;
        let Range { start, end } = place.part;
        let parked = |i: usize, j: usize| {
            let slot = (row + i - place.rows.start) * GROUP + column + j - place.columns.start;
            place.lanes.at(slot * LANES)
        };
        let mut sums = [[s.splat(0.0); NR]; MR];
        if start > 0 {
            for i in 0..MR {
                for j in 0..NR {
                    // SAFETY: the rows and columns of this place have a slot each, written by the
                    // part before; the buffer belongs to this job.
                    sums[i][j] = unsafe { s.load(parked(i, j)) };
                }
            }
        }
        let ahead = if row == place.rows.start {
            place.ahead
        } else {
            0
        };
        // SAFETY: rows `row..row + MR` of x and `column..column + NR` of w exist: the loops above
        // stay below m and n, and `Product::check` compared the lengths; `end <= k`. Inputs that
        // want padding have it where K ends, and parts before end on whole steps.
        let sums = unsafe {
            tile_lanes::<S, D, MR, NR>(
                s,
                place.x.as_ptr().add(row * place.stride + start),
                place.stride,
                (place.w, column * k + start),
                (k, ahead),
                end - start,
                sums,
            )
        };
        for i in 0..MR {
            if end < k {
                for j in 0..NR {
                    // SAFETY: as above.
                    unsafe { s.store(sums[i][j], parked(i, j)) };
                }
            } else {
                self.finish(row + i, column, fold(s, sums[i]));
            }
        }
    }

    /// Writes sums of neighbouring columns.
    #[inline(always)]
    fn finish<const NR: usize>(&self, row: usize, column: usize, mut values: [f32; NR]) {
        let Product {
            n,
            scale,
            bias,
            epilogue,
            ..
        } = self.product;
        for value in &mut values {
            *value *= scale;
        }
        if let Some(bias) = bias {
            for (value, bias) in values.iter_mut().zip(&bias[column..column + NR]) {
                *value += bias;
            }
        }
        if epilogue == Epilogue::BiasRelu2 {
            for value in &mut values {
                // Not `f32::max`, which would hide a NaN.
                *value = if *value < 0.0 { 0.0 } else { *value * *value };
            }
        }
        // SAFETY: inside `[m, n]`, and this job's own rows and columns; an array of f32 is aligned as
        // an f32.
        unsafe {
            let to = self.out.at(row * n + column);
            to.cast::<[f32; NR]>().write(values);
        }
    }
}
