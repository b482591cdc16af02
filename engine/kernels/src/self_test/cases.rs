//! One case per operation: inputs, the call, the comparison.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::inputs::{Numbers, round, scatter, upload, wide};
use super::oracle::{self, HeadConstants, HeadToken};
use super::{Outcome, Shapes};
use crate::{Arithmetic, ExpertMatrices, KvPool, Layout, Routing, StatePool, with_f32};

const EPS: f32 = 1e-5;

/// f32 sums of some thousand terms stay within this.
const TOLERANCE: f64 = 1e-4;

impl Shapes {
    /// A rounding of an inner activation may fall the other way than in f64, and then differs by a
    /// 256th.
    fn inner_tolerance(&self) -> f64 {
        match self.arithmetic {
            Arithmetic::F32 => TOLERANCE,
            Arithmetic::Bf16 => 2e-2,
        }
    }

    /// Weights that keep a sum of `k` products near one.
    fn weights(&self, numbers: &mut Numbers, n: usize, k: usize) -> Vec<f32> {
        let scale = 2.0 / (k as f32).sqrt();
        numbers.vector(n * k, scale, self.weights)
    }
}

/// Largest error, infinite where a NaN appears.
fn worst(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len(), "shape of a result");
    got.iter()
        .zip(want)
        .map(|(&got, &want)| {
            let error = (f64::from(got) - want).abs() / (1.0 + want.abs());
            if error.is_nan() { f64::INFINITY } else { error }
        })
        .fold(0.0, f64::max)
}

fn outcome<const D: usize>(
    operation: &'static str,
    got: &Tensor<D>,
    want: &[f64],
    tolerance: f64,
) -> Outcome {
    Outcome {
        operation,
        max_error: with_f32(got, |got| worst(got, want)),
        tolerance,
    }
}

/// The same numbers, NaN for NaN: for what must be copied or left alone.
fn untouched<const D: usize>(operation: &'static str, got: &Tensor<D>, want: &[f32]) -> Outcome {
    let same = with_f32(got, |got| {
        got.len() == want.len()
            && got
                .iter()
                .zip(want)
                .all(|(got, want)| got == want || (got.is_nan() && want.is_nan()))
    });
    Outcome {
        operation,
        max_error: if same { 0.0 } else { f64::INFINITY },
        tolerance: 0.0,
    }
}

/// Token ids to vectors.
pub fn embed(device: &Device, shapes: &Shapes) -> Outcome {
    let numbers = &mut Numbers::new(shapes.seed);
    let (vocab_size, width) = (shapes.num_tokens() + 7, shapes.hidden);
    let table = numbers.vector(vocab_size * width, 1.0, shapes.weights);
    let ids: Vec<u32> = (0..shapes.num_tokens())
        .map(|_| numbers.below(vocab_size) as u32)
        .collect();
    let want: Vec<f32> = ids
        .iter()
        .flat_map(|&id| &table[id as usize * width..][..width])
        .copied()
        .collect();
    let table = upload(&table, [vocab_size, width], shapes.weights, device);
    untouched("embedding", &crate::embedding(&table, &ids), &want)
}

/// A weight product with a bias.
pub fn product(device: &Device, shapes: &Shapes) -> Outcome {
    product_with(device, shapes, shapes.arithmetic)
}

/// The same, computed in another arithmetic than the one it is compared in: shows what the
/// tolerance can tell apart.
pub fn product_with(device: &Device, shapes: &Shapes, arithmetic: Arithmetic) -> Outcome {
    let numbers = &mut Numbers::new(shapes.seed);
    let (m, n, k) = (shapes.num_tokens(), shapes.intermediate, shapes.hidden);
    let x = numbers.vector(m * k, 1.0, DType::F32);
    let w = shapes.weights(numbers, n, k);
    let bias = numbers.vector(n, 1.0, shapes.weights);
    let want = oracle::linear(
        &wide(&x),
        &wide(&w),
        Some(&wide(&bias)),
        k,
        shapes.arithmetic,
    );
    let got = crate::linear(
        upload(&x, [m, k], DType::F32, device),
        &upload(&w, [n, k], shapes.weights, device),
        Some(&upload(&bias, [n], shapes.weights, device)),
        arithmetic,
    );
    outcome("linear", &got, &want, TOLERANCE)
}

