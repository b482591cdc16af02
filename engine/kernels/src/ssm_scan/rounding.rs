//! Recurrent states in half precision: f32 is rounded up or down at random, so that what is lost in one
//! token is gained in another.
//!
//! A state lives for thousands of tokens and changes by less than its last bit in most of them. To
//! nearest, such a change is lost every time; at random it is kept as often as it should be: the mean
//! of what a number is rounded to is the number.
//!
//! **When.** After every token. A state that stays f32 between two tokens of a step and is rounded at
//! the step's end would tell how a prompt was cut, and decoding (a cut after every token) from
//! recomputing the same tokens as a prompt after preemption. A grid of positions would have to keep
//! the f32 state between its points. Outputs are computed before the rounding.
//!
//! **Which way.** Told by the mixer's seed, the head, the token's position and the place in the state;
//! not by the slot, the row or the sequence: whoever computes a token again gets the same bits. Two
//! sequences at one position share their noise, which is nothing to either.
//!
//! The noise is a 32-bit hash (two multiplications, three shifts: the mixer is Wellons' `lowbias32`) of
//! a counter behind a key, two columns of a row of the state to a word. It is for rounding only; every
//! bit is paid once for each element and token. Thirteen of sixteen are used, as many as f32 has more
//! than half: with fewer a change could be too small to be ever seen.
//!
//! Below 2^-14, where half has fewer bits, its numbers are as far apart as they are from there to 2^-13:
//! adding 2^-14 first makes room for one rule. Larger numbers than half has become its largest; NaN
//! stays NaN.

use half::f16;

/// Bits that f32 has more than half.
pub(crate) const CUT_BITS: u32 = 13;

/// Bits of a word that are not noise for one column.
pub(crate) const UNUSED_BITS: u32 = 16 - CUT_BITS;

/// What is cut off is zero in it.
pub(crate) const KEPT: u32 = !((1 << CUT_BITS) - 1);

/// The largest half.
pub(crate) const LARGEST: f32 = 65504.0;

/// The smallest half that has all its bits.
pub(crate) const SMALLEST_NORMAL: f32 = 1.0 / 16384.0;

/// What [`scramble`] multiplies by.
pub(crate) const FACTORS: [u32; 2] = [0x7feb_352d, 0x846c_a68b];

/// Spreads every bit over all.
#[inline(always)]
pub(crate) fn scramble(mut x: u32) -> u32 {
    x = (x ^ (x >> 16)).wrapping_mul(FACTORS[0]);
    x = (x ^ (x >> 15)).wrapping_mul(FACTORS[1]);
    x ^ (x >> 16)
}

/// What a head of a mixer adds to a position.
pub(crate) fn stream(seed: u32, head: usize) -> u32 {
    scramble(scramble(seed).wrapping_add(head as u32))
}

/// Of a head's state after the token at `position`.
pub(crate) fn key(stream: u32, position: usize) -> u32 {
    scramble(stream.wrapping_add(scramble(position as u32)))
}

/// Words of a row of `columns` columns.
pub(crate) fn row_words(columns: usize) -> u32 {
    columns.div_ceil(2) as u32
}

/// The noise of a column of a row.
pub(crate) fn noise(key: u32, row: usize, column: usize, columns: usize) -> u32 {
    let word = row as u32 * row_words(columns) + column as u32 / 2;
    let word = scramble(key.wrapping_add(word));
    word >> (column % 2 * 16) & 0xffff
}

/// Rounds to a number that half has, by 16 bits of noise.
#[inline(always)]
pub(crate) fn round(x: f32, noise: u32) -> f32 {
    let bits = x.to_bits();
    let size = f32::from_bits(bits & 0x7fff_ffff);
    // Also for NaN, until the end.
    let size = if size < LARGEST { size } else { LARGEST };
    let offset = if size < SMALLEST_NORMAL {
        SMALLEST_NORMAL
    } else {
        0.0
    };
    let cut = ((size + offset).to_bits() + (noise >> UNUSED_BITS)) & KEPT;
    let size = f32::from_bits(cut) - offset;
    if x.is_nan() {
        x
    } else {
        f32::from_bits(size.to_bits() | bits & 0x8000_0000)
    }
}

