//! The choice itself, on the host: few numbers, many branches.

use std::cmp::Ordering;

use super::RouterShape;

/// Chooses for every row of `scores` (`[T, E]`) and returns ids and weights, `[T * top_k]` each.
pub(super) fn select(scores: &[f32], bias: &[f32], shape: &RouterShape) -> (Vec<i32>, Vec<f32>) {
    let num_experts = bias.len();
    let num_tokens = scores.len() / num_experts;
    let mut ids = Vec::with_capacity(num_tokens * shape.top_k);
    let mut weights = Vec::with_capacity(num_tokens * shape.top_k);
    let mut keys = vec![0.0; num_experts];
    let mut order = Vec::with_capacity(num_experts);
    for scores in scores.chunks_exact(num_experts) {
        for ((key, &score), &bias) in keys.iter_mut().zip(scores).zip(bias) {
            *key = score + bias;
        }
        if shape.n_group > 1 {
            keep_best_groups(&mut keys, shape);
        }
        top(&keys, shape.top_k, &mut order);
        push_weights(scores, &order, shape, &mut weights);
        ids.extend(order.iter().map(|&id| id as i32));
    }
    (ids, weights)
}

/// Descending by key, ascending by id among equals. NaN comes last, so that a spoilt row still has
/// an order.
fn before(keys: &[f32], a: usize, b: usize) -> Ordering {
    match (keys[a].is_nan(), keys[b].is_nan()) {
        (false, false) => keys[b]
            .partial_cmp(&keys[a])
            .expect("neither key is NaN")
            .then(a.cmp(&b)),
        (a_nan, b_nan) => a_nan.cmp(&b_nan).then(a.cmp(&b)),
    }
}

/// The `k` best ids, best first.
fn top(keys: &[f32], k: usize, order: &mut Vec<usize>) {
    order.clear();
    order.extend(0..keys.len());
    if k < keys.len() {
        order.select_nth_unstable_by(k, |&a, &b| before(keys, a, b));
        order.truncate(k);
    }
    order.sort_unstable_by(|&a, &b| before(keys, a, b));
}

/// Leaves the keys of the `topk_group` groups whose two best keys have the largest sum.
fn keep_best_groups(keys: &mut [f32], shape: &RouterShape) {
    let size = keys.len() / shape.n_group;
    let mut order = Vec::new();
    let group_scores: Vec<f32> = keys
        .chunks_exact(size)
        .map(|group| {
            top(group, size.min(2), &mut order);
            order.iter().map(|&id| group[id]).sum()
        })
        .collect();
    top(
        &group_scores,
        shape.topk_group.min(shape.n_group),
        &mut order,
    );
    for (index, group) in keys.chunks_exact_mut(size).enumerate() {
        if !order.contains(&index) {
            group.fill(f32::NEG_INFINITY);
        }
    }
}

fn push_weights(scores: &[f32], order: &[usize], shape: &RouterShape, weights: &mut Vec<f32>) {
    let divisor = if shape.norm_topk_prob {
        order.iter().map(|&id| scores[id]).sum::<f32>() + 1e-20
    } else {
        1.0
    };
    weights.extend(order.iter().map(|&id| scores[id] / divisor * shape.scaling));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(scores: &[f32], bias: &[f32], shape: RouterShape, ids: &[i32]) -> Vec<f32> {
        let (chosen, weights) = select(scores, bias, &shape);
        assert_eq!(chosen, ids);
        weights
    }

    const PLAIN: RouterShape = RouterShape {
        top_k: 2,
        n_group: 1,
        topk_group: 1,
        norm_topk_prob: false,
        scaling: 1.0,
    };

    #[test]
    fn ties_go_to_the_lowest_id() {
        check(&[0.5; 4], &[0.0; 4], PLAIN, &[0, 1]);
        check(&[0.1, 0.5, 0.5, 0.5], &[0.0; 4], PLAIN, &[1, 2]);
    }

    #[test]
    fn bias_chooses_and_score_weighs() {
        let weights = check(&[0.2, 0.4, 0.8], &[9.0, 0.5, 0.0], PLAIN, &[0, 1]);
        assert_eq!(weights, [0.2, 0.4]);
    }

    #[test]
    fn weights_are_normalised_then_scaled() {
        let shape = RouterShape {
            norm_topk_prob: true,
            scaling: 2.5,
            ..PLAIN
        };
        let weights = check(&[0.25, 0.75, 0.0], &[0.0; 3], shape, &[1, 0]);
        assert_eq!(weights, [1.875, 0.625]);
        // The epsilon keeps a row of zeros finite.
        let weights = check(&[0.0; 3], &[0.0; 3], shape, &[0, 1]);
        assert_eq!(weights, [0.0, 0.0]);
    }

    #[test]
    fn groups_are_ranked_by_their_two_best() {
        let shape = RouterShape {
            n_group: 2,
            topk_group: 1,
            ..PLAIN
        };
        // 0.9 alone loses to 0.5 + 0.5.
        check(&[0.9, 0.0, 0.5, 0.5], &[0.0; 4], shape, &[2, 3]);
        check(&[0.5, 0.5, 0.5, 0.5], &[0.0; 4], shape, &[0, 1]);
        // Fewer experts in the kept groups than top_k: dropped ones follow in order.
        let shape = RouterShape { top_k: 3, ..shape };
        check(&[0.1, 0.1, 0.5, 0.5], &[0.0; 4], shape, &[2, 3, 0]);
        // Groups of one.
        let shape = RouterShape {
            n_group: 4,
            topk_group: 2,
            ..PLAIN
        };
        check(&[0.1, 0.9, 0.2, 0.5], &[0.0; 4], shape, &[1, 3]);
    }

    #[test]
    fn a_nan_row_spoils_only_itself() {
        let nan = f32::NAN;
        let scores = [nan, nan, nan, 0.1, 0.3, 0.2, 0.1, nan, 0.2];
        let weights = check(&scores, &[0.0; 3], PLAIN, &[0, 1, 1, 2, 2, 0]);
        assert!(weights[..2].iter().all(|w| w.is_nan()));
        assert_eq!(weights[2..], [0.3, 0.2, 0.2, 0.1]);
    }
}
