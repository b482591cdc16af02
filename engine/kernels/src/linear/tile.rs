//! A register tile of dot products.
#![allow(unsafe_code)]

use std::marker::PhantomData;

use half::bf16;

use crate::e4m3;
use crate::matrix::NVFP4_BLOCK;
use crate::simd::{LANES, Simd, Stored};

/// How two rows are multiplied: what is loaded, how far a step goes.
pub(crate) trait Dot {
    /// Element of the input rows.
    type X: Copy;
    /// Where weights begin: a pointer, or one per part of the format.
    type W: Copy;
    /// A step of either, in registers.
    type Lanes<S: Simd>: Copy;
    /// Elements along K per step.
    const STEP: usize;

    /// # Safety
    /// `STEP` readable elements.
    unsafe fn load_x<S: Simd>(s: S, p: *const Self::X) -> Self::Lanes<S>;
    /// # Safety
    /// `n <= STEP` readable elements, or as many as the format pads to.
    unsafe fn load_x_part<S: Simd>(s: S, p: *const Self::X, n: usize) -> Self::Lanes<S>;
    /// # Safety
    /// `STEP` readable elements from the element `at` on.
    unsafe fn load_w<S: Simd>(s: S, w: Self::W, at: usize) -> Self::Lanes<S>;
    /// # Safety
    /// `n <= STEP` readable elements from the element `at` on.
    unsafe fn load_w_part<S: Simd>(s: S, w: Self::W, at: usize, n: usize) -> Self::Lanes<S>;
    /// Asks for the cache line of the element `at`, which need not exist.
    fn prefetch<S: Simd>(s: S, w: Self::W, at: usize);
    /// # Safety
    /// The instruction set has this dot product.
    unsafe fn fma<S: Simd>(s: S, x: Self::Lanes<S>, w: Self::Lanes<S>, sum: S::V) -> S::V;
}

/// f32 inputs with weights that widen to f32.
pub(crate) struct F32Dot<W>(PhantomData<W>);

impl<W: Stored> Dot for F32Dot<W> {
    type X = f32;
    type W = *const W;
    type Lanes<S: Simd> = S::V;
    const STEP: usize = LANES;

    #[inline(always)]
    unsafe fn load_x<S: Simd>(s: S, p: *const f32) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load(p) }
    }

    #[inline(always)]
    unsafe fn load_x_part<S: Simd>(s: S, p: *const f32, n: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_part(p, n) }
    }

    #[inline(always)]
    unsafe fn load_w<S: Simd>(s: S, w: *const W, at: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { W::load(s, w.add(at)) }
    }

    #[inline(always)]
    unsafe fn load_w_part<S: Simd>(s: S, w: *const W, at: usize, n: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { W::load_part(s, w.add(at), n) }
    }

    #[inline(always)]
    fn prefetch<S: Simd>(s: S, w: *const W, at: usize) {
        s.prefetch(w.wrapping_add(at));
    }

    #[inline(always)]
    unsafe fn fma<S: Simd>(s: S, x: S::V, w: S::V, sum: S::V) -> S::V {
        s.fma(x, w, sum)
    }
}

/// Where an NVFP4 matrix begins. Rows follow one another without padding and are whole blocks, so
/// that an element's place in either array follows from its number.
#[derive(Clone, Copy)]
pub(crate) struct Nvfp4Rows {
    /// Two codes a byte.
    pub(crate) codes: *const u8,
    /// One per block.
    pub(crate) block_scales: *const u8,
}

/// f32 inputs with NVFP4 weights: a step is a block.
pub(crate) struct Nvfp4Dot;

impl Dot for Nvfp4Dot {
    type X = f32;
    type W = Nvfp4Rows;
    type Lanes<S: Simd> = S::V;
    const STEP: usize = LANES;

    #[inline(always)]
    unsafe fn load_x<S: Simd>(s: S, p: *const f32) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load(p) }
    }

    #[inline(always)]
    unsafe fn load_x_part<S: Simd>(_: S, _: *const f32, _: usize) -> S::V {
        unreachable!("rows of NVFP4 are whole blocks")
    }

    #[inline(always)]
    unsafe fn load_w<S: Simd>(s: S, w: Nvfp4Rows, at: usize) -> S::V {
        const { assert!(LANES == NVFP4_BLOCK) };
        // SAFETY: the caller's promise; steps begin where blocks do.
        unsafe {
            let scale = e4m3::decode(w.block_scales.add(at / NVFP4_BLOCK).read());
            s.load_e2m1(w.codes.add(at / 2), scale)
        }
    }

    #[inline(always)]
    unsafe fn load_w_part<S: Simd>(_: S, _: Nvfp4Rows, _: usize, _: usize) -> S::V {
        unreachable!("rows of NVFP4 are whole blocks")
    }

    #[inline(always)]
    fn prefetch<S: Simd>(s: S, w: Nvfp4Rows, at: usize) {
        s.prefetch(w.codes.wrapping_add(at / 2));
    }

    #[inline(always)]
    unsafe fn fma<S: Simd>(s: S, x: S::V, w: S::V, sum: S::V) -> S::V {
        s.fma(x, w, sum)
    }
}

