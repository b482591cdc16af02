//! Counter-based random numbers: a number is a function of its key and counter, so nothing depends
//! on who asked before. SplitMix64's output function over a Weyl sequence, applied per key.

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// 64 random bits for a key and a counter; also a key for the next level.
pub(crate) fn mix(key: u64, counter: u64) -> u64 {
    let mut z = key.wrapping_add(GOLDEN.wrapping_mul(counter.wrapping_add(1)));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number strictly between 0 and 1 from the upper 52 bits.
pub(crate) fn uniform(bits: u64) -> f64 {
    ((bits >> 12) as f64 + 0.5) * (1.0 / (1_u64 << 52) as f64)
}

/// A number of the Gumbel distribution: the largest of `weight + gumbel` falls on a token with the
/// probability that softmax gives it.
pub(crate) fn gumbel(bits: u64) -> f64 {
    -(-uniform(bits).ln()).ln()
}

/// No less than [`gumbel`] of the same bits, for a tenth of its price: with `k` leading ones
/// `1 - u > 2^-(k + 1)`, and `-ln(-ln(u)) <= -ln(1 - u)`.
pub(crate) fn max_gumbel(bits: u64) -> f64 {
    f64::from(bits.leading_ones() + 1) * std::f64::consts::LN_2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_strictly_inside() {
        for bits in [0, 1, u64::MAX, u64::MAX << 12, 1 << 12] {
            let u = uniform(bits);
            assert!(0.0 < u && u < 1.0, "{bits:x} gave {u}");
            assert!(gumbel(bits).is_finite());
        }
    }

    #[test]
    fn the_bound_is_one() {
        let ones = (0..64).flat_map(|k| [!(u64::MAX >> k), !(1_u64 << (63 - k)), u64::MAX << k]);
        let random = (0..100_000).map(|counter| mix(3, counter));
        for bits in ones.chain(random) {
            assert!(gumbel(bits) <= max_gumbel(bits), "{bits:x}");
        }
    }

    #[test]
    fn keys_and_counters_matter() {
        let mut seen: Vec<u64> = (0..100)
            .flat_map(|key| (0..100).map(move |counter| mix(mix(0, key), counter)))
            .collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 10_000);
    }
}
