//! How many tokens steps ran.

/// Counts of steps by their tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepTokens {
    /// Steps of at most [`StepTokens::BOUNDS`] tokens and more than the bound before; the last: of more.
    pub counts: [u64; StepTokens::BOUNDS.len() + 1],
    /// Tokens of all steps.
    pub sum: u64,
}

impl StepTokens {
    /// Upper bounds.
    pub const BOUNDS: [u64; 13] = [
        1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384,
    ];

    /// A step of so many ran.
    pub(crate) fn note(&mut self, num_tokens: u64) {
        let at = Self::BOUNDS.partition_point(|bound| *bound < num_tokens);
        self.counts[at] += 1;
        self.sum += num_tokens;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_belong_to_what_is_below() {
        let mut steps = StepTokens::default();
        for (num_tokens, at) in [(1, 0), (2, 1), (8, 1), (9, 2), (16_384, 12), (16_385, 13)] {
            let before = steps.counts[at];
            steps.note(num_tokens);
            assert_eq!(steps.counts[at], before + 1, "{num_tokens}");
        }
        assert_eq!(steps.counts.iter().sum::<u64>(), 6);
        assert_eq!(steps.sum, 1 + 2 + 8 + 9 + 16_384 + 16_385);
    }
}
