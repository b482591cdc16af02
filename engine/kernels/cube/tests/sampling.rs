//! Shortlists against sorted rows, and draws finished from them against a plain sampler of whole
//! rows, which is written here as `engine/src/sampler.rs` has it.

use std::cmp::Ordering;

use common::Numbers;
use cube_kernels::{
    Buffer, Candidate, Client, Decision, Draw, MASS_ERROR, Noise, SampleRequest, Shortlist, decide,
    shortlist,
};

mod common;

/// The sampler's hash.
fn mix(key: u64, counter: u64) -> u64 {
    let golden = 0x9e37_79b9_7f4a_7c15_u64;
    let mut z = key.wrapping_add(golden.wrapping_mul(counter.wrapping_add(1)));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The sampler's noise.
fn gumbel(stream: u64, token: u32) -> f64 {
    let bits = mix(stream, token.into());
    let uniform = ((bits >> 12) as f64 + 0.5) * (1.0 / (1_u64 << 52) as f64);
    -(-uniform.ln()).ln()
}

fn more_likely(a: Candidate, b: Candidate) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// The sampler on a whole row of adjusted logits; `None` if nothing may come.
fn sampler(logits: &[f32], draw: &Draw, stream: u64) -> Option<u32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if max == f32::NEG_INFINITY {
        return None;
    }
    if draw.temperature == 0.0 || draw.top_p == 0.0 || draw.top_k == 1 {
        return logits.iter().position(|l| *l == max).map(|at| at as u32);
    }
    let weight = |logit: f32| (f64::from(logit) - f64::from(max)) / f64::from(draw.temperature);
    let mut candidates: Vec<Candidate> = (0..)
        .zip(logits.iter().copied())
        .filter(|c: &Candidate| c.1 > f32::NEG_INFINITY)
        .collect();
    candidates.sort_by(|a, b| more_likely(*a, *b));
    if draw.top_k > 0 {
        candidates.truncate(draw.top_k as usize);
    }
    if draw.top_p < 1.0 {
        let wanted: f64 =
            f64::from(draw.top_p) * candidates.iter().map(|c| weight(c.1).exp()).sum::<f64>();
        let mut mass = 0.0;
        if let Some(last) = candidates.iter().position(|c| {
            mass += weight(c.1).exp();
            mass >= wanted
        }) {
            candidates.truncate(last + 1);
        }
    }
    let min_weight = f64::from(draw.min_p).ln();
    candidates
        .into_iter()
        .filter(|c| weight(c.1) >= min_weight)
        .map(|(token, logit)| (weight(logit) + gumbel(stream, token), token))
        .max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)))
        .map(|(_, token)| token)
}

/// A row, what is done to it, and how it is drawn.
struct Case {
    logits: Vec<f32>,
    mask: Option<Vec<u32>>,
    /// Edited tokens with their adjusted logits, ascending.
    edits: Vec<Candidate>,
    draw: Draw,
    stream: u64,
}

