//! Random weights made where they will lie, for models that are only to be measured.
//!
//! Shapes: `len` u32 words of a buffer from word `at` on. Every piece of `piece_bytes` draws from a
//! stream of its own and eight bytes from each of its counters, as the host's generator does: the bits
//! are the same. Bytes moved: `4 len` written; bandwidth binds, at some 60 integer operations for 8
//! bytes. Making Super's 75 GB on the host and sending them up would take minutes. Nothing was tried
//! that lost.
#![allow(unsafe_code)]

use cubecl::client::Client;
use cubecl::prelude::*;

use crate::Buffer;
use crate::noise::mix;

/// Units of a cube.
const UNITS: u32 = 256;
/// Most cubes of a launch: each unit then walks on by the size of the grid.
const MAX_CUBES: usize = 8192;

/// What random words are made into.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RandomForm {
    /// They stay as they are: any pairs of E2M1 codes.
    Bytes,
    /// Any E4M3 codes; NaN gives way to the largest number.
    E4m3,
    /// E4M3 codes of numbers from 1 to under 2.
    OneToTwo,
    /// bf16 numbers, each a multiple of `step` between -32767.5 and 32767.5 times it.
    Bf16 {
        /// Distance between two of them before they are rounded.
        step: f32,
    },
}

/// [`RandomForm`] without its number, which is no part of a kernel's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Form {
    Bytes,
    E4m3,
    OneToTwo,
    Bf16,
}

/// Fills `len` words from word `at` on.
///
/// # Panics
/// If the range ends beyond the buffer, the buffer is longer than kernels can index, or a piece is not
/// whole draws.
pub fn fill_random(
    client: &Client,
    out: &Buffer,
    (at, len): (usize, usize),
    seed: u64,
    piece_bytes: usize,
    form: RandomForm,
) {
    assert!(
        at + len <= out.len() && u32::try_from(out.len()).is_ok(),
        "words {at} to {} of {}",
        at + len,
        out.len()
    );
    assert!(
        piece_bytes.is_multiple_of(8) && piece_bytes > 0,
        "pieces of {piece_bytes} bytes"
    );
    if len == 0 {
        return;
    }
    let (form, step) = match form {
        RandomForm::Bytes => (Form::Bytes, 0.0),
        RandomForm::E4m3 => (Form::E4m3, 0.0),
        RandomForm::OneToTwo => (Form::OneToTwo, 0.0),
        RandomForm::Bf16 { step } => (Form::Bf16, step),
    };
    let cubes = len.div_ceil(2).div_ceil(UNITS as usize).min(MAX_CUBES);
    // SAFETY: the range lies within the buffer, asserted above, and units write only into it.
    unsafe {
        fill::launch_unchecked(
            client,
            CubeCount::Static(cubes as u32, 1, 1),
            CubeDim::new_1d(UNITS),
            out.arg(),
            at,
            len,
            seed as u32,
            (seed >> 32) as u32,
            step,
            form,
            piece_bytes / 8,
        );
    }
}

#[cube(launch_unchecked)]
fn fill(
    words: &mut [u32],
    at: usize,
    len: usize,
    seed_low: u32,
    seed_high: u32,
    step: f32,
    #[comptime] form: Form,
    #[comptime] piece: usize,
) {
    let stride = CUBE_COUNT_X as usize * CUBE_DIM_X as usize;
    let mut i = ABSOLUTE_POS_X as usize;
    while 2 * i < len {
        let (key_low, key_high) = mix(seed_low, seed_high, u32::cast_from(i / piece));
        let (low, high) = mix(key_low, key_high, u32::cast_from(i % piece));
        words[at + 2 * i] = formed(low, step, form);
        if 2 * i + 1 < len {
            words[at + 2 * i + 1] = formed(high, step, form);
        }
        i += stride;
    }
}

#[cube]
fn formed(word: u32, step: f32, #[comptime] form: Form) -> u32 {
    if comptime!(form == Form::Bytes) {
        word
    } else if comptime!(form == Form::E4m3) {
        // One is taken from bytes whose lower seven bits are all set: they do not borrow.
        let carried = (word & 0x7f7f_7f7fu32) + 0x0101_0101u32;
        word - ((carried >> 7) & 0x0101_0101u32)
    } else if comptime!(form == Form::OneToTwo) {
        (word & 0x0707_0707u32) | 0x3838_3838u32
    } else {
        bf16_bits(word & 0xffff, step) | (bf16_bits(word >> 16, step) << 16)
    }
}

/// The bf16 nearest to a level, ties to even. The level's 16 bits are a signed number, and half a one
/// makes them symmetric around 0.
#[cube]
fn bf16_bits(level: u32, step: f32) -> u32 {
    let bits = u32::reinterpret((f32::cast_from(level ^ 0x8000) - 32767.5) * step);
    (bits + 0x7fff + ((bits >> 16) & 1)) >> 16
}