/// The dense MLP, with and without biases by turns of the seed.
pub fn mlp(device: &Device, shapes: &Shapes) -> Outcome {
    let numbers = &mut Numbers::new(shapes.seed);
    let (m, n, k) = (shapes.num_tokens(), shapes.intermediate, shapes.hidden);
    let x = numbers.vector(m * k, 1.0, DType::F32);
    let (up, down) = (shapes.weights(numbers, n, k), shapes.weights(numbers, k, n));
    let biases = (shapes.seed % 2 == 0).then(|| {
        (
            numbers.vector(n, 1.0, shapes.weights),
            numbers.vector(k, 1.0, shapes.weights),
        )
    });
    let wide_biases = biases.as_ref().map(|(up, down)| (wide(up), wide(down)));
    let (up_bias, down_bias) = match &wide_biases {
        Some((up, down)) => (Some(&up[..]), Some(&down[..])),
        None => (None, None),
    };
    let hidden = oracle::linear(&wide(&x), &wide(&up), up_bias, k, shapes.arithmetic);
    let want = oracle::linear(
        &oracle::relu2(&hidden),
        &wide(&down),
        down_bias,
        n,
        shapes.arithmetic,
    );
    let biases = biases.map(|(up, down)| {
        (
            upload(&up, [n], shapes.weights, device),
            upload(&down, [k], shapes.weights, device),
        )
    });
    let got = crate::mlp_relu2(
        upload(&x, [m, k], DType::F32, device),
        &upload(&up, [n, k], shapes.weights, device),
        biases.as_ref().map(|biases| &biases.0),
        &upload(&down, [k, n], shapes.weights, device),
        biases.as_ref().map(|biases| &biases.1),
        shapes.arithmetic,
    );
    outcome("mlp_relu2", &got, &want, shapes.inner_tolerance())
}

/// The plain norm, and the one fused with the residual.
pub fn norms(device: &Device, shapes: &Shapes) -> Vec<Outcome> {
    let numbers = &mut Numbers::new(shapes.seed);
    let (m, width) = (shapes.num_tokens(), shapes.hidden);
    let x = numbers.vector(m * width, 3.0, DType::F32);
    let residual = numbers.vector(m * width, 3.0, DType::F32);
    let weight = numbers.vector(width, 2.0, shapes.weights);
    let sum: Vec<f32> = residual.iter().zip(&x).map(|(a, b)| a + b).collect();
    let want = |x: &[f32]| oracle::norm(&wide(x), &wide(&weight), width, f64::from(EPS));

    let weight_tensor = upload(&weight, [width], shapes.weights, device);
    let x_tensor = upload(&x, [m, width], DType::F32, device);
    let plain = crate::rms_norm(x_tensor.clone(), &weight_tensor, EPS);
    let residual = upload(&residual, [m, width], DType::F32, device);
    let (got_sum, fused) = crate::add_rms_norm(residual, x_tensor, &weight_tensor, EPS);
    vec![
        outcome("rms_norm", &plain, &want(&x), TOLERANCE),
        untouched("add_rms_norm: sum", &got_sum, &sum),
        outcome("add_rms_norm", &fused, &want(&sum), TOLERANCE),
    ]
}

/// Gate, then norm by groups.
pub fn gated_norm(device: &Device, shapes: &Shapes) -> Outcome {
    let numbers = &mut Numbers::new(shapes.seed);
    let (m, inner, columns) = (
        shapes.num_tokens(),
        shapes.mamba.inner(),
        shapes.mamba.projected(),
    );
    let y = numbers.vector(m * inner, 2.0, DType::F32);
    let projected = numbers.vector(m * columns, 8.0, DType::F32);
    let weight = numbers.vector(inner, 2.0, shapes.weights);
    let gated: Vec<f64> = (0..m * inner)
        .map(|at| {
            let z = projected[at / inner * columns + at % inner];
            f64::from(y[at]) * oracle::silu(f64::from(z))
        })
        .collect();
    let groups = shapes.mamba.groups;
    let want = oracle::norm(&gated, &wide(&weight), inner / groups, f64::from(EPS));
    let got = crate::gated_group_norm(
        upload(&y, [m, inner], DType::F32, device),
        &upload(&projected, [m, columns], DType::F32, device),
        &upload(&weight, [inner], shapes.weights, device),
        groups,
        EPS,
    );
    outcome("gated_group_norm", &got, &want, TOLERANCE)
}

