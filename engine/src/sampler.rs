//! Logits to tokens and log-probabilities.
//!
//! A token is a function of (logits, parameters, seed, index) and nothing else: the noise is a hash
//! of seed, index and token id, added to the logits (the Gumbel-max trick, which draws from the
//! softmax exactly). So the draw does not depend on the batch or on what was drawn before; and two
//! nearly equal distributions under the same noise nearly always give the same token, which is
//! what a draft needs: a drafted token is accepted when it is the token that the model would have
//! drawn, and the text is the same with drafts and without. Inverting the cumulative distribution
//! has one cheap number per draw but neither of these couplings.
//!
//! Order: penalties and `logit_bias`, the `min_tokens` mask, the guide's mask, temperature, `top_k`, `top_p`, `min_p`.
//! Log-probabilities are of the raw logits. Nothing sorts the vocabulary.
//!
//! The guide wins: where bans and `min_tokens` leave none of the tokens that it allows, they are
//! weighed instead of obeyed.

mod shortlist;

use std::cmp::Ordering;
use std::collections::HashMap;

use scheduler::{History, RowFault, Sample, SamplingParams, TokenLogprobs, TokenMask};

pub(crate) use self::shortlist::{Ask, listed_logprobs, usual_draws};
use crate::noise;

/// Floor of every reported log-probability, so that it is a finite JSON number.
const LOGPROB_FLOOR: f32 = -9999.0;
/// A bias from here on down means never.
const BAN: f32 = -100.0;
/// How many candidates the search for the nucleus sorts at first.
const FIRST_NUCLEUS: usize = 64;

/// Logits that are looked at side by side.
const LANES: usize = 32;

/// A token with its logit.
type Candidate = (u32, f32);

/// Whether bans and `min_tokens` are obeyed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bans {
    Obeyed,
    /// A ban is a large penalty, and the end may come early.
    Weighed,
}

/// Logits that can be adjusted: a row, or those of the tokens that are.
trait Logits {
    /// `None` for a token that has none here.
    fn logit(&mut self, token: u32) -> Option<&mut f32>;
}

impl Logits for Vec<f32> {
    fn logit(&mut self, token: u32) -> Option<&mut f32> {
        self.get_mut(token as usize)
    }
}

/// Draws a row's next token, one that `mask` allows.
pub(crate) fn sample(
    logits: &[f32],
    sample: &Sample,
    mask: Option<&TokenMask>,
) -> Result<u32, RowFault> {
    let params = &*sample.params;
    if mask.is_none() && !is_adjusted(params, sample.index) {
        return choose(logits, params, sample);
    }
    // A bad row stays visible whatever is masked below.
    finite_max(logits)?;
    let Some(mask) = mask else {
        let mut logits = logits.to_vec();
        adjust(&mut logits, sample, Bans::Obeyed);
        return choose(&logits, params, sample);
    };
    for bans in [Bans::Obeyed, Bans::Weighed] {
        let mut logits = logits.to_vec();
        adjust(&mut logits, sample, bans);
        if restrict(&mut logits, mask) {
            return choose(&logits, params, sample);
        }
    }
    // The model itself rules out all that may come.
    mask.iter().next().ok_or(RowFault::Constraint)
}

