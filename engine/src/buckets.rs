//! The sizes of steps that kernels are compiled, warmed up and recorded for.

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

/// Least context of a recorded step with drafts, in blocks; larger ones are four times as long.
const LEAST_DRAFT_BLOCKS: usize = 128;
/// Most tokens of all steps with drafts that are recorded before the first request: up to 64 rows with
/// 1, 3 and 5 drafts have 1,524, in 21 recordings of the model and 28 of the draft block. A recorded
/// token keeps 0.7 MB of Super's activations, and attention 0.07 MB for each 1,024 positions (computed,
/// not measured).
const MAX_RECORDED_DRAFTS: u64 = 1_600;
/// Most tokens of all recordings at a time. Those that come up later drive out what was not used for
/// longest, so that their memory has an end.
pub(crate) const MAX_KEPT_TOKENS: usize = 6_144;

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

/// The tokens of a row as which a step with drafts runs, shorter rows filled up: one and an odd number
/// of drafts, or `max_drafts`; `None` if so many tokens are no step with drafts.
pub(crate) fn row_bucket_of(num_tokens: u32, max_drafts: u32) -> Option<u32> {
    depths(max_drafts)
        .map(|depth| 1 + depth)
        .find(|tokens| num_tokens <= *tokens)
}

fn depths(max_drafts: u32) -> impl Iterator<Item = u32> {
    let odd = (1..max_drafts).step_by(2);
    odd.chain((max_drafts > 0).then_some(max_drafts))
}

/// The blocks of a row, as recorded steps with drafts see them: fewer sizes than without, as each comes
/// with several numbers of drafts.
pub(crate) fn draft_context_bucket_of(num_blocks: usize) -> usize {
    let mut blocks = LEAST_DRAFT_BLOCKS;
    while blocks < num_blocks {
        blocks *= 4;
    }
    blocks
}

/// The steps with drafts to record before the first request, as rows and drafts of a row: those of the
/// shortest context, as long as they have [`MAX_RECORDED_DRAFTS`] tokens together at most. Each
/// brings a pass of the draft block with it, and each number of rows one more.
pub(crate) fn recorded_draft_buckets(max_num_seqs: u32, max_drafts: u32) -> Vec<(u32, u32)> {
    let mut num_tokens = 0;
    decode_buckets(max_num_seqs)
        .into_iter()
        .flat_map(|rows| depths(max_drafts).map(move |depth| (rows, depth)))
        .take_while(|(rows, depth)| {
            num_tokens += u64::from(*rows) * u64::from(1 + depth);
            num_tokens <= MAX_RECORDED_DRAFTS
        })
        .collect()
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

/// Lengths of the prompts to warm up with: the longest step, and with a choice the powers of two below it
/// from the first number of tokens that is many.
pub(crate) fn prompt_lens(longest: u32, has_choice: bool) -> Vec<u32> {
    let powers = (7..u32::BITS).map(|power| 1 << power);
    let shorter = powers.take_while(|len| has_choice && *len < longest);
    shorter.chain([longest]).collect()
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
    fn prompts_have_every_length_that_is_chosen_for() {
        assert_eq!(prompt_lens(2048, false), [2048]);
        assert_eq!(prompt_lens(2048, true), [128, 256, 512, 1024, 2048]);
        assert_eq!(prompt_lens(3000, true), [128, 256, 512, 1024, 2048, 3000]);
        assert_eq!(prompt_lens(64, true), [64]);
        assert_eq!(prompt_lens(u32::MAX, true).len(), 26);
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
    fn every_number_of_drafts_has_a_bucket() {
        for max_drafts in 1..=kernels::MAX_DRAFTS {
            let recorded = recorded_draft_buckets(2, max_drafts);
            for num_tokens in 1..=1 + max_drafts {
                let bucket = row_bucket_of(num_tokens, max_drafts).expect("it is one of them");
                assert!(bucket >= num_tokens.max(2) && bucket <= num_tokens.max(2) + 1);
                assert!(recorded.contains(&(2, bucket - 1)), "{num_tokens}");
            }
            assert_eq!(row_bucket_of(2 + max_drafts, max_drafts), None);
        }
        assert_eq!(row_bucket_of(1, 0), None);
        assert_eq!(recorded_draft_buckets(64, 0), []);
        assert_eq!(depths(4).collect::<Vec<_>>(), [1, 3, 4]);
    }

    #[test]
    fn recordings_with_drafts_have_a_limit() {
        let recorded = recorded_draft_buckets(64, 5);
        assert_eq!((recorded.len(), recorded.last()), (21, Some(&(64, 5))));
        let recorded = recorded_draft_buckets(4096, 7);
        assert_eq!(recorded.last(), Some(&(64, 1)));
        assert_eq!(
            [1, 128, 129, 513].map(draft_context_bucket_of),
            [128, 128, 512, 2048]
        );
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