/// The write of keys and values, and attention over them.
pub fn attention(device: &Device, shapes: &Shapes) -> Vec<Outcome> {
    let numbers = &mut Numbers::new(shapes.seed);
    let (heads, kv_heads, head_dim) = (shapes.heads, shapes.kv_heads, shapes.head_dim);
    let (m, width) = (shapes.num_tokens(), kv_heads * head_dim);
    let (layout, num_blocks, _) = scatter(&shapes.rows, shapes.block_size, numbers);
    let q = numbers.vector(m * heads * head_dim, 3.0, DType::F32);
    let pool_shape = [num_blocks, shapes.block_size, kv_heads, head_dim];

    // What is cached before, what this step brings, and what must be cached after it.
    let side = |numbers: &mut Numbers| {
        let mut before = vec![f32::NAN; pool_shape.iter().product()];
        let mut after = before.clone();
        let mut new = Vec::with_capacity(m * width);
        let mut rows = Vec::new();
        for row in &layout.rows {
            let mut positions = Vec::new();
            for position in 0..row.context_len() {
                let vector = numbers.vector(width, 1.0, DType::F32);
                let stored: Vec<f32> = vector.iter().map(|&x| round(x, shapes.kv)).collect();
                let at = (row.blocks[position / shapes.block_size] as usize * shapes.block_size
                    + position % shapes.block_size)
                    * width;
                after[at..at + width].copy_from_slice(&stored);
                if position < row.start {
                    before[at..at + width].copy_from_slice(&stored);
                } else {
                    new.extend(vector);
                }
                positions.push(wide(&stored));
            }
            rows.push(positions);
        }
        (before, after, new, rows)
    };
    let (keys_before, keys_after, k, keys) = side(numbers);
    let (values_before, values_after, v, values) = side(numbers);

    let pool = KvPool {
        keys: upload(&keys_before, pool_shape, shapes.kv, device),
        values: upload(&values_before, pool_shape, shapes.kv, device),
    };
    let pool = crate::cache_write(
        pool,
        upload(&k, [m, width], DType::F32, device),
        upload(&v, [m, width], DType::F32, device),
        &layout,
    );
    let q_tensor = upload(&q, [m, heads * head_dim], DType::F32, device);
    let got = crate::paged_attention(q_tensor, &pool, heads, &layout);

    let mut want = Vec::new();
    for (row, (keys, values)) in layout.rows.iter().zip(keys.iter().zip(&values)) {
        for (position, token) in (row.start..).zip(row.tokens.clone()) {
            for head in 0..heads {
                let kv_head = head / (heads / kv_heads);
                let cut = |vectors: &[Vec<f64>]| -> Vec<Vec<f64>> {
                    vectors[..=position]
                        .iter()
                        .map(|vector| vector[kv_head * head_dim..][..head_dim].to_vec())
                        .collect()
                };
                let query = &q[(token * heads + head) * head_dim..][..head_dim];
                want.extend(oracle::attend(&wide(query), &cut(keys), &cut(values)));
            }
        }
    }
    vec![
        untouched("cache_write: keys", &pool.keys, &keys_after),
        untouched("cache_write: values", &pool.values, &values_after),
        outcome("paged_attention", &got, &want, TOLERANCE),
    ]
}

/// State pools of the mixer whose slots are NaN but for the rows' own, and those rows' contents.
struct States {
    layout: Layout,
    num_slots: usize,
    conv: Vec<f32>,
    ssm: Vec<f32>,
}

impl States {
    fn new(shapes: &Shapes, numbers: &mut Numbers) -> Self {
        let (layout, _, num_slots) = scatter(&shapes.rows, shapes.block_size, numbers);
        let mamba = &shapes.mamba;
        let conv_len = mamba.conv_dim() * (mamba.conv_kernel - 1);
        let ssm_len = mamba.inner() * mamba.state;
        let mut conv = vec![f32::NAN; num_slots * conv_len];
        let mut ssm = vec![f32::NAN; num_slots * ssm_len];
        for row in &layout.rows {
            conv[row.slot * conv_len..][..conv_len].copy_from_slice(&numbers.vector(
                conv_len,
                2.0,
                DType::F32,
            ));
            ssm[row.slot * ssm_len..][..ssm_len].copy_from_slice(&numbers.vector(
                ssm_len,
                1.0,
                DType::F32,
            ));
        }
        Self {
            layout,
            num_slots,
            conv,
            ssm,
        }
    }

