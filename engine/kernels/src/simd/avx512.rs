//! Sixteen lanes as one AVX-512 register, with or without bf16 dot products.
//!
//! Every intrinsic here needs AVX-512 F, BW, DQ or VL, and `dot_pairs`,
//! `dot_words` and `round_words` AVX-512-BF16: an [`Avx512`]
//! exists only inside [`enter`] and [`enter_bf16`], which have them.
#![allow(unsafe_code)]

#[allow(clippy::wildcard_imports)] // Forty intrinsics, whose names say where they come from.
use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Kernel, LANES, Simd};
use crate::ssm_scan::rounding::{self, KEPT, LARGEST, SMALLEST_NORMAL};
use crate::{e2m1, e4m3::E4m3};

/// Proof that the machine has AVX-512 F, BW, DQ and VL; and BF16 if `DOT`.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const DOT: bool>(());

/// Runs a kernel with AVX-512 lanes.
///
/// # Safety
/// The machine has AVX-512 F, BW, DQ, VL, and AVX2, FMA, F16C.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn enter<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512::<false>(()))
}

/// Runs a kernel with AVX-512 lanes and bf16 dot products.
///
/// # Safety
/// As [`enter`], and AVX-512-BF16.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn enter_bf16<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512::<true>(()))
}

#[inline(always)]
fn mask(n: usize) -> __mmask16 {
    ((1_u32 << n) - 1) as __mmask16
}

