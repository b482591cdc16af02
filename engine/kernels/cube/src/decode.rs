//! Weights out of the words that hold them.
//!
//! E4M3 and E2M1 codes are moved by shifts and masks into halves, two to a register, and widened:
//! half holds every code of both exactly, subnormal codes included (E4M3 as 2^-8 and E2M1 as 2^-14
//! of its value, which [`unit`] makes good once a sum). The same moves straight into f32 would need
//! f32 subnormals, which some devices flush; a table in shared memory costs a load a weight.

use cubecl::prelude::*;
use half::f16;

use crate::Format;

/// Weights in one word.
pub(crate) fn per_word(format: Format) -> usize {
    32 / format.code_bits()
}

/// What a decoded code is to be multiplied by.
pub(crate) fn unit(format: Format) -> f32 {
    match format {
        Format::F32 | Format::F16 | Format::Bf16 => 1.0,
        Format::Fp8 => E4M3_UNIT,
        Format::Nvfp4 => E2M1_UNIT * E4M3_UNIT,
    }
}

const E4M3_UNIT: f32 = 256.0;
const E2M1_UNIT: f32 = 16384.0;

/// The `step`th `P` weights of `words`. `P` is at most 4 and at most what the words hold.
#[cube]
pub(crate) fn weights<N: Size, P: Size>(
    words: Vector<u32, N>,
    #[comptime] step: usize,
    #[comptime] format: Format,
) -> Vector<f32, P> {
    let mut out = Vector::<f32, P>::empty();
    let wide = P::value();
    let each = comptime!(per_word(format));
    #[unroll]
    for at in 0..wide {
        let column = comptime!(step * wide + at);
        let word = words.extract(comptime!(column / each));
        out.insert(at, weight(word, comptime!(column % each), format));
    }
    out
}

/// One weight of a word; what neighbours have in common the compiler shares.
#[cube]
fn weight(word: u32, #[comptime] at: usize, #[comptime] format: Format) -> f32 {
    if comptime!(format == Format::F32) {
        f32::reinterpret(word)
    } else if comptime!(format == Format::F16) {
        halves(word).extract(at)
    } else if comptime!(format == Format::Bf16) {
        if comptime!(at == 0) {
            f32::reinterpret(word << 16)
        } else {
            f32::reinterpret(word & 0xffff_0000)
        }
    } else if comptime!(format == Format::Fp8) {
        e4m3(word, at)
    } else {
        e2m1(word, at)
    }
}

/// Both halves of a word.
#[cube]
pub(crate) fn halves(word: u32) -> Vector<f32, Const<2>> {
    Vector::<f32, Const<2>>::cast_from(Vector::<f16, Const<2>>::reinterpret(word))
}

/// Byte `at`, times 2^-8.
#[cube]
pub(crate) fn e4m3(word: u32, #[comptime] at: usize) -> f32 {
    if comptime!(at.is_multiple_of(2)) {
        halves(((word << 8) & 0x8000_8000) | ((word << 7) & 0x3f80_3f80)).extract(comptime!(at / 2))
    } else {
        halves((word & 0x8000_8000) | ((word >> 1) & 0x3f80_3f80)).extract(comptime!(at / 2))
    }
}

/// Nibble `at`, times 2^-14.
#[cube]
fn e2m1(word: u32, #[comptime] at: usize) -> f32 {
    let top = word << comptime!(12 - 4 * (at as u32 % 4));
    halves((top & 0x8000_8000) | ((top >> 3) & 0x0e00_0e00)).extract(comptime!(at / 4))
}

/// Rounds to bf16, to nearest even.
#[cube]
pub(crate) fn bf16_rounded(value: f32) -> f32 {
    let bits = u32::reinterpret(value);
    f32::reinterpret((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff_0000)
}