    fn upload(&self, shapes: &Shapes, device: &Device) -> StatePool {
        let mamba = &shapes.mamba;
        StatePool {
            conv: upload(
                &self.conv,
                [self.num_slots, mamba.conv_dim(), mamba.conv_kernel - 1],
                DType::F32,
                device,
            ),
            ssm: upload(
                &self.ssm,
                [self.num_slots, mamba.heads, mamba.head_dim, mamba.state],
                DType::F32,
                device,
            ),
        }
    }
}

/// The convolution and the recurrence, each with its state.
pub fn conv_and_scan(device: &Device, shapes: &Shapes) -> Vec<Outcome> {
    let numbers = &mut Numbers::new(shapes.seed);
    let states = States::new(shapes, numbers);
    let mut outcomes = conv(device, shapes, &states, numbers);
    outcomes.extend(scan(device, shapes, &states, numbers));
    outcomes
}

fn conv(device: &Device, shapes: &Shapes, states: &States, numbers: &mut Numbers) -> Vec<Outcome> {
    let mamba = &shapes.mamba;
    let (m, channels, kernel) = (shapes.num_tokens(), mamba.conv_dim(), mamba.conv_kernel);
    let (columns, history) = (mamba.projected(), kernel - 1);
    let projected = numbers.vector(m * columns, 2.0, DType::F32);
    let weight = numbers.vector(channels * kernel, 1.0, shapes.weights);
    let bias = (shapes.seed % 2 == 0).then(|| numbers.vector(channels, 1.0, shapes.weights));

    let mut want = vec![0.0; m * channels];
    let mut want_state = states.conv.clone();
    for row in &states.layout.rows {
        for channel in 0..channels {
            let state = &mut want_state[(row.slot * channels + channel) * history..][..history];
            let mut window = state.to_vec();
            window.extend(
                row.tokens
                    .clone()
                    .map(|token| projected[token * columns + mamba.inner() + channel]),
            );
            let weight = wide(&weight[channel * kernel..][..kernel]);
            let bias = bias.as_ref().map_or(0.0, |bias| f64::from(bias[channel]));
            let out = oracle::conv(&wide(&window), &weight, bias);
            for (token, value) in row.tokens.clone().zip(out) {
                want[token * channels + channel] = value;
            }
            state.copy_from_slice(&window[window.len() - history..]);
        }
    }

    let bias = bias.map(|bias| upload(&bias, [channels], shapes.weights, device));
    let (got, pool) = crate::causal_conv1d(
        &upload(&projected, [m, columns], DType::F32, device),
        &upload(&weight, [channels, 1, kernel], shapes.weights, device),
        bias.as_ref(),
        states.upload(shapes, device),
        mamba,
        &states.layout,
    );
    vec![
        outcome("causal_conv1d", &got, &want, TOLERANCE),
        untouched("causal_conv1d: state", &pool.conv, &want_state),
        untouched("causal_conv1d: other state", &pool.ssm, &states.ssm),
    ]
}

