//! A draw finished on the host, or known to need the whole row.

use std::cmp::Ordering;

use super::{Candidate, MASS_ERROR, Shortlist};

/// How a token is drawn; the sampler's parameters of the same names.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// Zero for the most likely token.
    pub temperature: f32,
    /// Zero for all.
    pub top_k: u32,
    /// One for all.
    pub top_p: f32,
    /// Zero for all.
    pub min_p: f32,
}

/// What a shortlist says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The token that the sampler would draw from the whole row.
    Token(u32),
    /// The row has a NaN or its largest logit is not finite.
    BadLogits,
    /// No token that may come has a logit above minus infinity.
    NothingLeft,
    /// The shortlist does not decide.
    ReadRow,
}

/// How far the device's noise may be from the host's.
pub(super) const NOISE_ERROR: f64 = 1.0 / 32768.0;
/// No noise is larger: that of 53 leading ones, and some.
const MAX_NOISE: f64 = 37.0;
/// Sums of exponentials in f64 in another order than the sampler's differ by less.
const ORDER_ERROR: f64 = 1e-11;

/// Draws a token of a row of `v` logits as the sampler does (`engine/src/sampler.rs`: the largest of
/// `(logit - max) / temperature + gumbel` among the tokens that `top_k`, then `top_p`, then `min_p`
/// leave, all in f64), if what is known of the row proves which it is.
///
/// `edited` are the edited tokens that may come, with their logits as adjusted. `gumbel` is the
/// sampler's noise of a token.
///
/// The proof. Listed and edited tokens are **known**, all others are not, but:
/// - none of them has a logit above the last of `likely`, and with an equal one it has a later id;
///   so known tokens down to that one have their true **rank**;
/// - none has noisy sum above the last of `noisy`, on the device; in exact numbers not above that and
///   the device's error.
///
/// A token survives `top_k` by its rank and `top_p` by the mass of those before it, of which the
/// total is known up to [`MASS_ERROR`]: survivors are certain, impossible or in between. The largest
/// sum among all that are not impossible is the draw if that token is certain, and larger than any
/// unknown token's could be.
pub fn decide(
    list: &Shortlist,
    edited: &[Candidate],
    v: usize,
    draw: &Draw,
    gumbel: impl Fn(u32) -> f64,
) -> Decision {
    let is_broken = |&(_, logit): &Candidate| logit.is_nan() || logit == f32::INFINITY;
    if !list.is_sound || edited.iter().any(is_broken) {
        return Decision::BadLogits;
    }
    let edited: Vec<Candidate> = edited
        .iter()
        .copied()
        .filter(|(_, logit)| *logit > f32::NEG_INFINITY)
        .collect();
    let max = edited
        .iter()
        .fold(list.likely_max, |max, (_, logit)| max.max(*logit));
    if max == f32::NEG_INFINITY {
        return Decision::NothingLeft;
    }
    let row = Known::new(list, edited);
    if draw.temperature == 0.0 || draw.top_p == 0.0 || draw.top_k == 1 {
        return row.greedy(max);
    }
    row.draw(max, v, draw, gumbel)
}

/// Descending by logit, ties by ascending id: the sampler's order.
pub(super) fn more_likely(a: Candidate, b: Candidate) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// What is known of a row.
struct Known<'a> {
    list: &'a Shortlist,
    /// The first of all tokens, in order.
    ranked: Vec<Candidate>,
    /// Known tokens that come after them, at ranks that are not known.
    unranked: Vec<Candidate>,
    /// Those of either that are edited.
    edited: Vec<Candidate>,
    /// Least upper bound of unknown logits, if there may be unknown ones.
    unknown: Option<f32>,
}

impl<'a> Known<'a> {
    fn new(list: &'a Shortlist, edited: Vec<Candidate>) -> Self {
        let mut ranked = list.likely.clone();
        ranked.extend(&edited);
        ranked.sort_unstable_by(|a, b| more_likely(*a, *b));
        let mut unranked = Vec::new();
        let mut unknown = None;
        if list.has_more {
            let last = list.likely.last();
            let num_ranked = last.map_or(0, |last| {
                ranked.partition_point(|c| more_likely(*c, *last).is_le())
            });
            unranked = ranked.split_off(num_ranked);
            unknown = Some(last.map_or(list.likely_max, |last| last.1));
            let is_new = |c: &Candidate| last.is_none_or(|last| more_likely(*c, *last).is_gt());
            unranked.extend(list.noisy.iter().copied().filter(is_new));
        }
        Self {
            list,
            ranked,
            unranked,
            edited,
            unknown,
        }
    }

    /// The lowest id among the largest logits.
    fn greedy(&self, max: f32) -> Decision {
        // Unknown tokens with the same bits have later ids than listed ones; zeros have two.
        if self.unknown == Some(max) && (max == 0.0 || self.list.likely.is_empty()) {
            return Decision::ReadRow;
        }
        let known = self.ranked.iter().chain(&self.unranked);
        known
            .filter(|(_, logit)| *logit == max)
            .map(|(token, _)| *token)
            .min()
            .map_or(Decision::ReadRow, Decision::Token)
    }

