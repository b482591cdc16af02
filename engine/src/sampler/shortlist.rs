//! The same tokens and log-probabilities from what a GPU sends of a row of logits.
//!
//! A token drawn from a shortlist is the token that the row would give, always: `kernels::decide`
//! proves it or asks for the row. A log-probability is off by the sum of exponentials, which the
//! device adds in f32 and which is good to 1e-5 of itself, so by 1e-5 at most, and by the rounding
//! of the result to f32; logits come back as they are.

use kernels::{Candidate, Decision, Draw, MAX_LIST, Noise, SampleRequest, Shortlist};
use scheduler::{RowFault, Sample, SamplingParams, TokenLogprobs, TokenMask};

use super::{Bans, Logits, adjust, is_greedy, scored, stream};
use crate::noise;

/// Sums of logits and noise that are asked for: hardly a draw needs more.
const NUM_NOISY: usize = 16;
/// Below it differences of logits say it all, and the device's f32 might overflow.
const LEAST_NOISY_TEMPERATURE: f32 = 1e-3;
/// Lengths of the lists that are asked for. A GPU's kernel is compiled for each, so they are few:
/// an argmax, the noise, the alternatives that the API offers, and the most there is.
const LENGTHS: [usize; 5] = [0, 1, NUM_NOISY, 32, MAX_LIST];

/// Draws that between them ask for lists of every length beyond those of an argmax, and for single
/// logits: whoever made them has compiled all there is.
pub(crate) fn usual_draws() -> impl Iterator<Item = SamplingParams> {
    let hot = SamplingParams {
        temperature: 1.0,
        ..SamplingParams::default()
    };
    let draws = [
        hot.clone(),
        SamplingParams {
            logit_bias: vec![(0, -1.0)],
            logprobs: Some(20),
            ..hot.clone()
        },
        SamplingParams { top_p: 0.95, ..hot },
    ];
    draws.into_iter()
}

/// What is asked of a device about one position.
#[derive(Default)]
pub(crate) struct Ask<'a> {
    mask: Option<&'a [u32]>,
    /// Tokens whose logits are adjusted, ascending.
    edited: Vec<u32>,
    /// A token to score.
    pub(crate) wanted: Option<u32>,
    /// Alternatives to score.
    pub(crate) num_top: usize,
    num_likely: usize,
    noise: Option<Noise>,
}

impl<'a> Ask<'a> {
    /// What a draw needs, and the score of its token.
    pub(crate) fn sample(sample: &Sample, mask: Option<&'a TokenMask>, vocab_size: usize) -> Self {
        let params = &*sample.params;
        let is_greedy = is_greedy(params);
        let limits_k = params.top_k > 0 && (params.top_k as usize) < vocab_size;
        let has_noise = !is_greedy && params.temperature >= LEAST_NOISY_TEMPERATURE;
        let num_likely = if is_greedy {
            1
        } else if limits_k {
            (params.top_k as usize).min(MAX_LIST)
        } else if !has_noise || params.top_p < 1.0 || params.min_p > 0.0 {
            MAX_LIST
        } else {
            1
        };
        Self {
            mask: mask.map(TokenMask::words),
            edited: edited(sample, vocab_size),
            wanted: None,
            num_top: params.logprobs.unwrap_or(0) as usize,
            num_likely,
            noise: has_noise.then(|| Noise {
                stream: stream(sample),
                temperature: params.temperature,
                count: NUM_NOISY,
            }),
        }
    }

    /// Whether a list can hold the alternatives.
    pub(crate) fn fits(&self, vocab_size: usize) -> bool {
        self.num_top.min(vocab_size) <= MAX_LIST
    }

    /// As the kernel wants it.
    pub(crate) fn request(&self) -> SampleRequest<'_> {
        SampleRequest {
            mask: self.mask,
            edited: &self.edited,
            wanted: self.wanted.as_slice(),
            num_top: length(self.num_top),
            num_likely: length(self.num_likely),
            noise: self.noise,
        }
    }

    /// The token that [`sample`](super::sample) draws from the row; `None` if only the row tells.
    pub(crate) fn draw(
        &self,
        list: &Shortlist,
        sample: &Sample,
        mask: Option<&TokenMask>,
        vocab_size: usize,
    ) -> Option<Result<u32, RowFault>> {
        let params = &*sample.params;
        let draw = Draw {
            temperature: params.temperature,
            top_k: params.top_k,
            top_p: params.top_p,
            min_p: params.min_p,
        };
        let stream = stream(sample);
        for bans in [Bans::Obeyed, Bans::Weighed] {
            let mut logits = Edited {
                tokens: &self.edited,
                logits: list.edited.clone(),
            };
            adjust(&mut logits, sample, bans);
            let edited: Vec<Candidate> = self
                .edited
                .iter()
                .copied()
                .zip(logits.logits)
                .filter(|(token, _)| mask.is_none_or(|mask| mask.allows(*token)))
                .collect();
            if edited
                .iter()
                .any(|(_, logit)| *logit == f32::INFINITY || logit.is_nan())
            {
                return None;
            }
            let gumbel = |token: u32| noise::gumbel(noise::mix(stream, token.into()));
            match kernels::decide(list, &edited, vocab_size, &draw, gumbel) {
                Decision::Token(token) => return Some(Ok(token)),
                Decision::ReadRow | Decision::BadLogits => return None,
                // Bans took all there was.
                Decision::NothingLeft if mask.is_none() => return Some(Err(RowFault::BadLogits)),
                Decision::NothingLeft => {}
            }
        }
        // The model itself rules out all that may come.
        let first = mask.and_then(|mask| mask.iter().next());
        Some(first.ok_or(RowFault::Constraint))
    }

    /// The raw logit of a token that was wanted or drawn; `None` if it did not come.
    pub(crate) fn raw(&self, list: &Shortlist, token: u32) -> Option<f32> {
        if self.wanted == Some(token) {
            return list.wanted.first().copied();
        }
        if let Ok(at) = self.edited.binary_search(&token) {
            return list.edited.get(at).copied();
        }
        let listed = list.likely.iter().chain(&list.noisy);
        listed
            .copied()
            .find(|(id, _)| *id == token)
            .map(|(_, logit)| logit)
    }
}

