use std::sync::Arc;

use scheduler::RequestId;

use super::*;

fn sample_with(params: SamplingParams, seed: u64, index: u32) -> Sample {
    Sample {
        request: RequestId(1),
        choice: 0,
        params: Arc::new(params),
        seed,
        index,
        history: None,
    }
}

/// Without a guide.
fn sample(logits: &[f32], by: &Sample) -> Result<u32, RowFault> {
    super::sample(logits, by, None)
}

fn hot() -> SamplingParams {
    SamplingParams {
        temperature: 1.0,
        ..SamplingParams::default()
    }
}

/// `n` draws over consecutive indices.
fn draws(logits: &[f32], params: &SamplingParams, n: u32) -> Vec<u32> {
    (0..n)
        .map(|index| sample(logits, &sample_with(params.clone(), 7, index)).expect("good logits"))
        .collect()
}

/// Chi-square of the draws against the softmax of `expect` (weights, unnormalised).
#[track_caller]
fn check_distribution(logits: &[f32], params: &SamplingParams, expect: &[f64], limit: f64) {
    const N: u32 = 40_000;
    let mut counts = vec![0_u32; logits.len()];
    for token in draws(logits, params, N) {
        counts[token as usize] += 1;
    }
    let total: f64 = expect.iter().sum();
    let mut chi_square = 0.0;
    for (count, weight) in counts.iter().zip(expect) {
        if *weight == 0.0 {
            assert_eq!(*count, 0, "a token outside the truncation was drawn");
            continue;
        }
        let expected = f64::from(N) * weight / total;
        chi_square += (f64::from(*count) - expected).powi(2) / expected;
    }
    assert!(chi_square < limit, "chi-square {chi_square}: {counts:?}");
}

const LOGITS: [f32; 6] = [0.0, 1.0, -1.0, 2.0, 0.5, -3.0];

fn weights(temperature: f64) -> Vec<f64> {
    LOGITS
        .iter()
        .map(|logit| (f64::from(*logit) / temperature).exp())
        .collect()
}

#[test]
fn what_is_no_number_is_found_in_any_place() {
    for len in 1..50 {
        assert_eq!(finite_max(&vec![-1.5; len]), Ok(-1.5));
        for at in 0..len {
            let with = |logit| {
                let mut logits = vec![-1.5; len];
                logits[at] = logit;
                finite_max(&logits)
            };
            assert_eq!(with(2.0), Ok(2.0));
            let of_the_others = if len > 1 {
                Ok(-1.5)
            } else {
                Err(RowFault::BadLogits)
            };
            assert_eq!(with(f32::NEG_INFINITY), of_the_others);
            for bad in [f32::NAN, f32::INFINITY] {
                assert_eq!(
                    with(bad),
                    Err(RowFault::BadLogits),
                    "{bad} at {at} of {len}"
                );
            }
        }
    }
}

#[test]
fn draws_follow_the_softmax() {
    // 5 degrees of freedom: 20.5 is passed by one seed in a thousand.
    check_distribution(&LOGITS, &hot(), &weights(1.0), 20.5);
    let mut params = hot();
    params.temperature = 2.0;
    check_distribution(&LOGITS, &params, &weights(2.0), 20.5);
    params.temperature = 0.5;
    check_distribution(&LOGITS, &params, &weights(0.5), 20.5);
}

#[test]
fn other_seeds_of_one_index_follow_it_too() {
    let mut counts = [0_u32; 6];
    for seed in 0..40_000 {
        let token = sample(&LOGITS, &sample_with(hot(), seed, 3)).expect("good logits");
        counts[token as usize] += 1;
    }
    let weights = weights(1.0);
    let total: f64 = weights.iter().sum();
    let chi_square: f64 = counts
        .iter()
        .zip(&weights)
        .map(|(count, weight)| {
            let expected = 40_000.0 * weight / total;
            (f64::from(*count) - expected).powi(2) / expected
        })
        .sum();
    assert!(chi_square < 20.5, "chi-square {chi_square}: {counts:?}");
}

