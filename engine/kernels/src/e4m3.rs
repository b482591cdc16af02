//! E4M3: the eight-bit float of FP8 weights, of NVFP4's block scales and of the FP8 KV cache.
//!
//! A sign, four bits of exponent (bias 7), three of fraction. No infinities: `0x7f` and `0xff` are
//! NaN, everything else is a number up to 448. Source: Micikevicius et al., "FP8 formats for deep
//! learning".

use bytemuck::TransparentWrapper;

/// The largest number.
pub const MAX: f32 = 448.0;

/// Every code's number.
pub static VALUES: [f32; 256] = values();

/// A code among the numbers of a kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct E4m3(pub(crate) u8);

// SAFETY: one transparent field, without further invariants.
#[allow(unsafe_code)]
unsafe impl TransparentWrapper<u8> for E4m3 {}

/// The number of a code.
#[inline]
pub fn decode(code: u8) -> f32 {
    VALUES[usize::from(code)]
}

/// The code of the nearest number, ties to the even one, of the largest for anything beyond it,
/// infinities included. NaN stays NaN. Signs stay, that of zero too.
#[inline]
pub fn encode(x: f32) -> u8 {
    let bits = x.to_bits();
    let sign = (bits >> 24) as u8 & 0x80;
    let magnitude = bits & 0x7fff_ffff;
    let code = if magnitude > f32::INFINITY.to_bits() {
        0x7f
    } else if magnitude < SMALLEST_NORMAL {
        // The steps of 2^14 as an f32 are the smallest number's: the addition rounds.
        (f32::from_bits(magnitude) + 16384.0).to_bits() as u8
    } else {
        let even = (magnitude >> 20) & 1;
        let rounded = (magnitude + 0x7_ffff + even) >> 20;
        (rounded - ((127 - 7) << 3)).min(0x7e) as u8
    };
    sign | code
}

/// The bits of 2^-6 as an f32.
const SMALLEST_NORMAL: u32 = (127 - 6) << 23;

const fn values() -> [f32; 256] {
    let mut values = [0.0; 256];
    let mut code = 0;
    while code < 128 {
        let (exponent, fraction) = (code >> 3, code & 7);
        let magnitude = if code == 0x7f {
            f32::NAN
        } else if exponent == 0 {
            fraction as f32 / 512.0
        } else {
            f32::from_bits(((exponent + 127 - 7) << 23) | (fraction << 20))
        };
        values[code as usize] = magnitude;
        values[code as usize + 128] = -magnitude;
        code += 1;
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the bits, by the definition.
    fn number(code: u8) -> f64 {
        let (exponent, fraction) = (i32::from(code >> 3 & 15), f64::from(code & 7));
        let magnitude = match (exponent, code & 7) {
            (15, 7) => f64::NAN,
            (0, _) => fraction / 8.0 * 2_f64.powi(-6),
            _ => (1.0 + fraction / 8.0) * 2_f64.powi(exponent - 7),
        };
        if code >= 0x80 { -magnitude } else { magnitude }
    }

    #[test]
    fn every_code_is_its_number_and_back() {
        for code in 0..=255_u8 {
            let value = decode(code);
            if code & 0x7f == 0x7f {
                assert!(value.is_nan() && number(code).is_nan());
            } else {
                assert_eq!(f64::from(value), number(code), "{code:#x}");
            }
            assert_eq!(encode(value), code, "{code:#x} is {value}");
        }
        assert_eq!(decode(0x7e), MAX);
    }

    #[test]
    fn between_two_numbers_the_nearer_is_taken_and_the_even_of_two() {
        for code in 0..0x7e_u8 {
            let (low, high) = (decode(code), decode(code + 1));
            let middle = f32::midpoint(low, high);
            let even = code + (code & 1);
            assert_eq!(encode(middle), even, "the middle of {low} and {high}");
            assert_eq!(encode(middle.next_down()), code, "below {middle}");
            assert_eq!(encode(middle.next_up()), code + 1, "above {middle}");
            assert_eq!(encode(-middle), 0x80 | even);
            assert_eq!(encode(high.next_down()), code + 1);
            assert_eq!(encode(low.next_up()), code);
        }
    }

    #[test]
    fn what_is_too_large_is_the_largest() {
        for x in [448.1, 464.0, 480.0, 1e9, f32::MAX, f32::INFINITY] {
            assert_eq!((encode(x), encode(-x)), (0x7e, 0xfe), "{x}");
        }
    }

    #[test]
    fn the_smallest_and_what_is_no_number() {
        let half_step = 2_f32.powi(-10);
        assert_eq!((encode(half_step), encode(half_step.next_up())), (0, 1));
        assert_eq!((encode(0.0), encode(-0.0)), (0, 0x80));
        assert_eq!((encode(1e-40), encode(-1e-40)), (0, 0x80));
        for nan in [f32::NAN, f32::from_bits(0x7f80_0001), -f32::NAN] {
            assert_eq!(encode(nan) & 0x7f, 0x7f);
        }
    }
}