macro_rules! fold {
    ($v:expr, $wide:ident, $narrow:ident, $single:ident) => {
        // SAFETY: `self` proves the features; the shuffles touch registers only.
        unsafe {
            let eight = $wide(_mm512_castps512_ps256($v), _mm512_extractf32x8_ps::<1>($v));
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

macro_rules! plain {
    ($intrinsic:ident, $($x:ident),+) => {
        // SAFETY: `self` proves the features.
        unsafe { $intrinsic($($x),+) }
    };
}

impl<const DOT: bool> Simd for Avx512<DOT> {
    type V = __m512;
    type Pairs = __m512i;
    const WIDE: bool = true;
    const BF16_DOT: bool = DOT;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        plain!(_mm512_set1_ps, x)
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        plain!(_mm512_add_ps, a, b)
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        plain!(_mm512_sub_ps, a, b)
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        plain!(_mm512_mul_ps, a, b)
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        plain!(_mm512_div_ps, a, b)
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        plain!(_mm512_fmadd_ps, a, b, c)
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        plain!(_mm512_max_ps, a, b)
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        plain!(_mm512_min_ps, a, b)
    }

    #[inline(always)]
    fn pow2(self, n: __m512) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        }
    }

    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        fold!(a, _mm256_add_ps, _mm_add_ps, _mm_add_ss)
    }

    // Halves are added as in `sum`, those of two registers in one, until each quarter has one sum.
    #[inline(always)]
    fn sums(self, a: [__m512; 4]) -> [f32; 4] {
        // SAFETY: `self` proves the features; registers only, and an array of four.
        unsafe {
            let eights = |a, b| {
                let low = _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b);
                let high = _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b);
                _mm512_add_ps(low, high)
            };
            let (a, b) = (eights(a[0], a[1]), eights(a[2], a[3]));
            let low = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
            let high = _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
            let fours = _mm512_add_ps(low, high);
            let twos = _mm512_add_ps(fours, _mm512_permute_ps::<0b01_00_11_10>(fours));
            let ones = _mm512_add_ps(twos, _mm512_permute_ps::<0b10_11_00_01>(twos));
            let places = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
            let mut out = [0.0; 4];
            let first = _mm512_castps512_ps128(_mm512_permutexvar_ps(places, ones));
            _mm_storeu_ps(out.as_mut_ptr(), first);
            out
        }
    }

    #[inline(always)]
    fn largest(self, a: __m512) -> f32 {
        fold!(a, _mm256_max_ps, _mm_max_ps, _mm_max_ss)
    }

    // Pairs of rows are dealt out by number, then by two, then by lanes of 128 bits, twice.
    #[inline(always)]
    fn transpose(self, rows: [__m512; LANES]) -> [__m512; LANES] {
        let mut columns = rows;
        // SAFETY: `self` proves the features; registers only.
        unsafe {
            let mut fours = rows;
            for g in (0..LANES).step_by(4) {
                let low = _mm512_unpacklo_ps(rows[g], rows[g + 1]);
                let high = _mm512_unpackhi_ps(rows[g], rows[g + 1]);
                let low_next = _mm512_unpacklo_ps(rows[g + 2], rows[g + 3]);
                let high_next = _mm512_unpackhi_ps(rows[g + 2], rows[g + 3]);
                let (low, high) = (_mm512_castps_pd(low), _mm512_castps_pd(high));
                let low_next = _mm512_castps_pd(low_next);
                let high_next = _mm512_castps_pd(high_next);
                fours[g] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, low_next));
                fours[g + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, low_next));
                fours[g + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high, high_next));
                fours[g + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high, high_next));
            }
            // Lane `l` of `fours[4 g + c]` is column `4 l + c` of the rows `4 g..4 g + 4`.
            for c in 0..4 {
                let even = _mm512_shuffle_f32x4::<0x88>(fours[c], fours[4 + c]);
                let odd = _mm512_shuffle_f32x4::<0xdd>(fours[c], fours[4 + c]);
                let even_next = _mm512_shuffle_f32x4::<0x88>(fours[8 + c], fours[12 + c]);
                let odd_next = _mm512_shuffle_f32x4::<0xdd>(fours[8 + c], fours[12 + c]);
                columns[c] = _mm512_shuffle_f32x4::<0x88>(even, even_next);
                columns[4 + c] = _mm512_shuffle_f32x4::<0x88>(odd, odd_next);
                columns[8 + c] = _mm512_shuffle_f32x4::<0xdd>(even, even_next);
                columns[12 + c] = _mm512_shuffle_f32x4::<0xdd>(odd, odd_next);
            }
        }
        columns
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        // SAFETY: sixteen readable f32, unaligned load; `self` proves the features.
        unsafe { _mm512_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn load_part(self, p: *const f32, n: usize) -> __m512 {
        // SAFETY: lanes outside the mask are not read; `self` proves the features.
        unsafe { _mm512_maskz_loadu_ps(mask(n), p) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> __m512 {
        // SAFETY: sixteen readable bf16, unaligned load; `self` proves the features.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const f16) -> __m512 {
        // SAFETY: sixteen readable f16, unaligned load; `self` proves the features.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }

    // As f16 with the exponent's bias off by eight: fractions keep their place, the conversion also
    // takes what is below the smallest normal number, and the product is exact.
    #[inline(always)]
    unsafe fn load_e4m3(self, p: *const E4m3) -> __m512 {
        // SAFETY: sixteen readable codes, unaligned load; `self` proves the features.
        unsafe {
            let codes = _mm256_cvtepu8_epi16(_mm_loadu_si128(p.cast()));
            let size = _mm256_and_si256(codes, _mm256_set1_epi16(0x7f));
            let sign = _mm256_slli_epi16::<8>(_mm256_andnot_si256(_mm256_set1_epi16(0x7f), codes));
            let nan = _mm256_cmpeq_epi16(size, _mm256_set1_epi16(0x7f));
            let nan = _mm256_and_si256(nan, _mm256_set1_epi16(0x7e00));
            let size = _mm256_or_si256(_mm256_slli_epi16::<7>(size), nan);
            let halves = _mm256_or_si256(size, sign);
            _mm512_mul_ps(_mm512_cvtph_ps(halves), _mm512_set1_ps(256.0))
        }
    }

    // Eight bytes to eight 64-bit lanes; the upper half of each gets the byte moved down to its high
    // code. The permutation looks at four bits of an index, so what lies above need not go.
    #[inline(always)]
    unsafe fn load_e2m1(self, p: *const u8, scale: f32) -> __m512 {
        // SAFETY: eight readable bytes, unaligned load; `self` proves the features.
        unsafe {
            let bytes = _mm512_cvtepu8_epi64(_mm_loadl_epi64(p.cast()));
            let codes = _mm512_or_si512(bytes, _mm512_slli_epi64::<28>(bytes));
            let values = _mm512_permutexvar_ps(codes, _mm512_loadu_ps(e2m1::VALUES.as_ptr()));
            _mm512_mul_ps(values, _mm512_set1_ps(scale))
        }
    }

    #[inline(always)]
    unsafe fn store(self, a: __m512, p: *mut f32) {
        // SAFETY: sixteen writable f32, unaligned store; `self` proves the features.
        unsafe { _mm512_storeu_ps(p, a) };
    }

    #[inline(always)]
    unsafe fn store_part(self, a: __m512, p: *mut f32, n: usize) {
        // SAFETY: lanes outside the mask are not written; `self` proves the features.
        unsafe { _mm512_mask_storeu_ps(p, mask(n), a) };
    }

    // The instruction for it takes numbers below the smallest normal one for zero.
    #[inline(always)]
    unsafe fn store_bf16(self, a: __m512, p: *mut bf16) {
        // SAFETY: sixteen writable bf16, unaligned store; `self` proves the features.
        unsafe {
            let bits = _mm512_castps_si512(a);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
            let rounded = _mm512_add_epi32(bits, half);
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x40_0000));
            let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a);
            let rounded = _mm512_mask_mov_epi32(rounded, is_nan, quiet);
            let kept = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded));
            _mm256_storeu_si256(p.cast(), kept);
        }
    }

    #[inline(always)]
    fn prefetch<T>(self, p: *const T) {
        // SAFETY: a hint, which reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) };
    }

    #[inline(always)]
    fn round_to_half(self, a: __m512, key: u32, word: u32) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe {
            let noise = super::avx2::scrambled(key.wrapping_add(word));
            let noise = _mm512_cvtepu16_epi32(noise);
            let noise = _mm512_srli_epi32::<{ rounding::UNUSED_BITS }>(noise);
            let sign = _mm512_set1_epi32(i32::MIN);
            let bits = _mm512_castps_si512(a);
            let size = _mm512_castsi512_ps(_mm512_andnot_si512(sign, bits));
            // The second operand if the first is NaN.
            let size = _mm512_min_ps(size, _mm512_set1_ps(LARGEST));
            let smallest = _mm512_set1_ps(SMALLEST_NORMAL);
            let is_small = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(size, smallest);
            let offset = _mm512_maskz_mov_ps(is_small, smallest);
            let shifted = _mm512_castps_si512(_mm512_add_ps(size, offset));
            let kept = _mm512_set1_epi32(KEPT.cast_signed());
            let cut = _mm512_and_si512(_mm512_add_epi32(shifted, noise), kept);
            let size = _mm512_castps_si512(_mm512_sub_ps(_mm512_castsi512_ps(cut), offset));
            let rounded = _mm512_or_si512(size, _mm512_and_si512(bits, sign));
            let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a);
            _mm512_mask_mov_ps(_mm512_castsi512_ps(rounded), is_nan, a)
        }
    }

    #[inline(always)]
    unsafe fn store_f16(self, a: __m512, p: *mut f16) {
        // SAFETY: sixteen writable f16, unaligned store; `self` proves the features.
        unsafe {
            let halves = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a);
            _mm256_storeu_si256(p.cast(), halves);
        }
    }

    #[inline(always)]
    unsafe fn load_pairs(self, p: *const bf16) -> __m512i {
        // SAFETY: thirty-two readable bf16, unaligned load; `self` proves the features.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }

    #[inline(always)]
    unsafe fn dot_pairs(self, a: __m512i, b: __m512i, c: __m512) -> __m512 {
        // SAFETY: the caller has BF16 dot products; both types are 512 plain bits.
        unsafe {
            _mm512_dpbf16_ps(
                c,
                std::mem::transmute::<__m512i, __m512bh>(a),
                std::mem::transmute::<__m512i, __m512bh>(b),
            )
        }
    }

    #[inline(always)]
    unsafe fn load_words(self, p: *const bf16, n: usize) -> __m512 {
        // SAFETY: `n` readable words, unaligned load; `self` proves the features.
        unsafe { _mm512_maskz_loadu_ps(mask(n), p.cast()) }
    }

    #[inline(always)]
    unsafe fn zip_words(self, p: *const bf16, q: *const bf16) -> __m512 {
        // SAFETY: sixteen readable bf16 each, unaligned loads; `self` proves the features.
        unsafe {
            let low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            let high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(q.cast()));
            _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32::<16>(high)))
        }
    }

    #[inline(always)]
    unsafe fn first_of_words(self, a: __m512) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe {
            let low = _mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(0xffff));
            _mm512_castsi512_ps(low)
        }
    }

    #[inline(always)]
    unsafe fn round_words(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller has BF16 conversions; both types are 512 plain bits.
        unsafe { std::mem::transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(b, a)) }
    }

    #[inline(always)]
    unsafe fn dot_words(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the caller has BF16 dot products.
        unsafe { self.dot_pairs(_mm512_castps_si512(a), _mm512_castps_si512(b), c) }
    }
}