#[test]
fn truncations_keep_the_rest_of_the_distribution() {
    let only = |kept: &[usize]| -> Vec<f64> {
        let weights = weights(1.0);
        (0..6)
            .map(|at| if kept.contains(&at) { weights[at] } else { 0.0 })
            .collect()
    };
    // Descending: ids 3, 1, 4, 0, 2, 5 with 0.556, 0.205, 0.124, 0.075, 0.028, 0.004.
    let k = |top_k| SamplingParams { top_k, ..hot() };
    check_distribution(&LOGITS, &k(3), &only(&[3, 1, 4]), 16.3);
    check_distribution(&LOGITS, &k(0), &weights(1.0), 20.5);
    check_distribution(&LOGITS, &k(99), &weights(1.0), 20.5);
    let p = |top_p| SamplingParams { top_p, ..hot() };
    check_distribution(&LOGITS, &p(0.55), &only(&[3]), 1.0);
    check_distribution(&LOGITS, &p(0.6), &only(&[3, 1]), 13.8);
    check_distribution(&LOGITS, &p(0.8), &only(&[3, 1, 4]), 16.3);
    let min = |min_p| SamplingParams { min_p, ..hot() };
    check_distribution(&LOGITS, &min(0.2), &only(&[3, 1, 4]), 16.3);
    check_distribution(&LOGITS, &min(1.0), &only(&[3]), 1.0);
    // The nucleus is of what top_k left: 0.556 of 0.885 is above 0.6.
    let both = SamplingParams {
        top_k: 3,
        top_p: 0.6,
        ..hot()
    };
    check_distribution(&LOGITS, &both, &only(&[3]), 1.0);
}

#[test]
fn a_wide_nucleus_is_found_beyond_the_first_sort() {
    // 1000 equal tokens: half of the mass is the 500 lowest ids.
    let logits = [1.5; 1000];
    let params = SamplingParams {
        top_p: 0.5,
        ..hot()
    };
    let drawn = draws(&logits, &params, 5000);
    assert!(drawn.iter().all(|token| *token < 500));
    assert!(drawn.iter().any(|token| *token >= 400));
}

#[test]
fn zero_means_the_top_token() {
    let logits = [1.0, 3.0, 3.0, f32::NEG_INFINITY];
    let cold = SamplingParams::default();
    let p = SamplingParams {
        top_p: 0.0,
        ..hot()
    };
    let k = SamplingParams { top_k: 1, ..hot() };
    for params in [cold, p, k] {
        assert!(draws(&logits, &params, 20).iter().all(|token| *token == 1));
    }
}

#[test]
fn equal_seeds_repeat_and_nothing_else_matters() {
    let first = draws(&LOGITS, &hot(), 50);
    assert_eq!(first, draws(&LOGITS, &hot(), 50));
    let other: Vec<u32> = (0..50)
        .map(|index| sample(&LOGITS, &sample_with(hot(), 8, index)).expect("good logits"))
        .collect();
    assert_ne!(first, other);
    // A vocabulary that grows by impossible tokens draws the same.
    let mut padded = LOGITS.to_vec();
    padded.extend([f32::NEG_INFINITY; 100]);
    assert_eq!(first, draws(&padded, &hot(), 50));
}

#[test]
fn tiny_and_huge_temperatures_stay_finite() {
    let mut params = hot();
    params.temperature = 1e-30;
    assert!(draws(&LOGITS, &params, 20).iter().all(|token| *token == 3));
    params.temperature = 1e30;
    let drawn = draws(&LOGITS, &params, 200);
    assert!((0..6).all(|token| drawn.contains(&token)));
}