fn scan(device: &Device, shapes: &Shapes, states: &States, numbers: &mut Numbers) -> Vec<Outcome> {
    let mamba = &shapes.mamba;
    let (m, heads, head_dim, n) = (
        shapes.num_tokens(),
        mamba.heads,
        mamba.head_dim,
        mamba.state,
    );
    let (inner, channels, columns) = (mamba.inner(), mamba.conv_dim(), mamba.projected());
    let xbc = numbers.vector(m * channels, 1.0, DType::F32);
    // dt far beyond where the softplus turns linear, and far below.
    let projected = numbers.vector(m * columns, 30.0, DType::F32);
    let a: Vec<f32> = numbers
        .vector(heads, 2.0, DType::F32)
        .iter()
        .map(|a_log| -a_log.exp())
        .collect();
    let d = numbers.vector(heads, 1.0, DType::F32);
    let dt_bias = numbers.vector(heads, 3.0, DType::F32);

    let mut want = vec![0.0; m * inner];
    let mut want_state = wide(&states.ssm);
    for row in &states.layout.rows {
        for head in 0..heads {
            let constants = HeadConstants {
                a: f64::from(a[head]),
                d: f64::from(d[head]),
                dt_bias: f64::from(dt_bias[head]),
                limit: shapes.time_step_limit,
            };
            let group = head / (heads / mamba.groups);
            let state = &mut want_state[(row.slot * heads + head) * head_dim * n..];
            for token in row.tokens.clone() {
                let now = wide(&xbc[token * channels..][..channels]);
                let y = oracle::scan(
                    &mut state[..head_dim * n],
                    &HeadToken {
                        x: &now[head * head_dim..][..head_dim],
                        b: &now[inner + group * n..][..n],
                        c: &now[inner + (mamba.groups + group) * n..][..n],
                        dt: f64::from(projected[token * columns + inner + channels + head]),
                    },
                    &constants,
                    mamba,
                );
                want[token * inner + head * head_dim..][..head_dim].copy_from_slice(&y);
            }
        }
    }

    let constants = |values: &[f32]| upload(values, [heads], DType::F32, device);
    let (got, pool) = crate::ssm_scan(
        upload(&xbc, [m, channels], DType::F32, device),
        &upload(&projected, [m, columns], DType::F32, device),
        &constants(&a),
        &constants(&d),
        &constants(&dt_bias),
        shapes.time_step_limit,
        states.upload(shapes, device),
        mamba,
        &states.layout,
    );
    // States may be near in every row's slot, and must be NaN still in every other.
    let strangers_kept = with_f32(&pool.ssm, |got| {
        got.iter()
            .zip(&want_state)
            .all(|(got, want)| got.is_nan() == want.is_nan())
    });
    let state_error = with_f32(&pool.ssm, |got| {
        let (got, want): (Vec<f32>, Vec<f64>) = got
            .iter()
            .zip(&want_state)
            .filter(|(_, want)| !want.is_nan())
            .map(|(&got, &want)| (got, want))
            .unzip();
        worst(&got, &want)
    });
    vec![
        outcome("ssm_scan", &got, &want, 10.0 * TOLERANCE),
        Outcome {
            operation: "ssm_scan: state",
            max_error: if strangers_kept {
                state_error
            } else {
                f64::INFINITY
            },
            tolerance: TOLERANCE,
        },
    ]
}

/// Choice and weights of the router. Inputs are small binary fractions, so that logits are exact,
/// ties are real ties and the choice must agree to the last id.
pub fn router(device: &Device, shapes: &Shapes) -> Outcome {
    let numbers = &mut Numbers::new(shapes.seed);
    let (m, k, experts) = (shapes.num_tokens(), shapes.hidden, shapes.num_experts);
    let coarse = |numbers: &mut Numbers, len: usize| -> Vec<f32> {
        (0..len)
            .map(|_| (numbers.below(5) as f32 - 2.0) / 8.0)
            .collect()
    };
    let x = coarse(numbers, m * k);
    let gate = coarse(numbers, experts * k);
    let bias: Vec<f32> = (0..experts)
        .map(|_| numbers.below(4) as f32 / 64.0)
        .collect();
    let logits = oracle::linear(&wide(&x), &wide(&gate), None, k, Arithmetic::F32);
    let (mut want_ids, mut want_weights) = (Vec::new(), Vec::new());
    for logits in logits.chunks_exact(experts) {
        let (ids, weights) = oracle::choose(logits, &wide(&bias), &shapes.router);
        want_ids.extend(ids);
        want_weights.extend(weights);
    }
    let routing = crate::router_topk(
        &upload(&x, [m, k], DType::F32, device),
        &upload(&gate, [experts, k], shapes.weights, device),
        &upload(&bias, [experts], DType::F32, device),
        &shapes.router,
    );
    let ids = routing
        .ids
        .try_to_vec_as::<i32>()
        .expect("ids read back as i32");
    let mut outcome = outcome("router_topk", &routing.weights, &want_weights, TOLERANCE);
    if ids != want_ids {
        outcome.max_error = f64::INFINITY;
    }
    outcome
}

