//! Sixteen f32 lanes, whatever the machine's registers.
//!
//! A kernel is written once over [`Simd`] and compiled per instruction set: [`run`] enters a
//! function that has the features enabled, into which everything marked `#[inline(always)]`
//! dissolves. The lane count is the same everywhere, so that a kernel has one order of additions
//! and AVX2 and AVX-512 agree to the bit.
//!
//! A value of a `Simd` type is the proof that the machine has the instructions: only [`run`] makes
//! one. Hence arithmetic is safe to call; only reading and writing memory is not.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod math;
mod portable;

use half::{bf16, f16};

use crate::Isa;
use crate::e4m3::E4m3;

/// Lanes of a [`Simd`] vector.
pub(crate) const LANES: usize = 16;

/// One instruction set's sixteen lanes.
#[allow(unsafe_code)]
pub(crate) trait Simd: Copy {
    /// Sixteen f32.
    type V: Copy;
    /// Thirty-two bf16, where [`BF16_DOT`](Self::BF16_DOT).
    type Pairs: Copy;
    /// Whether there are enough registers for a four by four tile of accumulators.
    const WIDE: bool;
    /// Whether bf16 dot products are there.
    const BF16_DOT: bool;

    fn splat(self, x: f32) -> Self::V;
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`; rounded once except in the portable set.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a > b ? a : b`: the second operand if either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a < b ? a : b`: the second operand if either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `2^n` for integral `n` in `-126..=127`.
    fn pow2(self, n: Self::V) -> Self::V;
    /// The sum of all lanes: halves are added until one lane is left.
    fn sum(self, a: Self::V) -> f32;
    /// [`sum`](Self::sum) of each, to the bit, at less than its price.
    fn sums(self, a: [Self::V; 4]) -> [f32; 4];
    /// The largest lane, by the rule of [`max`](Self::max).
    fn largest(self, a: Self::V) -> f32;
    /// Lane `i` of vector `j` becomes lane `j` of vector `i`.
    fn transpose(self, rows: [Self::V; LANES]) -> [Self::V; LANES];

    /// # Safety
    /// Sixteen readable f32 at `p`.
    unsafe fn load(self, p: *const f32) -> Self::V;
    /// Lanes from `n` on are zero. `n` is at most 16.
    ///
    /// # Safety
    /// `n` readable f32 at `p`.
    unsafe fn load_part(self, p: *const f32, n: usize) -> Self::V;
    /// # Safety
    /// Sixteen readable bf16 at `p`.
    unsafe fn load_bf16(self, p: *const bf16) -> Self::V;
    /// # Safety
    /// Sixteen readable f16 at `p`.
    unsafe fn load_f16(self, p: *const f16) -> Self::V;
    /// # Safety
    /// Sixteen readable codes at `p`.
    unsafe fn load_e4m3(self, p: *const E4m3) -> Self::V;
    /// The numbers of sixteen E2M1 codes, two a byte, the first in the low half, times `scale`.
    ///
    /// # Safety
    /// Eight readable bytes at `p`.
    unsafe fn load_e2m1(self, p: *const u8, scale: f32) -> Self::V;
    /// # Safety
    /// Sixteen writable f32 at `p`.
    unsafe fn store(self, a: Self::V, p: *mut f32);
    /// Writes the first `n` lanes, at most 16.
    ///
    /// # Safety
    /// `n` writable f32 at `p`.
    unsafe fn store_part(self, a: Self::V, p: *mut f32, n: usize);

    /// Rounds to nearest even, as [`bf16::from_f32`] does.
    ///
    /// # Safety
    /// Sixteen writable bf16 at `p`.
    unsafe fn store_bf16(self, a: Self::V, p: *mut bf16);
    /// Asks for the cache line of `p`, which need not be readable.
    fn prefetch<T>(self, p: *const T);

    /// [`rounding::round`](crate::ssm_scan::rounding::round) of every lane; the noise of a pair of lanes is
    /// the scrambled sum of `key` and `word`, the next pair's that of the next word.
    fn round_to_half(self, a: Self::V, key: u32, word: u32) -> Self::V;
    /// Numbers that half has.
    ///
    /// # Safety
    /// Sixteen writable f16 at `p`.
    unsafe fn store_f16(self, a: Self::V, p: *mut f16);

    /// # Safety
    /// Thirty-two readable bf16 at `p`, and [`BF16_DOT`](Self::BF16_DOT).
    unsafe fn load_pairs(self, _p: *const bf16) -> Self::Pairs {
        unreachable!("{NO_DOT}")
    }
    /// Adds the products of neighbouring pairs to the lanes of `c`.
    ///
    /// # Safety
    /// [`BF16_DOT`](Self::BF16_DOT).
    unsafe fn dot_pairs(self, _a: Self::Pairs, _b: Self::Pairs, _c: Self::V) -> Self::V {
        unreachable!("{NO_DOT}")
    }

    // Words: lanes that hold two bf16 each, the first in the low half.

    /// `n` words, at most 16; other lanes are zero.
    ///
    /// # Safety
    /// `2 * n` readable bf16 at `p`, and [`BF16_DOT`](Self::BF16_DOT).
    unsafe fn load_words(self, _p: *const bf16, _n: usize) -> Self::V {
        unreachable!("{NO_DOT}")
    }
    /// Words of one number of `p` and one of `q` each.
    ///
    /// # Safety
    /// Sixteen readable bf16 at `p` and at `q`, and [`BF16_DOT`](Self::BF16_DOT).
    unsafe fn zip_words(self, _p: *const bf16, _q: *const bf16) -> Self::V {
        unreachable!("{NO_DOT}")
    }
    /// The first numbers of words; zeros for their second ones.
    ///
    /// # Safety
    /// [`BF16_DOT`](Self::BF16_DOT).
    unsafe fn first_of_words(self, _a: Self::V) -> Self::V {
        unreachable!("{NO_DOT}")
    }
    /// Words of neighbouring numbers, those of `a` before those of `b`, rounded to nearest even; what is
    /// below the smallest normal number becomes zero.
    ///
    /// # Safety
    /// [`BF16_DOT`](Self::BF16_DOT).
    unsafe fn round_words(self, _a: Self::V, _b: Self::V) -> Self::V {
        unreachable!("{NO_DOT}")
    }
    /// Adds the two products of the words of `a` and `b` to the lanes of `c`; what is below the smallest
    /// normal number counts as zero.
    ///
    /// # Safety
    /// [`BF16_DOT`](Self::BF16_DOT).
    unsafe fn dot_words(self, _a: Self::V, _b: Self::V, _c: Self::V) -> Self::V {
        unreachable!("{NO_DOT}")
    }
}

const NO_DOT: &str = "no bf16 dot products here";

/// A stored number format that widens exactly to f32 lanes.
#[allow(unsafe_code)]
pub(crate) trait Stored: Copy + Default + Send + Sync + 'static {
    /// # Safety
    /// Sixteen readable elements at `p`.
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V;

    /// Lanes from `n` on are zero. `n` is at most 16.
    ///
    /// # Safety
    /// `n` readable elements at `p`.
    #[inline(always)]
    unsafe fn load_part<S: Simd>(s: S, p: *const Self, n: usize) -> S::V {
        let mut part = [Self::default(); LANES];
        // SAFETY: the caller gives n <= 16 readable elements; `part` holds 16.
        unsafe {
            std::ptr::copy_nonoverlapping(p, part.as_mut_ptr(), n);
            Self::load(s, part.as_ptr())
        }
    }
}

#[allow(unsafe_code)]
impl Stored for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load(p) }
    }

    #[inline(always)]
    unsafe fn load_part<S: Simd>(s: S, p: *const Self, n: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_part(p, n) }
    }
}

#[allow(unsafe_code)]
impl Stored for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_f16(p) }
    }
}

#[allow(unsafe_code)]
impl Stored for bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_bf16(p) }
    }
}

#[allow(unsafe_code)]
impl Stored for E4m3 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_e4m3(p) }
    }
}

/// Work that is compiled for every instruction set. Implementations of `run` must be
/// `#[inline(always)]`, and so must all that they call with `S`.
pub(crate) trait Kernel {
    /// What it gives back.
    type Output;

