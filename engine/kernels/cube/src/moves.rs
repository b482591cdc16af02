//! Words moved within one buffer (state slots, cache blocks) and rows gathered into another.
//!
//! Shapes: a buffer of u32 words in [`zero_words`] and [`copy_words`]; f32 `[t, h]` to `[p, h]` in
//! [`gather_rows`]. Bytes moved: `4 len` to clear, `8 len` to copy, `8 p h` to gather; bandwidth
//! binds from some megabytes up (a state slot of Super is 4.2 MB per layer), the launch below.
//! Sixteen bytes per access wherever both ends allow it. Nothing was tried that lost.
#![allow(unsafe_code)]

use cubecl::client::Client;
use cubecl::prelude::*;

use crate::Buffer;

/// Units of a cube.
const UNITS: u32 = 256;
/// Most cubes of a launch: each unit then walks on by the size of the grid. Below every device's
/// limit, and more than fill one.
const MAX_CUBES: usize = 8192;

/// Clears `len` words from word `at` on.
///
/// # Panics
/// If the range ends beyond the buffer, or the buffer is longer than kernels can index.
pub fn zero_words(client: &Client, buffer: &Buffer, at: usize, len: usize) {
    check_range(buffer, at, len);
    if len == 0 {
        return;
    }
    let width = width_of(&[at, len, buffer.len()]);
    let (cubes, dim) = grid(len / width);
    // SAFETY: the range lies within the buffer, asserted above, and `vectors` are its words.
    unsafe {
        zero::launch_unchecked(
            client,
            cubes,
            dim,
            width,
            buffer.vectors(width),
            at / width,
            len / width,
        );
    }
}

/// Copies `len` words from word `from` to word `to` of the same buffer.
///
/// # Panics
/// If a range ends beyond the buffer, the two overlap, or the buffer is longer than kernels can
/// index.
pub fn copy_words(client: &Client, buffer: &Buffer, from: usize, to: usize, len: usize) {
    check_range(buffer, from, len);
    check_range(buffer, to, len);
    assert!(
        from + len <= to || to + len <= from,
        "{len} words from {from} and from {to} on overlap"
    );
    if len == 0 {
        return;
    }
    let width = width_of(&[from, to, len, buffer.len()]);
    let (cubes, dim) = grid(len / width);
    // SAFETY: both ranges lie within the buffer and share no word, asserted above.
    unsafe {
        copy::launch_unchecked(
            client,
            cubes,
            dim,
            width,
            buffer.vectors(width),
            from / width,
            to / width,
            len / width,
        );
    }
}

/// `out[i] = x[positions[i]]` for `p` rows of `h` f32. Positions are u32, below the rows of `x`.
pub fn gather_rows(
    client: &Client,
    x: &Buffer,
    h: usize,
    positions: &Buffer,
    p: usize,
    out: &Buffer,
) {
    assert_eq!(x.len() % h, 0, "whole rows of {h}");
    assert_eq!(positions.len(), p, "positions");
    assert_eq!(out.len(), p * h, "gathered values");
    check_range(x, 0, x.len());
    check_range(out, 0, out.len());
    if p == 0 {
        return;
    }
    let width = width_of(&[h]);
    let (cubes, dim) = grid(p * h / width);
    // SAFETY: `p` positions and `p` rows of the output, asserted above. A position beyond `x`,
    // which only the device can see, reads its last row.
    unsafe {
        gather::launch_unchecked(
            client,
            cubes,
            dim,
            width,
            x.vectors(width),
            positions.arg(),
            out.vectors(width),
            h / width,
            p * h / width,
            x.len() / h,
        );
    }
}

fn check_range(buffer: &Buffer, at: usize, len: usize) {
    assert!(
        at + len <= buffer.len(),
        "words {at} to {} of {}",
        at + len,
        buffer.len()
    );
    assert!(
        u32::try_from(buffer.len()).is_ok(),
        "{} words in one buffer: kernels index up to {}",
        buffer.len(),
        u32::MAX
    );
}

/// Words per access that all of these offsets and lengths allow.
fn width_of(offsets: &[usize]) -> usize {
    if offsets.iter().all(|offset| offset.is_multiple_of(4)) {
        4
    } else {
        1
    }
}

fn grid(len: usize) -> (CubeCount, CubeDim) {
    let cubes = len.div_ceil(UNITS as usize).min(MAX_CUBES) as u32;
    (CubeCount::Static(cubes, 1, 1), CubeDim::new_1d(UNITS))
}

#[cube(launch_unchecked)]
fn zero<N: Size>(words: &mut [Vector<u32, N>], at: usize, len: usize) {
    let stride = CUBE_COUNT_X as usize * CUBE_DIM_X as usize;
    let mut i = ABSOLUTE_POS_X as usize;
    while i < len {
        words[at + i] = Vector::<u32, N>::new(0);
        i += stride;
    }
}

#[cube(launch_unchecked)]
fn copy<N: Size>(words: &mut [Vector<u32, N>], from: usize, to: usize, len: usize) {
    let stride = CUBE_COUNT_X as usize * CUBE_DIM_X as usize;
    let mut i = ABSOLUTE_POS_X as usize;
    while i < len {
        words[to + i] = words[from + i];
        i += stride;
    }
}

#[cube(launch_unchecked)]
fn gather<N: Size>(
    x: &[Vector<f32, N>],
    positions: &[u32],
    out: &mut [Vector<f32, N>],
    h: usize,
    len: usize,
    rows: usize,
) {
    let stride = CUBE_COUNT_X as usize * CUBE_DIM_X as usize;
    let mut i = ABSOLUTE_POS_X as usize;
    while i < len {
        let position = positions[i / h] as usize;
        let row = select(position < rows, position, rows - 1);
        out[i] = x[row * h + i % h];
        i += stride;
    }
}
