//! The paged cache's formats, and the keys and values of a step written into it.
//!
//! Shapes: `k`, `v` f32 `[T, kv_heads * head_dim]`; `keys`, `values` the words of
//! `[num_blocks, block_size, kv_heads, head_dim]`. Every unit makes one whole word, so that no two
//! write the same; one launch does keys and values. Bytes moved per token and side:
//! `kv_heads * head_dim * (4 + bits / 8)`; the launch binds until some thousand tokens.
#![allow(unsafe_code)]

use cubecl::client::Client;
use cubecl::prelude::*;

use crate::decode::{e4m3, weights};
use crate::{Buffer, Format, StepIndex};

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KvFormat {
    /// 32 bits.
    F32,
    /// Rounded to nearest even; NaN stays NaN.
    Bf16,
    /// `e4m3(x / scale)`, to nearest even, of the largest number for anything beyond it; NaN stays
    /// NaN. The value is the code's number times the scale.
    Fp8 {
        /// Of the keys.
        k_scale: f32,
        /// Of the values.
        v_scale: f32,
    },
}

impl KvFormat {
    /// The format without its scales.
    pub(crate) fn codes(self) -> Format {
        match self {
            Self::F32 => Format::F32,
            Self::Bf16 => Format::Bf16,
            Self::Fp8 { .. } => Format::Fp8,
        }
    }

    /// Scales of keys and values.
    pub(crate) fn scales(self) -> [f32; 2] {
        match self {
            Self::F32 | Self::Bf16 => [1.0; 2],
            Self::Fp8 { k_scale, v_scale } => [k_scale, v_scale],
        }
    }
}

/// Units of a cube.
const UNITS: u32 = 128;

/// Writes the step's keys and values at their tokens' positions.
///
/// # Panics
/// If a head's numbers are not whole words, or a pool is longer than kernels can index.
#[allow(clippy::too_many_arguments)] // The operands of one operation of the model.
pub fn cache_write(
    client: &Client,
    k: &Buffer,
    v: &Buffer,
    keys: &Buffer,
    values: &Buffer,
    format: KvFormat,
    kv_heads: usize,
    head_dim: usize,
    step: &StepIndex,
) {
    let t = step.num_tokens;
    let width = kv_heads * head_dim;
    assert_eq!([k.len(), v.len()], [t * width; 2], "keys and values");
    check_pools(keys, values, format, kv_heads, head_dim, step);
    if t == 0 {
        return;
    }
    let codes = format.codes();
    let each = 32 / codes.code_bits();
    let words = t * width / each;
    let [k_scale, v_scale] = format.scales();
    // SAFETY: one word per unit, of tokens whose positions the step's tables cover; the lengths
    // are asserted above.
    unsafe {
        write_words::launch_unchecked(
            client,
            CubeCount::Static(words.div_ceil(UNITS as usize) as u32, 2, 1),
            CubeDim::new_1d(UNITS),
            each,
            k.vectors(each),
            v.vectors(each),
            keys.arg(),
            values.arg(),
            step.token_rows.arg(),
            step.token_positions.arg(),
            step.tables.arg(),
            k_scale,
            v_scale,
            words,
            step.table_stride,
            codes,
            width / each,
            step.block_size,
        );
    }
}

/// # Panics
/// If the pools do not hold whole blocks of such heads, or are too long for a u32.
pub(crate) fn check_pools(
    keys: &Buffer,
    values: &Buffer,
    format: KvFormat,
    kv_heads: usize,
    head_dim: usize,
    step: &StepIndex,
) {
    let bits = format.codes().code_bits();
    assert_eq!(
        head_dim * bits % 32,
        0,
        "{head_dim} numbers of {bits} bits are not whole words"
    );
    let block = step.block_size * kv_heads * head_dim * bits / 32;
    assert_eq!(keys.len(), values.len(), "words of keys and of values");
    assert_eq!(keys.len() % block, 0, "whole blocks of {block} words");
    assert!(
        u32::try_from(keys.len()).is_ok(),
        "{} words in a pool: kernels index up to {}",
        keys.len(),
        u32::MAX
    );
}

