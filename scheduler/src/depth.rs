//! How many drafts pay.
//!
//! A draft that comes true saves a step, one that does not costs a token's share of one, and making it
//! costs a pass through the draft block. Which of these wins depends on the number of rows (a step of
//! one row waits for weights, which more tokens hardly add to; a full one computes) and on how often
//! drafts come true, which is observed: by depth, for each sequence and for all. Integers only, so the
//! same observations give the same plans everywhere.

use crate::config::{DraftCost, MAX_DRAFTS};
use crate::costs::{Costs, STEP, StepTime};

/// Probability one.
const ONE: u64 = 1 << 16;
/// What is believed beforehand weighs like so many observations.
const PRIOR_WEIGHT: u64 = 8;
/// What is believed while nothing is known: enough to try in all but the fullest steps. Who never tries
/// never learns; who tries in vain knows it after a few steps.
const FIRST_BELIEF: u64 = ONE * 9 / 10;
/// Observations after which older ones count half.
const WINDOW: u32 = 64;
const GLOBAL_WINDOW: u32 = 256;
/// After so many first drafts a sequence may be given up for good.
const MIN_TRIES: u32 = 8;
/// Steps without drafts until one is tried, the first time; twice as many each further time.
const PATIENCE: u32 = 16;
/// Where drafts pay for nobody, one new sequence in so many tries them nevertheless.
const PROBE_EVERY: u32 = 16;

/// Chances that the first, the first two, .. drafts all come true; zero where there can be none.
type Odds = [u64; MAX_DRAFTS];

/// What is believed of a sequence that tries where nobody else has any luck: enough for a few tries.
const PROBE_BELIEF: u64 = ONE / 2;

/// What has come true so far, for all sequences.
#[derive(Debug)]
pub(crate) struct Depth {
    costs: Costs,
    max_drafts: u32,
    observed: Observed,
    /// Sequences that began while drafts paid for nobody.
    num_hopeless: u32,
}

/// What has come true so far, for one sequence.
#[derive(Debug)]
pub(crate) struct Guesser {
    observed: Observed,
    /// It does not believe in what all the others saw.
    is_probe: bool,
    /// For good: it never passes through the draft block again.
    is_off: bool,
    /// Steps since it last made drafts, and how many more it would take.
    num_idle: u32,
    patience: u32,
}

/// A row that could make drafts.
#[derive(Debug)]
pub(crate) struct Candidate<'a> {
    pub(crate) guesser: &'a mut Guesser,
    /// At most so many.
    pub(crate) limit: u32,
}

impl Depth {
    pub(crate) fn new(max_drafts: u32, costs: Vec<DraftCost>) -> Self {
        Self {
            costs: Costs::new(costs),
            max_drafts,
            observed: Observed::new(GLOBAL_WINDOW),
            num_hopeless: 0,
        }
    }

    /// For a sequence that may want drafts.
    pub(crate) fn begin(&mut self) -> Guesser {
        let mut guesser = Guesser {
            observed: Observed::new(WINDOW),
            is_probe: false,
            is_off: self.max_drafts == 0,
            num_idle: 0,
            patience: PATIENCE,
        };
        if !guesser.is_off && !self.could_pay(&guesser) {
            guesser.is_probe = self.num_hopeless.is_multiple_of(PROBE_EVERY);
            guesser.is_off = !guesser.is_probe;
            self.num_hopeless += 1;
        }
        guesser
    }

    /// Of `num_drafts` in a row the first `num_accepted` came true.
    pub(crate) fn note(&mut self, guesser: &mut Guesser, num_drafts: u32, num_accepted: u32) {
        self.observed.note(num_drafts, num_accepted);
        guesser.observed.note(num_drafts, num_accepted);
        let is_known = guesser.observed.tries[0] >= MIN_TRIES;
        guesser.is_off |= is_known && !self.could_pay(guesser);
    }

    /// A step took so long.
    pub(crate) fn note_time(&mut self, time: &StepTime) {
        self.costs.note(time);
    }