/// Rounds a head's state, `[rows, columns]`.
pub(crate) fn round_state(key: u32, state: &mut [f32], columns: usize) {
    for (row, state) in state.chunks_mut(columns).enumerate() {
        for (column, x) in state.iter_mut().enumerate() {
            *x = round(*x, noise(key, row, column, columns));
            debug_assert!(x.is_nan() || f16::from_f32(*x).to_f32() == *x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every half that is a number, and what is rounded to it whatever the noise.
    #[test]
    fn halves_stay() {
        for bits in 0..=u16::MAX {
            let half = f16::from_bits(bits);
            for noise in [0, 1, 0x7fff, 0xffff] {
                let got = round(half.to_f32(), noise);
                if half.is_nan() {
                    assert!(got.is_nan());
                } else if half.is_infinite() {
                    assert_eq!(got.abs(), LARGEST);
                } else {
                    assert_eq!(got.to_bits(), half.to_f32().to_bits(), "{half} and {noise}");
                }
            }
        }
    }

    /// Over all noise there is: the mean is the number, and only its two neighbours occur.
    #[test]
    fn the_mean_is_the_number() {
        let numbers = [
            1.000_1, 0.3, 2.9, 1e-3, 65_503.9, 6.1e-5, 6.2e-5, 1e-6, 5.96e-8, 3e-9, 1e-12,
        ];
        for x in numbers.into_iter().flat_map(|x: f32| [x, -x]) {
            let step = f64::from((x.abs()).max(SMALLEST_NORMAL).log2().floor() as i32 - 10).exp2();
            let low = (f64::from(x) / step).floor() * step;
            let mut sum = 0.0;
            for noise in 0..0x1_0000 {
                let got = round(x, noise);
                assert!(
                    f64::from(got) == low || f64::from(got) == low + step,
                    "{got} for {x}"
                );
                assert_eq!(f16::from_f32(got).to_f32(), got, "a half");
                sum += f64::from(got);
            }
            let mean = sum / 65_536.0;
            // All 13 bits count; below 2^-14 there are more than that, and half of the last is lost.
            let error = if x.abs() < SMALLEST_NORMAL {
                step / 16_384.0
            } else {
                0.0
            };
            assert!((mean - f64::from(x)).abs() <= error, "{mean} for {x}");
        }
    }

    /// As it is used: noise of successive positions, of neighbours, of other heads and mixers.
    #[test]
    fn noise_is_even_and_neighbours_share_none() {
        const COLUMNS: usize = 32;
        const NUM: usize = 4096;
        let of = |at: usize| noise(key(stream(3, 5), at), 7, 9, COLUMNS);
        let others: [(&str, &dyn Fn(usize) -> u32); 6] = [
            ("position", &|at| of(at + 1)),
            ("column", &|at| noise(key(stream(3, 5), at), 7, 8, COLUMNS)),
            ("word", &|at| noise(key(stream(3, 5), at), 7, 11, COLUMNS)),
            ("row", &|at| noise(key(stream(3, 5), at), 8, 9, COLUMNS)),
            ("head", &|at| noise(key(stream(3, 6), at), 7, 9, COLUMNS)),
            ("seed", &|at| noise(key(stream(4, 5), at), 7, 9, COLUMNS)),
        ];
        let centred = |noise: u32| (f64::from(noise >> UNUSED_BITS) + 0.5) / 8192.0 - 0.5;
        // Of a uniform number: deviation 0.2887, so 0.0045 of a mean of 4,096, 0.0013 of products'.
        let mean = (0..NUM).map(|at| centred(of(at))).sum::<f64>() / NUM as f64;
        assert!(mean.abs() < 0.018, "{mean}");
        for (what, other) in others {
            let products = (0..NUM).map(|at| centred(of(at)) * centred(other(at)));
            let shared = products.sum::<f64>() / NUM as f64;
            assert!(shared.abs() < 0.0053, "{what}: {shared}");
        }
    }

    /// A thousandth of half's last bit, ten thousand times: to nearest nothing would ever happen.
    #[test]
    fn small_changes_add_up() {
        let (mut sums, step) = ([1.0_f32; 64], 1.0 / 1024.0 / 1000.0);
        for position in 0..10_000 {
            let key = key(stream(0, 0), position);
            for x in &mut sums {
                *x += step;
            }
            round_state(key, &mut sums, 16);
        }
        let mean = sums.iter().map(|&x| f64::from(x)).sum::<f64>() / 64.0;
        // Each is a sum of 10,000 errors of variance 0.001 of a last bit: 3.2 bits, 0.4 of 64.
        let want = 1.0 + 10.0 / 1024.0;
        assert!((mean - want).abs() < 4.0 * 0.4 / 1024.0, "{mean}");
        assert!(sums.iter().any(|x| *x != sums[0]), "each goes its own way");
    }
}