#[test]
fn biases_ban_and_force() {
    let biased = |bias: &[(u32, f32)]| SamplingParams {
        logit_bias: bias.to_vec(),
        ..SamplingParams::default()
    };
    let first = |params| draws(&LOGITS, &params, 1)[0];
    assert_eq!(first(biased(&[(3, -100.0)])), 1);
    assert_eq!(first(biased(&[(5, 100.0)])), 5);
    assert_eq!(first(biased(&[(3, -1.0), (4, 0.4)])), 1, "1.0, 1.0 and 0.9");
    // A ban is a ban, however likely the token.
    let far = [0.0, 500.0];
    assert_eq!(draws(&far, &biased(&[(1, -100.0)]), 1), [0]);
    // Ids beyond the vocabulary change nothing.
    assert_eq!(first(biased(&[(99, 100.0)])), 3);
    let everything: Vec<(u32, f32)> = (0..6).map(|token| (token, -100.0)).collect();
    let sample_all = sample(&LOGITS, &sample_with(biased(&everything), 0, 0));
    assert_eq!(sample_all, Err(RowFault::BadLogits));
}

#[test]
fn stop_ids_wait_for_min_tokens() {
    let params = SamplingParams {
        min_tokens: 2,
        stop_token_ids: vec![3, 1],
        ..SamplingParams::default()
    };
    assert_eq!(draws(&LOGITS, &params, 3), [4, 4, 3]);
}

#[test]
fn penalties_look_at_what_was_said() {
    let with = |params: SamplingParams, prompt: &[u32], generated: &[u32]| Sample {
        request: RequestId(1),
        choice: 0,
        history: Some(History {
            prompt: prompt.into(),
            generated: generated.to_vec(),
        }),
        ..sample_with(params, 0, generated.len() as u32)
    };
    let default = SamplingParams::default;
    let presence = SamplingParams {
        presence_penalty: 1.5,
        ..default()
    };
    assert_eq!(sample(&LOGITS, &with(presence.clone(), &[3], &[])), Ok(3));
    assert_eq!(sample(&LOGITS, &with(presence, &[], &[3, 3])), Ok(1));
    let frequency = SamplingParams {
        frequency_penalty: 0.6,
        ..default()
    };
    assert_eq!(sample(&LOGITS, &with(frequency.clone(), &[], &[3])), Ok(3));
    assert_eq!(sample(&LOGITS, &with(frequency, &[], &[3, 3])), Ok(1));
    let repetition = SamplingParams {
        repetition_penalty: 2.5,
        ..default()
    };
    assert_eq!(sample(&LOGITS, &with(repetition.clone(), &[3], &[])), Ok(1));
    // Negative logits move away from zero.
    let negative = [-1.0, -2.0];
    assert_eq!(sample(&negative, &with(repetition, &[0], &[])), Ok(1));
}

#[test]
fn bad_rows_are_faults() {
    for bad in [
        vec![0.0, f32::NAN],
        vec![f32::NAN; 3],
        vec![f32::NEG_INFINITY; 3],
        vec![0.0, f32::INFINITY],
        vec![],
    ] {
        for params in [SamplingParams::default(), hot()] {
            let sample = sample(&bad, &sample_with(params, 0, 0));
            assert_eq!(sample, Err(RowFault::BadLogits), "{bad:?}");
        }
        assert_eq!(logprobs(&bad, 0, 2), Err(RowFault::BadLogits));
    }
    // A ban does not hide a NaN.
    let params = SamplingParams {
        logit_bias: vec![(1, -100.0)],
        ..SamplingParams::default()
    };
    let masked = sample(&[0.0, f32::NAN], &sample_with(params, 0, 0));
    assert_eq!(masked, Err(RowFault::BadLogits));
}

#[test]
fn logprobs_are_the_raw_softmax() {
    let total: f64 = weights(1.0).iter().sum();
    let expect = |logit: f64| (logit - total.ln()) as f32;
    let got = logprobs(&LOGITS, 2, 3).expect("good logits");
    assert_eq!(got.token, 2);
    assert!((got.logprob - expect(-1.0)).abs() < 1e-6);
    let ids: Vec<u32> = got.top.iter().map(|(token, _)| *token).collect();
    assert_eq!(ids, [3, 1, 4]);
    for (token, logprob) in got.top {
        assert!((logprob - expect(LOGITS[token as usize].into())).abs() < 1e-6);
    }
}

