//! The sizes of decode steps that kernels are compiled, warmed up and recorded for.

/// Least context of a recorded step, in blocks; larger ones double.
const LEAST_BLOCKS: usize = 32;
/// Most steps that are recorded before the first request: all that the defaults can have, seven
/// numbers of rows up to 64 in nine contexts up to 256 Ki positions.
///
/// A recording takes four runs of a step of padding and keeps the memory that the step asked for: its
/// activations and up to 256 MiB of partial results of attention. At Super's sizes all 63 keep some
/// 2.5 GB, and 256 sequences in the seven contexts up to 64 Ki some 3.6 GB (computed, not measured):
/// the twentieth of a device that the cache leaves has room for that on 80 GB. What is longer is
/// recorded when the first such step comes.
const MAX_RECORDED: usize = 63;

/// The size as which a decode step of so many rows runs, its missing rows padding: the next power of
/// two, but `max_num_seqs` at most.
pub(crate) fn bucket_of(num_rows: u32, max_num_seqs: u32) -> u32 {
    let power = num_rows.checked_next_power_of_two().unwrap_or(u32::MAX);
    // A step by hand may have more rows than the scheduler plans.
    power.min(max_num_seqs).max(num_rows)
}

/// All of them: 1, 2, 4 and so on, and at last `max_num_seqs` itself.
pub(crate) fn decode_buckets(max_num_seqs: u32) -> Vec<u32> {
    let next = |size: &u32| (*size < max_num_seqs).then(|| bucket_of(size + 1, max_num_seqs));
    std::iter::successors(Some(1), next).collect()
}

/// The blocks of a row, as recorded steps see them.
pub(crate) fn context_bucket_of(num_blocks: usize) -> usize {
    num_blocks.next_power_of_two().max(LEAST_BLOCKS)
}

/// The steps to record before the first request, as rows and blocks of a row: all that can occur,
/// short contexts first, but [`MAX_RECORDED`] at most.
pub(crate) fn recorded_buckets(max_num_seqs: u32, max_blocks: usize) -> Vec<(u32, usize)> {
    let last = context_bucket_of(max_blocks);
    let double = |blocks: &usize| Some(2 * blocks).filter(|blocks| *blocks <= last);
    let contexts = std::iter::successors(Some(LEAST_BLOCKS), double);
    let rows = decode_buckets(max_num_seqs);
    contexts
        .flat_map(|blocks| rows.iter().map(move |rows| (*rows, blocks)))
        .take(MAX_RECORDED)
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

    #[test]
    fn every_step_runs_as_one_that_was_recorded() {
        for max_num_seqs in [1, 3, 64, 100, 129] {
            let buckets = decode_buckets(max_num_seqs);
            for num_rows in 1..=max_num_seqs {
                let bucket = bucket_of(num_rows, max_num_seqs);
                assert!(
                    bucket >= num_rows && buckets.contains(&bucket),
                    "{num_rows}"
                );
            }
        }
        assert_eq!(bucket_of(65, 100), 100);
        assert_eq!(bucket_of(33, 100), 64);
        assert_eq!(bucket_of(5, 3), 5);
        assert_eq!(bucket_of(u32::MAX, u32::MAX), u32::MAX);
    }

    #[test]
    fn contexts_double_up_to_the_longest() {
        let recorded = recorded_buckets(3, 100);
        let expect = [(1, 32), (2, 32), (3, 32), (1, 64), (2, 64), (3, 64)];
        assert_eq!(recorded[..6], expect);
        assert_eq!(recorded[6..], [(1, 128), (2, 128), (3, 128)]);
        for blocks in 1..=100 {
            assert!(recorded.contains(&(1, context_bucket_of(blocks))));
        }
        assert_eq!(recorded_buckets(1, 1), [(1, 32)]);
        let recorded = recorded_buckets(256, 16384);
        assert_eq!(recorded.len(), MAX_RECORDED);
        assert_eq!(recorded.last(), Some(&(256, 2048)));
    }
}
