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
