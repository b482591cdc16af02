//! Sixteen lanes in plain Rust, for any target.
#![allow(unsafe_code)]

use half::{bf16, f16};

use super::{LANES, Simd};
use crate::e2m1;
use crate::e4m3::{self, E4m3};
use crate::ssm_scan::rounding;

/// The lanes of any machine.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

macro_rules! lanewise {
    (|$($x:ident),+| $value:expr) => {{
        let mut out = [0.0; LANES];
        for (i, out) in out.iter_mut().enumerate() {
            $(let $x = $x[i];)+
            *out = $value;
        }
        out
    }};
}

/// Adds (or whatever `f` does) halves until one lane is left.
macro_rules! fold_halves {
    ($v:expr, |$a:ident, $b:ident| $value:expr) => {{
        let mut v = $v;
        let mut half = LANES / 2;
        while half > 0 {
            for i in 0..half {
                let ($a, $b) = (v[i], v[i + half]);
                v[i] = $value;
            }
            half /= 2;
        }
        v[0]
    }};
}

impl Simd for Portable {
    type V = [f32; LANES];
    type Pairs = ();
    const WIDE: bool = false;
    const BF16_DOT: bool = false;

    #[inline(always)]
    fn transpose(self, rows: [Self::V; LANES]) -> [Self::V; LANES] {
        let mut columns = [[0.0; LANES]; LANES];
        for i in 0..LANES {
            for j in 0..LANES {
                columns[i][j] = rows[j][i];
            }
        }
        columns
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        lanewise!(|a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        lanewise!(|a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        lanewise!(|a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        lanewise!(|a, b| a / b)
    }

    // Two roundings: `mul_add` is a library call where the baseline has no FMA.
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        lanewise!(|a, b, c| a * b + c)
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        lanewise!(|a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        lanewise!(|a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn pow2(self, n: Self::V) -> Self::V {
        lanewise!(|n| f32::from_bits(((n as i32).wrapping_add(127) as u32) << 23))
    }

    #[inline(always)]
    fn sum(self, a: Self::V) -> f32 {
        fold_halves!(a, |a, b| a + b)
    }

    #[inline(always)]
    fn sums(self, a: [Self::V; 4]) -> [f32; 4] {
        a.map(|a| self.sum(a))
    }

    #[inline(always)]
    fn largest(self, a: Self::V) -> f32 {
        fold_halves!(a, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::V {
        // SAFETY: sixteen readable f32; an array of f32 is aligned as an f32.
        unsafe { p.cast::<Self::V>().read() }
    }

    #[inline(always)]
    unsafe fn load_part(self, p: *const f32, n: usize) -> Self::V {
        let mut part = [0.0; LANES];
        // SAFETY: n <= 16 readable f32.
        unsafe { std::ptr::copy_nonoverlapping(p, part.as_mut_ptr(), n) };
        part
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> Self::V {
        // SAFETY: sixteen readable bf16.
        let bits = unsafe { p.cast::<[u16; LANES]>().read() };
        lanewise!(|bits| f32::from_bits(u32::from(bits) << 16))
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const f16) -> Self::V {
        // SAFETY: sixteen readable f16.
        let values = unsafe { p.cast::<[f16; LANES]>().read() };
        lanewise!(|values| values.to_f32())
    }

    #[inline(always)]
    unsafe fn load_e4m3(self, p: *const E4m3) -> Self::V {
        // SAFETY: sixteen readable codes.
        let codes = unsafe { p.cast::<[E4m3; LANES]>().read() };
        lanewise!(|codes| e4m3::decode(codes.0))
    }

    #[inline(always)]
    unsafe fn load_e2m1(self, p: *const u8, scale: f32) -> Self::V {
        // SAFETY: eight readable bytes.
        let bytes = unsafe { p.cast::<[u8; LANES / 2]>().read() };
        let mut out = [0.0; LANES];
        for (out, byte) in out.chunks_exact_mut(2).zip(bytes) {
            out[0] = e2m1::VALUES[usize::from(byte & 15)] * scale;
            out[1] = e2m1::VALUES[usize::from(byte >> 4)] * scale;
        }
        out
    }

    #[inline(always)]
    unsafe fn store(self, a: Self::V, p: *mut f32) {
        // SAFETY: sixteen writable f32.
        unsafe { p.cast::<Self::V>().write(a) };
    }

    #[inline(always)]
    unsafe fn store_part(self, a: Self::V, p: *mut f32, n: usize) {
        // SAFETY: n <= 16 writable f32.
        unsafe { std::ptr::copy_nonoverlapping(a.as_ptr(), p, n) };
    }

    #[inline(always)]
    unsafe fn store_bf16(self, a: Self::V, p: *mut bf16) {
        // SAFETY: sixteen writable bf16.
        unsafe { p.cast::<[bf16; LANES]>().write(a.map(bf16::from_f32)) };
    }

    #[inline(always)]
    fn prefetch<T>(self, _: *const T) {}

    #[inline(always)]
    fn round_to_half(self, a: Self::V, key: u32, word: u32) -> Self::V {
        let mut out = a;
        for (pair, word) in out.chunks_exact_mut(2).zip(word..) {
            let noise = rounding::scramble(key.wrapping_add(word));
            pair[0] = rounding::round(pair[0], noise & 0xffff);
            pair[1] = rounding::round(pair[1], noise >> 16);
        }
        out
    }

    #[inline(always)]
    unsafe fn store_f16(self, a: Self::V, p: *mut f16) {
        // SAFETY: sixteen writable f16.
        unsafe { p.cast::<[f16; LANES]>().write(a.map(f16::from_f32)) };
    }
}
