//! Exponentials in lanes, accurate to about an ulp.

use super::Simd;

/// `e^x`. Overflows to infinity, underflows to zero, keeps NaN.
///
/// `x = n ln 2 + r`, a polynomial of degree six in `r` (the coefficients of the Cephes library's
/// `expf`), times `2^n` in two halves so that neither leaves the range of a normal number.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    // The bounds stand first: min and max give their second operand for NaN.
    let x = s.min(s.splat(89.0), s.max(s.splat(-104.0), x));
    let n = round(s, s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let r = s.fma(n, s.splat(-0.693_359_4), x);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    let mut p = s.splat(1.987_569_1e-4);
    for coefficient in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ] {
        p = s.fma(p, r, s.splat(coefficient));
    }
    let p = s.add(s.fma(p, s.mul(r, r), r), s.splat(1.0));
    let half = round(s, s.mul(n, s.splat(0.5)));
    s.mul(s.mul(p, s.pow2(half)), s.pow2(s.sub(n, half)))
}

/// `x * sigmoid(x)`.
#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::V) -> S::V {
    let negated = s.sub(s.splat(0.0), x);
    s.div(x, s.add(s.splat(1.0), exp(s, negated)))
}

/// To the nearest integer, for numbers far below `2^22`: what is added pushes the fraction out.
#[inline(always)]
fn round<S: Simd>(s: S, x: S::V) -> S::V {
    let magic = s.splat(12_582_912.0);
    s.sub(s.add(x, magic), magic)
}

/// `log(1 + e^x)` without overflow; one number at a time, there are few.
pub(crate) fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}
