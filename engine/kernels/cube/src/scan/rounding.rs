//! States in half precision: rounded up or down at random after every token, as the host does.
//!
//! Where and why is said in `kernels`' `ssm_scan/rounding.rs`. Two columns share a word of noise, 9
//! integer operations; an element's rounding takes some 13 more, where the recurrence takes 2. At 64 rows
//! of Super that is as long as half the bytes take on a Hopper (on paper: 2.7 G elements, 14 of the
//! operations on the half-rate unit), so that two thirds of an f32 step's time are left, not a half.
//! Blackwell rounds so in one instruction (`cvt.rs`), which CubeCL cannot say. Stronger noise (Philox, or
//! `noise`'s 64 bits) would cost five times as much.

use cubecl::prelude::*;
use half::f16;

use super::walk::{CHANNELS, Plan};
use crate::decode::halves;

/// How a pool keeps states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StateFormat {
    /// As they are.
    #[default]
    F32,
    /// In halves, two to a word, rounded at random after every token.
    F16 {
        /// Tells a mixer's noise from that of others.
        seed: u32,
    },
}

impl StateFormat {
    /// Words that keep `len` numbers.
    ///
    /// # Panics
    /// If they are not whole words.
    pub fn words(self, len: usize) -> usize {
        match self {
            Self::F32 => len,
            Self::F16 { .. } => {
                assert!(len.is_multiple_of(2), "{len} halves in words");
                len / 2
            }
        }
    }

    pub(crate) fn is_half(self) -> bool {
        self != Self::F32
    }

    /// What the heads of a mixer add their numbers to.
    pub(crate) fn noise(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 { seed } => scrambled(seed),
        }
    }
}

const FACTORS: [u32; 2] = [0x7feb_352d, 0x846c_a68b];

/// [`scramble`] on the host.
fn scrambled(mut x: u32) -> u32 {
    x = (x ^ (x >> 16)).wrapping_mul(FACTORS[0]);
    x = (x ^ (x >> 15)).wrapping_mul(FACTORS[1]);
    x ^ (x >> 16)
}

/// Spreads every bit over all.
#[cube]
fn scramble(x: u32) -> u32 {
    let [first, second] = comptime!(FACTORS);
    let x = (x ^ (x >> 16)) * first;
    let x = (x ^ (x >> 15)) * second;
    x ^ (x >> 16)
}

/// Of a head's state after the token at `position`.
#[cube]
pub(super) fn key(noise: u32, head: usize, position: u32) -> u32 {
    scramble(scramble(noise + head as u32) + scramble(position))
}

/// Rounds a plane's rows of a state to numbers that half has.
#[cube]
pub(super) fn round_state<N: Size>(
    state: &mut Array<Vector<f32, N>>,
    key: u32,
    first: usize,
    lane: usize,
    #[comptime] plan: Plan,
) {
    let width = N::value();
    let passes = comptime!((plan.shape.state / width).div_ceil(plan.lanes));
    let row_words = comptime!(plan.shape.state / 2);
    let pairs = comptime!(width / 2);
    #[unroll]
    for channel in 0..CHANNELS {
        #[unroll]
        for pass in 0..passes {
            let column = pass * plan.lanes + lane;
            let word = (first + channel) * row_words + column * pairs;
            let mut values = state[channel * passes + pass];
            #[unroll]
            for pair in 0..pairs {
                let noise = scramble(key + (word + pair) as u32);
                let low = rounded(values.extract(2 * pair), (noise >> 3) & 0x1fff);
                let high = rounded(values.extract(2 * pair + 1), noise >> 19);
                values.insert(2 * pair, low);
                values.insert(2 * pair + 1, high);
            }
            state[channel * passes + pass] = values;
        }
    }
}

/// By 13 bits of noise.
#[cube]
fn rounded(x: f32, noise: u32) -> f32 {
    let bits = u32::reinterpret(x);
    let size = bits & 0x7fff_ffff;
    // Up to half's largest; below 2^-14, where half has fewer bits, with room for them.
    let held = select(size < 0x477f_e000, size, 0x477f_e000u32.runtime());
    let offset = select(held < 0x3880_0000, f32::new(1.0 / 16384.0), f32::new(0.0));
    let shifted = u32::reinterpret(f32::reinterpret(held) + offset);
    let cut = f32::reinterpret((shifted + noise) & 0xffff_e000) - offset;
    let value = u32::reinterpret(cut) | (bits & 0x8000_0000);
    // The bits, not `x != x`: compilers may take it that there is no NaN.
    f32::reinterpret(select(size > 0x7f80_0000, bits, value))
}

/// Numbers of a pool's words.
#[cube]
pub(super) fn unpacked<N: Size, W: Size>(
    words: Vector<u32, W>,
    #[comptime] is_half: bool,
) -> Vector<f32, N> {
    let mut values = Vector::<f32, N>::empty();
    let width = N::value();
    #[unroll]
    for at in 0..width {
        if is_half {
            let word = words.extract(comptime!(at / 2));
            values.insert(at, halves(word).extract(comptime!(at % 2)));
        } else {
            values.insert(at, f32::reinterpret(words.extract(at)));
        }
    }
    values
}

/// And back; halves are exact.
#[cube]
pub(super) fn packed<N: Size, W: Size>(
    values: Vector<f32, N>,
    #[comptime] is_half: bool,
) -> Vector<u32, W> {
    let mut words = Vector::<u32, W>::empty();
    let num_words = W::value();
    #[unroll]
    for at in 0..num_words {
        if is_half {
            let mut pair = Vector::<f32, Const<2>>::empty();
            pair.insert(0usize, values.extract(comptime!(2 * at)));
            pair.insert(1usize, values.extract(comptime!(2 * at + 1)));
            words.insert(
                at,
                u32::reinterpret(Vector::<f16, Const<2>>::cast_from(pair)),
            );
        } else {
            words.insert(at, u32::reinterpret(values.extract(at)));
        }
    }
    words
}