#[test]
fn logprobs_are_finite_and_ties_ascend() {
    let logits = [5.0, f32::NEG_INFINITY, 5.0, -2e4, 5.0];
    let got = logprobs(&logits, 1, 20).expect("good logits");
    assert_eq!(got.logprob, LOGPROB_FLOOR);
    let ids: Vec<u32> = got.top.iter().map(|(token, _)| *token).collect();
    assert_eq!(ids, [0, 2, 4, 3, 1], "no more than there are, ties by id");
    assert!(got.top.iter().all(|(_, logprob)| logprob.is_finite()));
    assert_eq!(logprobs(&logits, 0, 0).expect("good logits").top, []);
}

#[test]
fn draws_obey_the_mask() {
    let mask = TokenMask::only(&[1, 4, 5], 6);
    let mut counts = [0_u32; 6];
    for index in 0..40_000 {
        let by = sample_with(hot(), 7, index);
        counts[super::sample(&LOGITS, &by, Some(&mask)).expect("good logits") as usize] += 1;
    }
    let weights = weights(1.0);
    let total = weights[1] + weights[4] + weights[5];
    for token in 0..6 {
        let expect = if mask.allows(token) {
            40_000.0 * weights[token as usize] / total
        } else {
            0.0
        };
        let got = f64::from(counts[token as usize]);
        // Five standard deviations.
        assert!((got - expect).abs() <= 5.0 * expect.sqrt(), "{counts:?}");
    }
    // Greedy, and logits beyond the mask's vocabulary.
    let greedy = sample_with(
        SamplingParams {
            temperature: 0.0,
            ..hot()
        },
        0,
        0,
    );
    let small = TokenMask::only(&[0, 2], 3);
    assert_eq!(super::sample(&LOGITS, &greedy, Some(&small)), Ok(0));
}

#[test]
fn the_mask_wins_over_bans() {
    let banned = |tokens: &[u32], min_tokens| SamplingParams {
        logit_bias: tokens.iter().map(|token| (*token, -100.0)).collect(),
        min_tokens,
        stop_token_ids: vec![5],
        ..hot()
    };
    let draw = |params, allowed: &[u32]| {
        let mask = TokenMask::only(allowed, 6);
        super::sample(&LOGITS, &sample_with(params, 3, 0), Some(&mask))
    };
    // Bans are obeyed while something else is left, and weighed when not.
    for _ in 0..20 {
        assert_eq!(draw(banned(&[3], 0), &[1, 3]), Ok(1));
        assert_eq!(draw(banned(&[1, 3], 0), &[3]), Ok(3));
    }
    // The text is whole and the only way on is the end.
    assert_eq!(draw(banned(&[], 10), &[5]), Ok(5));
    assert_eq!(draw(banned(&[5], 10), &[5]), Ok(5));
    assert_eq!(
        draw(banned(&[1], 10), &[1, 5]).map(|t| t == 1 || t == 5),
        Ok(true)
    );
    // The model rules out what the grammar wants.
    let logits = [0.0, f32::NEG_INFINITY, f32::NEG_INFINITY];
    let mask = TokenMask::only(&[1, 2], 3);
    let by = sample_with(hot(), 0, 0);
    assert_eq!(super::sample(&logits, &by, Some(&mask)), Ok(1));
    // A broken guide, and broken logits under a sound one.
    let nothing = TokenMask::only(&[], 3);
    assert_eq!(
        super::sample(&logits, &by, Some(&nothing)),
        Err(RowFault::Constraint)
    );
    let bad = [0.0, f32::NAN, 1.0];
    assert_eq!(
        super::sample(&bad, &by, Some(&mask)),
        Err(RowFault::BadLogits)
    );
}