impl Case {
    fn new(numbers: &mut Numbers, v: usize) -> Self {
        let scale = [0.01, 1.0, 4.0, 15.0][numbers.next() as usize % 4];
        let shape = numbers.next() % 6;
        let mut logits: Vec<f32> = numbers
            .vector(v, 1.0)
            .into_iter()
            .zip(numbers.vector(v, 1.0))
            // Uniform, peaked, or few values and so many ties.
            .map(|(a, b)| match shape {
                0 => a * scale,
                1 => (a * b * a * 3.0).powi(3) * scale,
                2 => (a * 2.0).round() * scale,
                3 => 1.5,
                4 => -(a.abs().ln()) * scale,
                _ => (a + b) * scale - 20.0,
            })
            .collect();
        if numbers.next().is_multiple_of(4) {
            for logit in &mut logits {
                if numbers.next().is_multiple_of(3) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        logits[numbers.next() as usize % v] = 0.5;
        let one_in = [1, 2, 50][numbers.next() as usize % 3];
        let mask = (numbers.next().is_multiple_of(3)).then(|| {
            let words = v.div_ceil(32) - (numbers.next() as usize % 2);
            let mut mask = vec![0_u32; words];
            for word in &mut mask {
                for bit in 0..32 {
                    *word |= u32::from(numbers.next().is_multiple_of(one_in)) << bit;
                }
            }
            mask
        });
        let mut edits = Vec::new();
        if numbers.next().is_multiple_of(2) {
            let one_in = [2, 20, 200][numbers.next() as usize % 3];
            for (token, &logit) in (0..).zip(&logits) {
                if numbers.next().is_multiple_of(one_in) {
                    let logit = match numbers.next() % 3 {
                        0 => f32::NEG_INFINITY,
                        1 => logit * 1.1 - 0.3,
                        _ => logit + 2.0,
                    };
                    edits.push((token, logit));
                }
            }
        }
        let pick = |numbers: &mut Numbers, of: &[f32]| of[numbers.next() as usize % of.len()];
        let draw = Draw {
            temperature: pick(numbers, &[0.0, 0.05, 0.6, 1.0, 1.0, 3.0]),
            top_k: pick(numbers, &[0.0, 0.0, 0.0, 1.0, 5.0, 40.0, 100.0]) as u32,
            top_p: pick(numbers, &[1.0, 1.0, 0.95, 0.95, 0.5, 0.999, 0.0]),
            min_p: pick(numbers, &[0.0, 0.0, 0.0, 0.05, 0.4]),
        };
        Self {
            logits,
            mask,
            edits,
            draw,
            stream: numbers.next(),
        }
    }

    fn is_allowed(&self, token: u32) -> bool {
        self.mask.as_ref().is_none_or(|mask| {
            let word = mask.get(token as usize / 32).copied().unwrap_or(0);
            word >> (token % 32) & 1 == 1
        })
    }

    /// Tokens of the lists: allowed, possible, not edited.
    fn listable(&self) -> Vec<Candidate> {
        (0..)
            .zip(self.logits.iter().copied())
            .filter(|&(token, logit): &Candidate| {
                let is_edited = self.edits.iter().any(|edit| edit.0 == token);
                self.is_allowed(token) && !is_edited && logit > f32::NEG_INFINITY
            })
            .collect()
    }

    /// The token that the plain sampler draws.
    fn drawn(&self) -> Option<u32> {
        let mut logits = self.logits.clone();
        for &(token, logit) in &self.edits {
            logits[token as usize] = logit;
        }
        for (token, logit) in (0..).zip(&mut logits) {
            if !self.is_allowed(token) {
                *logit = f32::NEG_INFINITY;
            }
        }
        sampler(&logits, &self.draw, self.stream)
    }

    /// What the shortlist decides.
    fn decided(&self, list: &Shortlist) -> Decision {
        let edits: Vec<Candidate> = self
            .edits
            .iter()
            .copied()
            .filter(|edit| self.is_allowed(edit.0))
            .collect();
        let noise = |token| gumbel(self.stream, token);
        decide(list, &edits, self.logits.len(), &self.draw, noise)
    }

    /// Fails unless the decision is right or admits that it cannot tell; whether it can.
    fn check(&self, list: &Shortlist) -> bool {
        let what = format!("{:?} {list:?}", self.draw);
        match (self.decided(list), self.drawn()) {
            (Decision::Token(token), want) => {
                assert_eq!(Some(token), want, "{what}");
                true
            }
            (Decision::NothingLeft, want) => {
                assert_eq!(None, want, "{what}");
                true
            }
            (Decision::ReadRow, _) => false,
            (Decision::BadLogits, _) => panic!("a sound row: {what}"),
        }
    }

    /// A shortlist as a device might send it, as wrong as it may be.
    fn imagined(&self, num_likely: usize, num_noisy: usize, numbers: &mut Numbers) -> Shortlist {
        let mut wrong = |by: f64| (numbers.next() % 2001) as f64 / 1000.0 * by - by;
        let temperature = f64::from(self.draw.temperature);
        let listable = self.listable();
        let mut likely = listable.clone();
        likely.sort_by(|a, b| more_likely(*a, *b));
        let likely_max = likely.first().map_or(f32::NEG_INFINITY, |best| best.1);
        let max = self
            .logits
            .iter()
            .copied()
            .fold(f32::NEG_INFINITY, f32::max);
        let has_noise = temperature > 0.0 && num_noisy > 0;
        let mut noisy: Vec<(f32, Candidate)> = listable
            .iter()
            .filter(|_| has_noise)
            .map(|&c| {
                let sum = f64::from(c.1) / temperature + gumbel(self.stream, c.0);
                ((sum + wrong(1.0 / 32768.0)) as f32, c)
            })
            .collect();
        noisy.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mass: f64 = listable
            .iter()
            .map(|c| (f64::from(c.1 - likely_max) / temperature).exp())
            .sum();
        noisy.truncate(num_noisy);
        let is_full = has_noise && noisy.len() == num_noisy;
        likely.truncate(num_likely);
        Shortlist {
            is_sound: true,
            max,
            sum: 0.0,
            top: Vec::new(),
            has_more: likely.len() == num_likely,
            likely,
            likely_max,
            mass: if has_noise {
                (mass * (1.0 + wrong(MASS_ERROR))) as f32
            } else {
                0.0
            },
            noisy_bound: is_full.then(|| noisy.last().unwrap().0),
            noisy: noisy.into_iter().map(|(_, c)| c).collect(),
            edited: Vec::new(),
            wanted: Vec::new(),
        }
    }
}

#[test]
fn what_is_decided_is_what_the_sampler_draws() {
    let mut numbers = Numbers::new(1);
    let (mut num_decided, mut num_untruncated, rounds) = (0, 0, 20_000);
    for round in 0..rounds {
        let v = [40, 150, 333][round % 3];
        let case = Case::new(&mut numbers, v);
        let num_likely = [0, 1, 8, 64][round / 3 % 4];
        let num_noisy = [0, 1, 12][round / 12 % 3];
        let is_decided = case.check(&case.imagined(num_likely, num_noisy, &mut numbers));
        num_decided += usize::from(is_decided);
        let is_open = case.draw.top_k == 0 && case.draw.top_p == 1.0 && case.draw.min_p == 0.0;
        if is_open && case.draw.temperature > 0.0 && num_noisy == 12 {
            num_untruncated += 1;
            assert!(is_decided, "untruncated draws need no row: {:?}", case.draw);
        }
    }
    println!("{num_decided} of {rounds} decided, {num_untruncated} untruncated");
    assert!(num_decided > rounds / 2 && num_untruncated > rounds / 50);
}

/// What serving asks for: hardly a row is read.
#[test]
fn usual_rows_are_decided() {
    let mut numbers = Numbers::new(4);
    let v = 2000;
    let mut num_read = 0;
    for _ in 0..500 {
        // Peaked as a model's rows are: a few tokens have nearly all the mass.
        let logits: Vec<f32> = numbers
            .vector(v, 1.0)
            .into_iter()
            .map(|x| -2.5 * (x.abs() + 1e-6).ln())
            .collect();
        let case = Case {
            logits,
            mask: None,
            edits: Vec::new(),
            draw: Draw {
                temperature: 1.0,
                top_k: 0,
                top_p: 0.95,
                min_p: 0.0,
            },
            stream: numbers.next(),
        };
        num_read += usize::from(!case.check(&case.imagined(256, 16, &mut numbers)));
    }
    println!("{num_read} of 500 rows read");
    assert!(num_read <= 5, "{num_read} of 500");
}

#[test]
fn bad_rows_and_zeros_are_told() {
    let sound = Shortlist {
        is_sound: true,
        max: 0.0,
        sum: 2.0,
        top: Vec::new(),
        likely: vec![(7, 0.0)],
        has_more: true,
        likely_max: 0.0,
        mass: 0.0,
        noisy: Vec::new(),
        noisy_bound: None,
        edited: Vec::new(),
        wanted: Vec::new(),
    };
    let greedy = Draw {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
    };
    let of = |list: &Shortlist, edits: &[Candidate]| decide(list, edits, 100, &greedy, |_| 0.0);
    // Minus zero at a lower id would be equal, and come later in the order.
    assert_eq!(of(&sound, &[]), Decision::ReadRow);
    assert_eq!(of(&sound, &[(3, 1.0)]), Decision::Token(3));
    assert_eq!(of(&sound, &[(3, f32::NAN)]), Decision::BadLogits);
    assert_eq!(of(&sound, &[(3, f32::INFINITY)]), Decision::BadLogits);
    let closed = Shortlist {
        has_more: false,
        likely: vec![(7, 0.0), (2, -0.0)],
        ..sound.clone()
    };
    assert_eq!(of(&closed, &[]), Decision::Token(2));
    let broken = Shortlist {
        is_sound: false,
        ..sound.clone()
    };
    assert_eq!(of(&broken, &[(3, 1.0)]), Decision::BadLogits);
    let none = Shortlist {
        likely: Vec::new(),
        has_more: false,
        likely_max: f32::NEG_INFINITY,
        ..sound
    };
    assert_eq!(of(&none, &[(3, f32::NEG_INFINITY)]), Decision::NothingLeft);
}

/// Runs cases as one step.
fn on_device(client: &Client, cases: &[Case], num_likely: usize) -> Vec<Shortlist> {
    let v = cases[0].logits.len();
    let edited: Vec<Vec<u32>> = cases
        .iter()
        .map(|case| case.edits.iter().map(|edit| edit.0).collect())
        .collect();
    let wanted = [3_u32, v as u32 - 1, 0];
    let requests: Vec<SampleRequest<'_>> = cases
        .iter()
        .zip(&edited)
        .enumerate()
        .map(|(at, (case, edited))| SampleRequest {
            mask: case.mask.as_deref(),
            edited,
            wanted: &wanted[..at % 4],
            num_top: [0, 5, 20][at % 3],
            num_likely,
            noise: (case.draw.temperature > 0.0).then_some(Noise {
                stream: case.stream,
                temperature: case.draw.temperature,
                count: 16,
            }),
        })
        .collect();
    let logits: Vec<f32> = cases.iter().flat_map(|case| case.logits.clone()).collect();
    let logits = Buffer::upload(client, &logits);
    let lists = shortlist(client, &logits, cases.len(), v, &requests).read(client);
    for ((list, request), case) in lists.iter().zip(&requests).zip(cases) {
        let raw = |tokens: &[u32]| -> Vec<f32> {
            tokens
                .iter()
                .map(|&token| case.logits[token as usize])
                .collect()
        };
        assert_eq!(bits(&list.edited), bits(&raw(request.edited)));
        assert_eq!(bits(&list.wanted), bits(&raw(request.wanted)));
        let mut top: Vec<Candidate> = (0..).zip(case.logits.iter().copied()).collect();
        top.sort_by(|a, b| more_likely(*a, *b));
        top.truncate(request.num_top);
        if list.is_sound {
            assert_eq!(list.top, top, "top {}", request.num_top);
        }
    }
    lists
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Holds a list against the sorted row.
fn check_list(case: &Case, list: &Shortlist, num_likely: usize) {
    assert!(list.is_sound);
    let mut likely = case.listable();
    likely.sort_by(|a, b| more_likely(*a, *b));
    let max = case
        .logits
        .iter()
        .copied()
        .fold(f32::NEG_INFINITY, f32::max);
    assert_eq!(list.max, max);
    let sum: f64 = case.logits.iter().map(|l| f64::from(l - max).exp()).sum();
    assert!(
        (f64::from(list.sum) / sum - 1.0).abs() < 1e-5,
        "sum {} for {sum}",
        list.sum
    );
    let likely_max = likely.first().map_or(f32::NEG_INFINITY, |best| best.1);
    assert_eq!(list.likely_max, likely_max);
    assert_eq!(list.has_more, likely.len() >= num_likely);
    let temperature = f64::from(case.draw.temperature);
    if temperature > 0.0 {
        let mass: f64 = likely
            .iter()
            .map(|c| (f64::from(c.1 - likely_max) / temperature).exp())
            .sum();
        let error = (f64::from(list.mass) - mass).abs();
        assert!(
            error <= MASS_ERROR * 0.1 * mass,
            "mass {} for {mass}",
            list.mass
        );
        assert_eq!(list.noisy.len(), likely.len().min(16));
        assert_eq!(list.noisy_bound.is_some(), likely.len() >= 16);
        if let Some(bound) = list.noisy_bound {
            for c in &likely {
                let sum = f64::from(c.1) / temperature + gumbel(case.stream, c.0);
                let bound = f64::from(bound);
                let error = 0.5 / 32768.0 + (sum.abs() + f64::from(c.1.abs()) / temperature) * 5e-7;
                let is_right = if list.noisy.contains(c) {
                    sum > bound - error
                } else {
                    sum < bound + error
                };
                assert!(is_right, "{c:?} has {sum}, the bound is {bound}");
            }
        }
    }
    likely.truncate(num_likely);
    assert_eq!(list.likely, likely);
}

#[test]
fn lists_are_the_sorted_rows() {
    let Some(client) = common::client() else {
        return;
    };
    let mut numbers = Numbers::new(9);
    for (v, p, num_likely) in [(5003, 9, 64), (2048, 3, 256), (37, 6, 3)] {
        let cases: Vec<Case> = (0..p).map(|_| Case::new(&mut numbers, v)).collect();
        let lists = on_device(&client, &cases, num_likely);
        for (case, list) in cases.iter().zip(&lists) {
            check_list(case, list, num_likely);
            case.check(list);
        }
    }
}

#[test]
fn a_whole_vocabulary_is_listed() {
    let Some(client) = common::client() else {
        return;
    };
    let mut numbers = Numbers::new(31);
    let mut case = Case::new(&mut numbers, 131_072);
    case.draw.temperature = 1.0;
    let lists = on_device(&client, std::slice::from_ref(&case), 256);
    check_list(&case, &lists[0], 256);
}

#[test]
fn a_bad_row_spoils_only_itself() {
    let Some(client) = common::client() else {
        return;
    };
    let mut numbers = Numbers::new(6);
    let mut cases: Vec<Case> = (0..5).map(|_| Case::new(&mut numbers, 4100)).collect();
    cases[1].logits[4099] = f32::NAN;
    cases[2].logits[5] = f32::INFINITY;
    cases[3].logits.fill(f32::NEG_INFINITY);
    let lists = on_device(&client, &cases, 8);
    let sound: Vec<bool> = lists.iter().map(|list| list.is_sound).collect();
    assert_eq!(sound, [true, false, false, false, true]);
    for at in [0, 4] {
        check_list(&cases[at], &lists[at], 8);
    }
    for at in [1, 2, 3] {
        assert_eq!(cases[at].decided(&lists[at]), Decision::BadLogits);
    }
}
