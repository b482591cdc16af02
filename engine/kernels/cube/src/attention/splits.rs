//! Where contexts are cut, and how the parts are put together: the same bits wherever it is done.
#![allow(unsafe_code)]

use cubecl::prelude::*;

/// Below every score; finite, so that differences of two are.
pub(super) const LOWEST: f32 = -1e30;

/// Splits of a context.
pub(crate) fn num_splits(context: usize) -> usize {
    let at = |from: usize, size: usize| (context - from).div_ceil(size);
    if context <= SECOND {
        at(0, 64)
    } else if context <= THIRD {
        SECOND / 64 + at(SECOND, 256)
    } else {
        SECOND / 64 + (THIRD - SECOND) / 256 + at(THIRD, 512)
    }
}

/// Splits are of 64 positions up to here, so that a short context keeps many cubes busy,
pub(crate) const SECOND: usize = 2048;
/// of 256 up to here and of 512 beyond, so that partial results stay few.
pub(crate) const THIRD: usize = 16384;

/// The first position of a split, or of none.
#[cube]
pub(super) fn split_start(split: usize) -> usize {
    let second = comptime!(SECOND / 64);
    let third = comptime!(SECOND / 64 + (THIRD - SECOND) / 256);
    let mut start = split * 64;
    if split >= third {
        start = THIRD + (split - third) * 512;
    } else if split >= second {
        start = SECOND + (split - second) * 256;
    }
    start
}

/// A split's sum, scaled by `part`, on those before it, scaled by `fade`.
#[cube]
pub(super) fn add_split<C: Size>(
    sum: Vector<f32, C>,
    part: f32,
    all: Vector<f32, C>,
    fade: f32,
) -> Vector<f32, C> {
    fma(sum, Vector::new(part), all * Vector::new(fade))
}

/// Puts the splits of a token's head together, in order. A unit does one vector of it.
#[cube(launch_unchecked)]
pub(super) fn combine<C: Size>(
    sums: &[Vector<f32, C>],
    scales: &[f32],
    token_positions: &[u32],
    out: &mut [Vector<f32, C>],
    scale: f32,
    first: usize,
    len: usize,
    splits: usize,
    #[comptime] heads: usize,
    #[comptime] vectors: usize,
) {
    let i = ABSOLUTE_POS_X as usize;
    if i < len {
        let part = i / vectors;
        let d = i % vectors;
        let position = token_positions[first + part / heads] as usize;
        let mut all_top = f32::new(LOWEST);
        let mut all_mass = f32::new(0.0);
        let mut all_sum = Vector::<f32, C>::new(0.0);
        let mut split = 0usize;
        while split_start(split) <= position {
            let at = part * splits + split;
            let top = scales[at * 2];
            let highest = select(top > all_top, top, all_top);
            let fade = ((all_top - highest) * scale).exp();
            let share = ((top - highest) * scale).exp();
            all_top = highest;
            all_mass = fma(scales[at * 2 + 1], share, all_mass * fade);
            all_sum = add_split::<C>(sums[at * vectors + d], share, all_sum, fade);
            split += 1;
        }
        out[first * heads * vectors + i] = all_sum / Vector::new(all_mass);
    }
}
