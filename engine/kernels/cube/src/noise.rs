//! Counter-based random bits, in 32-bit halves: the same as the host's, whoever asks in which order.
//! SplitMix64's output function over a Weyl sequence. Two calls a number for a stream of streams.

use cubecl::prelude::*;

/// 64 random bits for a key and a counter below `2^32 - 1`; also a key for the next level.
#[cube]
pub(crate) fn mix(key_low: u32, key_high: u32, counter: u32) -> (u32, u32) {
    let count = counter + 1;
    let mut low = count * 0x7f4a_7c15u32;
    let mut high = u32::mul_hi(count, 0x7f4a_7c15u32) + count * 0x9e37_79b9u32;
    low += key_low;
    high += key_high + u32::cast_from(low < key_low);
    let (low, high) = folded(low, high, 30u32);
    let (low, high) = product(low, high, 0x1ce4_e5b9u32, 0xbf58_476du32);
    let (low, high) = folded(low, high, 27u32);
    let (low, high) = product(low, high, 0x1331_11ebu32, 0x94d0_49bbu32);
    folded(low, high, 31u32)
}

/// `z ^ (z >> by)`, `by` below 32.
#[cube]
fn folded(low: u32, high: u32, #[comptime] by: u32) -> (u32, u32) {
    let left = comptime!(32 - by);
    (low ^ ((low >> by) | (high << left)), high ^ (high >> by))
}

/// The lower 64 bits of a product.
#[cube]
fn product(
    low: u32,
    high: u32,
    #[comptime] factor_low: u32,
    #[comptime] factor_high: u32,
) -> (u32, u32) {
    let carried = u32::mul_hi(low, factor_low.runtime());
    (
        low * factor_low,
        carried + low * factor_high + high * factor_low,
    )
}
