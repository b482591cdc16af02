//! Which tokens a row may draw: made by whoever reads grammars, obeyed by the runner.

use std::sync::Arc;

const WORD_BITS: usize = u32::BITS as usize;

/// Which tokens a row of a plan may draw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RowMasks {
    /// Any, wherever it draws.
    #[default]
    Free,
    /// One for each position that may draw, in order; any token where there is `None`. The first is
    /// that of the row's known token, then one for each of its drafts. Positions beyond the end draw
    /// nothing: a draft before them is not allowed, or no mask could be made.
    Each(Vec<Option<TokenMask>>),
}

impl RowMasks {
    /// The mask of the `nth` position that draws.
    pub fn get(&self, nth: usize) -> Option<&TokenMask> {
        match self {
            Self::Free => None,
            Self::Each(masks) => masks.get(nth)?.as_ref(),
        }
    }

    /// Of so many positions, how many may draw.
    pub fn num_drawing(&self, num_positions: usize) -> usize {
        match self {
            Self::Free => num_positions,
            Self::Each(masks) => num_positions.min(masks.len()),
        }
    }

    /// The masks of the `row`th row of a plan; rows beyond the end are free.
    pub fn of(rows: &[Self], row: usize) -> &Self {
        rows.get(row).unwrap_or(&Self::Free)
    }
}

/// One bit for each token of the vocabulary. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenMask {
    words: Arc<[u32]>,
}

impl TokenMask {
    /// From packed bits, token 0 in the lowest bit of the first word.
    pub fn from_words(words: &[u32]) -> Self {
        Self {
            words: words.into(),
        }
    }

    /// These tokens and no other.
    pub fn only(tokens: &[u32], vocab_size: u32) -> Self {
        let mut words = vec![0; (vocab_size as usize).div_ceil(WORD_BITS)];
        for token in tokens.iter().filter(|token| **token < vocab_size) {
            words[*token as usize / WORD_BITS] |= bit(*token);
        }
        Self {
            words: words.into(),
        }
    }

    /// Every token of the vocabulary.
    pub fn all(vocab_size: u32) -> Self {
        let mut words = vec![u32::MAX; (vocab_size as usize).div_ceil(WORD_BITS)];
        if let Some(last) = words.last_mut() {
            let num_unused = vocab_size.next_multiple_of(u32::BITS) - vocab_size;
            *last >>= num_unused;
        }
        Self {
            words: words.into(),
        }
    }

    /// The same without `tokens`.
    #[must_use]
    pub fn without(&self, tokens: &[u32]) -> Self {
        self.changed(|words| {
            for token in tokens {
                if let Some(word) = words.get_mut(*token as usize / WORD_BITS) {
                    *word &= !bit(*token);
                }
            }
        })
    }

    /// The same and `tokens` too.
    #[must_use]
    pub fn with(&self, tokens: &[u32]) -> Self {
        self.changed(|words| {
            for token in tokens {
                if let Some(word) = words.get_mut(*token as usize / WORD_BITS) {
                    *word |= bit(*token);
                }
            }
        })
    }

    /// Whether this token may be drawn. Tokens beyond the vocabulary may not.
    pub fn allows(&self, token: u32) -> bool {
        let word = self.words.get(token as usize / WORD_BITS);
        word.is_some_and(|word| word & bit(token) != 0)
    }

    /// Whether no token may be drawn.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// The packed bits, token 0 in the lowest bit of the first word.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// How many tokens may be drawn.
    pub fn num_allowed(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }

    /// The tokens that may be drawn, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        (0u32..).zip(self.words.iter()).flat_map(|(at, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let lowest = (left != 0).then(|| left.trailing_zeros())?;
                left &= left - 1;
                Some(at * u32::BITS + lowest)
            })
        })
    }

    fn changed(&self, change: impl FnOnce(&mut [u32])) -> Self {
        let mut words: Arc<[u32]> = Arc::clone(&self.words);
        change(Arc::make_mut(&mut words));
        Self { words }
    }
}

fn bit(token: u32) -> u32 {
    1 << (token % u32::BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_it_was_given() {
        for vocab_size in [1, 31, 32, 33, 64, 100] {
            let all = TokenMask::all(vocab_size);
            assert_eq!(all.num_allowed(), vocab_size);
            assert!(all.iter().eq(0..vocab_size));
            assert!(!all.allows(vocab_size));

            let some = TokenMask::only(&[0, vocab_size - 1, vocab_size], vocab_size);
            assert!(
                some.iter()
                    .all(|token| token == 0 || token == vocab_size - 1)
            );
            assert!(some.allows(0) && some.allows(vocab_size - 1));
            assert!(!some.allows(vocab_size));

            let rest = all.without(&[0, vocab_size - 1, 5000]);
            assert!(!rest.allows(0) && !rest.allows(vocab_size - 1));
            assert_eq!(rest.with(&[0, vocab_size - 1]), all);
            assert!(all.without(&(0..vocab_size).collect::<Vec<_>>()).is_empty());
        }
    }
}