/// The log-probability of a token of this raw logit, and those of the `num_top` most likely; `None`
/// for a row whose sum overflowed.
pub(crate) fn listed_logprobs(
    list: &Shortlist,
    token: u32,
    logit: f32,
    num_top: u32,
) -> Option<TokenLogprobs> {
    if !list.sum.is_finite() {
        return None;
    }
    let log_sum = f64::from(list.max) + f64::from(list.sum).ln();
    let top = list.top.iter().copied().take(num_top as usize);
    Some(scored((token, logit), top, log_sum))
}

/// The length that is asked for instead of a list of at least `len`.
fn length(len: usize) -> usize {
    let longer = LENGTHS.into_iter().find(|length| len <= *length);
    longer.unwrap_or(MAX_LIST)
}

/// Tokens whose logits [`adjust`] may move, ascending.
fn edited(sample: &Sample, vocab_size: usize) -> Vec<u32> {
    let params = &*sample.params;
    let mut tokens = Vec::new();
    if let Some(history) = &sample.history {
        // What the prompt alone has is penalised for repetition only.
        if params.repetition_penalty != 1.0 {
            tokens.extend(history.prompt.iter());
        }
        tokens.extend(&history.generated);
    }
    tokens.extend(params.logit_bias.iter().map(|(token, _)| *token));
    if sample.index < params.min_tokens {
        tokens.extend(&params.stop_token_ids);
    }
    tokens.retain(|token| (*token as usize) < vocab_size);
    tokens.sort_unstable();
    tokens.dedup();
    tokens
}

/// Logits of the edited tokens alone.
struct Edited<'a> {
    tokens: &'a [u32],
    logits: Vec<f32>,
}

impl Logits for Edited<'_> {
    fn logit(&mut self, token: u32) -> Option<&mut f32> {
        let at = self.tokens.binary_search(&token).ok()?;
        self.logits.get_mut(at)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use scheduler::{History, RequestId};

    use super::*;

    fn sample(params: SamplingParams) -> Sample {
        let history = params.needs_history().then(|| History {
            prompt: [9, 4, 9, 99].into(),
            generated: vec![7, 4, 7, 50],
        });
        Sample {
            request: RequestId(1),
            choice: 0,
            params: Arc::new(params),
            seed: 3,
            index: 4,
            history,
        }
    }

    #[test]
    fn what_is_edited_is_all_that_is_adjusted() {
        let hot = SamplingParams {
            temperature: 1.0,
            ..SamplingParams::default()
        };
        let cases = [
            (hot.clone(), vec![]),
            (
                SamplingParams {
                    presence_penalty: 0.5,
                    ..hot.clone()
                },
                vec![4, 7, 50],
            ),
            (
                SamplingParams {
                    repetition_penalty: 1.5,
                    frequency_penalty: 0.25,
                    ..hot.clone()
                },
                vec![4, 7, 9, 50],
            ),
            (
                SamplingParams {
                    logit_bias: vec![(2, 1.0), (7, -100.0), (60, 3.0)],
                    stop_token_ids: vec![33, 2, 61],
                    min_tokens: 5,
                    ..hot.clone()
                },
                vec![2, 7, 33],
            ),
            (
                SamplingParams {
                    stop_token_ids: vec![33],
                    min_tokens: 4,
                    ..hot
                },
                vec![],
            ),
        ];
        let raw: Vec<f32> = (0..60).map(|id| id as f32 * 0.37 - 10.0).collect();
        for (params, expect) in cases {
            let sample = sample(params);
            let tokens = edited(&sample, raw.len());
            assert_eq!(tokens, expect);
            for bans in [Bans::Obeyed, Bans::Weighed] {
                let mut row = raw.clone();
                adjust(&mut row, &sample, bans);
                let mut some = Edited {
                    tokens: &tokens,
                    logits: tokens.iter().map(|token| raw[*token as usize]).collect(),
                };
                adjust(&mut some, &sample, bans);
                let mut put_back = raw.clone();
                for (token, logit) in tokens.iter().zip(some.logits) {
                    put_back[*token as usize] = logit;
                }
                assert_eq!(put_back, row);
            }
        }
    }

    #[test]
    fn lists_have_few_lengths_and_are_long_enough() {
        for len in 0..=MAX_LIST {
            assert!(length(len) >= len && LENGTHS.contains(&length(len)));
        }
        assert_eq!(LENGTHS.map(length), LENGTHS);
    }

    #[test]
    fn warming_up_asks_for_every_length() {
        let mut asked = vec![1];
        for params in usual_draws() {
            let ask = Ask::sample(&sample(params), None, 131_072);
            let request = ask.request();
            let noisy = request.noise.map_or(0, |noise| noise.count);
            asked.push(request.num_top.max(request.num_likely).max(noisy));
        }
        assert_eq!(asked, LENGTHS[1..]);
    }
}
