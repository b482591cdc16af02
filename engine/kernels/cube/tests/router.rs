//! The router against a sort in f64.

use common::{Numbers, poisoned};
use cube_kernels::{Buffer, RouterShape, router_topk};

mod common;

const PLAIN: RouterShape = RouterShape {
    num_experts: 4,
    top_k: 2,
    n_group: 1,
    topk_group: 1,
    norm_topk_prob: false,
    scaling: 1.0,
};

/// Ids and weights as the device gives them; the outputs are poisoned before.
fn route(
    client: &cube_kernels::Client,
    logits: &[f32],
    bias: &[f32],
    shape: &RouterShape,
) -> (Vec<i32>, Vec<f32>) {
    let t = logits.len() / shape.num_experts;
    let ids = Buffer::upload(client, &vec![0xdead_beef_u32; t * shape.top_k]);
    let weights = poisoned(client, t * shape.top_k);
    let logits = Buffer::upload(client, logits);
    let bias = Buffer::upload(client, bias);
    router_topk(client, &logits, &bias, t, shape, &ids, &weights);
    (ids.read(client), weights.read(client))
}

fn sigmoid(logit: f32) -> f64 {
    1.0 / (1.0 + (-f64::from(logit)).exp())
}

/// Ids and weights of one token, in f64.
fn expected(logits: &[f32], bias: &[f32], shape: &RouterShape) -> (Vec<i32>, Vec<f64>) {
    let scores: Vec<f64> = logits.iter().copied().map(sigmoid).collect();
    let mut keys: Vec<f64> = scores
        .iter()
        .zip(bias)
        .map(|(score, &bias)| score + f64::from(bias))
        .collect();
    let descending = |keys: &[f64]| {
        let mut order: Vec<usize> = (0..keys.len()).collect();
        order.sort_by(|&a, &b| keys[b].partial_cmp(&keys[a]).unwrap().then(a.cmp(&b)));
        order
    };
    if shape.n_group > 1 {
        let size = keys.len() / shape.n_group;
        let sums: Vec<f64> = keys
            .chunks(size)
            .map(|group| descending(group).iter().take(2).map(|&i| group[i]).sum())
            .collect();
        for &group in &descending(&sums)[shape.topk_group.min(shape.n_group)..] {
            keys[group * size..][..size].fill(f64::NEG_INFINITY);
        }
    }
    let order = descending(&keys)[..shape.top_k].to_vec();
    let divisor = if shape.norm_topk_prob {
        order.iter().map(|&i| scores[i]).sum::<f64>() + 1e-20
    } else {
        1.0
    };
    let weights = order
        .iter()
        .map(|&i| scores[i] / divisor * f64::from(shape.scaling));
    (order.iter().map(|&i| i as i32).collect(), weights.collect())
}

#[test]
fn random_rows_agree() {
    let Some(client) = common::client() else {
        return;
    };
    let shapes = [
        // Super, Nano, then awkward ones.
        (3, 512, 22, 1, 1, true, 5.0),
        (5, 128, 6, 1, 1, true, 2.5),
        (1, 7, 7, 1, 1, false, 1.0),
        (9, 33, 1, 3, 1, true, 0.5),
        (4, 64, 8, 8, 3, true, 2.5),
        // Fewer experts in the kept group than chosen.
        (4, 12, 5, 4, 1, false, 1.0),
        // Groups of one.
        (3, 6, 2, 6, 3, true, 1.0),
    ];
    let mut random = Numbers::new(7);
    for (t, num_experts, top_k, n_group, topk_group, norm_topk_prob, scaling) in shapes {
        let shape = RouterShape {
            num_experts,
            top_k,
            n_group,
            topk_group,
            norm_topk_prob,
            scaling,
        };
        // Scores spread evenly, shuffled by a prime stride, and biases that bring no two of them
        // within 1e-5: the device's own exponential cannot change their order.
        let logits: Vec<f32> = (0..t)
            .flat_map(|row| {
                (0..num_experts).map(move |i| {
                    let score = ((i * 547 + row * 31) % num_experts) as f64 + 1.0;
                    let score = score / (num_experts as f64 + 2.0);
                    (score / (1.0 - score)).ln() as f32
                })
            })
            .collect();
        let bias: Vec<f32> = (0..num_experts)
            .map(|_| (random.next() % 4) as f32 * 0.2503)
            .collect();
        let (ids, weights) = route(&client, &logits, &bias, &shape);
        for row in 0..t {
            let logits = &logits[row * num_experts..][..num_experts];
            let (expect_ids, expect_weights) = expected(logits, &bias, &shape);
            let at = row * top_k..(row + 1) * top_k;
            assert_eq!(ids[at.clone()], expect_ids, "{shape:?} row {row}");
            for (&weight, expect) in weights[at].iter().zip(expect_weights) {
                let error = (f64::from(weight) - expect).abs();
                assert!(
                    error < 2e-6 * f64::from(scaling),
                    "{shape:?}: {weight} for {expect}"
                );
            }
        }
    }
}

#[test]
fn ties_go_to_the_lowest_id() {
    let Some(client) = common::client() else {
        return;
    };
    let (ids, _) = route(&client, &[0.5; 4], &[0.0; 4], &PLAIN);
    assert_eq!(ids, [0, 1]);
    let (ids, _) = route(&client, &[-1.0, 0.5, 0.5, 0.5], &[0.0; 4], &PLAIN);
    assert_eq!(ids, [1, 2]);
    // Across the lanes of a plane, and groups that tie.
    let wide = RouterShape {
        num_experts: 100,
        top_k: 50,
        ..PLAIN
    };
    let (ids, _) = route(&client, &[2.0; 100], &[0.0; 100], &wide);
    assert_eq!(ids, (0..50).collect::<Vec<i32>>());
    let grouped = RouterShape {
        n_group: 2,
        top_k: 3,
        ..PLAIN
    };
    let (ids, _) = route(&client, &[1.0; 4], &[0.0; 4], &grouped);
    assert_eq!(ids, [0, 1, 2]);
}

#[test]
fn a_nan_row_spoils_only_itself() {
    let Some(client) = common::client() else {
        return;
    };
    let nan = f32::NAN;
    let logits = [nan, nan, nan, nan, -2.0, 1.0, 0.5, -2.0, nan, nan, nan, 0.5];
    for norm_topk_prob in [false, true] {
        let shape = RouterShape {
            norm_topk_prob,
            ..PLAIN
        };
        let (ids, weights) = route(&client, &logits, &[0.0; 4], &shape);
        assert_eq!(ids, [0, 1, 1, 2, 3, 0]);
        assert!(weights[..2].iter().all(|weight| weight.is_nan()));
        assert!(weights[2..4].iter().all(|weight| weight.is_finite()));
        assert!(weights[5].is_nan());
    }
}

#[test]
fn a_row_without_scores_has_zero_weights() {
    let Some(client) = common::client() else {
        return;
    };
    let shape = RouterShape {
        norm_topk_prob: true,
        ..PLAIN
    };
    let (ids, weights) = route(&client, &[f32::NEG_INFINITY; 4], &[0.0; 4], &shape);
    assert_eq!(ids, [0, 1]);
    assert_eq!(weights, [0.0, 0.0]);
}