/// Makes logits what the parameters want, before temperature. Each token's result depends on its own
/// logit alone.
fn adjust(logits: &mut impl Logits, sample: &Sample, bans: Bans) {
    let params = &*sample.params;
    if let Some(history) = &sample.history {
        penalise(logits, params, history);
    }
    for (token, bias) in &params.logit_bias {
        if let Some(logit) = logits.logit(*token) {
            *logit = if *bias <= BAN && bans == Bans::Obeyed {
                f32::NEG_INFINITY
            } else {
                *logit + bias
            };
        }
    }
    if sample.index < params.min_tokens && bans == Bans::Obeyed {
        for token in &params.stop_token_ids {
            if let Some(logit) = logits.logit(*token) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

/// Rules out what the mask does not allow; false if nothing is left.
fn restrict(logits: &mut [f32], mask: &TokenMask) -> bool {
    let mut words = mask.words().iter();
    let mut is_left = false;
    for group in logits.chunks_mut(u32::BITS as usize) {
        match words.next() {
            None | Some(0) => group.fill(f32::NEG_INFINITY),
            Some(word) => {
                for (bit, logit) in group.iter_mut().enumerate() {
                    if word >> bit & 1 == 0 {
                        *logit = f32::NEG_INFINITY;
                    }
                    is_left |= *logit > f32::NEG_INFINITY;
                }
            }
        }
    }
    is_left
}

/// Log-probability of `token` and of the `num_top` most likely tokens under raw logits.
pub(crate) fn logprobs(
    logits: &[f32],
    token: u32,
    num_top: u32,
) -> Result<TokenLogprobs, RowFault> {
    let max = finite_max(logits)?;
    let sum: f64 = logits
        .iter()
        .map(|logit| f64::from(logit - max).exp())
        .sum();
    let log_sum = f64::from(max) + sum.ln();
    let top = best(logits, num_top as usize).into_iter();
    Ok(scored((token, logits[token as usize]), top, log_sum))
}

/// Logits as log-probabilities, given the logarithm of the sum of their exponentials.
fn scored(
    (token, logit): Candidate,
    top: impl Iterator<Item = Candidate>,
    log_sum: f64,
) -> TokenLogprobs {
    let logprob = |logit: f32| ((f64::from(logit) - log_sum) as f32).max(LOGPROB_FLOOR);
    TokenLogprobs {
        token,
        logprob: logprob(logit),
        top: top.map(|(token, logit)| (token, logprob(logit))).collect(),
    }
}

/// Whether anything moves the logits before temperature.
fn is_adjusted(params: &SamplingParams, index: u32) -> bool {
    params.needs_history() || !params.logit_bias.is_empty() || index < params.min_tokens
}

/// The largest logit, if there is no NaN and at least one is finite and none infinite.
fn finite_max(logits: &[f32]) -> Result<f32, RowFault> {
    // In lanes: a single maximum would wait for itself at every logit.
    let mut largest = [f32::NEG_INFINITY; LANES];
    let mut has_nan = [false; LANES];
    for group in logits.chunks(LANES) {
        for ((largest, has_nan), logit) in largest.iter_mut().zip(&mut has_nan).zip(group) {
            *has_nan |= logit.is_nan();
            *largest = if *logit > *largest { *logit } else { *largest };
        }
    }
    let max = largest.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let has_nan = has_nan.contains(&true);
    if has_nan || !max.is_finite() {
        return Err(RowFault::BadLogits);
    }
    Ok(max)
}

/// Repetition, frequency and presence, each token on its own, so the order of the map is no matter.
fn penalise(logits: &mut impl Logits, params: &SamplingParams, history: &History) {
    // How often a token was generated; prompt tokens count for repetition only.
    let mut counts: HashMap<u32, u32> = HashMap::new();
    for token in history.prompt.iter() {
        counts.entry(*token).or_default();
    }
    for token in &history.generated {
        *counts.entry(*token).or_default() += 1;
    }
    for (token, count) in counts {
        let Some(logit) = logits.logit(token) else {
            continue;
        };
        if *logit > 0.0 {
            *logit /= params.repetition_penalty;
        } else {
            *logit *= params.repetition_penalty;
        }
        if count > 0 {
            *logit -= params.frequency_penalty * count as f32 + params.presence_penalty;
        }
    }
}

/// Temperature and the truncations, on adjusted logits.
fn choose(logits: &[f32], params: &SamplingParams, sample: &Sample) -> Result<u32, RowFault> {
    let max = finite_max(logits)?;
    if is_greedy(params) {
        return Ok(argmax(logits, max));
    }
    let draw = Draw {
        temperature: f64::from(params.temperature),
        max: f64::from(max),
        min_weight: f64::from(params.min_p).ln(),
        stream: stream(sample),
    };
    let all = || (0..).zip(logits.iter().copied());
    let limits_k = params.top_k > 0 && (params.top_k as usize) < logits.len();
    if !limits_k && params.top_p >= 1.0 {
        return Ok(draw.pick(all()));
    }
    let mut candidates: Vec<Candidate> = all()
        .filter(|(_, logit)| *logit > f32::NEG_INFINITY)
        .collect();
    if limits_k {
        keep_best(&mut candidates, params.top_k as usize);
    }
    if params.top_p < 1.0 {
        draw.keep_nucleus(&mut candidates, f64::from(params.top_p));
    }
    Ok(draw.pick(candidates.into_iter()))
}

/// Whether the most likely token is the only one that can be drawn.
fn is_greedy(params: &SamplingParams) -> bool {
    params.temperature == 0.0 || params.top_p == 0.0 || params.top_k == 1
}

/// Key of a draw's noise.
fn stream(sample: &Sample) -> u64 {
    noise::mix(noise::mix(0, sample.seed), sample.index.into())
}

/// The lowest id among the largest logits.
fn argmax(logits: &[f32], max: f32) -> u32 {
    let is_max = |logit: &f32| *logit == max;
    // Whole groups at a time: most have none.
    let has_max = |group: &[f32]| {
        group
            .iter()
            .fold(false, |found, logit| found | is_max(logit))
    };
    let group = logits.chunks(LANES).position(has_max);
    let first = group.expect("the maximum is one of them") * LANES;
    let within = logits[first..].iter().position(is_max);
    (first + within.expect("it is in this group")) as u32
}

/// One draw from one distribution.
struct Draw {
    temperature: f64,
    max: f64,
    /// Least weight that `min_p` lets pass.
    min_weight: f64,
    /// Key of this draw's noise.
    stream: u64,
}

impl Draw {
    /// Log of the probability relative to the most likely token's.
    fn weight(&self, (_, logit): Candidate) -> f64 {
        (f64::from(logit) - self.max) / self.temperature
    }

    /// The candidate whose weight plus noise is largest. Their order does not matter.
    fn pick(&self, candidates: impl Iterator<Item = Candidate>) -> u32 {
        let mut best: Option<(f64, u32)> = None;
        for candidate in candidates {
            let weight = self.weight(candidate);
            if weight < self.min_weight {
                continue;
            }
            let token = candidate.0;
            let bits = noise::mix(self.stream, token.into());
            // Nearly every token loses by this bound and costs no logarithm.
            if best.is_some_and(|(score, _)| weight + noise::max_gumbel(bits) < score) {
                continue;
            }
            let score = weight + noise::gumbel(bits);
            let wins = best.is_none_or(|(other, id)| match score.total_cmp(&other) {
                Ordering::Greater => true,
                Ordering::Equal => token < id,
                Ordering::Less => false,
            });
            if wins {
                best = Some((score, token));
            }
        }
        best.expect("the most likely token passes every truncation")
            .1
    }

    /// The fewest most likely candidates whose probability reaches `top_p` of the candidates'.
    fn keep_nucleus(&self, candidates: &mut Vec<Candidate>, top_p: f64) {
        let total: f64 = candidates.iter().map(|c| self.weight(*c).exp()).sum();
        let wanted = top_p * total;
        let mut num_sorted = FIRST_NUCLEUS;
        loop {
            let mut sorted = candidates.clone();
            keep_best(&mut sorted, num_sorted);
            sorted.sort_unstable_by(|a, b| more_likely(*a, *b));
            let mut mass = 0.0;
            let reached = sorted.iter().position(|candidate| {
                mass += self.weight(*candidate).exp();
                mass >= wanted
            });
            // Rounding may leave the whole set a hair short of its own total.
            if reached.is_some() || sorted.len() == candidates.len() {
                sorted.truncate(reached.map_or(sorted.len(), |last| last + 1));
                *candidates = sorted;
                return;
            }
            num_sorted *= 8;
        }
    }
}

/// Descending by logit, ties by ascending id.
fn more_likely(a: Candidate, b: Candidate) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Keeps the `count` most likely, in no order.
fn keep_best(candidates: &mut Vec<Candidate>, count: usize) {
    if count < candidates.len() {
        candidates.select_nth_unstable_by(count, |a, b| more_likely(*a, *b));
        candidates.truncate(count);
    }
}

/// The `count` most likely tokens in order, by insertion: `count` is small.
fn best(logits: &[f32], count: usize) -> Vec<Candidate> {
    let count = count.min(logits.len());
    let mut best: Vec<Candidate> = Vec::with_capacity(count + 1);
    if count == 0 {
        return best;
    }
    for candidate in (0..).zip(logits.iter().copied()) {
        // Ids ascend, so an equal logit further on never displaces.
        if best.len() == count && candidate.1.total_cmp(&best[count - 1].1).is_le() {
            continue;
        }
        let at = best.partition_point(|other| more_likely(*other, candidate).is_lt());
        best.insert(at, candidate);
        best.truncate(count);
    }
    best
}

#[cfg(test)]
mod tests;
