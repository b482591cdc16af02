//! What every operation should give, in f64 loops over plain slices: no tensors, no paging, no
//! batching. Slow on purpose; both the kernels and their references answer to it.

use super::inputs::bf16_round;
use crate::{Arithmetic, MambaShape, RouterShape};

/// `x @ w^T + bias`: `[m, k]`, `[n, k]`.
pub(super) fn linear(
    x: &[f64],
    w: &[f64],
    bias: Option<&[f64]>,
    k: usize,
    arithmetic: Arithmetic,
) -> Vec<f64> {
    let n = w.len() / k;
    let mut out = Vec::with_capacity(x.len() / k * n);
    for x in x.chunks_exact(k) {
        let x: Vec<f64> = if arithmetic.is_rounded() {
            x.iter().map(|&x| bf16_round(x)).collect()
        } else {
            x.to_vec()
        };
        for (column, w) in w.chunks_exact(k).enumerate() {
            let dot: f64 = x.iter().zip(w).map(|(x, w)| x * w).sum();
            out.push(dot + bias.map_or(0.0, |bias| bias[column]));
        }
    }
    out
}

/// `relu(x)^2`.
pub(super) fn relu2(x: &[f64]) -> Vec<f64> {
    x.iter().map(|x| x.max(0.0).powi(2)).collect()
}

/// `x * sigmoid(x)`.
pub(super) fn silu(x: f64) -> f64 {
    x * sigmoid(x)
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Norm over every `group` channels of rows as long as `weight`.
pub(super) fn norm(x: &[f64], weight: &[f64], group: usize, eps: f64) -> Vec<f64> {
    let mut out = Vec::with_capacity(x.len());
    for x in x.chunks_exact(weight.len()) {
        for (x, weight) in x.chunks_exact(group).zip(weight.chunks_exact(group)) {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / group as f64;
            let scale = (mean + eps).sqrt();
            out.extend(x.iter().zip(weight).map(|(x, w)| x / scale * w));
        }
    }
    out
}

/// One query head at one position over `keys` and `values`, each `[context, head_dim]`.
pub(super) fn attend(query: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>]) -> Vec<f64> {
    let scale = 1.0 / (query.len() as f64).sqrt();
    let scores: Vec<f64> = keys
        .iter()
        .map(|key| query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>() * scale)
        .collect();
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut out = vec![0.0; query.len()];
    for (weight, value) in weights.iter().zip(values) {
        for (out, value) in out.iter_mut().zip(value) {
            *out += weight / total * value;
        }
    }
    out
}

/// One channel of the convolution: `window` is history and inputs, the result one shorter than it
/// by the history.
pub(super) fn conv(window: &[f64], weight: &[f64], bias: f64) -> Vec<f64> {
    window
        .windows(weight.len())
        .map(|window| silu(bias + window.iter().zip(weight).map(|(x, w)| x * w).sum::<f64>()))
        .collect()
}

/// One token of a scan's head.
pub(super) struct HeadToken<'a> {
    /// `[head_dim]`.
    pub(super) x: &'a [f64],
    /// `[N]`.
    pub(super) b: &'a [f64],
    /// `[N]`.
    pub(super) c: &'a [f64],
    /// Before bias and softplus.
    pub(super) dt: f64,
}

/// Constants of a scan's head.
pub(super) struct HeadConstants {
    pub(super) a: f64,
    pub(super) d: f64,
    pub(super) dt_bias: f64,
    pub(super) limit: Option<(f32, f32)>,
}

/// Advances a head's state (`[head_dim, N]`) by a token and returns y (`[head_dim]`).
pub(super) fn scan(
    state: &mut [f64],
    token: &HeadToken<'_>,
    constants: &HeadConstants,
    shape: &MambaShape,
) -> Vec<f64> {
    let raw = token.dt + constants.dt_bias;
    let mut dt = raw.max(0.0) + (-raw.abs()).exp().ln_1p();
    if let Some((min, max)) = constants.limit {
        dt = dt.clamp(f64::from(min), f64::from(max));
    }
    let decay = (constants.a * dt).exp();
    let mut y = Vec::with_capacity(shape.head_dim);
    for (state, &x) in state.chunks_exact_mut(shape.state).zip(token.x) {
        let mut sum = constants.d * x;
        for ((state, b), c) in state.iter_mut().zip(token.b).zip(token.c) {
            *state = decay * *state + dt * x * b;
            sum += *state * c;
        }
        y.push(sum);
    }
    y
}

/// One token's choice: picks the best of what is left, `top_k` times.
pub(super) fn choose(logits: &[f64], bias: &[f64], shape: &RouterShape) -> (Vec<i32>, Vec<f64>) {
    let scores: Vec<f64> = logits.iter().map(|&logit| sigmoid(logit)).collect();
    let mut keys: Vec<f64> = scores.iter().zip(bias).map(|(s, b)| s + b).collect();
    let size = keys.len() / shape.n_group;
    if shape.n_group > 1 {
        let group_keys: Vec<f64> = keys
            .chunks_exact(size)
            .map(|group| {
                let mut group = group.to_vec();
                group.sort_by(|a, b| b.total_cmp(a));
                group.iter().take(2).sum()
            })
            .collect();
        let kept = best(&group_keys, shape.topk_group);
        for (id, key) in keys.iter_mut().enumerate() {
            if !kept.contains(&(id / size)) {
                *key = f64::NEG_INFINITY;
            }
        }
    }
    let ids = best(&keys, shape.top_k);
    let sum = if shape.norm_topk_prob {
        ids.iter().map(|&id| scores[id]).sum::<f64>() + 1e-20
    } else {
        1.0
    };
    let weights = ids
        .iter()
        .map(|&id| scores[id] / sum * f64::from(shape.scaling))
        .collect();
    (ids.iter().map(|&id| id as i32).collect(), weights)
}

fn best(keys: &[f64], k: usize) -> Vec<usize> {
    let mut chosen = Vec::new();
    for _ in 0..k {
        let next = (0..keys.len())
            .filter(|id| !chosen.contains(id))
            .reduce(|a, b| if keys[b] > keys[a] { b } else { a });
        chosen.extend(next);
    }
    chosen
}