    /// How many drafts each candidate makes in a step in which `num_rows` rows draw tokens.
    pub(crate) fn choose(&mut self, num_rows: u32, candidates: &mut [Candidate<'_>]) -> Vec<u32> {
        let Some(cost) = self.costs.of(num_rows) else {
            return candidates.iter().map(|row| row.limit).collect();
        };
        let odds: Vec<Odds> = candidates
            .iter()
            .map(|row| self.odds(row.guesser, row.limit))
            .collect();
        let mut depths = best_depths(cost, num_rows, &odds);
        let willing: Vec<bool> = candidates
            .iter()
            .map(|row| row.limit > 0 && !row.guesser.is_off)
            .collect();
        let is_drafting = depths.iter().any(|depth| *depth > 0);
        let could_draft = willing.contains(&true);
        if could_draft && self.costs.probes(num_rows, is_drafting) {
            // To see what it costs.
            let depth = |is_willing| u32::from(!is_drafting && is_willing);
            return willing.into_iter().map(depth).collect();
        }
        for (depth, row) in depths.iter_mut().zip(candidates) {
            if *depth > 0 {
                row.guesser.num_idle = 0;
            } else if row.limit > 0 && !row.guesser.is_off {
                // Its own bad luck is put to the test again, a bad time for everybody is not.
                row.guesser.num_idle += 1;
                let is_due = row.guesser.num_idle >= row.guesser.patience;
                if is_due && pays(cost, &self.common_odds(row.limit)) {
                    *depth = 1;
                    row.guesser.num_idle = 0;
                    row.guesser.patience = row.guesser.patience.saturating_mul(2);
                }
            }
        }
        depths
    }

    /// Whether a row that draws nothing yet should pass through the draft block.
    pub(crate) fn prepares(&self, num_rows: u32, guesser: &Guesser) -> bool {
        let cost = self.costs.of(num_rows);
        !guesser.is_off && cost.is_none_or(|cost| pays(cost, &self.odds(guesser, self.max_drafts)))
    }

    /// Whether drafts pay in any step.
    fn could_pay(&self, guesser: &Guesser) -> bool {
        let odds = self.odds(guesser, self.max_drafts);
        self.costs.is_empty() || self.costs.all().any(|cost| pays(cost, &odds))
    }

    fn odds(&self, guesser: &Guesser, limit: u32) -> Odds {
        let limit = if guesser.is_off { 0 } else { limit };
        let mut believed = if guesser.is_probe {
            PROBE_BELIEF
        } else {
            FIRST_BELIEF
        };
        let mut all = ONE;
        self.cumulate(limit, |depth| {
            if !guesser.is_probe {
                believed = self.observed.rate(depth, believed, PRIOR_WEIGHT);
            }
            all = all * guesser.observed.rate(depth, believed, PRIOR_WEIGHT) / ONE;
            all
        })
    }

    /// Those of a sequence of which nothing is known.
    fn common_odds(&self, limit: u32) -> Odds {
        let mut believed = FIRST_BELIEF;
        let mut all = ONE;
        self.cumulate(limit, |depth| {
            believed = self.observed.rate(depth, believed, PRIOR_WEIGHT);
            all = all * believed / ONE;
            all
        })
    }

    fn cumulate(&self, limit: u32, mut at: impl FnMut(usize) -> u64) -> Odds {
        let mut odds = [0; MAX_DRAFTS];
        let limit = limit.min(self.max_drafts) as usize;
        for (depth, odds) in odds.iter_mut().enumerate().take(limit) {
            *odds = at(depth);
        }
        odds
    }
}

/// Whether drafts pay where all rows are like this one.
fn pays(cost: DraftCost, odds: &Odds) -> bool {
    best_depths(cost, 1, std::slice::from_ref(odds))[0] > 0
}

/// Tries and hits by depth, younger ones counting more.
#[derive(Debug)]
struct Observed {
    tries: [u32; MAX_DRAFTS],
    hits: [u32; MAX_DRAFTS],
    window: u32,
}

impl Observed {
    fn new(window: u32) -> Self {
        Self {
            tries: [0; MAX_DRAFTS],
            hits: [0; MAX_DRAFTS],
            window,
        }
    }

    /// Drafts behind a false one tell nothing.
    fn note(&mut self, num_drafts: u32, num_accepted: u32) {
        for depth in 0..num_drafts.min(num_accepted + 1) as usize {
            self.tries[depth] += 1;
            self.hits[depth] += u32::from((depth as u32) < num_accepted);
            if self.tries[depth] >= self.window {
                self.tries[depth] /= 2;
                self.hits[depth] /= 2;
            }
        }
    }

    /// The chance of a draft at `depth`, those before it being true.
    fn rate(&self, depth: usize, believed: u64, weight: u64) -> u64 {
        let (tries, hits) = (u64::from(self.tries[depth]), u64::from(self.hits[depth]));
        (hits * ONE + believed * weight) / (tries + weight)
    }
}

/// Depths at which a step of `num_rows` rows yields most tokens per time, and all those after it that
/// are like it.
///
/// With `g` tokens and time `t` the best `g / t` is found by maximising `g - r t` for the best rate `r`
/// known so far, again and again (Dinkelbach 1967). For a given rate every draft stands for itself: it
/// is worth its chance less what its token costs; and all drafts of a depth together must be worth a
/// pass. Chances fall with the depth, so what is chosen has no holes.
fn best_depths(cost: DraftCost, num_rows: u32, odds: &[Odds]) -> Vec<u32> {
    let num_rows = u64::from(num_rows);
    let (token, pass) = (u64::from(cost.token), u64::from(cost.pass) * num_rows);
    let mut depths = vec![0; odds.len()];
    if odds.is_empty() {
        return depths;
    }
    // Tokens per time of a plain step.
    let mut rate = ONE;
    // It converges in two or three rounds; what is not found by then is not worth much.
    for _ in 0..8 {
        let (token_worth, pass_worth) = (token * rate / STEP, pass * rate / STEP);
        let (mut gain, mut time) = (num_rows * ONE, num_rows * STEP);
        let mut found = vec![0; odds.len()];
        for depth in 0..MAX_DRAFTS {
            let worthy = || {
                let rows = odds.iter().map(move |odds| odds[depth]).enumerate();
                rows.filter(|(_, odds)| *odds > token_worth)
            };
            let worth: u64 = worthy().map(|(_, odds)| odds - token_worth).sum();
            if worth <= pass_worth {
                break;
            }
            for (row, odds) in worthy() {
                found[row] += 1;
                gain += odds;
                time += token;
            }
            time += pass;
        }
        let better = gain * STEP / time;
        if better <= rate {
            break;
        }
        rate = better;
        depths = found;
    }
    depths
}

#[cfg(test)]
mod tests;
