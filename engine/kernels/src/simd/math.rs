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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::simd::{self, Kernel, LANES};

    /// Applies one of the functions above to sixteen numbers.
    struct Apply {
        x: [f32; LANES],
        silu: bool,
    }

    #[allow(unsafe_code)]
    impl Kernel for Apply {
        type Output = [f32; LANES];

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> [f32; LANES] {
            let mut out = [0.0; LANES];
            // SAFETY: both arrays are sixteen long.
            unsafe {
                let x = s.load(self.x.as_ptr());
                let y = if self.silu { silu(s, x) } else { exp(s, x) };
                s.store(y, out.as_mut_ptr());
            }
            out
        }
    }

    fn check(x: f32, silu: bool, want: f64) {
        for isa in Isa::available() {
            let got = simd::run(
                isa,
                Apply {
                    x: [x; LANES],
                    silu,
                },
            );
            assert!(got.iter().all(|y| y.to_bits() == got[0].to_bits()));
            let got = f64::from(got[0]);
            let want = f64::from(want as f32);
            // Three in the last place, or the spacing of the smallest numbers.
            let allowed = (want.abs() * 3.0 * f64::from(f32::EPSILON)).max(3e-45);
            assert!(
                got == want || (got - want).abs() <= allowed || (got.is_nan() && want.is_nan()),
                "{isa:?}: f({x}) = {got}, not {want}"
            );
        }
    }

    #[test]
    fn exponentials_are_accurate() {
        let mut x = -106.0_f32;
        while x < 90.0 {
            check(x, false, f64::from(x).exp());
            // Below, the divisor overflows and the result is zero instead of 1e-37.
            if x > -88.0 {
                check(x, true, f64::from(x) / (1.0 + (-f64::from(x)).exp()));
            }
            x += 0.037;
        }
    }

    #[test]
    fn exponentials_at_the_borders() {
        for (x, want) in [
            (0.0, 1.0),
            (-0.0, 1.0),
            (f32::INFINITY, f64::INFINITY),
            (f32::NEG_INFINITY, 0.0),
            (f32::NAN, f64::NAN),
            (88.72, f64::from(88.72_f32).exp()),
            (89.0, f64::INFINITY),
            (1e30, f64::INFINITY),
            (-1e30, 0.0),
        ] {
            check(x, false, want);
        }
        check(f32::NAN, true, f64::NAN);
        check(-1e30, true, 0.0);
        check(1e30, true, f64::from(1e30_f32));
    }

    #[test]
    fn softplus_neither_overflows_nor_vanishes() {
        for (x, want) in [
            (1e30, 1e30),
            (100.0, 100.0),
            (20.5, 20.5),
            (0.0, std::f32::consts::LN_2),
            (-30.0, (-30.0_f32).exp()),
        ] {
            let got = softplus(x);
            assert!((got - want).abs() <= want * 1e-6, "softplus({x}) = {got}");
        }
        assert!(softplus(f32::NAN).is_nan());
    }
}