    /// Does the work with the lanes of `s`.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// Runs a kernel on an instruction set that the machine has (an [`Isa`] in use was checked when it
/// was chosen).
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
pub(crate) fn run<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    assert!(isa <= Isa::best(), "this machine cannot run {isa:?}");
    match isa {
        Isa::Portable => kernel.run(portable::Portable),
        // SAFETY: `Isa::best` found the features, and sets include one another in order.
        Isa::Avx2 => unsafe { avx2::enter(kernel) },
        // SAFETY: as above.
        Isa::Avx512 => unsafe { avx512::enter(kernel) },
        // SAFETY: as above.
        Isa::Avx512Bf16 => unsafe { avx512::enter_bf16(kernel) },
    }
}

/// Runs a kernel: there is only the portable set here.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn run<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    assert!(isa <= Isa::best(), "this machine cannot run {isa:?}");
    kernel.run(portable::Portable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::e4m3;

    struct DecodeAll<'a>(&'a [E4m3]);

    impl Kernel for DecodeAll<'_> {
        type Output = Vec<u32>;

        #[inline(always)]
        #[allow(unsafe_code)]
        fn run<S: Simd>(self, s: S) -> Vec<u32> {
            let mut out = vec![0.0; self.0.len()];
            for at in (0..self.0.len()).step_by(LANES) {
                // SAFETY: there are sixteen codes for each group of lanes, and as many results.
                unsafe {
                    let values = E4m3::load(s, self.0.as_ptr().add(at));
                    s.store(values, out.as_mut_ptr().add(at));
                }
            }
            out.into_iter().map(f32::to_bits).collect()
        }
    }

    struct Transpose<'a>(&'a [f32]);

    impl Kernel for Transpose<'_> {
        type Output = Vec<f32>;

        #[inline(always)]
        #[allow(unsafe_code)]
        fn run<S: Simd>(self, s: S) -> Vec<f32> {
            let mut rows = [s.splat(0.0); LANES];
            let mut out = vec![0.0; self.0.len()];
            // SAFETY: sixteen vectors of sixteen numbers on either side.
            unsafe {
                for i in 0..LANES {
                    rows[i] = s.load(self.0.as_ptr().add(i * LANES));
                }
                let columns = s.transpose(rows);
                for i in 0..LANES {
                    s.store(columns[i], out.as_mut_ptr().add(i * LANES));
                }
            }
            out
        }
    }

    #[test]
    fn every_set_transposes() {
        let numbers: Vec<f32> = (0..256).map(|i| i as f32).collect();
        for isa in Isa::available() {
            let got = run(isa, Transpose(&numbers));
            for (at, got) in got.into_iter().enumerate() {
                let want = numbers[at % LANES * LANES + at / LANES];
                assert_eq!(got, want, "{}: {at}", isa.name());
            }
        }
    }

    /// The sums of sixteen lanes each, four at a time and one by one.
    struct SumAll<'a>(&'a [f32]);

    impl Kernel for SumAll<'_> {
        type Output = Vec<[u32; 2]>;

        #[inline(always)]
        #[allow(unsafe_code)]
        fn run<S: Simd>(self, s: S) -> Vec<[u32; 2]> {
            let groups = self.0.chunks_exact(4 * LANES);
            let both = groups.flat_map(|group| {
                // SAFETY: four times sixteen numbers.
                let lanes = [0, 1, 2, 3].map(|i| unsafe { s.load(group.as_ptr().add(i * LANES)) });
                let (at_once, each) = (s.sums(lanes), lanes.map(|lanes| s.sum(lanes)));
                [0, 1, 2, 3].map(|i| [at_once[i].to_bits(), each[i].to_bits()])
            });
            both.collect()
        }
    }

    #[test]
    fn sums_at_once_are_the_sums() {
        let numbers: Vec<f32> = (0..64 * 16_u32)
            .map(|i| (i.wrapping_mul(0x9e37_79b9) as i32) as f32 * 1.1e-7)
            .collect();
        for isa in Isa::available() {
            for [at_once, each] in run(isa, SumAll(&numbers)) {
                assert_eq!(at_once, each, "{}", isa.name());
            }
        }
    }

    struct ShortenAll<'a>(&'a [f32]);

    impl Kernel for ShortenAll<'_> {
        type Output = Vec<bf16>;

        #[inline(always)]
        #[allow(unsafe_code)]
        fn run<S: Simd>(self, s: S) -> Vec<bf16> {
            let mut out = vec![bf16::ZERO; self.0.len()];
            for at in (0..self.0.len()).step_by(LANES) {
                // SAFETY: there are sixteen numbers for each group of lanes, and as many results.
                unsafe { s.store_bf16(s.load(self.0.as_ptr().add(at)), out.as_mut_ptr().add(at)) };
            }
            out
        }
    }

    #[test]
    fn every_set_rounds_to_bf16_alike() {
        // All of what is kept, beside what is cut off: ties, their neighbours, and anything.
        let cut = [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff, 0x1234];
        let bits = (0..1 << 16).flat_map(|kept: u32| cut.map(|cut| kept << 16 | cut));
        let mut numbers: Vec<f32> = bits.map(f32::from_bits).collect();
        numbers.resize(numbers.len().next_multiple_of(LANES), 0.0);
        for isa in Isa::available() {
            for (got, &x) in run(isa, ShortenAll(&numbers)).into_iter().zip(&numbers) {
                let want = bf16::from_f32(x);
                let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                assert!(same, "{}: {x} is {got}, not {want}", isa.name());
            }
        }
    }

    struct RoundAll<'a>(&'a [f32]);

    impl Kernel for RoundAll<'_> {
        type Output = Vec<u16>;

        #[inline(always)]
        #[allow(unsafe_code)]
        fn run<S: Simd>(self, s: S) -> Vec<u16> {
            let mut out = vec![f16::ZERO; self.0.len()];
            for at in (0..self.0.len()).step_by(LANES) {
                // SAFETY: there are sixteen numbers for each group of lanes, and as many results.
                unsafe {
                    let values = s.load(self.0.as_ptr().add(at));
                    let rounded = s.round_to_half(values, u32::MAX - 4, at as u32 / 2);
                    s.store_f16(rounded, out.as_mut_ptr().add(at));
                }
            }
            out.into_iter().map(f16::to_bits).collect()
        }
    }

    #[test]
    fn every_set_rounds_to_half_alike() {
        use crate::ssm_scan::rounding;
        // All exponents, both signs, fractions that are none of a half's; then what is no number.
        let bits = (0..1 << 16).map(|i: u32| i << 16 | i.wrapping_mul(0x9e37) & 0xffff);
        let numbers: Vec<f32> = bits.map(f32::from_bits).collect();
        for isa in Isa::available() {
            let got = run(isa, RoundAll(&numbers));
            for (at, (got, &x)) in got.into_iter().zip(&numbers).enumerate() {
                let noise = rounding::noise(u32::MAX - 4, 0, at, numbers.len());
                let want = f16::from_f32(rounding::round(x, noise));
                let got = f16::from_bits(got);
                let same = got.to_bits() == want.to_bits() || got.is_nan() && x.is_nan();
                assert!(same, "{}: {x} is {got}, not {want}", isa.name());
            }
        }
    }

    #[test]
    fn every_set_decodes_every_e4m3_code() {
        let codes: Vec<E4m3> = (0..=255).map(E4m3).collect();
        for isa in Isa::available() {
            for (code, bits) in (0..=255).zip(run(isa, DecodeAll(&codes))) {
                let (got, want) = (f32::from_bits(bits), e4m3::decode(code));
                let same = bits == want.to_bits() || got.is_nan() && want.is_nan();
                assert!(same, "{}: {code:#x} is {got}, not {want}", isa.name());
            }
        }
    }
}