    fn draw(&self, max: f32, v: usize, draw: &Draw, gumbel: impl Fn(u32) -> f64) -> Decision {
        let temperature = f64::from(draw.temperature);
        let max = f64::from(max);
        let weight = |logit: f32| (f64::from(logit) - max) / temperature;
        let min_weight = f64::from(draw.min_p).ln();
        let survivors = self.survivors(v, draw, weight);

        let mut best: Option<(f64, u32, bool)> = None;
        let certain = self.ranked[..survivors.certain].iter().map(|c| (*c, true));
        let others = self.ranked[survivors.certain..survivors.possible]
            .iter()
            .chain(
                survivors
                    .is_open
                    .then_some(&self.unranked)
                    .into_iter()
                    .flatten(),
            )
            .map(|c| (*c, survivors.is_all));
        for ((token, logit), is_certain) in certain.chain(others) {
            if weight(logit) < min_weight {
                continue;
            }
            let score = weight(logit) + gumbel(token);
            let wins = best.is_none_or(|(other, id, _)| match score.total_cmp(&other) {
                Ordering::Greater => true,
                Ordering::Equal => token < id,
                Ordering::Less => false,
            });
            if wins {
                best = Some((score, token, is_certain));
            }
        }
        let rival = survivors
            .is_open
            .then(|| self.unknown_score(max, temperature, min_weight))
            .flatten();
        match best {
            Some((score, token, true)) if rival.is_none_or(|rival| score > rival) => {
                Decision::Token(token)
            }
            _ => Decision::ReadRow,
        }
    }

    /// Which of the ranked tokens survive `top_k` and `top_p`.
    fn survivors(&self, v: usize, draw: &Draw, weight: impl Fn(f32) -> f64) -> Survivors {
        let limits_k = draw.top_k > 0 && (draw.top_k as usize) < v;
        let limit = if limits_k { draw.top_k as usize } else { v };
        let candidates = self.ranked.len().min(limit);
        // Whether tokens behind the ranked ones may be candidates.
        let is_open = self.unknown.is_some() && self.ranked.len() < limit;
        let mut survivors = Survivors {
            certain: candidates,
            possible: candidates,
            is_open,
            is_all: !limits_k && draw.top_p >= 1.0,
        };
        if draw.top_p >= 1.0 {
            return survivors;
        }
        let mass = |list: &[Candidate]| -> f64 { list.iter().map(|c| weight(c.1).exp()).sum() };
        let ranked_mass = mass(&self.ranked[..candidates]);
        let (least, most) = if is_open {
            let list = self.list;
            let listed = f64::from(list.mass) * weight(list.likely_max).exp();
            let all = listed + mass(&self.edited);
            // Without noise nobody has summed.
            let most = if list.mass > 0.0 {
                all * (1.0 + MASS_ERROR)
            } else {
                f64::INFINITY
            };
            let least = if limits_k {
                ranked_mass
            } else {
                all * (1.0 - MASS_ERROR)
            };
            (least.max(ranked_mass), most)
        } else {
            (ranked_mass, ranked_mass)
        };
        let top_p = f64::from(draw.top_p);
        let least = top_p * least * (1.0 - ORDER_ERROR);
        let most = top_p * most * (1.0 + ORDER_ERROR);
        // A token survives if those before it have not reached the mass that is wanted.
        let mut before = 0.0;
        survivors.certain = 0;
        survivors.possible = 0;
        for (at, (_, logit)) in self.ranked[..candidates].iter().enumerate() {
            if at == 0 || before < least {
                survivors.certain += 1;
            }
            if at == 0 || before < most {
                survivors.possible += 1;
            }
            before += weight(*logit).exp();
        }
        survivors.is_open &= before < most;
        survivors
    }

    /// What the sum of an unknown token cannot exceed; `None` if `min_p` leaves none, or there is
    /// none.
    fn unknown_score(&self, max: f64, temperature: f64, min_weight: f64) -> Option<f64> {
        let unknown = f64::from(self.unknown?);
        let weight = (unknown - max) / temperature;
        if weight < min_weight {
            return None;
        }
        let by_logit = weight + MAX_NOISE;
        if self.list.mass == 0.0 {
            // There was no noise.
            return Some(by_logit);
        }
        let bound = f64::from(self.list.noisy_bound?);
        // The device's sum has logit / temperature, which it rounds: at most this large for a token
        // that could exceed the bound.
        let scaled = (unknown / temperature).max(MAX_NOISE - bound).abs();
        let rounding = (scaled + bound.abs()) * 2_f64.powi(-21);
        let by_noise = bound + NOISE_ERROR + rounding - max / temperature;
        // A device that overflowed says nothing.
        Some(if by_noise.is_nan() {
            by_logit
        } else {
            by_logit.min(by_noise)
        })
    }
}

/// How many of the ranked tokens survive.
struct Survivors {
    /// For certain.
    certain: usize,
    /// Perhaps; at least as many.
    possible: usize,
    /// Whether tokens behind the ranked ones may.
    is_open: bool,
    /// Whether nothing truncates.
    is_all: bool,
}
