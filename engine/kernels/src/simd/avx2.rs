//! Sixteen lanes as two AVX2 registers.
//!
//! Every intrinsic here needs AVX, AVX2, FMA or F16C: an [`Avx2`] exists only inside [`enter`],
//! which has them.
#![allow(unsafe_code)]

#[allow(clippy::wildcard_imports)] // Forty intrinsics, whose names say where they come from.
use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Kernel, LANES, Simd};
use crate::ssm_scan::rounding::{self, FACTORS, KEPT, LARGEST, SMALLEST_NORMAL};
use crate::{e2m1, e4m3::E4m3};

/// Proof that the machine has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

/// Runs a kernel with AVX2 lanes.
///
/// # Safety
/// The machine has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn enter<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2(()))
}

type V = [__m256; 2];

/// [`rounding::scramble`] of eight numbers from `first` on.
///
/// # Safety
/// The machine has AVX2.
#[inline(always)]
pub(super) unsafe fn scrambled(first: u32) -> __m256i {
    // SAFETY: the caller's promise; registers only.
    unsafe {
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        let x = _mm256_add_epi32(_mm256_set1_epi32(first.cast_signed()), lanes);
        let [factor, other] = FACTORS.map(|factor| _mm256_set1_epi32(factor.cast_signed()));
        let x = _mm256_xor_si256(x, _mm256_srli_epi32::<16>(x));
        let x = _mm256_mullo_epi32(x, factor);
        let x = _mm256_xor_si256(x, _mm256_srli_epi32::<15>(x));
        let x = _mm256_mullo_epi32(x, other);
        _mm256_xor_si256(x, _mm256_srli_epi32::<16>(x))
    }
}

macro_rules! halves {
    ($intrinsic:ident, $($x:ident),+) => {
        // SAFETY: `self` proves the features.
        unsafe { [$intrinsic($($x[0]),+), $intrinsic($($x[1]),+)] }
    };
}

macro_rules! fold {
    ($v:expr, $wide:ident, $narrow:ident, $single:ident) => {
        // SAFETY: `self` proves the features; the shuffles touch registers only.
        unsafe {
            let eight = $wide($v[0], $v[1]);
            let four = $narrow(
                _mm256_castps256_ps128(eight),
                _mm256_extractf128_ps::<1>(eight),
            );
            let two = $narrow(four, _mm_movehl_ps(four, four));
            let one = $single(two, _mm_shuffle_ps::<1>(two, two));
            _mm_cvtss_f32(one)
        }
    };
}

impl Simd for Avx2 {
    type V = V;
    type Pairs = ();
    const WIDE: bool = false;
    const BF16_DOT: bool = false;

    // Four squares of eight rows and columns; in each pairs of rows are dealt out by number, then by
    // two, then by halves.
    #[inline(always)]
    fn transpose(self, rows: [V; LANES]) -> [V; LANES] {
        let mut columns = rows;
        for below in 0..2 {
            for right in 0..2 {
                // SAFETY: `self` proves the features; registers only.
                unsafe {
                    let mut fours = [_mm256_setzero_ps(); 8];
                    for g in [0, 4] {
                        let row = 8 * below + g;
                        let [a, b] = [rows[row][right], rows[row + 1][right]];
                        let [c, d] = [rows[row + 2][right], rows[row + 3][right]];
                        let (low, high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
                        let (low, high) = (_mm256_castps_pd(low), _mm256_castps_pd(high));
                        let low_next = _mm256_castps_pd(_mm256_unpacklo_ps(c, d));
                        let high_next = _mm256_castps_pd(_mm256_unpackhi_ps(c, d));
                        fours[g] = _mm256_castpd_ps(_mm256_unpacklo_pd(low, low_next));
                        fours[g + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low, low_next));
                        fours[g + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(high, high_next));
                        fours[g + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(high, high_next));
                    }
                    for c in 0..4 {
                        let (upper, lower) = (fours[c], fours[4 + c]);
                        columns[8 * right + c][below] =
                            _mm256_permute2f128_ps::<0x20>(upper, lower);
                        columns[8 * right + 4 + c][below] =
                            _mm256_permute2f128_ps::<0x31>(upper, lower);
                    }
                }
            }
        }
        columns
    }