/// The routed experts, their weights fused or apart by turns of the seed.
pub fn experts(device: &Device, shapes: &Shapes) -> Outcome {
    let numbers = &mut Numbers::new(shapes.seed);
    let (m, experts, top_k) = (shapes.num_tokens(), shapes.num_experts, shapes.router.top_k);
    let (k, n) = (shapes.expert_hidden, shapes.expert_intermediate);
    let v = numbers.vector(m * k, 1.0, DType::F32);
    let ups: Vec<Vec<f32>> = (0..experts)
        .map(|_| shapes.weights(numbers, n, k))
        .collect();
    let downs: Vec<Vec<f32>> = (0..experts)
        .map(|_| shapes.weights(numbers, k, n))
        .collect();
    let (mut ids, mut weights) = (Vec::new(), Vec::new());
    for _ in 0..m {
        ids.extend(
            numbers.permutation(experts)[..top_k]
                .iter()
                .map(|&id| id as i32),
        );
        weights.extend(numbers.vector(top_k, 1.0, DType::F32));
    }

    let mut want = vec![0.0; m * k];
    for (token, want) in want.chunks_exact_mut(k).enumerate() {
        let v = wide(&v[token * k..][..k]);
        for choice in token * top_k..(token + 1) * top_k {
            let expert = ids[choice] as usize;
            let hidden = oracle::linear(&v, &wide(&ups[expert]), None, k, shapes.arithmetic);
            let hidden = oracle::relu2(&hidden);
            let out = oracle::linear(&hidden, &wide(&downs[expert]), None, n, shapes.arithmetic);
            for (want, out) in want.iter_mut().zip(out) {
                *want += f64::from(weights[choice]) * out;
            }
        }
    }

    let matrices = |each: &[Vec<f32>], [n, k]: [usize; 2]| {
        if shapes.seed % 2 == 0 {
            let all = each.concat();
            ExpertMatrices::Fused(upload(&all, [experts, n, k], shapes.weights, device))
        } else {
            ExpertMatrices::PerExpert(
                each.iter()
                    .map(|one| upload(one, [n, k], shapes.weights, device))
                    .collect(),
            )
        }
    };
    let routing = Routing {
        ids: Tensor::<2, Int>::from_data(TensorData::new(ids, [m, top_k]), device),
        weights: upload(&weights, [m, top_k], DType::F32, device),
    };
    let got = crate::moe_experts(
        upload(&v, [m, k], DType::F32, device),
        &matrices(&ups, [n, k]),
        &matrices(&downs, [k, n]),
        &routing,
        shapes.arithmetic,
    );
    outcome("moe_experts", &got, &want, shapes.inner_tolerance())
}

/// The slot and block moves of a plan.
pub fn copies(device: &Device, shapes: &Shapes) -> Vec<Outcome> {
    let numbers = &mut Numbers::new(shapes.seed);
    let states = States::new(shapes, numbers);
    let mamba = &shapes.mamba;
    let conv_len = mamba.conv_dim() * (mamba.conv_kernel - 1);
    let ssm_len = mamba.inner() * mamba.state;
    // From a row's slot to the padding slot, which is NaN; then the row's slot is zeroed.
    let slot = states.layout.rows[0].slot;
    let moved = |values: &[f32], len: usize| {
        let mut values = values.to_vec();
        values.copy_within(slot * len..(slot + 1) * len, 0);
        values[slot * len..(slot + 1) * len].fill(0.0);
        values
    };
    let pool = crate::copy_slot(states.upload(shapes, device), slot, 0);
    let pool = crate::zero_slot(pool, slot);

    let block_shape = [3, shapes.block_size, shapes.kv_heads, shapes.head_dim];
    let block_len: usize = block_shape[1..].iter().product();
    let mut keys = numbers.vector(3 * block_len, 1.0, shapes.kv);
    let mut values = numbers.vector(3 * block_len, 1.0, shapes.kv);
    let blocks = crate::copy_block(
        KvPool {
            keys: upload(&keys, block_shape, shapes.kv, device),
            values: upload(&values, block_shape, shapes.kv, device),
        },
        2,
        1,
    );
    keys.copy_within(2 * block_len.., block_len);
    values.copy_within(2 * block_len.., block_len);
    vec![
        untouched("slots: conv", &pool.conv, &moved(&states.conv, conv_len)),
        untouched("slots: ssm", &pool.ssm, &moved(&states.ssm, ssm_len)),
        untouched("blocks: keys", &blocks.keys, &keys),
        untouched("blocks: values", &blocks.values, &values),
    ]
}
