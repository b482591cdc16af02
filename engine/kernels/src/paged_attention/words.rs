//! How keys, values and weights are laid out to be multiplied.
//!
//! A word is a lane of 32 bits. It holds one number, in f32; or two neighbours in bf16, where the
//! machine has dot products of them and queries and weights may be rounded: twice the numbers in an
//! instruction, and nothing to widen.
#![allow(unsafe_code)]

use std::marker::PhantomData;

use half::bf16;

use crate::simd::{LANES, Simd, Stored};

/// A layout.
pub(super) trait Words {
    /// What the pools hold.
    type Stored: Copy + Default;
    /// Numbers of a word, one or two.
    const PER_WORD: usize;

    /// Numbers of a query in a word, scaled.
    fn query(numbers: &[f32], scale: f32) -> f32;

    /// `n` words of a key, at most 16; other lanes are zero.
    ///
    /// # Safety
    /// As many readable words at `p`.
    unsafe fn key<S: Simd>(s: S, p: *const Self::Stored, n: usize) -> S::V;

    /// `n` numbers of a value in a word each, at most 16, with those of the value of the next position
    /// where a word holds two. What other lanes hold is not looked at.
    ///
    /// # Safety
    /// `n` readable numbers at `first` and `last`.
    unsafe fn values<S: Simd>(
        s: S,
        first: *const Self::Stored,
        last: *const Self::Stored,
        n: usize,
    ) -> S::V;

    /// The first numbers of words; zeros for their second ones.
    fn first<S: Simd>(s: S, words: S::V) -> S::V;

    /// Writes the words of 32 weights to `p` and adds what they hold to the lanes of `sum`.
    ///
    /// # Safety
    /// As many writable words at `p`.
    unsafe fn weights<S: Simd>(s: S, weights: [S::V; 2], p: *mut f32, sum: S::V) -> S::V;

    /// Adds the products of the numbers of `a` and `b` to the lanes of `c`.
    fn multiply_add<S: Simd>(s: S, a: S::V, b: S::V, c: S::V) -> S::V;
}

/// A word is a number, widened.
pub(super) struct Single<E>(PhantomData<E>);

impl<E: Stored> Words for Single<E> {
    type Stored = E;
    const PER_WORD: usize = 1;

    #[inline(always)]
    fn query(numbers: &[f32], scale: f32) -> f32 {
        numbers[0] * scale
    }

    #[inline(always)]
    unsafe fn key<S: Simd>(s: S, p: *const E, n: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe {
            if n == LANES {
                E::load(s, p)
            } else {
                E::load_part(s, p, n)
            }
        }
    }

    #[inline(always)]
    unsafe fn values<S: Simd>(s: S, first: *const E, _: *const E, n: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { Self::key(s, first, n) }
    }

    #[inline(always)]
    fn first<S: Simd>(_: S, words: S::V) -> S::V {
        words
    }

    #[inline(always)]
    unsafe fn weights<S: Simd>(s: S, weights: [S::V; 2], p: *mut f32, sum: S::V) -> S::V {
        // SAFETY: the caller's promise: 32 words.
        unsafe {
            s.store(weights[0], p);
            s.store(weights[1], p.add(LANES));
        }
        s.add(s.add(sum, weights[0]), weights[1])
    }

    #[inline(always)]
    fn multiply_add<S: Simd>(s: S, a: S::V, b: S::V, c: S::V) -> S::V {
        s.fma(a, b, c)
    }
}

/// A word is two numbers in bf16, the first in the low half: neighbours along `head_dim` in queries and
/// keys, neighbouring positions in weights and values. Panics without [`Simd::BF16_DOT`].
pub(super) struct Pairs;

impl Words for Pairs {
    type Stored = bf16;
    const PER_WORD: usize = 2;

    #[inline(always)]
    fn query(numbers: &[f32], scale: f32) -> f32 {
        let bits = |number: f32| u32::from(bf16::from_f32(number * scale).to_bits());
        f32::from_bits(bits(numbers[0]) | bits(numbers[1]) << 16)
    }

    #[inline(always)]
    unsafe fn key<S: Simd>(s: S, p: *const bf16, n: usize) -> S::V {
        assert!(S::BF16_DOT);
        // SAFETY: the caller's promise; the set has words.
        unsafe { s.load_words(p, n) }
    }

    #[inline(always)]
    unsafe fn values<S: Simd>(s: S, first: *const bf16, last: *const bf16, n: usize) -> S::V {
        assert!(S::BF16_DOT);
        // SAFETY: the caller's promise, or copies that are long enough; the set has words.
        unsafe {
            if n == LANES {
                return s.zip_words(first, last);
            }
            let mut parts = [[bf16::ZERO; LANES]; 2];
            std::ptr::copy_nonoverlapping(first, parts[0].as_mut_ptr(), n);
            std::ptr::copy_nonoverlapping(last, parts[1].as_mut_ptr(), n);
            s.zip_words(parts[0].as_ptr(), parts[1].as_ptr())
        }
    }

    #[inline(always)]
    fn first<S: Simd>(s: S, words: S::V) -> S::V {
        assert!(S::BF16_DOT);
        // SAFETY: the set has words.
        unsafe { s.first_of_words(words) }
    }

    // The sum is that of the rounded weights, so that equal values average to themselves.
    #[inline(always)]
    unsafe fn weights<S: Simd>(s: S, weights: [S::V; 2], p: *mut f32, sum: S::V) -> S::V {
        const ONES: f32 = f32::from_bits(0x3f80_3f80);
        assert!(S::BF16_DOT);
        // SAFETY: the caller's promise: 16 words; the set has words.
        unsafe {
            let words = s.round_words(weights[0], weights[1]);
            s.store(words, p);
            s.dot_words(words, s.splat(ONES), sum)
        }
    }

    #[inline(always)]
    fn multiply_add<S: Simd>(s: S, a: S::V, b: S::V, c: S::V) -> S::V {
        assert!(S::BF16_DOT);
        // SAFETY: the set has words.
        unsafe { s.dot_words(a, b, c) }
    }
}
