//! The sizes of decode steps that kernels are compiled, warmed up and captured for.

/// 1, 2, 4 and so on, and at last `max_num_seqs` itself. A step of some other size runs as the next
/// larger one, its missing rows padding.
pub(crate) fn decode_buckets(max_num_seqs: u32) -> Vec<u32> {
    let powers = std::iter::successors(Some(1_u32), |size| size.checked_mul(2));
    powers
        .take_while(|size| *size < max_num_seqs)
        .chain([max_num_seqs])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_is_the_limit() {
        assert_eq!(decode_buckets(1), [1]);
        assert_eq!(decode_buckets(2), [1, 2]);
        assert_eq!(decode_buckets(64), [1, 2, 4, 8, 16, 32, 64]);
        assert_eq!(decode_buckets(100), [1, 2, 4, 8, 16, 32, 64, 100]);
        assert_eq!(decode_buckets(u32::MAX).len(), 33);
    }
}
