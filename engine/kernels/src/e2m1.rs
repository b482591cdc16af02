//! E2M1: the four-bit float of NVFP4. A sign, two bits of exponent, one of fraction; every code is a
//! number.

/// The largest number.
pub const MAX: f32 = 6.0;

/// Every code's number; the fourth bit is the sign.
pub static VALUES: [f32; 16] = [
    0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0,
];

/// The code of the nearest number, ties to the even one, of the largest for anything beyond it. NaN
/// cannot be kept and becomes zero.
#[inline]
pub fn encode(x: f32) -> u8 {
    let size = x.abs();
    // One more for every middle between two neighbours that is passed; reaching the middle is
    // enough where the upper one is even.
    let code = u8::from(size > 0.25)
        + u8::from(size >= 0.75)
        + u8::from(size > 1.25)
        + u8::from(size >= 1.75)
        + u8::from(size > 2.5)
        + u8::from(size >= 3.5)
        + u8::from(size > 5.0);
    code | if x.is_sign_negative() { 8 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_comes_back() {
        for (code, value) in (0_u8..).zip(VALUES) {
            assert_eq!(encode(value), code, "{value}");
        }
    }

    #[test]
    fn between_two_numbers_the_nearer_is_taken_and_the_even_of_two() {
        for code in 0..7_u8 {
            let (low, high) = (VALUES[usize::from(code)], VALUES[usize::from(code) + 1]);
            let middle = f32::midpoint(low, high);
            let even = code + (code & 1);
            assert_eq!(encode(middle), even, "the middle of {low} and {high}");
            assert_eq!(encode(-middle), 8 | even);
            assert_eq!(encode(middle.next_down()), code);
            assert_eq!(encode(middle.next_up()), code + 1);
        }
        assert_eq!((encode(f32::INFINITY), encode(-1e9)), (7, 15));
        assert_eq!(encode(f32::NAN) & 7, 0);
    }
}
