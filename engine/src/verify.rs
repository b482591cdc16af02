//! Rows with drafts: what is drawn at which position, and how far the drafts come true.
//!
//! ```text
//! input_ids   |-- known --|-- drafts: d1 .. dk --|
//! draws                   0   1  ..              k     each after the input above it
//! ```
//!
//! The `n`th draw is what plain decoding would draw there, if the drafts before it are what it drew so
//! far: the same noise, the same history, the same mask. So the tokens up to the first that is not its
//! draft are those of plain decoding, and the rest is dropped.

use std::borrow::Cow;

use crate::noise;
use scheduler::{Row, RowFault, RowMasks, RowOutput, Sample};

/// How many of a row's inputs are known to be its sequence's tokens.
pub(crate) fn num_known(row: &Row) -> usize {
    row.input_ids.len() - row.drafting.num_drafts as usize
}

/// Guesses at the tokens that the row draws.
pub(crate) fn drafts(row: &Row) -> &[u32] {
    &row.input_ids[num_known(row)..]
}

/// Which draw follows an input position, if one does.
pub(crate) fn draw_at(row: &Row, input: usize) -> Option<usize> {
    row.sample.as_ref()?;
    (input + 1).checked_sub(num_known(row))
}

/// How each of a row's tokens is drawn.
pub(crate) type Draws<'a> = Vec<Cow<'a, Sample>>;

/// How each of a row's tokens is drawn, as far as its masks let any be.
pub(crate) fn draws<'a>(row: &'a Row, masks: &RowMasks) -> Draws<'a> {
    let Some(sample) = &row.sample else {
        return Vec::new();
    };
    let drafts = drafts(row);
    (0..masks.num_drawing(drafts.len() + 1))
        .map(|nth| later(sample, &drafts[..nth]))
        .collect()
}

/// How the token behind `ahead` is drawn, where `sample` is how the first of them is.
pub(crate) fn later<'a>(sample: &'a Sample, ahead: &[u32]) -> Cow<'a, Sample> {
    if ahead.is_empty() {
        return Cow::Borrowed(sample);
    }
    let mut sample = sample.clone();
    sample.index += ahead.len() as u32;
    if let Some(history) = &mut sample.history {
        history.generated.extend(ahead);
    }
    Cow::Owned(sample)
}

/// Adds what the next position said, the `nth` draw's or, without, a prompt's. What lies behind a draft
/// that did not come true is nobody's, as is what lies behind a fault; and a fault behind a draft is
/// left to the step that finds it at its own token.
pub(crate) fn append(
    row: &Row,
    output: &mut Result<RowOutput, RowFault>,
    nth: Option<usize>,
    next: Result<RowOutput, RowFault>,
) {
    let Ok(so_far) = output else { return };
    let nth = nth.unwrap_or(0);
    if nth > 0 && so_far.tokens != drafts(row)[..nth] {
        return;
    }
    match next {
        Ok(next) => {
            so_far.tokens.extend(next.tokens);
            so_far.logprobs.extend(next.logprobs);
            so_far.prompt_logprobs.extend(next.prompt_logprobs);
        }
        Err(fault) if nth == 0 => *output = Err(fault),
        Err(_) => {}
    }
}

/// Makes the `nth` draw of a row its draft, or another token than that, as a coin says that has the same
/// sides for the same request and place.
pub(crate) fn accept_by_chance(row: &Row, nth: usize, share: f64, output: &mut RowOutput) {
    let (Some(sample), Some(&draft)) = (&row.sample, drafts(row).get(nth)) else {
        return;
    };
    let index = u64::from(sample.index) + nth as u64;
    let coin = noise::uniform(noise::mix(noise::mix(COIN, sample.request.0), index));
    for token in &mut output.tokens {
        if coin < share {
            *token = draft;
        } else if *token == draft {
            *token = if draft == 0 { 1 } else { draft - 1 };
        }
    }
}