    #[inline(always)]
    fn splat(self, x: f32) -> V {
        // SAFETY: `self` proves the features.
        unsafe { [_mm256_set1_ps(x); 2] }
    }

    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        halves!(_mm256_add_ps, a, b)
    }

    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        halves!(_mm256_sub_ps, a, b)
    }

    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        halves!(_mm256_mul_ps, a, b)
    }

    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        halves!(_mm256_div_ps, a, b)
    }

    #[inline(always)]
    fn fma(self, a: V, b: V, c: V) -> V {
        halves!(_mm256_fmadd_ps, a, b, c)
    }

    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        halves!(_mm256_max_ps, a, b)
    }

    #[inline(always)]
    fn min(self, a: V, b: V) -> V {
        halves!(_mm256_min_ps, a, b)
    }

    #[inline(always)]
    fn pow2(self, n: V) -> V {
        let mut out = n;
        for half in &mut out {
            // SAFETY: `self` proves the features.
            *half = unsafe {
                let biased = _mm256_add_epi32(_mm256_cvtps_epi32(*half), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
            };
        }
        out
    }

    #[inline(always)]
    fn sum(self, a: V) -> f32 {
        fold!(a, _mm256_add_ps, _mm_add_ps, _mm_add_ss)
    }

    // Halves are added as in `sum`, those of two registers in one, until each quarter has one sum.
    #[inline(always)]
    fn sums(self, a: [V; 4]) -> [f32; 4] {
        // SAFETY: `self` proves the features; registers only, and an array of eight.
        unsafe {
            let eights = a.map(|a| _mm256_add_ps(a[0], a[1]));
            let fours = |a, b| {
                let low = _mm256_permute2f128_ps::<0x20>(a, b);
                let high = _mm256_permute2f128_ps::<0x31>(a, b);
                _mm256_add_ps(low, high)
            };
            let (a, b) = (fours(eights[0], eights[1]), fours(eights[2], eights[3]));
            let low = _mm256_shuffle_ps::<0b01_00_01_00>(a, b);
            let high = _mm256_shuffle_ps::<0b11_10_11_10>(a, b);
            let twos = _mm256_add_ps(low, high);
            let ones = _mm256_add_ps(twos, _mm256_permute_ps::<0b10_11_00_01>(twos));
            let mut out = [0.0; 8];
            _mm256_storeu_ps(out.as_mut_ptr(), ones);
            [out[0], out[4], out[2], out[6]]
        }
    }

    #[inline(always)]
    fn largest(self, a: V) -> f32 {
        fold!(a, _mm256_max_ps, _mm_max_ps, _mm_max_ss)
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> V {
        // SAFETY: sixteen readable f32, unaligned loads; `self` proves the features.
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }

    #[inline(always)]
    unsafe fn load_part(self, p: *const f32, n: usize) -> V {
        let mut part = [0.0; LANES];
        // SAFETY: n <= 16 readable f32; `part` holds sixteen.
        unsafe {
            std::ptr::copy_nonoverlapping(p, part.as_mut_ptr(), n);
            self.load(part.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> V {
        // SAFETY: sixteen readable bf16, unaligned loads; `self` proves the features.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(8).cast()));
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const f16) -> V {
        // SAFETY: sixteen readable f16, unaligned loads; `self` proves the features.
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(p.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast())),
            ]
        }
    }

    // As f16 with the exponent's bias off by eight: fractions keep their place, the conversion also
    // takes what is below the smallest normal number, and the product is exact.
    #[inline(always)]
    unsafe fn load_e4m3(self, p: *const E4m3) -> V {
        // SAFETY: sixteen readable codes, unaligned load; `self` proves the features.
        unsafe {
            let codes = _mm256_cvtepu8_epi16(_mm_loadu_si128(p.cast()));
            let size = _mm256_and_si256(codes, _mm256_set1_epi16(0x7f));
            let sign = _mm256_slli_epi16::<8>(_mm256_andnot_si256(_mm256_set1_epi16(0x7f), codes));
            let nan = _mm256_cmpeq_epi16(size, _mm256_set1_epi16(0x7f));
            let nan = _mm256_and_si256(nan, _mm256_set1_epi16(0x7e00));
            let size = _mm256_or_si256(_mm256_slli_epi16::<7>(size), nan);
            let halves = _mm256_or_si256(size, sign);
            let rebias = _mm256_set1_ps(256.0);
            [
                _mm256_mul_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), rebias),
                _mm256_mul_ps(
                    _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(halves)),
                    rebias,
                ),
            ]
        }
    }

    // Every lane gets four bytes and shifts its own code down. The permutation looks at three bits of
    // an index, the fourth is the sign.
    #[inline(always)]
    unsafe fn load_e2m1(self, p: *const u8, scale: f32) -> V {
        // SAFETY: eight readable bytes, unaligned loads; `self` proves the features.
        unsafe {
            let sizes = _mm256_loadu_ps(e2m1::VALUES.as_ptr());
            let shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
            let sign = _mm256_set1_epi32(i32::MIN);
            let scale = _mm256_set1_ps(scale);
            let eight = |p: *const u8| {
                let bytes = _mm256_set1_epi32(p.cast::<i32>().read_unaligned());
                let codes = _mm256_srlv_epi32(bytes, shifts);
                let signs = _mm256_and_si256(_mm256_slli_epi32::<28>(codes), sign);
                let values = _mm256_permutevar8x32_ps(sizes, codes);
                _mm256_mul_ps(_mm256_or_ps(values, _mm256_castsi256_ps(signs)), scale)
            };
            [eight(p), eight(p.add(4))]
        }
    }

    #[inline(always)]
    unsafe fn store(self, a: V, p: *mut f32) {
        // SAFETY: sixteen writable f32, unaligned stores; `self` proves the features.
        unsafe {
            _mm256_storeu_ps(p, a[0]);
            _mm256_storeu_ps(p.add(8), a[1]);
        }
    }

    #[inline(always)]
    unsafe fn store_part(self, a: V, p: *mut f32, n: usize) {
        let mut part = [0.0; LANES];
        // SAFETY: n <= 16 writable f32; `part` holds sixteen.
        unsafe {
            self.store(a, part.as_mut_ptr());
            std::ptr::copy_nonoverlapping(part.as_ptr(), p, n);
        }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, a: V, p: *mut bf16) {
        // SAFETY: sixteen writable bf16, unaligned stores; `self` proves the features.
        unsafe {
            let shorten = |a: __m256| {
                let bits = _mm256_castps_si256(a);
                let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                let half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
                let rounded = _mm256_add_epi32(bits, half);
                let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
                let is_nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(a, a);
                let rounded = _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(is_nan));
                _mm256_srli_epi32::<16>(rounded)
            };
            // Packs quarters in turns, which the permutation puts in order.
            let packed = _mm256_packus_epi32(shorten(a[0]), shorten(a[1]));
            let kept = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
            _mm256_storeu_si256(p.cast(), kept);
        }
    }

    #[inline(always)]
    fn prefetch<T>(self, p: *const T) {
        // SAFETY: a hint, which reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) };
    }

    #[inline(always)]
    fn round_to_half(self, a: V, key: u32, word: u32) -> V {
        // SAFETY: `self` proves the features.
        unsafe {
            let noise = scrambled(key.wrapping_add(word));
            let noise = [
                _mm256_castsi256_si128(noise),
                _mm256_extracti128_si256::<1>(noise),
            ];
            let sign = _mm256_castsi256_ps(_mm256_set1_epi32(i32::MIN));
            let smallest = _mm256_set1_ps(SMALLEST_NORMAL);
            let kept = _mm256_set1_epi32(KEPT.cast_signed());
            let mut out = a;
            for (a, noise) in out.iter_mut().zip(noise) {
                let noise = _mm256_cvtepu16_epi32(noise);
                let noise = _mm256_srli_epi32::<{ rounding::UNUSED_BITS.cast_signed() }>(noise);
                // The second operand if the first is NaN.
                let size = _mm256_min_ps(_mm256_andnot_ps(sign, *a), _mm256_set1_ps(LARGEST));
                let is_small = _mm256_cmp_ps::<_CMP_LT_OQ>(size, smallest);
                let offset = _mm256_and_ps(is_small, smallest);
                let shifted = _mm256_castps_si256(_mm256_add_ps(size, offset));
                let cut = _mm256_and_si256(_mm256_add_epi32(shifted, noise), kept);
                let size = _mm256_sub_ps(_mm256_castsi256_ps(cut), offset);
                let rounded = _mm256_or_ps(size, _mm256_and_ps(*a, sign));
                let is_nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(*a, *a);
                *a = _mm256_blendv_ps(rounded, *a, is_nan);
            }
            out
        }
    }

    #[inline(always)]
    unsafe fn store_f16(self, a: V, p: *mut f16) {
        // SAFETY: sixteen writable f16, unaligned stores; `self` proves the features.
        unsafe {
            for (at, half) in a.into_iter().enumerate() {
                let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(half);
                _mm_storeu_si128(p.add(8 * at).cast(), halves);
            }
        }
    }
}