/// bf16 inputs, padded to whole steps, with bf16 weights: two products per lane and step.
pub(crate) struct PairsDot;

impl Dot for PairsDot {
    type X = bf16;
    type W = *const bf16;
    type Lanes<S: Simd> = S::Pairs;
    const STEP: usize = 2 * LANES;

    #[inline(always)]
    unsafe fn load_x<S: Simd>(s: S, p: *const bf16) -> S::Pairs {
        // SAFETY: the caller's promise.
        unsafe { s.load_pairs(p) }
    }

    #[inline(always)]
    unsafe fn load_x_part<S: Simd>(s: S, p: *const bf16, _: usize) -> S::Pairs {
        // SAFETY: input rows are padded to whole steps.
        unsafe { s.load_pairs(p) }
    }

    #[inline(always)]
    unsafe fn load_w<S: Simd>(s: S, w: *const bf16, at: usize) -> S::Pairs {
        // SAFETY: the caller's promise.
        unsafe { s.load_pairs(w.add(at)) }
    }

    #[inline(always)]
    unsafe fn load_w_part<S: Simd>(s: S, w: *const bf16, at: usize, n: usize) -> S::Pairs {
        let mut part = [bf16::ZERO; 2 * LANES];
        // SAFETY: n <= 32 readable elements; `part` holds as many.
        unsafe {
            std::ptr::copy_nonoverlapping(w.add(at), part.as_mut_ptr(), n);
            s.load_pairs(part.as_ptr())
        }
    }

    #[inline(always)]
    fn prefetch<S: Simd>(s: S, w: *const bf16, at: usize) {
        s.prefetch(w.wrapping_add(at));
    }

    #[inline(always)]
    unsafe fn fma<S: Simd>(s: S, x: S::Pairs, w: S::Pairs, sum: S::V) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.dot_pairs(x, w, sum) }
    }
}

/// Dot products of `MR` rows at `x` with the first `NR` rows of `w`, `k` long, `x_stride` and `w_stride`
/// elements apart, as the sixteen lane sums along K whose fold is the product, whatever the tile. They
/// are continued from `sums` with the next `k` elements, which begin at `x` and at the element `first` of
/// `w`; weights `ahead` elements further on are asked for, unless it is 0. All parts but the last are
/// whole steps long.
///
/// # Safety
/// The rows are readable, input rows to whole steps where [`Dot::load_x_part`] says so, and the
/// instruction set has the dot product.
#[inline(always)]
pub(crate) unsafe fn tile_lanes<S: Simd, D: Dot, const MR: usize, const NR: usize>(
    s: S,
    x: *const D::X,
    x_stride: usize,
    (w, first): (D::W, usize),
    (w_stride, ahead): (usize, usize),
    k: usize,
    mut sums: [[S::V; NR]; MR],
) -> [[S::V; NR]; MR] {
    let whole = k - k % D::STEP;
    let mut at = 0;
    while at < whole {
        if ahead > 0 {
            for j in 0..NR {
                D::prefetch(s, w, first + j * w_stride + at + ahead);
            }
        }
        // SAFETY: `at + STEP <= k` in every row.
        unsafe {
            let mut lanes = [D::load_w(s, w, first + at); NR];
            for j in 1..NR {
                lanes[j] = D::load_w(s, w, first + j * w_stride + at);
            }
            for i in 0..MR {
                let x = D::load_x(s, x.add(i * x_stride + at));
                for j in 0..NR {
                    sums[i][j] = D::fma(s, x, lanes[j], sums[i][j]);
                }
            }
        }
        at += D::STEP;
    }
    if whole < k {
        // SAFETY: `k - whole` elements are left in every row.
        unsafe {
            let mut lanes = [D::load_w_part(s, w, first + whole, k - whole); NR];
            for j in 1..NR {
                lanes[j] = D::load_w_part(s, w, first + j * w_stride + whole, k - whole);
            }
            for i in 0..MR {
                let x = D::load_x_part(s, x.add(i * x_stride + whole), k - whole);
                for j in 0..NR {
                    sums[i][j] = D::fma(s, x, lanes[j], sums[i][j]);
                }
            }
        }
    }
    sums
}

/// The sum of each, at the price of fewer where there are four.
#[inline(always)]
pub(crate) fn fold<S: Simd, const NR: usize>(s: S, lanes: [S::V; NR]) -> [f32; NR] {
    let mut out = [0.0; NR];
    if NR == 4 {
        out.copy_from_slice(&s.sums([lanes[0], lanes[1], lanes[2], lanes[3]]));
    } else {
        for j in 0..NR {
            out[j] = s.sum(lanes[j]);
        }
    }
    out
}
