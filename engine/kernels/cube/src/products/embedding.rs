//! Rows of a table by id: `out[t, k] = table[ids[t], k]`.
//!
//! Moves a row of codes and `4 k` bytes out a token: nothing beside the step's weights (Super in
//! bf16, batch 64: 1.6 MB), so one unit decodes one word at a time and nothing more is tried.
#![allow(unsafe_code)]

use cubecl::prelude::*;

use crate::decode::{e4m3, per_word, unit, weights};
use crate::{Buffer, Client, Format, Matrix, NVFP4_GROUP};

const UNITS: u32 = 128;

/// `out` is f32 `[t, k]`, `ids` u32 `[t]`; an id past the table is the last row.
///
/// # Panics
/// If a buffer is not what the table and `t` make it.
pub fn embedding(client: &Client, table: &Matrix, ids: &Buffer, t: usize, out: &Buffer) {
    table.check();
    assert_eq!(table.experts, 1, "a table is one matrix");
    assert_eq!(ids.len(), t, "ids");
    assert_eq!(out.len(), t * table.k, "out");
    if t == 0 {
        return;
    }
    let words = table.k / per_word(table.format);
    let (scales, block_scales) = table.scale_args();
    // SAFETY: the kernel bounds its words and its rows itself.
    unsafe {
        gather::launch_unchecked(
            client,
            CubeCount::Static((words as u32).div_ceil(UNITS), t as u32, 1),
            CubeDim::new_1d(UNITS),
            table.words.arg(),
            block_scales,
            scales,
            ids.arg(),
            out.arg(),
            table.n as u32,
            words as u32,
            table.format,
        );
    }
}

#[cube(launch_unchecked)]
fn gather(
    words: &[u32],
    block_scales: &[u32],
    scales: &[f32],
    ids: &[u32],
    out: &mut [f32],
    rows: u32,
    words_per_row: u32,
    #[comptime] format: Format,
) {
    let each = comptime!(per_word(format));
    let at = ABSOLUTE_POS_X;
    if at >= words_per_row {
        terminate!();
    }
    let token = CUBE_POS_Y;
    let row = u32::min(ids[token as usize], rows - 1);
    let word = row * words_per_row + at;
    let mut scale = f32::new(comptime!(unit(format)));
    if comptime!(matches!(format, Format::Fp8 | Format::Nvfp4)) {
        scale *= scales[0];
    }
    if comptime!(format == Format::Nvfp4) {
        // Two words of codes share a scale.
        let group = word / comptime!((NVFP4_GROUP / each) as u32);
        scale *= e4m3(
            block_scales[(group / 4) as usize] >> ((group % 4) * 8),
            0usize,
        );
    }
    let value = Vector::<u32, Const<1>>::new(words[word as usize]);
    let start = ((token * words_per_row + at) as usize) * each;
    #[unroll]
    for column in 0..each {
        let one = weights::<Const<1>, Const<1>>(value, column, format);
        out[start + column] = one.extract(0usize) * scale;
    }
}