/// Of the coin's noise.
const COIN: u64 = 0x636f_696e;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use scheduler::{
        BlockId, Drafting, History, RequestId, SamplingParams, SequenceId, SlotId, TokenMask,
    };

    use super::*;

    /// Two known tokens and three drafts.
    fn row() -> Row {
        Row {
            sequence: SequenceId(1),
            input_ids: vec![5, 6, 7, 8, 9],
            start: 3,
            block_table: vec![BlockId(1)],
            slot: SlotId(1),
            saves: Vec::new(),
            drafting: Drafting {
                num_drafts: 3,
                ..Drafting::default()
            },
            sample: Some(Sample {
                request: RequestId(1),
                choice: 0,
                params: Arc::new(SamplingParams::default()),
                seed: 4,
                index: 10,
                history: Some(History {
                    prompt: vec![1].into(),
                    generated: vec![6],
                }),
            }),
            prompt_logprobs: None,
        }
    }

    #[test]
    fn draws_follow_the_last_known_token_and_every_draft() {
        let row = row();
        let draws: Vec<_> = (0..5).map(|input| draw_at(&row, input)).collect();
        assert_eq!(draws, [None, Some(0), Some(1), Some(2), Some(3)]);
        let all = super::draws(&row, &RowMasks::Free);
        assert_eq!(all.len(), 4);
        for (nth, sample) in all.iter().enumerate() {
            assert_eq!((sample.index, sample.seed), (10 + nth as u32, 4));
            let history = &sample.history.as_ref().expect("it was given").generated;
            assert_eq!(history[..], [6, 7, 8, 9][..=nth]);
        }
        let two = RowMasks::Each(vec![None, Some(TokenMask::all(20))]);
        assert_eq!(super::draws(&row, &two).len(), 2);
    }

    #[test]
    fn a_coin_has_its_share_of_drafts_come_true() {
        for share in [0.0, 0.3, 0.74, 1.0] {
            let mut num_true = 0;
            for request in 0..1000 {
                let mut row = row();
                row.sample.as_mut().expect("it draws").request = RequestId(request);
                for (nth, draft) in [7, 8, 9].into_iter().enumerate() {
                    for drawn in [draft, 3] {
                        let mut output = RowOutput {
                            tokens: vec![drawn],
                            ..RowOutput::default()
                        };
                        accept_by_chance(&row, nth, share, &mut output);
                        num_true += u32::from(output.tokens == [draft]);
                    }
                }
                // Behind the last draft a token is drawn as ever.
                let mut last = RowOutput {
                    tokens: vec![3],
                    ..RowOutput::default()
                };
                accept_by_chance(&row, 3, share, &mut last);
                assert_eq!(last.tokens, [3]);
            }
            let got = f64::from(num_true) / 6000.0;
            assert!((got - share).abs() < 0.03, "{share}: {got}");
        }
    }

    #[test]
    fn the_first_that_differs_is_the_last() {
        let token = |token| {
            Ok(RowOutput {
                tokens: vec![token],
                ..RowOutput::default()
            })
        };
        let bad = || Err(RowFault::BadLogits);
        let nothing = || Ok(RowOutput::default());
        let check = |next: [Result<RowOutput, RowFault>; 4], expect: Result<&[u32], RowFault>| {
            let row = row();
            let mut output = Ok(RowOutput::default());
            for (nth, next) in next.into_iter().enumerate() {
                append(&row, &mut output, Some(nth), next);
            }
            let tokens = output.map(|output| output.tokens);
            assert_eq!(tokens.as_deref().map_err(|fault| *fault), expect);
        };
        check([token(7), token(8), token(9), token(3)], Ok(&[7, 8, 9, 3]));
        check([token(7), token(8), token(2), token(3)], Ok(&[7, 8, 2]));
        check([token(2), token(8), token(9), token(3)], Ok(&[2]));
        // What would not have been run cannot fail, and what would have been fails when it is.
        check([token(2), bad(), token(9), bad()], Ok(&[2]));
        check([token(7), bad(), token(9), token(3)], Ok(&[7]));
        check(
            [bad(), token(8), token(9), token(3)],
            Err(RowFault::BadLogits),
        );
        // A mask could not be made.
        check([token(7), token(8), nothing(), nothing()], Ok(&[7, 8]));
        check([nothing(), nothing(), nothing(), nothing()], Ok(&[]));
    }
}