#[cube(launch_unchecked)]
fn write_words<P: Size>(
    k: &[Vector<f32, P>],
    v: &[Vector<f32, P>],
    keys: &mut [u32],
    values: &mut [u32],
    token_rows: &[u32],
    token_positions: &[u32],
    tables: &[u32],
    k_scale: f32,
    v_scale: f32,
    len: usize,
    table_stride: usize,
    #[comptime] format: Format,
    #[comptime] words_per_token: usize,
    #[comptime] block_size: usize,
) {
    let i = ABSOLUTE_POS_X as usize;
    if i < len {
        let token = i / words_per_token;
        let position = token_positions[token] as usize;
        let row = token_rows[token] as usize;
        let block = tables[row * table_stride + position / block_size] as usize;
        let slot = block * block_size + position % block_size;
        let to = slot * words_per_token + i % words_per_token;
        if CUBE_POS_Y == 0 {
            keys[to] = encode(k[i], k_scale, format);
        } else {
            values[to] = encode(v[i], v_scale, format);
        }
    }
}

/// A word of codes.
#[cube]
fn encode<P: Size>(x: Vector<f32, P>, scale: f32, #[comptime] format: Format) -> u32 {
    if comptime!(format == Format::F32) {
        u32::reinterpret(x.extract(0usize))
    } else if comptime!(format == Format::Bf16) {
        bf16_bits(x.extract(0usize)) | (bf16_bits(x.extract(1usize)) << 16)
    } else {
        let mut word = 0u32;
        #[unroll]
        for at in 0..4usize {
            word |= e4m3_bits(x.extract(at) / scale) << comptime!(8 * at as u32);
        }
        word
    }
}

/// Magnitudes above this are NaN.
const INFINITY: u32 = 0x7f80_0000;

#[cube]
fn bf16_bits(x: f32) -> u32 {
    let bits = u32::reinterpret(x);
    let rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    // The bits, not `x != x`: compilers may take it that there is no NaN.
    select(
        (bits & 0x7fff_ffff) > INFINITY,
        (bits >> 16) | 0x40,
        rounded,
    )
}

#[cube]
fn e4m3_bits(x: f32) -> u32 {
    let bits = u32::reinterpret(x);
    let magnitude = bits & 0x7fff_ffff;
    // The steps of 2^14 as an f32 are the smallest code's: the addition rounds.
    let small = u32::reinterpret(f32::reinterpret(magnitude) + 16384.0) & 0xff;
    let rounded = ((magnitude + 0x7_ffff + ((magnitude >> 20) & 1)) >> 20) - 0x3c0;
    let normal = select(rounded > 0x7e, 0x7eu32.runtime(), rounded);
    // Below 2^-6 codes are subnormal.
    let code = select(magnitude < 0x3c80_0000, small, normal);
    select(magnitude > INFINITY, 0x7fu32.runtime(), code) | ((bits >> 24) & 0x80)
}

/// The `step`th `C` numbers of `words`, times `scale` if the format has one.
#[cube]
pub(crate) fn decode<N: Size, C: Size>(
    words: Vector<u32, N>,
    scale: f32,
    #[comptime] step: usize,
    #[comptime] format: Format,
) -> Vector<f32, C> {
    if comptime!(format == Format::Fp8) {
        let mut out = Vector::<f32, C>::empty();
        let wide = C::value();
        let nan = f32::new(f32::NAN);
        #[unroll]
        for at in 0..wide {
            let byte = comptime!(step * wide + at);
            let word = words.extract(comptime!(byte / 4));
            let code = (word >> comptime!(8 * (byte as u32 % 4))) & 0x7f;
            // The decoded code is 2^-8 of its number; it has no NaN.
            let value = e4m3(word, comptime!(byte % 4)) * 256.0 * scale;
            out.insert(at, select(code == 0x7f, nan, value));
        }
        out
    } else {
        weights::<N, C>(words, step, format)
    }
}
